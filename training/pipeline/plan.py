"""The road from a recipe to exported models: which steps there are and what each needs.

    log -> survey -> encoder -> prepare -> teachers x M, control_train -> gate -> student -> calibrate -> measure
                                   |                          |        |
                                   +-> refit of each ---------+-> refit of the student -> graph of each -> export
                                                                        and, where asked, quantize -----------^

Where teachers and student train together, one step makes them all, each is taken from it into a folder like any
other, and the gate comes after.

Each arrow is a `needs` of `stages.Step`, so whatever has no arrow between it runs side by side, is done once, and is
redone only when something before it changes. Seeds vary training, not the log; the first seed's models are exported.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.data.encoded_log import Part
from training.data.fingerprint import fingerprint
from training.data.public_logs import open_log
from training.data.sources import FilesSettings, Unlabelled, open_source
from training.distillation.gate import GateOptions
from training.distillation.shares import Share
from training.errors import RecipeError
from training.export.bundles import export as export_models
from training.export.bundles import graph as draw_graph
from training.export.bundles import quantize as quantize_student
from training.export.quantize import Quantize
from training.fit.devices import gpus
from training.fit.warm import Version
from training.pipeline import steps
from training.pipeline.stages import Step
from training.recipe import Distilled, LoadedRecipe, Recipe, SyntheticSettings, Teacher, Untaught

# What each step's result depends on beside its inputs and the module of its function; what these import counts as well.
_WORLD = ("package:numpy", "package:pyarrow", "training/data/synthetic", "models/schema.py")
_READING = ("package:numpy", "package:pyarrow", "training/data", "training/data/encoded_log.py", "models")
_LEARNING = (
    "package:torch",
    "package:numpy",
    "package:numba",
    "training/zoo",
    "training/fit/loop.py",
    "training/fit/metrics.py",
    "training/fit/memory.py",
    "training/data/prepare.py",
)
_GATING = (
    "package:torch",
    "package:numpy",
    "training/distillation/ensemble.py",
    "training/distillation/calibrate.py",
    "training/fit/metrics.py",
)
_DISTILLING = (*_LEARNING, *_GATING)
_TOGETHER = (*_LEARNING, "training/distillation/together.py")
_EXPORTING = (
    *_LEARNING,
    *_GATING,
    "models",
    "package:onnxscript",
    "package:onnxruntime",
    "training/export/bundles.py",
    "training/export/serving_graph.py",
    "training/export/parity.py",
    "training/export/cost.py",
    "training/export/quantize.py",
)
_READING_MEMORY = (
    "reading holds some bytes of each row and the distinct values of each field with a vocabulary: give fields of many "
    "values `encoding: {method: hash, buckets: ...}` in the schema"
)
_MEASURING = (*_DISTILLING, "training/data/prepare.py")


@dataclass(frozen=True)
class Fit:
    """A model as it was first trained, and as it is served: refitted on train + validation, unless a recipe says
    otherwise; then both are one."""

    first: Step
    again: Step
    logit: str = "logit.npy"
    """The file in either's folder that has its logit of every row."""
    sampled: Mapping[str, Any] = field(default_factory=dict)
    """`negatives`, where a recipe leaves out some of the training rows."""


