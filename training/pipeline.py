"""The road from a recipe to exported models: which steps there are and what each needs.

    log -> prepare -> teachers x M, control_train -> gate -> student -> calibrate -> measure -> export -> report
                          |                            |        |                                 |
                          +-> refit of each -----------+-> refit of the student -> graph of each -+

Each arrow is a `needs` of `stages.Step`, so whatever has no arrow between it runs side by side, is done once, and is
redone only when something before it changes. Seeds vary training, not the log; the first seed's models are exported.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import steps
from training.data.fingerprint import fingerprint
from training.data.sources import FilesSettings, open_source
from training.export import export as export_models
from training.export import graph as draw_graph
from training.loop import NetworkSpec
from training.recipe import LoadedRecipe, SyntheticSettings
from training.stages import Step

# What each step's result depends on beside its inputs and the module of its function; what these import counts as well.
_WORLD = ("package:numpy", "package:pyarrow", "training/data/synthetic", "models/schema.py")
_READING = ("package:numpy", "package:pyarrow", "training/data", "training/encoded_log.py", "models")
_LEARNING = ("package:torch", "package:numpy", "training/zoo", "training/loop.py", "training/metrics.py")
_GATING = ("package:torch", "package:numpy", "training/gate.py", "training/calibrate.py", "training/loop.py")
_DISTILLING = (*_LEARNING, "training/distill.py")
_EXPORTING = (
    *_LEARNING,
    *_GATING,
    "models",
    "package:onnxscript",
    "package:onnxruntime",
    "training/export.py",
    "training/serving_graph.py",
    "training/parity.py",
    "training/cost.py",
)
_MEASURING = (*_DISTILLING, *_GATING, "training/data/prepare.py")


@dataclass(frozen=True)
class SeedSteps:
    """What is trained and measured with one seed of training."""

    seed: int
    gate: Step
    platt: Step
    ensemble: Step
    student: Step
    control: Step
    teachers: Mapping[str, Step]
    """The refitted ones, as are `ensemble`, `student` and `control`."""
    measure: Step


@dataclass(frozen=True)
class Plan:
    """Every step of a run."""

    log: Step | None
    prepare: Step
    seeds: tuple[SeedSteps, ...]
    export: Step


def plan(loaded: LoadedRecipe, seeds: list[int], *, runs: Path, data: Path | None) -> Plan:
    """Lay out the steps; reads only as much of a log as its fingerprint needs."""
    recipe = loaded.recipe
    log, prepare = _reading_steps(loaded, runs=runs, data=data)
    trained = tuple(_seed_steps(recipe, seed, prepare) for seed in seeds)
    first = trained[0]
    export = Step(
        "export",
        recipe.name,
        export_models,
        {"recipe": recipe.model_dump(mode="json")},
        {
            "prepared": prepare,
            "measured": first.measure,
            "gate": first.gate,
            "ensemble": first.ensemble,
            "platt": first.platt,
            "student": first.student,
            "control": first.control,
            **{f"graph:{name}": step for name, step in _graph_steps(first, prepare).items()},
        },
        _EXPORTING,
    )
    return Plan(log, prepare, trained, export)


def _graph_steps(seed: SeedSteps, prepare: Step) -> dict[str, Step]:
    """One a model, so that they run beside whatever still trains; teachers by themselves are measured, not served."""
    teachers = {f"network:{name}": step for name, step in seed.teachers.items()}

    def graph(name: str, needs: Mapping[str, Step], calibration: str | None = None) -> Step:
        needs = {"prepared": prepare, **needs} | ({"platt": seed.platt} if calibration else {})
        return Step("graph", name.replace("/", "-"), draw_graph, {"calibration": calibration}, needs, _EXPORTING)

    return {
        **{
            f"teachers/{name}": graph(f"teachers/{name}", {f"network:{name}": step})
            for name, step in seed.teachers.items()
        },
        "ensemble": graph("ensemble", {**teachers, "gate": seed.gate}, "ensemble"),
        "control": graph("control", {"network:control": seed.control}, "control_train"),
        "student": graph("student", {"network:student": seed.student}, "student"),
    }


def _reading_steps(loaded: LoadedRecipe, *, runs: Path, data: Path | None) -> tuple[Step | None, Step]:
    recipe, fingerprints = loaded.recipe, runs / "fingerprints.json"
    places = {"base": str(loaded.base), "data": str(data or ""), "fingerprints": str(fingerprints)}
    arguments: dict[str, Any] = {
        "schema": loaded.schema.model_dump(mode="json"),
        "split": recipe.split.model_dump(mode="json"),
    }
    log: Step | None = None
    if isinstance(recipe.source, SyntheticSettings):
        world = recipe.source.model_dump(exclude={"kind"})
        log = Step(
            "log",
            f"synthetic-{recipe.source.seed}",
            steps.write_synthetic_log,
            {"world": world},
            code=_WORLD,
        )
        arguments["source"] = FilesSettings(kind="files", paths=("log.parquet",)).model_dump(mode="json")
    else:
        files = open_source(recipe.source, base=loaded.base, data=data).files
        arguments["source"] = recipe.source.model_dump(mode="json")
        arguments["fingerprint"] = fingerprint(files, cache=fingerprints)
    needs = {"log": log} if log else {}
    return log, Step("prepare", recipe.name, steps.prepare_log, arguments, needs, code=_READING, places=places)


def own_seed(seed: int, name: str) -> int:
    """A seed for each network of a run, so that teacher, student and control of one shape do not start alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


