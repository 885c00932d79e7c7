"""Candidates by their raw bytes: an answer is the same to the byte whether the cache knows its candidates or not."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from models.encoder import Encoder
from models.errors import EncodeError
from service.scoring.candidates import ENTRY_BYTES, CandidateCache, take_apart
from tests.models.tiny_bundle import tiny_model, write_tiny_bundle
from tests.service.running import CONTEXT, ask, candidate, make_app, metric, request_of, started
from tests.service.test_refusals import names, requests


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def pieces_of(*numbers: int, **more: Any) -> list[bytes]:
    taken = take_apart(compact({"candidates": [{**candidate(number), **more} for number in numbers]}), 1000)
    assert taken is not None
    return taken[2]


SPELLINGS = [
    lambda value: json.dumps(value).encode(),
    compact,
    lambda value: json.dumps(value, indent=1).encode(),
    lambda value: json.dumps(value, separators=(" ,", " : ")).encode(),
]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("first", [True, False], ids=["candidates-first", "candidates-last"])
def test_a_body_is_taken_apart_only_where_it_can_be_put_together_again(spell: Any, first: bool):
    """The envelope with the list of the pieces' objects is what a JSON reader makes of the body; or nothing is."""
    members = {"candidates": [candidate(1), {}, {"ad_id": 'é \\ " ]'}], "context": CONTEXT, "unit_id": "u"}
    body = spell(members if first else dict(reversed(members.items())))

    taken = take_apart(body, 1000)

    if taken is None:
        assert b"} ]" in body or b"}\n" in body
        return
    envelope, _, pieces = taken
    read = [json.loads(b"{" + piece.rstrip().removesuffix(b",")) for piece in pieces]
    assert (read, envelope.context, envelope.unit_id) == (members["candidates"], CONTEXT, "u")


def is_object(piece: bytes) -> bool:
    try:
        return isinstance(json.loads(b"{" + piece.rstrip().removesuffix(b",")), dict)
    except ValueError:
        return False


NOT_TAKEN = [
    b"",
    b"{}",
    b"[1]",
    b'{"candidates":[]}',
    b'{"candidates":{"a":[1]}}',
    b'{"candidates":[{}],"x":1}',
    b'{"candidates":[{}],"candidates":[{}]}',
    b'{"candidates":[{}],"c\\u0061ndidates":[]}',
    b'{"candidates":[{}],"context":{"candidates":1}}',
    b'{"context":{"candidates":[{}]}}',
    b'{"context":{"x":"\\"candidates":[{}]}}',
    b'{"x\\"candidates":[{}]}',
    b'{"candidates":[{}],"unit_id":[]}',
    b'{"candidates":[{}]e1}',
    b'{"candidates":[{}]"unit_id":1}',
    b'{"candidates":[{}],}',
    b'{"candidates":[{}]} x',
    b'{"candidates":[{}]',
    b'{"candidates":[{}],"unit_id":"\xff"}',
    b'{"candidates":[{}],"context":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    b'{"candidates":[{}],"request_id":"' + b"x" * (1 << 15) + b'"}',
    b'{"candidates":[' + b"{}," * 1000 + b"{}]}",
]


@pytest.mark.parametrize("body", NOT_TAKEN, ids=lambda body: repr(body[:50]))
def test_what_is_uncommon_goes_the_usual_way(body: bytes):
    """No list of objects, unknown or repeated members, no JSON, too much of it: it is not cut, or not into objects."""
    taken = take_apart(body, 1000)

    assert taken is None or not all(map(is_object, taken[2]))


NO_OBJECTS = [
    b'"a":1',
    b'"a":1,',
    b'"a":1},"b":2},',
    b'"a":1},,',
    b'"a":1},5,',
    b"} },",
    b'"a":"x},',
    b"1},",
    b"",
    b'"a":NaN},',
    b'"a":1e999},',
    b'"ad_id":"\xff"},',
    b'"ad_id":"\\ud800"},',
    b'"nonsense":99999999999999999999},',
    b'"price":"text"},',
]


@pytest.mark.parametrize("piece", NO_OBJECTS, ids=repr)
def test_what_is_no_good_object_is_never_kept(piece: bytes):
    """Neither alone nor among good ones: what is cached was valid by itself."""
    cache = CandidateCache(tiny_model().encoder, 1 << 20)
    good = pieces_of(*range(20))
    for one in good:
        assert cache.encode([one]) is None  # it alone is all new
    encoder = tiny_model().encoder
    rows = [candidate(number) for number in range(20)]
    cache.learn(b"", good, rows, encoder.encode_candidates(rows))
    assert len(cache) == 20

    assert cache.encode([*good, piece]) is None
    assert cache.encode([piece, *good]) is None

    assert len(cache) == 20
    assert cache.encode(good) is not None


