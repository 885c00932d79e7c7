"""Training on a GPU: the same program with the same answers, tried here as far as a machine without one can.

`meta` stands in for a GPU where devices must not be mixed: torch refuses to, and a number made elsewhere is found out.
What torch's own operators compute, which a GPU runs in place of the compiled look-ups, is compared on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training import tiny_steps
from tests.training.small_log import FIELDS, write_small_log
from tests.training.test_distill import some_targets
from tests.training.test_stages import Notes
from training.data.encoded_log import EncodedLog, Part
from training.distillation.distill import DistillOptions, EnsembleTargets, StudentLearner, fit_student
from training.distillation.ensemble import store_hints
from training.distillation.together import Cotrain, CoTraining, Mutual, MutualLearning, TeacherSpec, fit_together
from training.errors import OutOfMemoryError, RecipeError
from training.fit import devices, optimizer
from training.fit.checkpoint import Checkpoint
from training.fit.devices import gpus
from training.fit.loop import ClickLearner, FitOptions, Learner, NetworkSpec, fit, score
from training.fit.memory import what_to_lower
from training.fit.precision import multiplies_bfloat16
from training.pipeline.stages import Step, run_steps
from training.recipe import load_recipe
from training.zoo import NETWORKS, embedding, options_of, pieces

META = torch.device("meta")
SMALL = {"dim": 4, "hidden": [8, 6], "init_sd": 0.1}
QUICK = FitOptions(learning_rate=0.01, batch_rows=128, max_epochs=2, averaged_steps=5, embedding_l2=1e-3)
TAUGHT = DistillOptions(**QUICK.model_dump(), losses={"soft": 1.0, "hint": 0.2, "mse": 0.1}, auxiliary_head=True)

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=1500)


def spec_of(name: str) -> NetworkSpec:
    return NetworkSpec(network=name, options={key: SMALL[key] for key in SMALL if key in options_of(name)})


TEACHERS = {name: TeacherSpec(spec_of(name), QUICK) for name in ("deepfm", "autoint")}


# which device


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, local_rank: int | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    rank = str(local_rank or 0)
    started = {"WORLD_SIZE": "4", "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in started.items():
        if local_rank is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_gpus_are_used_where_there_are_some_unless_a_recipe_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    assert gpus("auto") == gpus("cuda") == ("cuda:0", "cuda:1")
    assert gpus("cuda:1") == ("cuda:1",)
    assert gpus("cpu") == ()

    with_gpus(monkeypatch, 0)
    assert gpus("auto") == gpus("cpu") == ()


def test_a_gpu_that_is_not_there_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    for setting in ("cuda", "cuda:0"):
        with pytest.raises(RecipeError, match=f"^device: {setting}: expected a CUDA GPU, but torch .*say device: cpu"):
            gpus(setting)

    with_gpus(monkeypatch, 2)
    with pytest.raises(RecipeError, match="device: cuda:2: expected a number below 2, as many GPUs as torch sees"):
        gpus("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cuda:0,1", "mps", "cpu\n", ""])
def test_a_name_that_is_none_is_refused_by_the_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match="device"):
        load_recipe("synthetic", [f"device={name!r}".replace("\\n", "\n")])
    with pytest.raises(RecipeError, match="expected auto, cpu, cuda or cuda:<number>"):
        gpus(name)


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2, local_rank=1)
    assert gpus("auto") == gpus("cuda") == ("cuda:1",)
    with pytest.raises(RecipeError, match="expected cuda, of which each process of torchrun takes its own"):
        gpus("cuda:0")

    with_gpus(monkeypatch, 2, local_rank=2)
    with pytest.raises(
        RecipeError, match="got process 2 of torchrun and 2 GPUs; start torchrun with --nproc-per-node 2"
    ):
        gpus("auto")


# steps and GPUs


class Recorder(Notes):
    """Who ran at once."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = 0
        self.most = 0

    def started(self, step: Step) -> None:
        super().started(step)
        self.at_once += step.stage == "tiny"
        self.most = max(self.most, self.at_once)

    def finished(self, step: Step, seconds: float) -> None:
        super().finished(step, seconds)
        self.at_once -= step.stage == "tiny"


