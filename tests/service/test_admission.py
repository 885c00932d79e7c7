"""Who is let in, as arithmetic: a burst is, and of lasting overload no more than can be answered soon."""

import pytest

from service.scoring.admission import CALM_RUNS, CALM_SECONDS, Admission, places_of


class Runs:
    """How many runs of a graph there have been."""

    count = 0

    def __call__(self) -> int:
        return self.count


def crowd(admission: Admission, requests: int, places: int = 1) -> int:
    """How many of so many are let in."""
    admitted = 0
    for _ in range(requests):
        if admission.is_full:
            admission.note_refusal()
        else:
            admission.take(places)
            admitted += 1
    return admitted


@pytest.mark.parametrize(("rows", "places"), [(1, 1), (11, 1), (12, 2), (47, 4), (48, 5), (1000, 5)])
def test_many_candidates_take_more_places(rows: int, places: int):
    assert places_of(rows) == places


def test_a_burst_is_let_in_as_far_as_there_are_places():
    """The last may take more than are left: it is not known before it is read how many."""
    assert crowd(Admission(100, Runs(), clock=lambda: 0.0), 200) == 100
    assert crowd(Admission(100, Runs(), clock=lambda: 0.0), 200, places=5) == 20
    assert crowd(Admission(1, Runs(), clock=lambda: 0.0), 3, places=5) == 1


def test_a_burst_that_was_too_large_changes_nothing():
    """What is refused within one run may have come while the process did not get to run."""
    runs = Runs()
    admission = Admission(100, runs, clock=lambda: 0.0)
    for _ in range(10):
        assert crowd(admission, 200) == 100
        runs.count += 1
        admission.free(60)
        assert crowd(admission, 50) == 50  # by the next run nobody is refused
        runs.count += 1
        admission.free(90)


def overloaded(runs: Runs) -> Admission:
    """A hundred places, and refusals in two runs on end."""
    admission = Admission(100, runs, clock=lambda: 0.0)
    for _ in range(2):
        crowd(admission, 200)
        runs.count += 1
        admission.free(25)
    return admission


def test_refused_in_two_runs_on_end_fewer_are_let_in():
    """Two fifths, and none at all until what was let in before is down to that."""
    runs = Runs()
    admission = overloaded(runs)
    found = []
    for _ in range(20):
        crowd(admission, 50)
        found.append(admission.in_flight)
        runs.count += 1
        admission.free(25)

    assert found[:3] == [75, 50, 40]
    assert set(found[3:]) == {40}


def test_overload_is_over_when_some_runs_refused_nobody():
    """However full it is then, and not before."""
    runs = Runs()
    admission = overloaded(runs)
    admission.free(admission.in_flight)
    for _ in range(CALM_RUNS - 1):
        runs.count += 1
        assert crowd(admission, 40) == 40
        admission.free(40)
    assert crowd(admission, 41) == 40

    admission.free(40)
    for _ in range(CALM_RUNS + 1):
        runs.count += 1
        assert crowd(admission, 40) == 40
        admission.free(40)
    assert crowd(admission, 200) == 100


class Clock:
    """Seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_overload_is_forgotten_where_nobody_asks():
    """There are no runs then: a burst that comes hours later is a burst."""
    runs, clock = Runs(), Clock()
    admission = Admission(100, runs, clock)
    for _ in range(2):
        crowd(admission, 200)
        runs.count += 1
    admission.free(admission.in_flight)
    assert admission.is_overloaded
    assert crowd(admission, 200) == 40
    admission.free(40)

    clock.now += CALM_SECONDS + 1

    assert not admission.is_overloaded
    assert crowd(admission, 200) == 100


def test_refusals_of_one_moment_and_of_hours_later_are_not_one_overload():
    """Though there was but one run between them."""
    runs, clock = Runs(), Clock()
    admission = Admission(100, runs, clock)
    crowd(admission, 200)
    runs.count += 1
    clock.now += CALM_SECONDS + 1

    crowd(admission, 200)

    assert not admission.is_overloaded


@pytest.mark.parametrize("places", [1, 2, 3, 8])
def test_few_places_always_let_somebody_in(places: int):
    """However long overload lasts."""
    runs = Runs()
    admission = Admission(places, runs, clock=lambda: 0.0)
    for _ in range(20):
        assert crowd(admission, 10) > 0
        runs.count += 1
        admission.free(admission.in_flight)