def test_pieces_that_are_other_objects_than_the_rows_are_not_learned():
    """A cut within a string can give as many pieces as there are rows; their lengths tell."""
    cache = CandidateCache(tiny_model().encoder, 1 << 20)
    body = b'{"candidates":[{"ad_id":"a1"} , {"ad_id":"x},{y"}]}'
    swapped = body.replace(b"} , {", b"} ,\x0b{")  # no JSON, but cut all the same
    for text in (body, swapped):
        taken = take_apart(text, 1000)
        assert taken is not None
        rows = [{"ad_id": "a1"}, {"ad_id": "x},{y"}, {}][: len(taken[2])]
        cache.learn(text, taken[2], rows, tiny_model().encoder.encode_candidates(rows))

    assert len(cache) == 0


feature_values = st.one_of(
    st.none(),
    st.sampled_from(["a1", "a2", "never seen", "", "{", "}", "},{", "]", '"', "\\", "é", 'x},{"price":1']),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.sampled_from(["sport", "none", "", None]), max_size=6),
)
candidates = st.dictionaries(names, feature_values, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(candidates, min_size=1, max_size=8), min_size=1, max_size=4), st.sampled_from([0, 400, 1 << 20])
)
def test_the_cache_gives_what_the_encoder_gives(several: list[list[dict[str, Any]]], max_bytes: int):
    """Ids, sequences and counts of ignored values, whether all, some or none of the candidates are known, whatever
    has been dropped meanwhile; or it gives nothing."""
    encoder = tiny_model().encoder
    cache = CandidateCache(encoder, max_bytes)
    for rows in several * 2:
        body = compact({"candidates": rows})
        taken = take_apart(body, 1000)
        if taken is None:
            continue
        known = cache.encode(taken[2])
        try:
            expected = encoder.encode_candidates(msgspec.json.decode(body)["candidates"])
        except EncodeError:
            assert known is None
            continue
        if known is None:
            cache.learn(body, taken[2], rows, expected)
            continue
        np.testing.assert_array_equal(known.ids, expected.ids)
        assert known.ids.dtype == expected.ids.dtype
        assert known.ids.flags.c_contiguous
        for name, ragged in expected.sequences.items():
            for got, wanted in zip(known.sequences[name], ragged, strict=True):
                np.testing.assert_array_equal(got, wanted)
                assert got.dtype == wanted.dtype
        assert known.ignored == expected.ignored
        assert cache.size_bytes <= max_bytes


def test_known_candidates_are_found_and_few_new_ones_among_them_are_learned():
    """One new in four is encoded alone; more than that, and the whole body is quicker."""
    encoder = tiny_model().encoder
    cache, counted = CandidateCache(encoder, 1 << 20), []
    cache.count = lambda *counts: counted.append(counts)
    rows = [candidate(number) for number in range(10)]
    assert cache.encode(pieces_of(*range(10))) is None
    cache.learn(b"", pieces_of(*range(10)), rows, encoder.encode_candidates(rows))

    found = [cache.encode(pieces_of(*range(start, start + 10))) for start in (0, 2, 6, 2)]

    assert [one is not None for one in found] == [True, True, False, True]
    assert counted == [(0, 10, 0), (10, 0, 0), (8, 2, 0), (6, 4, 0), (10, 0, 0)]


def test_the_cache_stays_within_its_bytes_and_keeps_what_is_asked_for():
    """A thousand ads through room for forty: those asked for again and again stay."""
    encoder = tiny_model().encoder
    size = len(pieces_of(1)[0]) + ENTRY_BYTES + 200
    cache, evicted = CandidateCache(encoder, 40 * size), []
    cache.count = lambda hits, misses, gone: evicted.append(gone)

    def learn(number: int) -> None:
        rows = [candidate(number)]
        cache.learn(b"", pieces_of(number), rows, encoder.encode_candidates(rows))

    learn(0)
    for number in range(1, 40):
        for other in range(50):
            rows = [{**candidate(number), "campaign": other}]
            cache.learn(b"", pieces_of(number, campaign=other), rows, encoder.encode_candidates(rows))
            assert cache.encode(pieces_of(0)) is not None
            assert cache.size_bytes <= 40 * size

    assert sum(evicted) > 1000
    assert 10 < len(cache) <= 100


def test_the_same_bytes_mean_other_ids_to_another_version(tmp_path: Path):
    """Two versions of a model whose vocabularies differ: each scores by its own, also when both have seen the ad."""
    schema = tiny_model().encoder.schema
    values = tiny_model().encoder.to_vocabularies()
    turned = Encoder(schema, {**values, "ad_id": list(reversed(values["ad_id"]))})
    first, second = CandidateCache(tiny_model().encoder, 1 << 20), CandidateCache(turned, 1 << 20)
    rows = [candidate(number) for number in (1, 2)]
    for cache, encoder in ((first, tiny_model().encoder), (second, turned)):
        cache.learn(b"", pieces_of(1, 2), rows, encoder.encode_candidates(rows))

    ids = [cache.encode(pieces_of(1, 2)).ids[:, 0].tolist() for cache in (first, second)]  # type: ignore[union-attr]

    assert ids == [[3, 4], [40, 39]]


