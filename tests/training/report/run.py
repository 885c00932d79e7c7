"""What a run hands to its report, made up: two teachers, figures that follow from a seed, names that need escaping."""

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from training.ablate.paired import UNTUNED, paired, verdict
from training.report import build_report, tables_before

ODD = 'a<b>&"c'
"""A teacher's name, as a recipe may have it."""


def figures(auc: float, *, truth: bool = True) -> dict[str, Any]:
    """What `metrics.evaluate` gives, moving with the AUC."""
    found = {
        "auc": auc - 0.002,
        "logloss": 1.1 - auc,
        "normalised_entropy": 1.6 - auc,
        "ece": 0.011,
        "ece_floor": 0.009,
        "predicted_over_actual": 1.013,
        "gauc": auc - 0.05,
    }
    return found | ({"xauc": auc, "xlogloss": 1.09 - auc, "xece": 0.007} if truth else {})


def measure(seed: int = 1, *, gain: float = 0.0124, truth: bool = True, **changes: Any) -> dict[str, Any]:
    """measure.json of one seed: the student above its control by `gain`, a little more with every seed."""
    control = 0.7208 + 0.0004 * seed
    student = control + gain + 0.0002 * seed
    models = {
        "student": figures(student, truth=truth),
        "control_train": figures(control - 0.01, truth=truth),
        "average": figures(control + 0.009, truth=truth),
        "ensemble": figures(control + 0.0115, truth=truth),
        "control_train_valid": figures(control, truth=truth),
        "teachers": {"fm": figures(0.6987, truth=truth), ODD: figures(0.7206, truth=truth)},
    }
    before = {name: found for name, found in models.items() if name != "control_train_valid"}
    bins = [{"rows": 100, "pctr": 0.02 * bin_, "label": 0.021 * bin_} for bin_ in range(1, 21)]
    epochs = [{"epoch": 1, "train_loss": 0.45}, {"epoch": 2, "train_loss": 0.41}, {"epoch": 3, "train_loss": 0.40}]
    by_auc = [row | {"valid_auc": 0.7 + 0.01 * i, "valid_logloss": 0.43} for i, row in enumerate(epochs)]
    fit = {"network": "dnn", "epochs": 2, "history": by_auc}
    return {
        "seed": seed,
        "rows": {"test": 2000, "train": 16000},
        "test": models,
        "train": models,
        "before_refit": before,
        "reliability": {name: bins for name in models if name != "teachers"} | {"teachers": {"fm": bins, ODD: bins}},
        "kl_ensemble_student": 0.0021,
        "kl_ensemble_student_train": 0.0019,
        "platt": {"student": [1.05, -0.02], "ensemble": [1.0, 0.01], "teachers": {"fm": [1, 0], ODD: [1, 0]}},
        "fits": {
            "student": {
                "network": "dnn",
                "epochs": 3,
                "history": [row | {"valid_kl": 0.01 / row["epoch"]} for row in epochs],
            },
            "control": fit,
            "teachers": {"fm": fit | {"network": "fm"}, ODD: fit},
        },
        "gate": {
            "gate": {"weights": [0.1, 0.2], "biases": [0, 0], "scale": 0.98, "bias": 0.03, "chosen": "gate"},
            "average": {"weights": [0, 0], "biases": [0, 0], "scale": 1.0, "bias": 0.0, "chosen": "average"},
            "evidence": {"average_ce_b": 0.41, "gate_ce_b": 0.40, "average_ce_c": 0.42, "gate_ce_c": 0.415},
            "teachers": ["fm", ODD],
            "mean_weights": {"fm": 0.31, ODD: 0.69},
            "by_segment": [
                {"field": "device", "value": "<script>7</script>", "rows": 900, "weights": {"fm": 0.4, ODD: 0.6}},
                {"field": "device", "value": "phone", "rows": 1100, "weights": {"fm": 0.2, ODD: 0.8}},
            ],
        },
        **({"truth": figures(0.814)} if truth else {}),
    } | changes


def cost(p50_ms: float) -> dict[str, Any]:
    times = {
        count: {"p50_ms": p50_ms * scale, "p99_ms": p50_ms * scale * 1.7}
        for count, scale in (("1", 0.3), ("50", 1.0), ("200", 3.4))
    }
    return times | {"parameters_embedding": 448_000, "parameters_dense": 65_601, "bytes": 2_054_400}


