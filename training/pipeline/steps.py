"""What each step of a run does, given the folders of what it needs; `pipeline.py` says which there are, in what order.

Every function here fills a folder and can run in a process of its own (`stages.Step`). The learning itself is in
`loop.py`, `gate.py`, `distill.py` and `calibrate.py`; here stands who may see which rows:

    train      teachers, student and controls learn
    valid A    stops them: teachers and control_train by AUC, the student by distillation KL
    valid B    fits the gate (unless a recipe has it learn on train), its scale and its bias
    valid C    decides gate against average, and fits Platt
    refit      learns from train + valid at the epochs found; gate, scale, bias and Platt are carried over
    test       is scored with everything else but looked at by `measure` alone
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from models.errors import SchemaError
from models.schema import FeatureSchema
from training.data.chunks import Source
from training.data.encoded_log import VALID, EncodedLog, Part
from training.data.prepare import load_encoder, serving_ids
from training.distillation.calibrate import Platt, fit_platt
from training.distillation.distill import DistillOptions, fit_student, kl_divergence
from training.distillation.ensemble import TeacherOutputs, store_hints
from training.distillation.gate import Form, Gate, GateOptions, fit_gate
from training.distillation.shares import Share
from training.distillation.together import Cotrain, Epochs, Mutual, TeacherSpec, fit_together
from training.errors import RecipeError
from training.fit import parallel
from training.fit.checkpoint import Checkpoint
from training.fit.loop import (
    FitOptions,
    FitResult,
    NetworkSpec,
    fit,
    load_fit,
    load_network,
    rows_to_learn_from,
    score,
)
from training.fit.memory import what_to_lower
from training.fit.metrics import evaluate, reliability, sigmoid
from training.fit.negatives import Negatives
from training.fit.warm import Start
from training.pipeline.stages import IF_OUT_OF_MEMORY, UNDER_WAY, Report, same_file

TRAIN_VALID = (Part.TRAIN, *VALID)
CONTROL_TRAIN, CONTROL_TRAIN_VALID = "control_train", "control_train_valid"


def write_synthetic_log(folder: Path, report: Report, *, world: Mapping[str, Any]) -> None:
    """log.parquet, and world.json with what the best possible model would reach on it."""
    from training.data.synthetic import World

    facts = World(**world).write(folder / "log.parquet", progress=report)
    write_json(folder / "world.json", facts.to_json())


def fit_network(
    folder: Path,
    report: Report,
    *,
    prepared: Path,
    spec: Any,
    options: Any,
    seed: int,
    places: Mapping[str, str],
    share: Any = None,
    negatives: Any = None,
    start: str | None = None,
    hidden: Sequence[str] = (),
    first: Path | None = None,
    device: str = "cpu",
) -> None:
    """A teacher, or a control, on hard labels; with `first`, its refit. `share` is what a copy sees of the rows.

    `places` says where the network stands in the recipe: one fit may stand in several. Here and below, `negatives` is
    what of the rows everyone sees, `start` the folder of an earlier fit in the run that `places` names, `hidden` are
    fields that this network is not to see, `device` is where it computes.
    """
    when = _when(first)
    network, share = NetworkSpec(**spec), None if share is None else Share(**share)
    settings, place, sampled = FitOptions(**options), places["recipe"], Negatives(**negatives or {})
    log = _log(prepared, hidden)
    _say_what_to_lower(folder, log, {place: network}, (f"{place}.fit.batch_rows", settings.batch_rows), device)
    result = fit(
        log.on(torch.device(device)),
        network,
        settings,
        seed=seed,
        **when,
        share=share,
        negatives=sampled,
        start=_start(start, places),
        place=place,
        progress=report,
        checkpoint=_checkpoint(folder),
    )
    if parallel.is_first():
        _keep(folder, report, log, network, result)
        _keep_seen(folder, log, rows_to_learn_from(log, when["train"], share, sampled))


def store_teacher_hints(
    folder: Path, report: Report, *, prepared: Path, teacher: Path, dtype: str, device: str = "cpu"
) -> None:
    """hint.npy: a teacher's hidden layer of every row, for whoever imitates or weighs hints."""
    log = EncodedLog.open(prepared / "log").on(torch.device(device))
    network = load_network(teacher, log.fields).to(log.device)
    width = store_hints(folder / "hint.npy", log, network, dtype, progress=report)
    report(1, 1, f"{width} numbers a row")


