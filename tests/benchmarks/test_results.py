"""From turns to figures: medians over rounds, ratios within a round, percentiles over everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.contenders import FLOOR, NAIVE, RETORT, BenchmarkError, Cell, Contender, Sample
from benchmarks.predict import check_same_answers
from benchmarks.results import Turns, table, write_block
from benchmarks.workload import AdRequest


def sample(rate: float, cpu_ms: float = 1.0, latency_ms: tuple[float, ...] = (1.0,)) -> Sample:
    return Sample(rate, cpu_ms, np.array(latency_ms), 0.1)


def three_rounds() -> Turns:
    turns = Turns(Cell("student", 50, 8))
    for ours, naive, floor in ((100, 50, 200), (300, 100, 400), (200, 50, 500)):
        turns.add(RETORT, sample(ours, latency_ms=(1.0, 2.0)))
        turns.add(NAIVE, sample(naive, cpu_ms=4.0))
        turns.add(FLOOR, sample(floor))
    return turns


def test_a_ratio_is_taken_within_a_round_and_only_then_the_median():
    """Rounds differ when a neighbour is busy; both of a pair suffer then, and their ratio does not."""
    turns = three_rounds()

    ratio = turns.ratio(RETORT, NAIVE, lambda one: one.requests_per_second)
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 4.0)
    ratio = turns.ratio(RETORT, FLOOR, lambda one: one.requests_per_second)
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.4, 0.75)


def test_percentiles_are_over_all_rounds_together():
    """A 99th percentile of one short turn would be its slowest request."""
    turns = three_rounds()

    assert turns.percentile(RETORT, 50) == 1.5
    assert turns.requests(RETORT) == 6


def test_the_table_marks_a_percentile_of_too_few_requests():
    """Six requests say nothing about the slowest hundredth."""
    head, rule, row = table([three_rounds()]).splitlines()

    assert head.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(
        "| 50 | 8 | 200 (100-300) | 50 (50-100) | 400 (200-500) | 3.00 (2.00-4.00) | 0.50 (0.40-0.75)"
    )
    assert "1.50, 2.00~" in row


def test_a_block_of_a_document_is_replaced_and_the_rest_left_alone(tmp_path: Path):
    """What people wrote around the table stays."""
    document = tmp_path / "benchmarks.md"
    document.write_text("before\n<!-- predict: begin -->\nold \\1\n<!-- predict: end -->\nafter\n")

    write_block(document, "predict", "new \\1 $0\n")
    write_block(document, "predict", "newer \\1 $0\n")

    assert document.read_text() == ("before\n<!-- predict: begin -->\n\nnewer \\1 $0\n\n<!-- predict: end -->\nafter\n")


@pytest.mark.parametrize("text", ["", "<!-- predict: end --> <!-- predict: begin -->", "<!-- predict: begin -->"])
def test_a_document_without_the_block_is_refused(tmp_path: Path, text: str):
    """Rather than written to at some place."""
    document = tmp_path / "benchmarks.md"
    document.write_text(text)

    with pytest.raises(ValueError, match="expected one line"):
        write_block(document, "predict", "new")


def test_contenders_that_disagree_are_not_compared():
    """A service that answers something else may be as fast as it likes."""

    def contender(name: str, pctr: list[float]) -> Contender:
        return Contender(name, lambda cell, seconds: sample(1), lambda model, request: pctr, 1)

    request = AdRequest("u", {}, [{}, {}])
    floor, same = contender(FLOOR, [0.1, 0.2]), contender(RETORT, [0.1, 0.2 + 5e-7])
    check_same_answers([same, floor], ["student"], {2: [request]})

    for wrong in ([0.1, 0.3], [0.1], [0.1, float("nan")]):
        with pytest.raises(BenchmarkError, match=r"naive and session\.run disagree on student, request 0"):
            check_same_answers([same, contender(NAIVE, wrong), floor], ["student"], {2: [request]})


def test_the_document_has_a_place_for_the_table(tmp_path: Path):
    """`--write docs/benchmarks.md` finds its block."""
    document = tmp_path / "benchmarks.md"
    document.write_text((Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8"))

    write_block(document, "predict", "| a | table |\n")

    assert "| a | table |" in document.read_text()