def _seed_steps(recipe: Any, seed: int, prepare: Step) -> SeedSteps:
    def step(
        stage: str,
        label: str,
        run: Any,
        arguments: Mapping[str, Any],
        needs: Mapping[str, Step],
        code: Any,
        weight: float = 1,
    ) -> Step:
        return Step(stage, f"{label}-s{seed}", run, arguments, needs, code, weight=weight)

    def network(spec: NetworkSpec) -> dict[str, Any]:
        return {"network": spec.network, "options": dict(spec.options)}

    def fit(name: str, setting: Any, stage: str) -> tuple[Step, Step]:
        options = setting.fit.model_dump(mode="json")
        first = step(
            stage,
            name,
            steps.fit_network,
            {"spec": network(setting), "options": options, "seed": own_seed(seed, name)},
            {"prepared": prepare},
            _LEARNING,
        )
        again = step(
            "refit",
            name,
            steps.refit_network,
            {"options": options, "seed": own_seed(seed, name)},
            {"prepared": prepare, "first": first},
            _LEARNING,
        )
        return first, again

    fits = {name: fit(name, setting, "teachers") for name, setting in recipe.teachers.items()}
    firsts = {f"teacher:{name}": pair[0] for name, pair in fits.items()}
    agains = {f"teacher:{name}": pair[1] for name, pair in fits.items()}
    control, control_refit = fit("control", recipe.control, "control")

    gate = step("gate", "gate", steps.fit_the_gate, {}, {"prepared": prepare, **firsts}, _GATING)
    ensemble = step("refit", "ensemble", steps.apply_gate, {}, {"gate": gate, **agains}, _GATING)

    options = recipe.student.fit.model_dump(mode="json")
    student = step(
        "student",
        "student",
        steps.distil,
        {"spec": network(recipe.student), "options": options, "seed": own_seed(seed, "student")},
        {"prepared": prepare, "ensemble": gate},
        _DISTILLING,
        weight=4,
    )
    student_refit = step(
        "refit",
        "student",
        steps.redistil,
        {"options": options, "seed": own_seed(seed, "student")},
        {"prepared": prepare, "ensemble": ensemble, "first": student},
        _DISTILLING,
        weight=4,
    )
    platt = step(
        "calibrate",
        "platt",
        steps.calibrate,
        {},
        {"prepared": prepare, "ensemble": gate, "student": student, "control": control, **firsts},
        _GATING,
    )
    measure = step(
        "measure",
        "measure",
        steps.measure,
        {"seed": seed},
        {
            "prepared": prepare,
            "gate": gate,
            "ensemble": ensemble,
            "platt": platt,
            "student": student,
            "student_refit": student_refit,
            "control": control,
            "control_refit": control_refit,
            **firsts,
            **{f"teacher_refit:{name}": pair[1] for name, pair in fits.items()},
        },
        _MEASURING,
    )
    return SeedSteps(
        seed=seed,
        gate=gate,
        ensemble=ensemble,
        platt=platt,
        student=student_refit,
        control=control_refit,
        teachers={name: pair[1] for name, pair in fits.items()},
        measure=measure,
    )