def fit_the_gate(
    folder: Path,
    report: Report,
    *,
    prepared: Path,
    options: Any,
    negatives: Any = None,
    learned: Path | None = None,
    student: Path | None = None,
    **teachers: Path,
) -> None:
    """gate.json: fitted on valid B (or on train), decided on valid C; the ensemble's logit of every row beside it.

    `teachers` are the folders `teacher:<name>`, and `hints:<name>` where the gate takes hints; `learned` holds the gate
    that was trained together with them, `student` what a gate imitates that does not learn by clicks.
    """
    log = EncodedLog.open(prepared / "log")
    outputs, sampled = outputs_of(teachers), Negatives(**negatives or {})
    found = fit_gate(
        outputs.logits,
        log.label,
        rows_b=log.rows([Part.VALID_B]),
        rows_c=log.rows([Part.VALID_C]),
        rows_train=sampled.of(log, log.rows([Part.TRAIN])),
        options=GateOptions(**options),
        hints=outputs.hints,
        unseen=outputs.unseen,
        learned=None if learned is None else Gate.from_json(read_json(learned / "gate.json")),
        student_logit=None if student is None else np.load(student / "logit.npy"),
        correction=sampled.correction,
    )
    write_json(
        folder / "gate.json",
        {
            "gate": found.gate.to_json(),
            "average": found.average.to_json(),
            "evidence": found.evidence,
            "labels": _labels_of_train_rows(log, found.gate, outputs, sampled),
        },
    )
    _keep_ensemble(folder, outputs, found.gate, found.average)
    gain = found.evidence["average_ce_c"] - found.evidence["gate_ce_c"]
    report(1, 1, f"chose the {found.gate.chosen} (held-out cross-entropy: gate better by {gain:+.5f})")


def apply_gate(folder: Path, report: Report, *, gate: Path, **teachers: Path) -> None:
    """The same gate over refitted teachers."""
    facts = read_json(gate / "gate.json")
    _keep_ensemble(folder, outputs_of(teachers), Gate.from_json(facts["gate"]), Gate.from_json(facts["average"]))
    report(1, 1, "carried over")


def distil(
    folder: Path,
    report: Report,
    *,
    prepared: Path,
    gate: Path,
    spec: Any,
    options: Any,
    seed: int,
    negatives: Any = None,
    unlabelled: Sequence[str] = (),
    start: str | None = None,
    places: Mapping[str, str] | None = None,
    hidden: Sequence[str] = (),
    first: Path | None = None,
    device: str = "cpu",
    **teachers: Path,
) -> None:
    """The student of the teachers in `teachers` (as for `fit_the_gate`); with `first`, its refit.

    `unlabelled` are the parts of rows without clicks that the log has beside; the second of them stops the student.
    """
    network, settings = NetworkSpec(**spec), DistillOptions(**options)
    log = _log(prepared, hidden)
    _say_what_to_lower(folder, log, {"student": network}, ("student.fit.batch_rows", settings.batch_rows), device)
    targets = outputs_of(teachers).targets(
        Gate.from_json(read_json(gate / "gate.json")["gate"]),
        aggregate=settings.aggregate,
        temperature=settings.temperature,
        out_of_sample=settings.taught_by == "unseen",
        with_hints="hint" in settings.losses,
    )
    when, further = _when(first), [Part[name] for name in unlabelled]
    if first is None and Part.UNLABELLED_STOP in further:
        when["valid"] = [Part.UNLABELLED_STOP]
        further.remove(Part.UNLABELLED_STOP)
    result = fit_student(
        log.on(torch.device(device)),
        network,
        settings,
        targets,
        seed=seed,
        **when,
        unlabelled=further,
        negatives=Negatives(**negatives or {}),
        start=_start(start, places),
        place="student",
        progress=report,
        checkpoint=_checkpoint(folder),
    )
    if parallel.is_first():
        _keep(folder, report, log, network, result)