@dataclass(frozen=True)
class SeedSteps:
    """What is trained and measured with one seed of training."""

    seed: int
    gate: Step
    platt: Step
    measure: Step
    fits: Mapping[str, Fit]
    """student, control, ensemble, average, teachers.<name>, and the recipe's zoo.<name>."""

    @property
    def teachers(self) -> dict[str, Fit]:
        """The ensemble's, in its order."""
        return {name.partition(".")[2]: fit for name, fit in self.fits.items() if name.startswith("teachers.")}

    def fit_of(self, name: str) -> Fit:
        """By where a network stands in the recipe: `student`, `control`, `teachers.<name>`, of copies the first."""
        return self.fits[name] if name in self.fits else self.fits[f"{name}-1"]


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
    gpus(recipe.device)  # refused before anything runs
    earlier = None if recipe.warm_start is None else Version.read(loaded.base / recipe.warm_start)
    if earlier is not None and earlier.runs == runs.resolve():
        raise RecipeError(f"warm_start: {runs}: expected another run's folder, got this run's own; say another --out")
    log, prepare = _reading_steps(loaded, earlier, runs=runs, data=data)
    trained = tuple(_SeedPlan(recipe, seed, prepare, earlier).lay_out() for seed in seeds)
    first = trained[0]
    graphs = _graph_steps(first, prepare, recipe.negatives.keep)
    smaller = (
        {} if recipe.quantize is None else {"quantized": _quantize_step(recipe.quantize, prepare, graphs["student"])}
    )
    export = Step(
        "export",
        recipe.name,
        export_models,
        {"recipe": recipe.model_dump(mode="json")},
        {
            "prepared": prepare,
            "measured": first.measure,
            "gate": first.gate,
            "ensemble": first.fits["ensemble"].again,
            "platt": first.platt,
            "student": first.fits["student"].again,
            "control": first.fits["control"].again,
            **smaller,
            **{f"graph:{name}": step for name, step in graphs.items()},
        },
        _EXPORTING,
    )
    return Plan(log, prepare, trained, export)


def measured(fit: Fit, prepare: Step, label: str) -> Step:
    """What one model alone is measured by; `label` ends with the seed, as a fit's does."""
    needs = {"prepared": prepare, "first": fit.first, "again": fit.again}
    return Step("figures", label, steps.measure_fit, {"logit": fit.logit, **fit.sampled}, needs, _MEASURING)


def _graph_steps(seed: SeedSteps, prepare: Step, keep: float) -> dict[str, Step]:
    """One a model, so that they run beside whatever still trains; teachers by themselves are measured, not served."""
    teachers = {f"network:{name}": fit.again for name, fit in seed.teachers.items()}

    def graph(name: str, needs: Mapping[str, Step], calibration: str | None = None) -> Step:
        needs = {"prepared": prepare, **needs} | ({"platt": seed.platt} if calibration else {})
        arguments = {"calibration": calibration} | ({"keep": keep} if keep < 1 else {})
        return Step("graph", name.replace("/", "-"), draw_graph, arguments, needs, _EXPORTING)

    return {
        **{
            f"teachers/{name}": graph(f"teachers/{name}", {f"network:{name}": fit.again})
            for name, fit in seed.teachers.items()
        },
        "ensemble": graph("ensemble", {**teachers, "gate": seed.gate}, "ensemble"),
        "control": graph("control", {"network:control": seed.fits["control"].again}, "control_train"),
        "student": graph("student", {"network:student": seed.fits["student"].again}, "student"),
    }


def _quantize_step(options: Quantize, prepare: Step, graph: Step) -> Step:
    """The student's graph in smaller numbers."""
    arguments = {"options": options.model_dump(mode="json")}
    return Step("quantize", "student", quantize_student, arguments, {"prepared": prepare, "graph": graph}, _EXPORTING)


def version_of(laid_out: Plan, runs: Path) -> Version:
    """What a later run needs to know of this one, complete, to start from it; of the zoo, what was trained."""

    def folder(step: Step) -> str:
        return str(step.folder(runs).relative_to(runs))

    seeds = {
        str(seed.seed): {
            place: {"first": folder(fit.first), "again": folder(fit.again)}
            for place, fit in seed.fits.items()
            if place not in ("ensemble", "average") and fit.first.is_done(runs) and fit.again.is_done(runs)
        }
        for seed in laid_out.seeds
    }
    return Version(runs, folder(laid_out.prepare), seeds)


