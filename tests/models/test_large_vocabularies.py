"""A million values in a field: written, read back, and every id where it was.

How long that takes is asked by `python -m benchmarks.vocabularies`.
"""

import functools
from typing import Any

import pytest

from models.bundle import Bundle, read_bundle, write_bundle
from models.encoder import Encoder
from models.errors import VocabularyError
from models.golden import Golden, GoldenRequest
from tests.models.building import schema_of
from tests.models.tiny_bundle import tiny_card, tiny_graph, tiny_model

MILLION = 1_000_000
SPOTS = (0, 1, 2, 999, 123_456, 500_000, 654_321, MILLION - 2, MILLION - 1)


@functools.cache
def integers() -> list[int]:
    """Distinct and scattered over 64 bits, negative ones among them."""
    return [number * 0x9E3779B97F4A7C15 % 2**64 - 2**63 for number in range(MILLION)]


@functools.cache
def strings() -> list[str]:
    return [f"user-{number + 2**63:016x}" for number in integers()]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two fields of a million values each, as a service reads them. The graph is another's: nothing here runs it."""
    schema = schema_of({"name": "user"}, {"name": "item", "type": "integer"})
    encoder = Encoder(schema, {"user": strings(), "item": list(map(str, integers()))})
    model = tiny_model()
    path = write_bundle(
        tmp_path_factory.mktemp("repository"),
        "large",
        encoder=encoder,
        card=tiny_card(model),
        golden=Golden(requests=(GoldenRequest(context={}, candidates=({},), logit=(0.0,), pctr=(0.5,)),)),
        model=tiny_graph(model),
    )
    return read_bundle(path)


def ids_of(bundle: Bundle, *rows: dict[str, Any]) -> list[list[int]]:
    """[user, item] of each row, through the service's path."""
    return bundle.encoder.encode_candidates(rows).ids.tolist()


def test_a_million_values_keep_their_ids(bundle: Bundle):
    """0 is missing, 1 unknown, so the first of them is 2 and the last a million and 1."""
    rows = [{"user": strings()[place], "item": integers()[place]} for place in SPOTS]

    assert bundle.encoder.sizes == {"user": MILLION + 2, "item": MILLION + 2}
    assert ids_of(bundle, *rows) == [[place + 2, place + 2] for place in SPOTS]


def test_beside_a_million_values_others_are_unknown(bundle: Bundle):
    """Also those that look alike: another case, a digit less, the next integer."""
    near = integers()[500_000] + 1
    assert near not in set(integers())

    found = ids_of(
        bundle,
        {"user": strings()[0].upper(), "item": near},
        {"user": strings()[1][:-1], "item": 2**64 - 1},
        {"user": "", "item": None},
    )

    assert found == [[1, 1], [1, 1], [0, 0]]


def test_a_million_values_are_read_back_as_they_were_written(bundle: Bundle):
    vocabularies = bundle.encoder.to_vocabularies()

    assert vocabularies["user"] == strings()
    assert vocabularies["item"] == list(map(str, integers()))


def test_one_value_twice_in_a_million_is_found(bundle: Bundle):
    """The check that every value stands once is not a matter of size."""
    with pytest.raises(VocabularyError, match="field 'user': a value stands twice"):
        Encoder(bundle.schema, {"user": [*strings()[:-1], strings()[0]], "item": ["1"]})