def train_together(
    folder: Path,
    report: Report,
    *,
    prepared: Path,
    scheme: Any,
    teachers: Any,
    spec: Any,
    options: Any,
    form: str,
    seed: int,
    negatives: Any = None,
    start: Mapping[str, str] | None = None,
    places: Mapping[str, str] | None = None,
    first: Path | None = None,
    device: str = "cpu",
) -> None:
    """Teachers and student at once, each in a folder of its own: teachers/<name> and student; with `first`, the refit.

    gate.json beside them where a gate was trained: without scale and bias, which come from rows held out.
    """
    when = _when(first, "student")
    specs = {
        name: TeacherSpec(NetworkSpec(**teacher["spec"]), FitOptions(**teacher["options"]), teacher["place"])
        for name, teacher in teachers.items()
    }
    network, settings = NetworkSpec(**spec), DistillOptions(**options)
    sampled = Negatives(**negatives or {})
    networks = {teacher.place: teacher.network for teacher in specs.values()} | {"student": network}
    log = EncodedLog.open(prepared / "log")
    _say_what_to_lower(folder, log, networks, ("student.fit.batch_rows", settings.batch_rows), device)
    if first is not None:
        of_teachers = load_fit(first / "teachers" / next(iter(specs)))[1]
        when["epochs"] = Epochs(teachers=of_teachers, student=when["epochs"])
    found = fit_together(
        log.on(torch.device(device)),
        TypeAdapter(Cotrain | Mutual).validate_python(scheme),
        specs,
        network,
        settings,
        form=TypeAdapter(Form).validate_python(form),
        seed=seed,
        **when,
        negatives=sampled,
        starts={name: found for name, place in (start or {}).items() if (found := _start(place, places))},
        gate=Gate.from_json(read_json(first / "gate.json")) if first and (first / "gate.json").exists() else None,
        progress=report,
        checkpoint=_checkpoint(folder),
    )
    if not parallel.is_first():
        return
    if found.gate is not None:
        write_json(folder / "gate.json", found.gate.to_json())
    for name, result in found.teachers.items():
        _keep(folder / "teachers" / name, report, log, specs[name].network, result)
        _keep_seen(folder / "teachers" / name, log, sampled.of(log, log.rows(when["train"])))
    _keep(folder / "student", report, log, network, found.student)


def take(folder: Path, report: Report, *, source: Path, name: str) -> None:
    """One network of those that were trained together, as a folder like any other fit's."""
    for file in (source / name).iterdir():
        same_file(file, folder / file.name)
    report(1, 1, "taken")


def calibrate(
    folder: Path,
    report: Report,
    *,
    prepared: Path,
    ensemble: Path,
    student: Path,
    control: Path,
    negatives: Any = None,
    **teachers: Path,
) -> None:
    """platt.json: scale and bias of every model, fitted on valid C with the networks that have not seen it."""
    log = EncodedLog.open(prepared / "log")
    rows = log.rows([Part.VALID_C])
    logits = {
        "student": np.load(student / "logit.npy"),
        CONTROL_TRAIN: np.load(control / "logit.npy"),
        "ensemble": np.load(ensemble / "logit.npy"),
        "average": np.load(ensemble / "average_logit.npy"),
    } | {f"teachers/{name}": np.load(fit / "logit.npy") for name, fit in named(teachers, "teacher").items()}
    correction = Negatives(**negatives or {}).correction
    found = {name: fit_platt(logit[rows], log.label[rows], correction=correction) for name, logit in logits.items()}
    write_json(folder / "platt.json", {name: [platt.scale, platt.bias] for name, platt in found.items()})
    report(1, 1, f"student: scale {found['student'].scale:.3f}, bias {found['student'].bias:+.3f}")