def _reading_steps(
    loaded: LoadedRecipe, earlier: Version | None, *, runs: Path, data: Path | None
) -> tuple[Step | None, Step]:
    recipe, fingerprints = loaded.recipe, runs / "fingerprints.json"
    places = {"base": str(loaded.base), "data": str(data or ""), "fingerprints": str(fingerprints)}
    arguments: dict[str, Any] = {"schema": loaded.schema.model_dump(mode="json")}
    contents: dict[str, Any] = {"split": recipe.split.model_dump(mode="json")}
    log: Step | None = None
    files: tuple[Path, ...] = ()
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
        files = open_log(recipe.source, base=loaded.base, data=data).files
        arguments["source"] = recipe.source.model_dump(mode="json")
        contents["fingerprint"] = fingerprint(files, cache=fingerprints)
    if recipe.unlabelled is not None:
        further = _unlabelled_files(recipe.unlabelled, loaded.base, files)
        settings = recipe.unlabelled.model_dump(mode="json")
        arguments["unlabelled"] = settings | {"fingerprint": fingerprint(further, cache=fingerprints)}
    needs = {"log": log} if log else {}

    # Three passes over the log, each kept: a large one takes an hour, and what was done is not lost.
    def reading(stage: str, run: Any, more: Mapping[str, Any], after: Mapping[str, Step]) -> Step:
        return Step(
            stage,
            recipe.name,
            run,
            {**arguments, **more},
            {**needs, **after},
            code=_READING,
            places=places,
            if_out_of_memory=_READING_MEMORY,
        )

    surveyed = reading("survey", steps.survey_log, contents, {})
    extended: dict[str, Any] = {}
    if earlier is not None:
        places |= earlier.places
        extended = {"earlier": earlier.prepared, "is_refitted": recipe.merge_validation}
    fitted = reading("encoder", steps.fit_the_encoder, extended, {"surveyed": surveyed})
    return log, reading("prepare", steps.prepare_log, {}, {"surveyed": surveyed, "fitted": fitted})


