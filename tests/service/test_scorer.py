"""One session that is proven at load, and the queue that shares runs among requests."""

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.bundle import read_bundle
from models.encoder import EncodedRows
from service.errors import ModelLoadError
from service.scoring.scorer import Scorer, ScoringQueue, TimeEstimate
from tests.models.tiny_bundle import REQUESTS, tiny_model
from tests.service.bundles import write_other_inputs, write_slow_ensemble, write_wrong_golden


def load(repository: Path, name: str) -> Scorer:
    return Scorer(read_bundle(repository / name / "1"))


def test_golden_rows_are_scored_at_load(repository: Path):
    """A bundle whose graph answers as its golden rows say is ready, warm, and knows about how long a run takes."""
    scorer = load(repository, "student")

    assert 0 < scorer.estimate.seconds(4) < 1
    assert not scorer.is_ensemble
    assert load(repository, "ensemble").is_ensemble


def test_a_graph_that_scores_otherwise_is_refused(tmp_path: Path):
    """Every byte may be as the manifest says, and the model still be another: a thousandth of a logit is enough."""
    write_wrong_golden(tmp_path, "student")

    with pytest.raises(ModelLoadError, match="request 0: logit") as caught:
        load(tmp_path, "student")

    assert caught.value.reason == "golden"


def test_a_graph_with_other_inputs_is_refused(tmp_path: Path):
    """The schema says what goes in; a graph that wants more cannot be fed."""
    write_other_inputs(tmp_path, "student")

    with pytest.raises(ModelLoadError, match="extra") as caught:
        load(tmp_path, "student")

    assert caught.value.reason == "graph"


def test_requests_joined_in_one_run_score_as_they_do_alone(repository: Path):
    """Contexts, candidates and sequences of several requests in one run; each request's scores are its own."""
    scorer = load(repository, "student")
    encoder = scorer.bundle.encoder
    contexts = [encoder.encode_context(context) for context, _ in REQUESTS]
    candidates = [encoder.encode_candidates(rows) for _, rows in REQUESTS]

    together = scorer.score(contexts, candidates)

    alone = [scorer.score([context], [rows]) for context, rows in zip(contexts, candidates, strict=True)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-6)
    expected = [tiny_model().score(c, r)[1] for c, r in zip(contexts, candidates, strict=True)]
    np.testing.assert_allclose(together, np.concatenate(expected), rtol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-6, 1)), max_size=30), st.integers(1, 4000))
def test_an_estimate_lies_among_what_was_seen(observed: list[tuple[int, float]], rows: int):
    """Never negative, never beyond the slowest run in proportion to its size; 0 where nothing was seen."""
    estimate = TimeEstimate()
    for size, seconds in observed:
        estimate.observe(size, seconds)

    seconds = estimate.seconds(rows)

    assert (seconds == 0) == (not observed)
    bound = max((s * max(1.0, 2.0 ** math.ceil(math.log2(rows)) / n) * 2 for n, s in observed), default=0)
    assert 0 <= seconds <= bound * (1 + 1e-9)


def test_an_estimate_rises_quickly_and_falls_slowly():
    """A missed deadline costs more than a refused request: slow runs count for more than quick ones."""
    estimate = TimeEstimate()
    for seconds in (0.001, 0.010):
        estimate.observe(50, seconds)
    risen = estimate.seconds(50)
    estimate.observe(50, 0.001)

    assert risen - 0.001 > 2 * (risen - estimate.seconds(50))


def test_a_larger_run_is_expected_to_take_longer():
    """Sizes never seen are taken from those that were: in proportion upward, the same downward."""
    estimate = TimeEstimate()
    estimate.observe(64, 0.001)

    assert estimate.seconds(200) == pytest.approx(0.004)
    assert estimate.seconds(1) == pytest.approx(0.001)


class CountingScorer:
    """A scorer whose scores are its candidates' first ids, and that remembers the runs it was asked for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.runs: list[list[int]] = []
        self.estimate = TimeEstimate()
        if seconds:
            self.estimate.observe(1, seconds)

    def note_run(self, rows: int, seconds: float | None) -> None:
        """It has no circuit."""

    def score(self, contexts: Sequence[Any], candidates: Sequence[Any]) -> Any:
        assert len(contexts) == len(candidates)
        self.runs.append([len(rows.ids) for rows in candidates])
        return np.concatenate([rows.ids[:, 0] for rows in candidates]).astype(np.float32)


def rows(*ids: int) -> EncodedRows:
    return EncodedRows(np.array([[i] for i in ids], dtype=np.int32), {}, {}, {}, 0)


async def submit(
    queue: ScoringQueue, scorer: CountingScorer, *ids: int, due: float | None = None
) -> list[float] | None:
    job = await queue.score(scorer, rows(0), rows(*ids), len(ids), due)  # type: ignore[arg-type]
    if job.error is not None:
        raise job.error
    return None if job.pctr is None else job.pctr.tolist()


def test_what_waits_together_is_scored_together():
    """Requests of one turn of the loop share a run; the next turn's are another."""
    scorer = CountingScorer()

    async def two_bursts() -> list[Any]:
        queue = ScoringQueue(max_rows=64)
        first = await asyncio.gather(submit(queue, scorer, 1), submit(queue, scorer, 2, 3), submit(queue, scorer, 4))
        return [*first, await submit(queue, scorer, 5)]

    assert asyncio.run(two_bursts()) == [[1], [2, 3], [4], [5]]
    assert scorer.runs == [[1, 2, 1], [1]]