COSTS = {
    "cost": {
        "student": cost(0.0592),
        "control": cost(0.0594),
        "ensemble": cost(0.7491),
        "teachers": {"fm": cost(0.031), ODD: cost(0.0597)},
    },
    "conditions": {"cpu": "a CPU", "threads": 1, "onnxruntime": "1.30.0", "python": "3.11.7", "system": "Linux"},
    "parity_error": {"student": 2.1e-07, "ensemble": 8.0e-07, "control": 1.9e-07},
}
PARTS = ("train", "valid_a", "valid_b", "valid_c", "test")
PREPARED = {
    "fingerprint": "ab" * 32,
    "files": ["/secret/place/clicks.csv"],
    "rows": dict(zip(PARTS, (16000, 700, 640, 660, 2000), strict=True)) | {"unused": 12},
    "label_rate": dict(zip(PARTS, (0.161, 0.158, 0.157, 0.159, 0.162), strict=True)),
    "first_time": dict.fromkeys(PARTS, "2026-03-02T00:00:11+00:00"),
    "last_time": dict.fromkeys(PARTS, "2026-03-09T23:59:48+00:00"),
    "bad_rows": 3,
    "bad_row_reasons": {"fields": {"count": 3, "first": "/secret/place/clicks.csv:17", "example": "x"}},
    "blank_lines": 0,
    "bad_cells": {"price": {"count": 5, "first": "/secret/place/clicks.csv:9", "example": "abc"}},
    "missing": {"device": {"train": 0.01, "test": 0.02}, "price": {"train": 0.0, "test": 0.0}},
    "unknown": {"device": {"train": 0.0, "test": 0.034}},
    "vocabulary": {"device": 41, "price": 34},
    "reference": {},
    "seconds": 1.2,
}
RECIPE = {
    "name": "synthetic",
    "description": "A log of <ads> & clicks.",
    "source": {"kind": "synthetic", "seed": 0},
    "split": {"by": "time", "last_days": {"valid": 2, "test": 1}},
    "scheme": {"kind": "pretrain"},
    "teachers": {
        "fm": {"network": "fm", "options": {"dim": 8}, "fit": {"learning_rate": 0.002}, "copies": None},
        ODD: {"network": "dnn", "options": {"dim": 8, "hidden": [64]}, "fit": {"learning_rate": 0.001}, "copies": None},
    },
    "gate": {"form": "per_teacher", "learns_on": "held_out", "fallback": True, "hints_l2": 0.1},
    "student": {
        "network": "dnn",
        "options": {"dim": 16, "hidden": [128, 64]},
        "fit": {
            "learning_rate": 0.008,
            "max_epochs": 30,
            "kd_weight": 0.9,
            "temperature": 1.0,
            "scale_by_tau_squared": False,
            "losses": {"soft": 1.0},
            "aggregate": "logits",
            "taught_by": "unseen",
            "stop_by": "kd",
            "auxiliary_head": False,
            "fine_tune": None,
        },
    },
    "control": {"network": "dnn", "options": {"dim": 16, "hidden": [128, 64]}, "fit": {"learning_rate": 0.008}},
    "merge_validation": True,
}
SWEEP = {
    "judged_by": "AUC on validation part A",
    "best": {"student": {"learning_rate": 0.002, "init_sd": 0.3}, "control": {"learning_rate": 0.001, "init_sd": 0.3}},
    "trials": [
        {"side": "student", "learning_rate": 0.002, "init_sd": 0.3, "seed": 1, "valid_auc": 0.7311},
        {"side": "control", "learning_rate": 0.001, "init_sd": 0.3, "seed": 1, "valid_auc": 0.7196},
    ],
}


def finalist(trial: int | None, name: str, ratio: float, mean: float, verdict: str, **more: Any) -> dict[str, Any]:
    """A row of search.json's finalists."""
    loss = {"mean": 0.7412 - mean, "se": 0.0001, "by_seed": [0.7412 - mean] * 3, "verdict": verdict}
    row = {"trial": trial, "name": name, "ratio": ratio, "p50_ms": 0.06 * ratio, "mean": mean, "sd": 0.0004}
    return row | {"auc": [mean - 0.0004, mean, mean + 0.0004], "loss": loss, "is_best": False, "chosen": False} | more


def tried(trial: int, ratio: float, mean: float) -> dict[str, Any]:
    """A row of search.json's trials."""
    return {
        "trial": trial,
        "name": f"dnn {16 * trial}, dim 8",
        "error": "",
        "mean": mean,
        "over_own": mean - 0.7400,
        "epochs": [7],
        "ratio": ratio,
        "p50_ms": 0.06 * ratio,
        "on_front": True,
        "size": {"spec": {"parameters_dense": 1000 * trial}},
    }


SEARCH = {
    "recipe": RECIPE,
    "within": 0.001,
    "candidates": 50,
    "space_size": 540,
    "trials_count": 4,
    "own": {"name": "dnn 128-64, dim 16", "ratio_to_itself": 1.013},
    "trials": [
        tried(1, 0.5, 0.7380),
        tried(2, 0.7, 0.7409),
        tried(3, 1.9, 0.7412),
        {"trial": 4, "name": "dnn 64, dim 8", "error": "loss is <NaN>"},
    ],
    "finalists": [
        finalist(2, "dnn 32, dim 8", 0.7, 0.7409, "within", chosen=True),
        finalist(None, "dnn 128-64, dim 16", 1.0, 0.7400, "beyond"),
        finalist(3, "dnn 48, dim 8", 1.9, 0.7412, "within", is_best=True),
    ],
    "said": ["The fastest student within {/search/within|plain} AUC of the best: {/search/finalists/0/name|text}."],
}