def _unlabelled_files(settings: Unlabelled, base: Path, files: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files of rows without clicks; `RecipeError` where one is the log's own."""
    further = open_source(settings.source, base=base).files
    twice = sorted({path.resolve() for path in further} & {path.resolve() for path in files})
    if twice:
        raise RecipeError(
            f"unlabelled.source: {twice[0]}: expected other files than the log's own, got one of those; "
            "write the rows without clicks to a file of their own"
        )
    return further


def own_seed(seed: int, name: str) -> int:
    """A seed for each network of a run, so that teacher, student and control of one shape do not start alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


class _SeedPlan:
    """The steps of one seed."""

    def __init__(self, recipe: Recipe, seed: int, prepare: Step, earlier: Version | None = None) -> None:
        self.recipe, self.seed, self.prepare, self.earlier = recipe, seed, prepare, earlier
        self.gate_takes_hints = recipe.gate.form == "hints"
        self.student_takes_hints = "hint" in recipe.student.fit.losses
        is_sampled = recipe.negatives.keep < 1
        self.hidden: dict[str, Any] = {"hidden": list(recipe.for_teachers)} if recipe.for_teachers else {}
        self.sampled: dict[str, Any] = {"negatives": recipe.negatives.model_dump()} if is_sampled else {}

    def lay_out(self) -> SeedSteps:
        """All of them, from the fits of teachers and control to what is measured."""
        recipe = self.recipe
        control = self._fit("control", recipe.control, "control", "control")
        if recipe.scheme.kind == "pretrain":
            together = None
            teachers = self._teachers()
        else:
            together = self._together()
            teachers = {
                name: self._taken(together, "teachers", name, f"teachers/{name}") for name in recipe.teacher_names
            }
        outputs = {"prepared": self.prepare, **self._outputs(teachers, "first", hints=self.gate_takes_hints)}
        if together and recipe.scheme.kind == "cotrain":
            outputs["learned"] = together.first
        if recipe.gate.learns_by != "clicks":
            average = self._gate("average", GateOptions(form="average"), outputs)
            outputs = {**outputs, "student": self._distilled(average, teachers).first}
        gate = self._gate("gate", recipe.gate, outputs)
        ensemble = gate
        if recipe.merge_validation:
            needs = {"gate": gate, **self._outputs(teachers, "again", hints=self.gate_takes_hints)}
            ensemble = self._step("refit", "ensemble", steps.apply_gate, {}, needs, _GATING)
        student = (
            self._taken(together, "student", "student", "student") if together else self._distilled(gate, teachers)
        )
        firsts = {f"teacher:{name}": fit.first for name, fit in teachers.items()}
        platt = self._step(
            "calibrate",
            "platt",
            steps.calibrate,
            self.sampled,
            {
                "prepared": self.prepare,
                "ensemble": gate,
                "student": student.first,
                "control": control.first,
                **firsts,
            },
            _GATING,
        )
        refitted = self._outputs(teachers, "again", hints=self.gate_takes_hints)
        measure = self._step(
            "measure",
            "measure",
            steps.measure,
            {"seed": self.seed} | self.sampled,
            {
                "prepared": self.prepare,
                "gate": gate,
                "ensemble": ensemble,
                "platt": platt,
                "student": student.first,
                "student_refit": student.again,
                "control": control.first,
                "control_refit": control.again,
                **firsts,
                **{name.replace(":", "_refit:"): step for name, step in refitted.items()},
            },
            _MEASURING,
        )
        return SeedSteps(
            seed=self.seed,
            gate=gate,
            platt=platt,
            measure=measure,
            fits={
                "student": student,
                "control": control,
                "ensemble": Fit(gate, ensemble, sampled=self.sampled),
                "average": Fit(gate, ensemble, "average_logit.npy", self.sampled),
                **{f"teachers.{name}": fit for name, fit in teachers.items()},
                **{
                    f"zoo.{name}": self._fit(name, setting, "teachers", f"zoo.{name}")
                    for name, setting in recipe.zoo.items()
                },
            },
        )

    def _step(
        self,
        stage: str,
        label: str,
        run: Any,
        arguments: Mapping[str, Any],
        needs: Mapping[str, Step],
        code: Any,
        weight: float = 1,
        places: Mapping[str, str] | None = None,
        device: str = "",
        is_shared: bool = False,
    ) -> Step:
        name = f"{label}-s{self.seed}"
        return Step(stage, name, run, arguments, needs, code, places or {}, weight, device=device, is_shared=is_shared)

    def _twice(
        self,
        stage: str,
        label: str,
        run: Any,
        arguments: Mapping[str, Any],
        needs: tuple[dict[str, Step], dict[str, Step]],
        code: Any,
        weight: float = 1,
        places: Mapping[str, str] | None = None,
        starts: Callable[[str], dict[str, Any]] = lambda which: {},
    ) -> Fit:
        """A fit, and its refit from the second of `needs`. `starts` gives what either starts from as an argument."""
        prepared = {"prepared": self.prepare}
        places = {**(places or {}), **(self.earlier.places if self.earlier else {})}
        begun = dict(arguments) | starts("first")
        first = self._step(
            stage, label, run, begun, prepared | needs[0], code, weight, places, self.recipe.device, is_shared=True
        )
        if not self.recipe.merge_validation:
            return Fit(first, first, sampled=self.sampled)
        again = prepared | needs[1] | {"first": first}
        begun = dict(arguments) | starts("again")
        refit = self._step("refit", label, run, begun, again, code, weight, places, self.recipe.device, is_shared=True)
        return Fit(first, refit, sampled=self.sampled)

    def _fit(self, name: str, setting: Teacher | Untaught, stage: str, place: str, share: Share | None = None) -> Fit:
        arguments = _network(setting) | {"seed": own_seed(self.seed, name)} | self.sampled
        if share is not None:
            arguments |= {"share": asdict(share)}
        if not place.startswith("teachers."):
            arguments |= self.hidden
        own = place if setting is self.recipe.control or place.startswith("zoo.") else f"teachers.{name}"
        return self._twice(
            stage,
            name,
            steps.fit_network,
            arguments,
            ({}, {}),
            _LEARNING,
            places={"recipe": place},
            starts=lambda which: self._start(own, which),
        )

    def _start(self, place: str, which: str) -> dict[str, Any]:
        """The argument `start` of a fit, where the earlier run has one of its name."""
        folder = self.earlier and self.earlier.fit(self.seed, place, which)
        return {"start": folder} if folder else {}

    def _teachers(self) -> dict[str, Fit]:
        fits = {}
        for base, setting in self.recipe.teachers.items():
            for index, name in enumerate(self.recipe.names_of(base)):
                share = setting.copies.share(index, own_seed(self.seed, base)) if setting.copies else None
                fits[name] = self._fit(name, setting, "teachers", f"teachers.{base}", share)
        return fits

    def _gate(self, label: str, options: GateOptions, needs: Mapping[str, Step]) -> Step:
        arguments = {"options": options.model_dump(mode="json")} | self.sampled
        return self._step("gate", label, steps.fit_the_gate, arguments, needs, _GATING)

    def _distilled(self, gate: Step, teachers: Mapping[str, Fit]) -> Fit:
        hints = self.gate_takes_hints or self.student_takes_hints
        first, again = ({"gate": gate, **self._outputs(teachers, which, hints=hints)} for which in ("first", "again"))
        arguments = (
            _network(self.recipe.student) | {"seed": own_seed(self.seed, "student")} | self.sampled | self.hidden
        )
        if self.recipe.unlabelled is not None:
            stops = [Part.UNLABELLED_STOP.name] if self.recipe.unlabelled.stopping_share else []
            arguments |= {"unlabelled": [Part.UNLABELLED.name, *stops]}
        return self._twice(
            "student",
            "student",
            steps.distil,
            arguments,
            (first, again),
            _DISTILLING,
            weight=4,
            starts=lambda which: self._start("student", which),
        )

    def _together(self) -> Fit:
        recipe = self.recipe
        arguments = _network(recipe.student) | {
            "scheme": recipe.scheme.model_dump(mode="json"),
            "teachers": {
                name: _network(setting) | {"place": f"teachers.{base}"}
                for base, setting in recipe.teachers.items()
                for name in recipe.names_of(base)
            },
            "form": recipe.gate.form,
            "seed": own_seed(self.seed, "together"),
        }
        arguments |= self.sampled
        weight = 4 + len(recipe.teacher_names)

        def starts(which: str) -> dict[str, Any]:
            named = {name: f"teachers.{name}" for name in recipe.teacher_names} | {"student": "student"}
            found = {name: self._start(place, which).get("start") for name, place in named.items()}
            known = {name: folder for name, folder in found.items() if folder}
            return {"start": known} if known else {}

        return self._twice(
            "together", "together", steps.train_together, arguments, ({}, {}), _TOGETHER, weight, starts=starts
        )

    def _taken(self, together: Fit, stage: str, label: str, name: str) -> Fit:
        first, again = (
            self._step(place, label, steps.take, {"name": name}, {"source": source}, ())
            for place, source in ((stage, together.first), ("refit", together.again))
        )
        return Fit(first, again if self.recipe.merge_validation else first, sampled=self.sampled)

    def _outputs(
        self, teachers: Mapping[str, Fit], which: Literal["first", "again"], *, hints: bool
    ) -> dict[str, Step]:
        """What `steps.outputs_of` reads: the teachers as `which`, and their hints where somebody wants them."""
        fits: dict[str, Step] = {name: getattr(fit, which) for name, fit in teachers.items()}
        found = {f"teacher:{name}": step for name, step in fits.items()}
        if hints:
            dtype = "float32" if self.gate_takes_hints else "float16"  # a gate's numbers are those that are served
            stage = "hints" if which == "first" or not self.recipe.merge_validation else "refit-hints"
            found |= {
                f"hints:{name}": self._step(
                    stage,
                    name,
                    steps.store_teacher_hints,
                    {"dtype": dtype},
                    {"prepared": self.prepare, "teacher": step},
                    _GATING,
                    device=self.recipe.device,
                )
                for name, step in fits.items()
            }
        return found


def _network(setting: Teacher | Untaught | Distilled) -> dict[str, Any]:
    """Arguments of a fit: the network, and how it is trained."""
    return {
        "spec": {"network": setting.network, "options": dict(setting.options)},
        "options": setting.fit.model_dump(mode="json"),
    }