@pytest.mark.parametrize("count", [1, 2])
def test_a_gpu_has_one_step_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four steps and four workers: as many run at once as there are GPUs, each told its own; others run beside."""
    with_gpus(monkeypatch, count)
    steps = [Step("tiny", f"fit-{n}", tiny_steps.say_where, device="auto") for n in range(4)]
    watcher = Recorder()

    run_steps([*steps, Step("beside", "them", tiny_steps.write, {"text": "x"})], tmp_path, workers=4, watcher=watcher)

    assert watcher.most == count
    said = {(step.folder(tmp_path) / "device").read_text() for step in steps}
    assert said == {f"cuda:{number}" for number in range(count)}


def test_without_a_gpu_steps_are_told_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_gpus(monkeypatch, 0)
    step = Step("tiny", "fit", tiny_steps.say_where, device="auto")

    run_steps([step], tmp_path, workers=1, watcher=Notes())

    assert (step.folder(tmp_path) / "device").read_text() == "cpu"


def test_a_device_asked_for_by_name_is_part_of_a_steps_key() -> None:
    """`auto` leaves a run as it is; who names another device has it trained there."""
    keys = {setting: Step("tiny", "fit", tiny_steps.say_where, device=setting).key for setting in (
        "", "auto", "cpu", "cuda", "cuda:1"
    )}  # fmt: skip

    assert keys[""] == keys["auto"]
    assert keys["cuda"] == keys["cuda:1"]
    assert len(set(keys.values())) == 3


def test_a_gpu_without_memory_is_said_with_what_to_lower(tmp_path: Path) -> None:
    advice = what_to_lower(FIELDS, {"student": spec_of("dnn")}, ("student.fit.batch_rows", 1024), "cuda:0")
    step = Step("tiny", "fit", tiny_steps.demand, {"kind": "cuda"}, if_out_of_memory=advice)

    with pytest.raises(OutOfMemoryError) as refusal:
        run_steps([step], tmp_path, workers=1, watcher=Notes())

    said = str(refusal.value)
    assert said.startswith("step tiny/fit: memory ran out (CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert "student.fit.batch_rows (it is 1024)" in said
    assert said.endswith("Or train on the CPU: --set device=cpu")


# the same numbers


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on tables are read and trained by torch's operators, as on a GPU."""

    def switch() -> None:
        for module in (embedding, optimizer, pieces):
            monkeypatch.setattr(module, "have_kernels", lambda table: False)

    return switch


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels work, tables are trained by rows, however small."""
    monkeypatch.setattr(optimizer, "LARGE", 0.0)


def states_of(log: EncodedLog, what: str) -> dict[str, Tensor]:
    """Weights and figures of a fit: of a network, a student, or of teachers and a student at once."""
    if what in NETWORKS:
        found = fit(log, spec_of(what), QUICK, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])
        results = {what: found}
    elif what == "student":
        parts: dict[str, Any] = {"train": [Part.TRAIN], "valid": [Part.VALID_A]}
        results = {what: fit_student(log, spec_of("dnn"), TAUGHT, some_targets(log, (5,)), seed=1, **parts)}
    else:
        scheme = Cotrain(kind="cotrain") if what == "cotrain" else Mutual(kind="mutual")
        options = TAUGHT if what == "cotrain" else DistillOptions(**QUICK.model_dump())
        together = fit_together(
            log, scheme, TEACHERS, spec_of("dnn"), options,
            form="hints", seed=1, train=[Part.TRAIN], valid=[Part.VALID_A],
        )  # fmt: skip
        results = {**together.teachers, "student": together.student}
    figures = {
        f"{name}.{key}": torch.tensor([row[key] for row in result.history])
        for name, result in results.items()
        for key in result.history[0]
    }
    return figures | {f"{name}.{key}": value for name, result in results.items() for key, value in result.state.items()}


@pytest.mark.parametrize("what", [*NETWORKS, "student", "cotrain", "mutual"])
def test_torchs_operators_train_what_the_kernels_train(
    what: str, log: EncodedLog, by_rows: None, without_kernels: Callable[[], None]
) -> None:
    """Look-ups, pooling, their gradients and Adam: a GPU's way on the CPU ends where the CPU's own way does."""
    expected = states_of(log, what)

    without_kernels()
    found = states_of(log.on(torch.device("cpu"), resident=True), what)

    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-4, atol=2e-4, msg=lambda said, name=name: f"{name}: {said}"
        )


def test_a_log_in_a_devices_memory_gives_the_same_batches(log: EncodedLog) -> None:
    """Ids, sequences and clicks of any rows in any order, and of fields that are not to be seen."""
    rows = np.random.default_rng(0).permutation(len(log))[:200]
    hidden = log.with_fixed({"device": 4})
    resident = log.on(torch.device("cpu"), resident=True)

    for plain, moved in ((log, resident), (hidden, resident.with_fixed({"device": 4}))):
        one, other = plain.batch(rows), moved.batch(rows)
        assert torch.equal(one.context, other.context)
        assert torch.equal(one.candidates, other.candidates)
        for a, b in zip(one.sequences["history"], other.sequences["history"], strict=True):
            assert torch.equal(a, b)
        assert torch.equal(plain.labels(rows), moved.labels(rows))
    assert set(resident.with_fixed({"device": 4}).batch(rows).context[:, 0].tolist()) == {4}
    assert resident.batch(rows).context.unique().numel() > 1
    assert resident.on(torch.device("cpu")).resident is None


def test_an_id_that_its_field_has_not_is_refused_on_its_way_to_a_device(log: EncodedLog) -> None:
    """A GPU would read another field's row, or stop without a word on where."""
    ids = np.array(log.ids)
    ids[7, 1] = 12  # ads are 0..11
    damaged = replace(log, ids=ids)

    with pytest.raises(IndexError, match="prepare the log again"):
        damaged.on(torch.device("cpu"), resident=True)
    with pytest.raises(IndexError, match="prepare the log again"):
        damaged.on(META, resident=False).batch(np.array([6, 7]))


