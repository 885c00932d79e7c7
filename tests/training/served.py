"""Networks with random weights over fields of every kind, and a small prepared log: what export tests start from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.schema import FeatureSchema
from training.data.encoded_log import EncodedLog
from training.data.prepare import prepare
from training.data.readers import FileSource
from training.data.split import ColumnSplit
from training.distillation.calibrate import Platt
from training.distillation.gate import Gate
from training.export.bundles import About, build_cards, build_graph
from training.export.serving_graph import Head, Wiring
from training.zoo import NETWORKS, Fields, FieldSpec, build, options_of

DEEP: dict[str, Any] = {"dim": 4, "hidden": [8, 6], "init_sd": 0.3}

SIDES = {
    "plain": Wiring((FieldSpec("user", 30, "context"), FieldSpec("ad", 50, "candidate")), {}),
    "every kind": Wiring(
        (
            FieldSpec("user", 30, "context"),
            FieldSpec("history", 20, "context", is_sequence=True),
            FieldSpec("hour", 24, "context"),
            FieldSpec("position", 9, "context"),
            FieldSpec("slot.id", 4, "context"),
            FieldSpec("ad", 50, "candidate"),
            FieldSpec("tags", 15, "candidate", is_sequence=True),
            FieldSpec("price", 12, "candidate"),
        ),
        {"position": 3, "slot.id": 0},
    ),
    "no context": Wiring((FieldSpec("ad", 50, "candidate"), FieldSpec("price", 12, "candidate")), {}),
    "no context but a constant": Wiring(
        (FieldSpec("position", 9, "context"), FieldSpec("ad", 50, "candidate")), {"position": 8}
    ),
    "a sequence is all there is": Wiring((FieldSpec("tags", 15, "candidate", is_sequence=True),), {}),
    "no candidate fields": Wiring((FieldSpec("user", 30, "context"), FieldSpec("hour", 24, "context")), {}),
}


RECIPE = {"name": "tiny", "student": {"fit": {"temperature": 1.0, "kd_weight": 0.9}}}


def network(name: str, fields: Fields, seed: int = 0) -> nn.Module:
    """A network of the zoo whose weights, biases included, are far from zero."""
    torch.manual_seed(seed)
    built = build(name, fields, **{option: value for option, value in DEEP.items() if option in options_of(name)})
    with torch.no_grad():
        for weight in built.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return built.eval()


def teachers(fields: Fields) -> dict[str, nn.Module]:
    """One of each network that such fields permit, in the zoo's order: DIN needs a sequence in the context."""
    has_history = any(spec.is_sequence and spec.side == "context" for spec in fields)
    return {name: network(name, fields, seed) for seed, name in enumerate(NETWORKS) if name != "din" or has_history}


def gate(count: int) -> Gate:
    """A gate `per_teacher` that leaves nothing at its neutral value."""
    matrix = np.diag(np.linspace(-0.5, 0.5, count))
    biases = tuple(np.linspace(0.3, -0.3, count))
    return Gate("per_teacher", tuple(map(tuple, matrix)), biases, (1.0,) * count, 1.2, -0.1, "gate")


def head(count: int | None = None) -> Head:
    """A head that leaves nothing at its neutral value; a gate over `count` networks, or none."""
    return Head(Platt(0.8, -0.4), None if count is None else gate(count), negative_keep_rate=0.25)


SCHEMA = FeatureSchema.model_validate(
    {
        "label": {"column": "click"},
        "fields": [
            {"name": "tags", "type": "string", "role": "candidate", "kind": "sequence", "separator": "|"}
            | {"max_length": 4, "encoding": {"method": "hash", "buckets": 20}},
            {"name": "user", "type": "integer", "role": "context", "kind": "categorical"}
            | {"encoding": {"method": "vocabulary"}},
            {"name": "position", "type": "integer", "role": "training_only", "kind": "categorical", "serving_value": 1}
            | {"encoding": {"method": "vocabulary"}},
            {"name": "price", "type": "float", "role": "candidate", "kind": "numeric"}
            | {"encoding": {"method": "quantile", "buckets": 8}},
        ],
    }
)


def prepared_log(folder: Path, rows: int = 300) -> Path:
    """A small log of three parts, encoded; the folder of its prepare step."""
    rng = np.random.default_rng(0)
    lines = ["part,click,tags,user,position,price"]
    for row in range(rows):
        part = ("train", "train", "valid", "test")[row % 4]
        tags = "|".join(rng.choice(["a", "b", "c", "d", "e"], rng.integers(0, 7)))
        user, position = rng.integers(40), rng.integers(1, 5)
        lines.append(f"{part},{row // 4 % 2},{tags},{user},{position},{rng.lognormal():.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare(FileSource((folder / "log.csv",)), SCHEMA, ColumnSplit(column="part"), folder / "prepared")
    return folder / "prepared"


def exported(
    prepared: Path, folder: Path, *, seed: int = 0, recipe: Mapping[str, Any] = RECIPE, only: str = ""
) -> Path:
    """Student, control and an ensemble of two with random weights over the log, as the export step leaves them."""
    log = EncodedLog.open(prepared / "log")
    dnn, fm = network("dnn", log.fields, 1), network("fm", log.fields, 2)
    drawn: dict[str, tuple[dict[str, nn.Module], Head]] = {
        "student": ({"student": network("dnn", log.fields, seed)}, head()),
        "control": ({"control": network("dnn", log.fields, 7)}, head()),
        "ensemble": ({"dnn": dnn, "fm": fm}, head(2)),
        "teachers/dnn": ({"dnn": dnn}, Head(Platt())),
        "teachers/fm": ({"fm": fm}, Head(Platt())),
    }
    graphs = {name: folder / "graphs" / name for name in drawn if only in name}
    for name, place in graphs.items():
        place.mkdir(parents=True)
        build_graph(place, *drawn[name], prepared=prepared, report=silent)
    logit, weights = np.linspace(-3, 1, len(log)).astype(np.float32), {"dnn": 0.7, "fm": 0.3}
    models = {
        "student": About(head(), logit, weights, temperature=1.0),
        "control": About(head(), logit),
        "ensemble": About(head(2), logit, weights),
    }
    models = {name: about for name, about in models.items() if name in graphs}
    result = folder / "export"
    build_cards(result, models, graphs, prepared=prepared, recipe=recipe, test=TEST_METRICS, report=silent)
    return result


TEST_METRICS: dict[str, Any] = {
    "student": {"auc": 0.7, "logloss": 0.4, "gauc": None},
    "control_train_valid": {"auc": 0.69, "logloss": 0.41},
    "teachers": {"fm": {"auc": 0.66}},
}


def silent(done: float, total: float, note: str = "") -> None:
    """A progress callback that nobody watches."""


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def without(tree: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}
