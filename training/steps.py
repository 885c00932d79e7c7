"""What each step of a run does, given the folders of what it needs; `pipeline.py` says which there are, in what order.

Every function here fills a folder and can run in a process of its own (`stages.Step`). The learning itself is in
`loop.py`, `gate.py`, `distill.py` and `calibrate.py`; here stands who may see which rows:

    train      teachers, student and controls learn
    valid A    stops them: teachers and control_train by AUC, the student by distillation KL
    valid B    fits the gate, its scale and its bias
    valid C    decides gate against average, and fits Platt
    refit      learns from train + valid at the epochs found; gate, scale, bias and Platt are carried over
    test       is scored with everything else but looked at by `measure` alone
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.calibrate import Platt, fit_platt
from training.data.prepare import PrepareReport, load_encoder
from training.distill import DistillOptions, fit_student, kl_divergence
from training.encoded_log import VALID, EncodedLog, Part
from training.gate import Gate, fit_gate
from training.loop import FitOptions, NetworkSpec, fit, load_fit, load_network, score
from training.metrics import evaluate, reliability, sigmoid
from training.stages import Report

TRAIN_VALID = (Part.TRAIN, *VALID)
CONTROL_TRAIN, CONTROL_TRAIN_VALID = "control_train", "control_train_valid"


def write_synthetic_log(folder: Path, report: Report, *, world: Mapping[str, Any]) -> None:
    """log.parquet, and world.json with what the best possible model would reach on it."""
    from training.data.synthetic import World

    facts = World(**world).write(folder / "log.parquet", progress=report)
    write_json(folder / "world.json", facts.to_json())


def fit_network(folder: Path, report: Report, *, prepared: Path, spec: Any, options: Any, seed: int) -> None:
    """A teacher, or control_train: hard labels on train, stopped by AUC on valid A; logits of every row beside it."""
    log = EncodedLog.open(prepared / "log")
    network = NetworkSpec(**spec)
    result = fit(
        log,
        network,
        FitOptions(**options),
        seed=seed,
        train=[Part.TRAIN],
        valid=[Part.VALID_A],
        progress=report,
    )
    result.save(folder, network)
    best = result.history[result.epochs - 1]
    _score_all(folder, log)
    report(1, 1, f"AUC {best['valid_auc']:.4f} at epoch {result.epochs}")


def refit_network(folder: Path, report: Report, *, prepared: Path, first: Path, options: Any, seed: int) -> None:
    """The same network on train + valid, at the epochs that `first` found."""
    log = EncodedLog.open(prepared / "log")
    network, epochs, _ = load_fit(first)
    result = fit(
        log,
        network,
        FitOptions(**options),
        seed=seed,
        train=TRAIN_VALID,
        valid=None,
        epochs=epochs,
        progress=report,
    )
    result.save(folder, network)
    _score_all(folder, log)
    report(1, 1, f"{epochs} epochs")


def fit_the_gate(folder: Path, report: Report, *, prepared: Path, **teachers: Path) -> None:
    """gate.json: fitted on valid B, decided on valid C; the ensemble's logit of every row beside it."""
    log = EncodedLog.open(prepared / "log")
    teacher_logits = stacked(teachers)
    found = fit_gate(teacher_logits, log.label, rows_b=log.rows([Part.VALID_B]), rows_c=log.rows([Part.VALID_C]))
    write_json(
        folder / "gate.json",
        {"gate": found.gate.to_json(), "average": found.average.to_json(), "evidence": found.evidence},
    )
    np.save(folder / "logit.npy", found.gate.ensemble_logit(teacher_logits).astype(np.float32))
    np.save(folder / "average_logit.npy", found.average.ensemble_logit(teacher_logits).astype(np.float32))
    gain = found.evidence["average_ce_c"] - found.evidence["gate_ce_c"]
    report(1, 1, f"chose the {found.gate.chosen} (held-out cross-entropy: gate better by {gain:+.5f})")