def row(model: str, name: str, *aucs: float, **more: Any) -> dict[str, Any]:
    """A row of a table of `ablate`, a test AUC a seed."""
    seeds = [{"test": {"xauc": auc, "xlogloss": 1.09 - auc}, "train": {"xauc": auc + 0.1}} for auc in aucs]
    return {"cells": [name], "settings": [], "model": model, "seeds": seeds} | more


FAIR, ITSELF, STUDENT = (0.7212, 0.7216, 0.7220), (0.7220, 0.7230, 0.7240), (0.7340, 0.7340, 0.7340)
LESS_FAIR = ["DNN, clicks of train + validation"]


def pair(one: tuple[float, ...], other: tuple[float, ...]) -> dict[str, Any]:
    """A pair of a claim, judged."""
    difference = paired(one, other)
    return {"better": [], "worse": [], "difference": difference, "verdict": verdict(difference)}


CONTROLS: dict[str, Any] = {
    "format_version": 1,
    "table": "controls",
    "title": "What else could explain the gain",
    "recipe": RECIPE,
    "fingerprint": PREPARED["fingerprint"],
    "seeds": [1, 2, 3],
    "created": "2026-11-21T10:00:00+00:00",
    "metric": "xauc",
    "heads": ["model"],
    "rows": [
        row("control", LESS_FAIR[0], *FAIR),
        row("student", "DNN of itself", *ITSELF, against=LESS_FAIR, difference=paired(ITSELF, FAIR)),
        row(
            "student",
            "DNN of the ensemble",
            *STUDENT,
            against=LESS_FAIR,
            difference=paired(STUDENT, FAIR),
            less_ensemble=paired(STUDENT, (0.7330, 0.7345, 0.7350)),
            share_of_ensembles_gain=0.97,
        ),
        row("teachers.fm", f"teacher {ODD}", 0.70, 0.71, 0.72),
    ],
    "claims": [
        {"text": "it beats self-distillation: the other teachers matter", "pairs": [pair(STUDENT, ITSELF)]},
        {"text": "it beats every teacher", "pairs": [pair(STUDENT, FAIR), pair(STUDENT, (0.72, 0.73, 0.75))]},
        {"text": "it beats its own ensemble", "pairs": [pair(STUDENT, (0.7330, 0.7345, 0.7350))]},
    ],
}
COUNT: dict[str, Any] = CONTROLS | {
    "table": "count",
    "title": "How many teachers",
    "rows": [],
    "claims": [
        {"text": "six teachers beat three", "pairs": [pair((0.73,), (0.72,))]},
        {"text": "a DCN is best", "pairs": [pair(STUDENT, FAIR), pair(STUDENT, FAIR) | {"verdict": UNTUNED}]},
    ],
}


def put_tables(folder: Path, **tables: dict[str, Any]) -> None:
    """As `ablate` leaves them in a run's folder."""
    (folder / "tables").mkdir()
    for name, table in tables.items():
        (folder / "tables" / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")


def tables_of(*tables: dict[str, Any]) -> dict[str, Any]:
    """As a report carries them."""
    with TemporaryDirectory() as folder:
        put_tables(Path(folder), **{table["table"]: table for table in tables})
        found = tables_before(Path(folder), RECIPE, PREPARED["fingerprint"])
    assert found is not None
    return found


def changed(**changes: Any) -> dict[str, Any]:
    """A recipe whose values at these places (`student__fit__stop_by`) are others."""
    recipe = copy.deepcopy(RECIPE)
    for place, value in changes.items():
        *way, last = place.split("__")
        inner: Any = recipe
        for key in way:
            inner = inner[key]
        inner[last] = value
    return recipe


def real_report(*seeds: int) -> dict[str, Any]:
    """The report of a log from files, whose truth nobody knows."""
    recipe = RECIPE | {"source": {"kind": "files", "paths": ["clicks.csv"]}}
    return report(*(measure(seed, truth=False) for seed in seeds), recipe=recipe, world=None)


def report(*measures: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A whole report of the built-in log; three seeds of a winning student unless measures are given."""
    inputs: dict[str, Any] = {
        "recipe": RECIPE,
        "prepared": PREPARED,
        "costs": COSTS,
        "published": [{"name": "student", "version": 4}, {"name": "ensemble", "version": 4}],
        "world": {"rows": 20000, "bayes_auc": 0.8139},
        "sweep": SWEEP,
        "search": SEARCH,
        "seconds": 312.4,
        "training": [
            {
                "seed": seed,
                "student": 41.5 + seed,
                "control": 8.25,
                "ensemble": 1260.0,
                "together": None,
                "teachers": {"fm": 30.0, ODD: None},
            }
            for seed in range(1, 1 + max(1, len(measures)))
        ],
    }
    return build_report(list(measures) or [measure(seed) for seed in (1, 2, 3)], **inputs | changes)
