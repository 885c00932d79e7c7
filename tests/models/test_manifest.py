"""What the manifest's parts promise of themselves."""

import numpy as np
import pytest
from pydantic import ValidationError

from models.manifest import FieldReference, Histogram, ModelCard
from tests.models.tiny_bundle import tiny_card, tiny_model


def test_a_field_reference_keeps_the_most_frequent_ids():
    """Missing and unknown always, even at zero; the rest in one number; nothing is lost."""
    ids = np.array([2] * 5 + [3] * 4 + [7] * 3 + [9] * 2 + [0])

    reference = FieldReference.from_ids(ids, top=2)

    assert (reference.ids, reference.counts, reference.other) == ((0, 1, 2, 3), (1, 0, 5, 4), 5)
    assert sum(reference.counts) + reference.other == len(ids)


def test_a_field_reference_of_nothing_is_empty():
    """A field without a row."""
    assert FieldReference.from_ids(np.array([], dtype=int)) == FieldReference(ids=(0, 1), counts=(0, 0), other=0)


def test_a_histogram_counts_every_probability():
    """0 and 1 themselves among them."""
    histogram = Histogram.of_probabilities(np.array([0.0, 0.1, 0.5, 1.0]), bins=2)

    assert histogram == Histogram(edges=(0.0, 0.5, 1.0), counts=(2, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Histogram(edges=(0.0, 1.0), counts=(1, 2)),
        lambda: Histogram(edges=(1.0, 0.0), counts=(1,)),
        lambda: FieldReference(ids=(1, 1), counts=(1, 2), other=0),
        lambda: FieldReference(ids=(1,), counts=(1, 2), other=0),
        lambda: FieldReference(ids=(), counts=(), other=-1),
    ],
)
def test_a_histogram_that_is_none_is_refused(make):
    """Edges that do not grow, counts that are too many, an id counted twice."""
    with pytest.raises(ValidationError):
        make()


def test_a_card_reads_back_from_its_json():
    """So that a stage may keep it in a file."""
    card = tiny_card(tiny_model(), teachers=2)

    assert ModelCard.model_validate_json(card.model_dump_json()) == card