def apply_gate(folder: Path, report: Report, *, gate: Path, **teachers: Path) -> None:
    """The same gate over refitted teachers."""
    facts = read_json(gate / "gate.json")
    teacher_logits = stacked(teachers)
    for name, key in (("logit.npy", "gate"), ("average_logit.npy", "average")):
        logit = Gate.from_json(facts[key]).ensemble_logit(teacher_logits)
        np.save(folder / name, logit.astype(np.float32))
    report(1, 1, "carried over")


def distil(folder: Path, report: Report, *, prepared: Path, ensemble: Path, spec: Any, options: Any, seed: int) -> None:
    """The student, stopped by distillation KL on valid A."""
    log = EncodedLog.open(prepared / "log")
    network = NetworkSpec(**spec)
    result = fit_student(
        log,
        network,
        DistillOptions(**options),
        np.load(ensemble / "logit.npy"),
        seed=seed,
        train=[Part.TRAIN],
        valid=[Part.VALID_A],
        progress=report,
    )
    result.save(folder, network)
    _score_all(folder, log)
    best = result.history[result.epochs - 1]
    report(1, 1, f"KL {best['valid_kl']:.5f} at epoch {result.epochs}")


def redistil(
    folder: Path, report: Report, *, prepared: Path, ensemble: Path, first: Path, options: Any, seed: int
) -> None:
    """The student of the refitted teachers, on train + valid, at the epochs that `first` found."""
    log = EncodedLog.open(prepared / "log")
    network, epochs, _ = load_fit(first)
    result = fit_student(
        log,
        network,
        DistillOptions(**options),
        np.load(ensemble / "logit.npy"),
        seed=seed,
        train=TRAIN_VALID,
        valid=None,
        epochs=epochs,
        progress=report,
    )
    result.save(folder, network)
    _score_all(folder, log)
    report(1, 1, f"{epochs} epochs")


