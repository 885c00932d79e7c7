"""Steps are done once, redone only when something they depend on changes, and never left half done."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.training import tiny_steps
from training.errors import DataError, OutOfMemoryError, StepError
from training.pipeline.stages import ROOT, Step, building_folder, meaning, run_steps


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.was_cached: list[str] = []
        self.was_finished: list[str] = []
        self.said: list[tuple[str, str]] = []

    def cached(self, step: Step) -> None:
        self.was_cached.append(step.label)

    def started(self, step: Step) -> None: ...

    def advanced(self, step: Step, done: float, total: float, note: str) -> None:
        self.said.append((step.label, note))

    def finished(self, step: Step, seconds: float) -> None:
        self.was_finished.append(step.label)


def step(label: str, text: str = "", **needs: Step) -> Step:
    return Step("tiny", label, tiny_steps.write, {"text": text or label}, needs)


def run(runs: Path, *targets: Step, workers: int = 2) -> Notes:
    notes = Notes()
    run_steps(targets, runs, workers=workers, watcher=notes)
    return notes


def test_a_step_is_given_the_folders_of_what_it_needs(tmp_path: Path):
    a, b = step("a"), step("b")
    both = step("both", "!", first=a, second=b)

    notes = run(tmp_path, both)

    assert (both.folder(tmp_path) / "text").read_text() == "ab!"
    assert sorted(notes.was_finished) == ["a", "b", "both"]
    assert ("both", "!") in notes.said


def test_a_second_run_does_nothing_and_a_change_redoes_only_what_depends_on_it(tmp_path: Path):
    run(tmp_path, step("end", first=step("a"), second=step("b")))
    again = run(tmp_path, step("end", first=step("a"), second=step("b")))
    changed = run(tmp_path, step("end", first=step("a", "A"), second=step("b")))

    assert again.was_finished == []
    assert sorted(again.was_cached) == ["a", "b", "end"]
    assert changed.was_cached == ["b"]
    assert sorted(changed.was_finished) == ["a", "end"]


def test_of_the_steps_that_could_start_the_one_with_the_longest_way_behind_it_goes_first(tmp_path: Path):
    """What everything else waits for is not started last."""
    short, first = step("short"), step("first")
    end = step("end", one=step("second", one=first), two=short)

    notes = run(tmp_path, short, end, workers=1)

    assert notes.was_finished[0] == "first"


def test_a_changed_source_file_changes_the_key():
    """Cached results never outlive the code that made them."""
    plain = Step("s", "l", tiny_steps.write, {})
    with_code = Step("s", "l", tiny_steps.write, {}, code=("training/pipeline/stages.py",))
    with_folder = Step("s", "l", tiny_steps.write, {}, code=("training",))
    with_package = Step("s", "l", tiny_steps.write, {}, code=("package:torch",))
    with_place = Step("s", "l", tiny_steps.write, {}, places={"where": "elsewhere"})

    assert len({plain.key, with_code.key, with_folder.key, with_package.key}) == 4
    assert with_place.key == plain.key


def test_only_what_code_does_counts_not_how_it_looks():
    """A comment, a docstring or a line break does not train everything again; a number does."""
    before = 'def f(x):\n    """Twice."""\n    return 2 * x\n'
    dressed = 'def f(\n    x,\n):\n    """Double."""\n    # as said\n    return 2 * x\n'
    changed = before.replace("2", "3")

    assert meaning(before) == meaning(dressed)
    assert meaning(before) != meaning(changed)


def test_a_refused_input_ends_the_run_with_its_own_words_and_keeps_what_was_finished(tmp_path: Path):
    good = step("good")
    bad = Step("tiny", "bad", tiny_steps.refuse, {}, {"first": good})

    with pytest.raises(DataError, match=r"^line 3 is bad$"):
        run(tmp_path, bad)

    assert good.is_done(tmp_path)
    assert not bad.is_done(tmp_path)


def test_an_error_that_is_tolerated_costs_the_steps_that_need_it_and_no_others(tmp_path: Path):
    good = step("good")
    bad = Step("tiny", "bad", tiny_steps.refuse, {}, {"first": good})
    behind, beside = step("behind", first=bad), step("beside", first=good)

    failed = run_steps([behind, beside], tmp_path, workers=1, watcher=Notes(), tolerated=(DataError,))

    assert {key: str(error) for key, error in failed.items()} == dict.fromkeys((bad.key, behind.key), "line 3 is bad")
    assert beside.is_done(tmp_path)
    assert run_steps([beside], tmp_path, workers=1, watcher=Notes(), tolerated=(DataError,)) == {}


def test_a_bug_is_reported_with_its_place(tmp_path: Path):
    with pytest.raises(StepError, match=r"(?s)tiny/bug failed.*tiny_steps.py.*ZeroDivisionError"):
        run(tmp_path, Step("tiny", "bug", tiny_steps.stumble))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("fill_up", r"^step tiny/full: .*logit\.npy: No space left on device; make room, then the same command"),
        ("misread", r"^step tiny/full: fields\.price: expected a number, got none$"),
    ],
)
def test_what_a_person_can_mend_is_said_without_a_trace(what: str, said: str, tmp_path: Path):
    with pytest.raises(StepError, match=said):
        run(tmp_path, Step("tiny", "full", getattr(tiny_steps, what)))


def test_two_steps_that_do_the_same_under_two_names_have_a_folder_each(tmp_path: Path):
    """A control that happens to equal a teacher is still found where a control lies."""
    one, two = step("one", "same"), step("two", "same")

    run(tmp_path, one, two)

    assert one.is_done(tmp_path)
    assert two.is_done(tmp_path)


def test_a_killed_process_is_an_error_with_advice_not_a_hang(tmp_path: Path):
    with pytest.raises(StepError, match="its process died, as one does when memory runs out"):
        run(tmp_path, Step("tiny", "dead", tiny_steps.die))


def test_of_steps_side_by_side_the_one_that_was_killed_is_named_with_its_own_advice(tmp_path: Path):
    """The pool ends its others too, and the dead says nothing any more: it said so before."""
    began = str(tmp_path / "began")
    beside = Step("tiny", "beside", tiny_steps.wait_after, {"file": began})
    killed = Step("tiny", "killed", tiny_steps.die_with_advice, {"after": began})

    with pytest.raises(StepError) as refusal:
        run(tmp_path, beside, killed)

    said = str(refusal.value)
    assert said.startswith("step tiny/killed: its process died, as one does when memory runs out (exit code -9), 1")
    assert said.endswith("; lower student.options.dim (it is 64)")
    assert not list(tmp_path.glob("tiny/*"))


@pytest.mark.parametrize("kind", ["numpy", "torch", "python"])
def test_whoever_finds_no_memory_is_refused_with_advice_and_without_a_trace(kind: str, tmp_path: Path):
    demanding = Step("tiny", kind, tiny_steps.demand, {"kind": kind}, if_out_of_memory="read less of the log")

    with pytest.raises(OutOfMemoryError, match=rf"^step tiny/{kind}: memory ran out \(.*\); read less of the log$"):
        run(tmp_path, demanding)


def test_a_step_finds_again_what_it_kept_under_way_and_nothing_else(tmp_path: Path):
    """Until it is complete; then that is gone."""
    again = Step("tiny", "again", tiny_steps.go_on, {"until": 3})

    for times in (1, 2):
        with pytest.raises(DataError, match=f"begun {times} times"):
            run(tmp_path, again)
        assert not list(tmp_path.glob("tiny/*/half-done"))
    run(tmp_path, again)

    assert (again.folder(tmp_path) / "text").read_text() == "['half-done', 'under-way']"
    assert {path.name for path in again.folder(tmp_path).iterdir()} == {"half-done", "text"}


def test_what_another_run_can_go_on_from_is_kept_for_a_day(tmp_path: Path):
    """A changed recipe may be changed back; a forgotten one does not fill the disk."""
    another = Step("tiny", "another", tiny_steps.go_on, {"until": 2})
    with pytest.raises(DataError):
        run(tmp_path, another)
    kept = building_folder(another.folder(tmp_path)) / "under-way" / "times"

    run(tmp_path, step("a"))
    assert kept.exists()

    os.utime(kept, (time.time() - 90_000,) * 2)
    run(tmp_path, step("b"))
    assert not kept.parent.parent.exists()


def test_ctrl_c_keeps_finished_steps_and_leaves_nothing_half_done(tmp_path: Path):
    """The signal goes to the whole group, as a terminal sends it."""
    program = textwrap.dedent(f"""
        import signal
        import sys
        from pathlib import Path
        from tests.training import tiny_steps
        from tests.training.test_stages import run, step
        from training.pipeline.stages import Step
        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
            endless = Step("tiny", "endless", tiny_steps.wait_for, {{"file": {str(tmp_path / "never")!r}}}, {{}})
            try:
                run(Path({str(tmp_path)!r}), step("quick"), endless)
            except KeyboardInterrupt:
                sys.exit(130)
    """)
    script = tmp_path / "program.py"
    script.write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (list(tmp_path.glob("tiny/quick-*")) and list(tmp_path.glob("tiny/.building-endless*"))):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)

    os.killpg(process.pid, signal.SIGINT)

    assert process.wait(timeout=20) == 130
    assert step("quick").is_done(tmp_path)
    assert not list(tmp_path.glob("tiny/*endless*"))


def test_a_killed_program_leaves_nobody_computing_behind(tmp_path: Path):
    """SIGKILL gives the program no chance to stop those it started: they notice by themselves."""
    program = textwrap.dedent(f"""
        from pathlib import Path
        from tests.training import tiny_steps
        from tests.training.test_stages import run
        from training.pipeline.stages import Step
        if __name__ == "__main__":
            run(Path({str(tmp_path)!r}), Step("tiny", "worker", tiny_steps.say_who, {{}}, {{}}))
    """)
    script = tmp_path / "program.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (said := [path for path in tmp_path.glob("tiny/.building-*/pid") if path.read_text()]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert said[0].read_text() in children
    assert len(children) >= 3, "the worker, who passes events on, and Python's own tracker of resources"

    process.kill()
    process.wait()

    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