def learned(encoder: Encoder, *numbers: int) -> CandidateCache:
    cache = CandidateCache(encoder, 1 << 20)
    rows = [candidate(number) for number in numbers]
    cache.learn(b"", pieces_of(*numbers), rows, encoder.encode_candidates(rows))
    return cache


def test_the_next_version_knows_the_ads_of_the_one_before_by_its_own_vocabulary():
    """So that it does not begin by decoding every candidate of every request. What does not fit it is left out, with
    the few that were encoded together with it."""
    model = tiny_model()
    values = model.encoder.to_vocabularies()
    turned = Encoder(model.encoder.schema, {**values, "ad_id": list(reversed(values["ad_id"]))})
    before = learned(model.encoder, *range(40)).latest(100)
    after = CandidateCache(turned, 1 << 20)

    after.warm([*before, b'"price":"much"},'])

    assert len(after) == 32
    found = after.encode(before[:32])
    wanted = turned.encode_candidates([candidate(number) for number in reversed(range(8, 40))])
    assert found is not None
    np.testing.assert_array_equal(found.ids, wanted.ids)


def test_the_latest_of_a_cache_are_told_first_and_no_more_than_asked_for():
    cache = learned(tiny_model().encoder, 1, 2, 3)
    off = CandidateCache(tiny_model().encoder, 0)

    off.warm(cache.latest(100))

    assert cache.latest(2) == pieces_of(3)[-1:] + pieces_of(2)[-1:]
    assert (len(off), off.latest(5)) == (0, [])


def test_scores_are_the_same_from_bytes_and_from_values_to_the_byte(tmp_path: Path):
    """An application that remembers and one that does not, the same requests twice: versions old and new, both
    spellings of candidates; and what is counted of values agrees, too."""
    for name, bias in (("student", 0.0), ("ensemble", 1.0)):
        write_tiny_bundle(tmp_path, name, bias=bias, teachers=3 if name == "ensemble" else 0)
    bodies = [
        compact(request_of(*range(start, start + 9), request_id=f"r{start}", unit_id=start, **more))
        for start in range(12)
        for more in ({}, {"arm": "student"}, {"arm": "ensemble", "deadline_ms": 60_000})
    ]
    bodies += [compact({"candidates": [{**candidate(1), "nonsense": 1}, {}], "request_id": "r"})] * 3

    async def answers(cache_bytes: int) -> tuple[list[bytes], str]:
        async with started(make_app(tmp_path, candidate_cache_bytes=cache_bytes)) as app:
            replies = [await ask(app, "/predict", body) for body in bodies * 2]
            text = (await ask(app, "/metrics", method="GET")).body.decode()  # type: ignore[union-attr]
            return [reply.body for reply in replies if reply is not None and reply.status == 200], text

    remembered, counted = asyncio.run(answers(1 << 20))
    forgotten, expected = asyncio.run(answers(0))

    assert len(remembered) == 2 * len(bodies)
    assert remembered == forgotten
    assert metric(counted, "retort_candidate_cache_total", outcome="hit") > 500
    assert metric(expected, "retort_candidate_cache_total") == 0
    for name in ("missing_values_total", "unknown_values_total", "ignored_fields_total", "pctr_sum", "candidates_sum"):
        assert metric(counted, f"retort_{name}") == pytest.approx(metric(expected, f"retort_{name}"))


wholes = st.builds(
    lambda request, spell: spell(request),
    requests
    | st.fixed_dictionaries({"context": candidates, "candidates": st.lists(candidates, min_size=1, max_size=6)}),
    st.sampled_from(SPELLINGS[:3]),
)


@pytest.fixture(scope="module")
def forgetful(repository: Path) -> Any:
    with TestClient(make_app(repository, candidate_cache_bytes=0), raise_server_exceptions=False) as client:
        while client.get("/health/ready").status_code != 200:
            pass
        yield client


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=wholes, cut=st.none() | st.tuples(st.integers(0, 400), st.sampled_from([b"", b"{", b"}", b",", b'"', b"]"]))
)
@example(body=b'{"candidates":[{"ad_id":"a1"},{"ad_id":"a2"}]}', cut=None)
def test_whatever_the_body_remembering_changes_no_answer(
    client: TestClient, forgetful: TestClient, body: bytes, cut: tuple[int, bytes] | None
):
    """Good or bad, once and again: status, code, field, row and scores."""
    if cut is not None:
        body = body[: cut[0]] + cut[1] + body[cut[0] :]

    def outcome(asked: TestClient) -> Any:
        reply = asked.post("/predict", content=body, headers={"content-type": "application/json"})
        return reply.status_code, {k: v for k, v in reply.json().items() if k != "request_id"}

    first, second, expected = outcome(client), outcome(client), outcome(forgetful)

    assert first[0] == second[0] == expected[0]
    for other in (first, second):
        if other[1].get("arm") == expected[1].get("arm"):  # without a unit each request goes to an arm of its own
            assert other == expected