def test_a_run_is_not_joined_beyond_its_rows_and_no_request_is_split():
    """What does not fit waits for the next run, in order of arrival; one large request is a run of its own."""
    scorer = CountingScorer()

    async def burst() -> list[Any]:
        queue = ScoringQueue(max_rows=4)
        sizes = ([1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11, 12], [13])
        return await asyncio.gather(*(submit(queue, scorer, *ids) for ids in sizes))

    assert asyncio.run(burst()) == [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11, 12], [13]]
    assert scorer.runs == [[3], [2, 1], [6], [1]]


@pytest.mark.parametrize(("seconds", "runs"), [(0.0005, [[50] * 5, [50]]), (0.002, [[50]] * 6)])
def test_beyond_a_few_rows_only_requests_of_a_quick_model_share_a_run(seconds: float, runs: list[list[int]]):
    """64 rows in half a millisecond: 250 in two, and six requests of 50 are two runs. In two: a run of 100 would keep
    everybody waiting for four."""
    scorer = CountingScorer()
    scorer.estimate.observe(64, seconds)

    async def burst() -> list[Any]:
        queue = ScoringQueue(max_rows=256)
        return await asyncio.gather(*(submit(queue, scorer, *range(50 * n, 50 * n + 50)) for n in range(6)))

    assert asyncio.run(burst()) == [[float(i) for i in range(50 * n, 50 * n + 50)] for n in range(6)]
    assert scorer.runs == runs


def test_a_slow_model_takes_a_few_rows_together_all_the_same():
    """At one candidate a request even its runs are mostly not arithmetic."""
    scorer = CountingScorer(seconds=1.0)

    async def burst() -> list[Any]:
        queue = ScoringQueue(max_rows=256)
        return await asyncio.gather(*(submit(queue, scorer, n) for n in range(70)))

    assert asyncio.run(burst()) == [[float(n)] for n in range(70)]
    assert scorer.runs == [[1] * 64, [1] * 6]


def test_a_busy_moment_is_not_the_model_s_slowness():
    """What it may share is judged by its quickest runs: else a busy machine would join less, and be busier for it."""
    scorer = CountingScorer()
    scorer.estimate.observe(256, 0.002)
    scorer.estimate.observe(256, 0.5)

    assert scorer.estimate.best_seconds(200) == pytest.approx(0.002)
    assert scorer.estimate.seconds(200) > 0.05


def test_models_take_turns():
    """A burst for one model does not keep another's request waiting for all of it."""
    order: list[str] = []
    busy, quick = CountingScorer(), CountingScorer()

    async def note(name: str, wait: Any) -> None:
        await wait
        order.append(name)

    async def burst() -> None:
        queue = ScoringQueue(max_rows=1)
        waits = [note("busy", submit(queue, busy, number)) for number in range(5)]
        await asyncio.gather(*waits, note("quick", submit(queue, quick, 1)))

    asyncio.run(burst())

    assert order.index("quick") <= 2


def test_a_job_that_cannot_be_ready_in_time_is_not_run():
    """It is told at once, so that another model may still answer; the others are scored."""
    scorer = CountingScorer(seconds=0.05)

    async def burst() -> list[Any]:
        queue = ScoringQueue(max_rows=64)
        now = time.perf_counter()
        return await asyncio.gather(
            submit(queue, scorer, 1, due=now + 0.01), submit(queue, scorer, 2), submit(queue, scorer, 3, due=now + 10)
        )

    assert asyncio.run(burst()) == [None, [2], [3]]


def test_company_makes_nobody_late():
    """A request with just enough time for itself is not joined by one that would take the rest of it."""
    scorer = CountingScorer()
    scorer.estimate.observe(1, 0.010)
    scorer.estimate.observe(64, 5.0)

    async def burst() -> list[Any]:
        queue = ScoringQueue(max_rows=64)
        now = time.perf_counter()
        return await asyncio.gather(submit(queue, scorer, 1, due=now + 1.0), submit(queue, scorer, *range(2, 50)))

    assert asyncio.run(burst()) == [[1], list(range(2, 50))]
    assert scorer.runs == [[1], [48]]


def test_a_failing_run_fails_its_requests_alone():
    """The exception reaches those that were in the run; the queue goes on."""

    class Failing(CountingScorer):
        bundle = type("Bundle", (), {"name": "m", "version": 1})

        def score(self, contexts: Sequence[Any], candidates: Sequence[Any]) -> Any:
            raise RuntimeError("broken")

    failing, healthy = Failing(), CountingScorer()

    async def burst() -> list[Any]:
        queue = ScoringQueue(max_rows=64)
        jobs = (submit(queue, failing, 1), submit(queue, healthy, 2), submit(queue, failing, 3))
        return [*await asyncio.gather(*jobs, return_exceptions=True), await submit(queue, healthy, 4)]

    first, second, third, fourth = asyncio.run(burst())

    assert isinstance(first, RuntimeError)
    assert isinstance(third, RuntimeError)
    assert (second, fourth) == ([2], [4])


def test_a_slow_bundle_is_slow(tmp_path: Path):
    """The collaborator of the deadline tests does take its time, or they would prove nothing."""
    write_slow_ensemble(tmp_path)

    assert load(tmp_path, "ensemble").estimate.seconds(4) > 0.011