def measure(folder: Path, report: Report, *, seed: int, prepared: Path, negatives: Any = None, **fits: Path) -> None:
    """measure.json: every model's figures on test and train rows, before and after refit, and what explains them.

    `fits` are the folders `gate`, `ensemble`, `platt`, `student`, `student_refit`, `control`, `control_refit`,
    `teacher:<name>` and `teacher_refit:<name>`, and where the gate takes hints `hints_refit:<name>`.
    """
    log = EncodedLog.open(prepared / "log")
    first, refitted = named(fits, "teacher"), named(fits, "teacher_refit")
    teachers = list(first)
    correction = Negatives(**negatives or {}).correction
    platt = {name: Platt(*pair) for name, pair in read_json(fits["platt"] / "platt.json").items()}

    def of(platt_of: str, folder: Path, name: str = "logit.npy") -> tuple[Platt, Path]:
        return platt[platt_of], folder / name

    def models(before: bool) -> dict[str, tuple[Platt, Path]]:
        tail, ensemble = ("", fits["gate"]) if before else ("_refit", fits["ensemble"])
        found = {
            "student": of("student", fits[f"student{tail}"]),
            CONTROL_TRAIN: of(CONTROL_TRAIN, fits["control"]),
            "average": of("average", ensemble, "average_logit.npy"),
            "ensemble": of("ensemble", ensemble),
        }
        if not before:
            found[CONTROL_TRAIN_VALID] = of(CONTROL_TRAIN, fits["control_refit"])
        for name, place in (first if before else refitted).items():
            found[f"teachers/{name}"] = of(f"teachers/{name}", place)
        return found

    # One model's logits of one part at a time: those of all models on a large log would be the most that a run holds.
    def logits(model: tuple[Platt, Path], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        pair, file = model
        return np.asarray(pair.apply(np.load(file, mmap_mode="r")[rows]) + correction)

    before, after = models(before=True), models(before=False)
    test, train = log.rows([Part.TEST]), log.rows([Part.TRAIN])
    sections = (("test", after, test), ("train", after, train), ("before_refit", before, test))
    facts: dict[str, Any] = {"seed": seed, "rows": {"test": len(test), "train": len(train)}}
    for done, (section, of_section, rows) in enumerate(sections):
        report(done, len(sections), section)
        facts[section] = nested(
            {name: _evaluated(log, logits(model, rows), rows) for name, model in of_section.items()}
        )
    facts["reliability"] = nested(
        {name: reliability(log.label[test], sigmoid(logits(model, test))) for name, model in after.items()}
    )
    for key, rows in (("kl_ensemble_student", test), ("kl_ensemble_student_train", train)):
        facts[key] = kl_divergence(logits(after["ensemble"], rows), logits(after["student"], rows))
    facts["platt"] = nested({name: [pair.scale, pair.bias] for name, pair in platt.items()})
    facts["fits"] = nested(
        {name: _history(fits[name]) for name in ("student", "control")}
        | {f"teachers/{name}": _history(fit) for name, fit in first.items()}
    )
    gate = read_json(fits["gate"] / "gate.json")
    outputs = TeacherOutputs.read(refitted, named(fits, "hints_refit")).of(test)
    gate_weights = outputs.gate_weights(Gate.from_json(gate["gate"]))
    if known := _as_served(log, prepared, fits, platt, Gate.from_json(gate["gate"]), correction):
        facts["as_served"] = nested(known)
    facts["gate"] = gate | {
        "teachers": teachers,
        "mean_weights": dict(zip(teachers, gate_weights.mean(axis=0).tolist(), strict=True)),
        "by_segment": _gate_by_segment(log, prepared, test, logits(after["ensemble"], test), gate_weights, teachers),
    }
    if log.truth is not None:
        truth = np.clip(log.truth[test].astype(np.float64), 1e-9, 1 - 1e-9)
        facts["truth"] = _evaluated(log, np.log(truth) - np.log1p(-truth), test)
    write_json(folder / "measure.json", facts)
    gain = facts["test"]["student"]["auc"] - facts["test"][CONTROL_TRAIN_VALID]["auc"]
    report(1, 1, f"student AUC {facts['test']['student']['auc']:.4f}, {gain:+.4f} over the control")


def _as_served(
    log: EncodedLog, prepared: Path, fits: Mapping[str, Path], platt: Mapping[str, Platt], gate: Gate, correction: float
) -> dict[str, Any]:
    """Figures on test rows with the values that stand in for training-only fields; nothing where there are none.

    An ensemble whose gate takes hidden layers is left out.
    """
    ids, rows = serving_ids(prepared), log.rows([Part.TEST])
    if not ids:
        return {}
    served = log.with_fixed(ids)

    def logit_of(folder: Path) -> NDArray[np.float32]:
        return score(served, load_network(folder, log.fields), rows)

    teachers = {name: logit_of(folder) for name, folder in named(fits, "teacher_refit").items()}
    logits = {
        "student": platt["student"].apply(logit_of(fits["student_refit"])),
        CONTROL_TRAIN_VALID: platt[CONTROL_TRAIN].apply(logit_of(fits["control_refit"])),
        **{f"teachers/{name}": platt[f"teachers/{name}"].apply(logit) for name, logit in teachers.items()},
    }
    if not gate.takes_hints:
        together = gate.ensemble_logit(np.stack(list(teachers.values()), axis=1))
        logits["ensemble"] = platt["ensemble"].apply(together)
    return {name: _evaluated(log, logit + correction, rows) for name, logit in logits.items()}


def measure_fit(
    folder: Path, report: Report, *, prepared: Path, first: Path, again: Path, logit: str, negatives: Any = None
) -> None:
    """figures.json: one model on test and train rows, and on test rows before its refit; calibrated as in a run."""
    log = EncodedLog.open(prepared / "log")
    before, after = np.asarray(np.load(first / logit)), np.asarray(np.load(again / logit))
    held_out, test, train = log.rows([Part.VALID_C]), log.rows([Part.TEST]), log.rows([Part.TRAIN])
    correction = Negatives(**negatives or {}).correction
    platt = fit_platt(before[held_out], log.label[held_out], correction=correction)
    facts: dict[str, Any] = {
        section: _evaluated(log, platt.apply(answers[rows]) + correction, rows)
        for section, answers, rows in (("test", after, test), ("train", after, train), ("before_refit", before, test))
    }
    if (first / "fit.json").exists():
        facts["epochs"] = load_fit(first)[1]
    write_json(folder / "figures.json", facts)
    report(1, 1, f"AUC {facts['test']['auc']:.4f}")


def outputs_of(folders: Mapping[str, Path]) -> TeacherOutputs:
    """Of the folders `teacher:<name>` and `hints:<name>`: what was stored, teachers in the recipe's order."""
    return TeacherOutputs.read(named(folders, "teacher"), named(folders, "hints"))


def named(folders: Mapping[str, Path], kind: str) -> dict[str, Path]:
    """Of `{"teacher:lr": a, "gate": b}` those of a kind, by their own names: `{"lr": a}`."""
    return {key.partition(":")[2]: path for key, path in folders.items() if key.startswith(f"{kind}:")}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, facts: Any) -> None:
    path.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"student": a, "teachers/lr": b}` as `{"student": a, "teachers": {"lr": b}}`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        room, slash, inner = name.partition("/")
        if slash:
            tree.setdefault(room, {})[inner] = value
        else:
            tree[room] = value
    return tree


def _when(first: Path | None, network: str = "") -> dict[str, Any]:
    """Which rows to learn from and when to stop: train until valid A says so, or train + valid as long as `first`."""
    if first is None:
        return {"train": [Part.TRAIN], "valid": [Part.VALID_A], "epochs": None}
    return {"train": TRAIN_VALID, "valid": None, "epochs": load_fit(first / network)[1]}


def _log(prepared: Path, hidden: Sequence[str]) -> EncodedLog:
    """The log as a network sees it that is not to see these training-only fields."""
    log = EncodedLog.open(prepared / "log")
    if not hidden:
        return log
    return log.with_fixed({name: id_ for name, id_ in serving_ids(prepared).items() if name in hidden})


def _say_what_to_lower(
    folder: Path, log: EncodedLog, networks: Mapping[str, NetworkSpec], batch_rows: tuple[str, int], device: str
) -> None:
    """Leave the advice where it is found if memory runs out."""
    if not parallel.is_first():
        return
    place = folder / UNDER_WAY
    place.mkdir(parents=True, exist_ok=True)
    (place / IF_OUT_OF_MEMORY).write_text(what_to_lower(log.fields, networks, batch_rows, device), encoding="utf-8")


def _start(folder: str | None, places: Mapping[str, str] | None) -> Start | None:
    """The fit in `folder` of the run at places["start"], whose log was prepared at places["earlier"]."""
    if folder is None or places is None:
        return None
    return Start(Path(places["start"]) / folder, EncodedLog.open(Path(places["earlier"]) / "log").fields)


def _checkpoint(folder: Path) -> Checkpoint:
    """That of the fit that fills a folder."""
    return Checkpoint(folder / UNDER_WAY / "checkpoint.pt")


def _keep(folder: Path, report: Report, log: EncodedLog, network: NetworkSpec, result: FitResult) -> None:
    """A fit on disk, every row's logit beside it for all who need it, and a word on what came out."""
    result.save(folder, network)
    np.save(folder / "logit.npy", score(log, load_network(folder, log.fields).to(log.device), progress=report))
    best = result.history[result.epochs - 1]
    shown = {"KL": "valid_kl", "AUC": "valid_auc"}
    figures = [f"{title} {best[name]:.4g}" for title, name in shown.items() if name in best]
    report(1, 1, ", ".join([*figures, f"{result.epochs} epochs"]))


def _keep_seen(folder: Path, log: EncodedLog, rows: NDArray[np.int64]) -> None:
    """Which rows a teacher learned from."""
    seen = np.zeros(len(log), dtype=bool)
    seen[rows] = True
    np.save(folder / "seen.npy", seen)


def _keep_ensemble(folder: Path, outputs: TeacherOutputs, gate: Gate, average: Gate) -> None:
    """The logits of gate and average on every row, by all teachers, as they are served."""
    np.save(folder / "logit.npy", outputs.ensemble_logit(gate).astype(np.float32))
    np.save(folder / "average_logit.npy", outputs.ensemble_logit(average).astype(np.float32))


def _labels_of_train_rows(log: EncodedLog, gate: Gate, outputs: TeacherOutputs, negatives: Negatives) -> dict[str, Any]:
    """How well the soft labels of training rows foretell the clicks: of all teachers, and of those that did not learn
    from the row. Far better by all is what teachers remember, not what they know."""
    rows = negatives.of(log, log.rows([Part.TRAIN]))
    outputs = outputs.of(rows)
    found: dict[str, Any] = {"all": _evaluated(log, outputs.ensemble_logit(gate), rows)}
    if outputs.unseen is not None:
        found["unseen"] = _evaluated(log, outputs.ensemble_logit(gate, out_of_sample=True), rows)
        found["share_by_some"] = float((~outputs.unseen).any(axis=1).mean())
    return found


def _evaluated(log: EncodedLog, logit: NDArray[np.floating], rows: NDArray[np.int64]) -> dict[str, float | None]:
    truth = None if log.truth is None else log.truth[rows]
    found = evaluate(log.label[rows], logit, truth=truth, unit=log.unit[rows])
    # JSON has no NaN: a figure that the rows do not define (an AUC of one class) is null.
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def _history(folder: Path) -> dict[str, Any]:
    spec, epochs, history = load_fit(folder)
    return {"network": spec.network, "epochs": epochs, "history": history}


def _gate_by_segment(
    log: EncodedLog,
    prepared: Path,
    test: NDArray[np.int64],
    ensemble_logit: NDArray[np.float64],
    gate_weights: NDArray[np.float64],
    teachers: list[str],
    *,
    most_values: int = 24,
    least_rows: int = 200,
) -> list[dict[str, Any]]:
    """Mean gate weights by decile of the ensemble's pctr, and by value of each field of few values; `ensemble_logit`
    and `gate_weights` are of test rows."""
    pctr = sigmoid(ensemble_logit)
    decile = np.searchsorted(np.quantile(pctr, np.linspace(0.1, 0.9, 9)), pctr, side="right")
    segments = [("pctr decile", decile, [str(d + 1) for d in range(10)])]
    vocabularies = load_encoder(prepared).to_vocabularies()
    plain = [spec for spec in log.fields if not spec.is_sequence]
    for column, spec in enumerate(plain):
        values = vocabularies.get(spec.name)
        if spec.size <= most_values and values and all(isinstance(value, str) for value in values):
            segments.append((spec.name, log.ids[test, column], ["missing", "unknown", *map(str, values)]))
    table = []
    for field, ids, names in segments:
        for value in np.unique(ids):
            mask = ids == value
            if mask.sum() >= least_rows:
                means = gate_weights[mask].mean(axis=0).tolist()
                table.append(
                    {
                        "field": field,
                        "value": names[int(value)],
                        "rows": int(mask.sum()),
                        "weights": dict(zip(teachers, means, strict=True)),
                    }
                )
    return table


def survey_log(
    folder: Path,
    report: Report,
    *,
    source: Any,
    schema: Any,
    split: Any,
    places: Mapping[str, str],
    log: Path | None = None,
    fingerprint: str = "",
    unlabelled: Any = None,
) -> None:
    """Part the rows of a log (`data/prepare.py`); a synthetic one is read from the step before.

    `fingerprint` of a real log's contents is here to be part of the step's key. Here and below, `unlabelled` is the
    recipe's, with its own `fingerprint`.
    """
    from training.data.prepare import survey
    from training.data.split import Split

    opened, meaning, cache = _open(source, schema, places, log)
    parted = TypeAdapter(Split).validate_python(split)
    further, share = _open_unlabelled(unlabelled, places)
    survey(
        opened,
        meaning,
        parted,
        folder,
        report,
        fingerprint_cache=cache,
        unlabelled=further,
        stopping_share=share,
    )


def fit_the_encoder(
    folder: Path,
    report: Report,
    *,
    source: Any,
    schema: Any,
    places: Mapping[str, str],
    surveyed: Path,
    log: Path | None = None,
    earlier: str | None = None,
    is_refitted: bool = True,
    unlabelled: Any = None,
) -> None:
    """Vocabularies and edges from training rows; those of an earlier run, extended.

    `earlier` is the name of its prepare step's folder, to be part of the key; places["earlier"] says where it lies.
    """
    from training.data.prepare import PrepareReport, first_times, fit_encoder
    from training.data.seen_before import refuse_rows_seen_before

    before = None if earlier is None else Path(places["earlier"])
    if before is not None:
        ended, name = PrepareReport.read(before).last_time, str(before.parent.parent)
        refuse_rows_seen_before(ended, first_times(surveyed), name, is_refitted=is_refitted)
    opened, meaning, cache = _open(source, schema, places, log)
    try:
        further, _ = _open_unlabelled(unlabelled, places)
        fit_encoder(
            opened, meaning, surveyed, folder, report, fingerprint_cache=cache, earlier=before, unlabelled=further
        )
    except SchemaError as error:
        raise RecipeError(f"warm_start: {error}; or leave warm_start out") from None


def prepare_log(
    folder: Path,
    report: Report,
    *,
    source: Any,
    schema: Any,
    places: Mapping[str, str],
    surveyed: Path,
    fitted: Path,
    log: Path | None = None,
    unlabelled: Any = None,
) -> None:
    """Encode the log."""
    from training.data.prepare import encode

    opened, meaning, cache = _open(source, schema, places, log)
    further, _ = _open_unlabelled(unlabelled, places)
    found = encode(opened, meaning, surveyed, fitted, folder, report, fingerprint_cache=cache, unlabelled=further)
    rows = sum(n for part, n in found.rows.items() if part != "unused")
    report(1, 1, f"{rows} rows, {found.bad_rows} unreadable")


def _open(source: Any, schema: Any, places: Mapping[str, str], log: Path | None) -> tuple[Source, FeatureSchema, Path]:
    """(the log, what its columns mean, where fingerprints are remembered)."""
    from training.data.sources import SourceSettings, open_source

    base = log if log is not None else Path(places["base"])
    data = Path(places["data"]) if places.get("data") else None
    opened = open_source(TypeAdapter(SourceSettings).validate_python(source), base=base, data=data)
    return opened, FeatureSchema.model_validate(schema), Path(places["fingerprints"])


def _open_unlabelled(unlabelled: Any, places: Mapping[str, str]) -> tuple[Source | None, float]:
    """Rows without clicks, beside the recipe also where the log itself is made; and the share that stops."""
    from training.data.sources import Unlabelled, open_source

    if unlabelled is None:
        return None, 0.0
    settings = Unlabelled.model_validate({key: value for key, value in unlabelled.items() if key != "fingerprint"})
    return open_source(settings.source, base=Path(places["base"])), settings.stopping_share