def test_a_checkpoint_of_tables_that_lay_elsewhere_is_passed_over(
    log: EncodedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is trained by rows on the CPU is trained whole on a GPU, or by several processes: neither goes on with the
    other's moments, and both end right."""

    class StoppedError(Exception):
        """In the second epoch."""

    def stop(done: float, total: float, note: str = "") -> None:
        if done > total / 2:
            raise StoppedError

    def fitted(**how: Any) -> dict[str, Tensor]:
        return fit(log, spec_of("deepfm"), QUICK, seed=1, train=[Part.TRAIN], valid=None, epochs=2, **how).state

    monkeypatch.setattr(optimizer, "LARGE", 0.0)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(StoppedError):
        fitted(progress=stop, checkpoint=Checkpoint(path, share_of_time=1e9))
    assert path.exists()
    monkeypatch.setattr(optimizer, "LARGE", float("inf"))

    found = fitted(checkpoint=Checkpoint(path))

    assert "is of another fit" in caplog.text
    assert all(torch.equal(found[name], value) for name, value in fitted().items())


# nothing is made elsewhere


def learners(log: EncodedLog) -> Iterator[tuple[str, Learner]]:
    yield from ((name, ClickLearner(log, spec_of(name), QUICK)) for name in NETWORKS)
    yield "student", StudentLearner(log, spec_of("dnn"), TAUGHT, some_targets(log, (5, 3)))
    for form in ("static", "per_teacher", "full", "hints"):
        scheme = Cotrain(kind="cotrain")
        yield form, CoTraining(log, TEACHERS, spec_of("dnn"), TAUGHT, scheme=scheme, form=form)  # type: ignore[arg-type]
    yield "mutual", MutualLearning(log, TEACHERS, spec_of("dnn"), DistillOptions(**QUICK.model_dump()))


def test_every_loss_is_computed_where_the_batch_lies(log: EncodedLog) -> None:
    """Of every network and every scheme: batch, labels, targets, loss and gradients stand on the log's device."""
    there = log.on(META)
    rows = log.rows([Part.TRAIN])[:50]
    batch = there.batch(rows)
    assert {side.device for side in (batch.context, batch.candidates, *batch.sequences["history"])} == {META}

    for name, learner in learners(there):
        learner.to(META)
        loss = learner.loss(batch, rows)
        loss.objective.backward()
        assert loss.objective.device == META, name
        assert {weight.grad.device for weight in learner.parameters() if weight.grad is not None} == {META}, name
        assert {figure.device for figure in loss.shown.values()} == {META}, name


def test_targets_travel_to_the_device_of_the_batch(log: EncodedLog) -> None:
    targets: EnsembleTargets = some_targets(log, (5,))
    found = targets.of(np.array([1, 2]), META)
    assert {found.logit.device, found.hints[0].device} == {META}


# on a GPU


@needs_a_gpu
@pytest.mark.parametrize("what", [*NETWORKS, "student", "cotrain", "mutual"])
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_trains_what_the_cpu_trains(what: str, resident: bool, log: EncodedLog) -> None:
    found = states_of(log.on(torch.device("cuda:0"), resident=resident), what)

    for name, value in states_of(log, what).items():
        assert found[name].device.type == "cpu", name
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-3, msg=lambda said, name=name: f"{name}: {said}"
        )


@needs_a_gpu
def test_a_gpu_scores_as_the_cpu_does(log: EncodedLog, tmp_path: Path) -> None:
    """Logits and hidden layers of a whole log, and bfloat16 where the GPU has it."""
    torch.manual_seed(0)
    network = spec_of("deepfm").build(FIELDS).eval()
    logit = score(log, network)
    there = log.on(torch.device("cuda:0"))
    assert there.resident is not None

    np.testing.assert_allclose(score(there, network.to("cuda:0")), logit, atol=1e-5)
    assert store_hints(tmp_path / "hint.npy", there, network, "float32") == 6
    assert isinstance(multiplies_bfloat16("cuda"), bool)


@needs_a_gpu
def test_memory_comes_back_between_two_steps() -> None:
    held = torch.empty(1 << 26, device="cuda:0")
    del held
    devices.give_memory_back()
    assert torch.cuda.memory_reserved() < 1 << 26