def calibrate(
    folder: Path,
    report: Report,
    *,
    prepared: Path,
    ensemble: Path,
    student: Path,
    control: Path,
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
    found = {name: fit_platt(logit[rows], log.label[rows]) for name, logit in logits.items()}
    write_json(folder / "platt.json", {name: [platt.scale, platt.bias] for name, platt in found.items()})
    report(1, 1, f"student: scale {found['student'].scale:.3f}, bias {found['student'].bias:+.3f}")


def measure(folder: Path, report: Report, *, seed: int, prepared: Path, **fits: Path) -> None:
    """measure.json: every model's figures on test and train rows, before and after refit, and what explains them.

    `fits` are the folders `gate`, `ensemble`, `platt`, `student`, `student_refit`, `control`, `control_refit`,
    `teacher:<name>` and `teacher_refit:<name>`.
    """
    log = EncodedLog.open(prepared / "log")
    first, refitted = named(fits, "teacher"), named(fits, "teacher_refit")
    teachers = list(first)
    platt = {name: Platt(*pair) for name, pair in read_json(fits["platt"] / "platt.json").items()}

    def logit_of(folder: Path, name: str = "logit.npy") -> NDArray[np.float32]:
        return np.asarray(np.load(folder / name))

    def calibrated(before: bool) -> dict[str, NDArray[np.float64]]:
        tail, ensemble = ("", fits["gate"]) if before else ("_refit", fits["ensemble"])
        found = {
            "student": platt["student"].apply(logit_of(fits[f"student{tail}"])),
            CONTROL_TRAIN: platt[CONTROL_TRAIN].apply(logit_of(fits["control"])),
            "average": platt["average"].apply(logit_of(ensemble, "average_logit.npy")),
            "ensemble": platt["ensemble"].apply(logit_of(ensemble)),
        }
        if not before:
            found[CONTROL_TRAIN_VALID] = platt[CONTROL_TRAIN].apply(logit_of(fits["control_refit"]))
        for name, place in (first if before else refitted).items():
            found[f"teachers/{name}"] = platt[f"teachers/{name}"].apply(logit_of(place))
        return found

    before, after = calibrated(before=True), calibrated(before=False)
    test, train = log.rows([Part.TEST]), log.rows([Part.TRAIN])
    sections = (("test", after, test), ("train", after, train), ("before_refit", before, test))
    facts: dict[str, Any] = {"seed": seed, "rows": {"test": len(test), "train": len(train)}}
    for done, (section, models, rows) in enumerate(sections):
        report(done, len(sections), section)
        facts[section] = nested({name: _evaluated(log, logit[rows], rows) for name, logit in models.items()})
    facts["reliability"] = nested(
        {name: reliability(log.label[test], sigmoid(logit[test])) for name, logit in after.items()}
    )
    facts["kl_ensemble_student"] = kl_divergence(after["ensemble"][test], after["student"][test])
    facts["platt"] = nested({name: [pair.scale, pair.bias] for name, pair in platt.items()})
    facts["fits"] = nested(
        {name: _history(fits[name]) for name in ("student", "control")}
        | {f"teachers/{name}": _history(fit) for name, fit in first.items()}
    )
    gate = read_json(fits["gate"] / "gate.json")
    teacher_logits = stacked(refitted)
    gate_weights = Gate.from_json(gate["gate"]).gate_weights(teacher_logits[test])
    facts["gate"] = gate | {
        "teachers": teachers,
        "mean_weights": dict(zip(teachers, gate_weights.mean(axis=0).tolist(), strict=True)),
        "by_segment": _gate_by_segment(log, prepared, test, after["ensemble"], gate_weights, teachers),
    }
    if log.truth is not None:
        truth = np.clip(log.truth[test].astype(np.float64), 1e-9, 1 - 1e-9)
        facts["truth"] = _evaluated(log, np.log(truth) - np.log1p(-truth), test)
    write_json(folder / "measure.json", facts)
    gain = facts["test"]["student"]["auc"] - facts["test"][CONTROL_TRAIN_VALID]["auc"]
    report(1, 1, f"student AUC {facts['test']['student']['auc']:.4f}, {gain:+.4f} over the control")


def stacked(teachers: Mapping[str, Path]) -> NDArray[np.float32]:
    """Teacher logits [n, M], in the recipe's order."""
    return np.stack([np.load(folder / "logit.npy") for folder in teachers.values()], axis=1)


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


def _score_all(folder: Path, log: EncodedLog) -> None:
    """Every row's logit, stored once beside the weights and shared by all who need it."""
    np.save(folder / "logit.npy", score(log, load_network(folder, log.fields)))


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
    """Mean gate weights by decile of the ensemble's pctr, and by value of each field of few values."""
    pctr = sigmoid(ensemble_logit[test])
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


def prepare_log(
    folder: Path,
    report: Report,
    *,
    source: Any,
    schema: Any,
    split: Any,
    places: Mapping[str, str],
    log: Path | None = None,
    fingerprint: str = "",
) -> None:
    """Encode the log (`data/prepare.py`); a synthetic one is read from the step before.

    `fingerprint` of a real log's contents is here to be part of the step's key.
    """
    from pydantic import TypeAdapter

    from models.schema import FeatureSchema
    from training.data.prepare import prepare
    from training.data.sources import SourceSettings, open_source
    from training.data.split import Split

    base = log if log is not None else Path(places["base"])
    data = Path(places["data"]) if places.get("data") else None
    opened = open_source(TypeAdapter(SourceSettings).validate_python(source), base=base, data=data)
    found: PrepareReport = prepare(
        opened,
        FeatureSchema.model_validate(schema),
        TypeAdapter(Split).validate_python(split),
        folder,
        report,
        fingerprint_cache=Path(places["fingerprints"]),
    )
    rows = sum(n for part, n in found.rows.items() if part != "unused")
    report(1, 1, f"{rows} rows, {found.bad_rows} unreadable")
