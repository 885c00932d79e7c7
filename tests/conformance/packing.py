"""`python -m tests.conformance.packing`: a DeepFM of FuxiCTR, from its own training to /predict, compared row by row.

FuxiCTR has an environment of its own, in which `fuxictr_deepfm.py` trains, exports and predicts. Here the graph is
packed and served, and every row of a file that packing never saw goes raw through HTTP: each score within 1e-5 of what
FuxiCTR says of that row. Needs a package index the first time; docs/elsewhere.md is the same by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.schema import FeatureSchema, FieldSchema
from models.values import read_text
from tests.conformance.__main__ import HERE, python_with
from tests.service.running import running_service
from training.pack.vocabularies import encoder_of, read_vocabularies

TOLERANCE = 1e-5
FILLS = {"campaign": "-1"}
SCHEMA = HERE / "fuxictr.schema.yaml"
PACKAGES = (
    f"torch=={torch.__version__.partition('+')[0]}",
    "fuxictr==2.3.10",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
)


def raw(field: FieldSchema, cell: str) -> Any:
    """A cell as a client's JSON brings it."""
    if field.is_sequence:
        return [read_text(field.type, part) for part in cell.split(field.separator)] if cell else None
    return read_text(field.type, cell)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.packing", description=__doc__)
    parser.add_argument("--python", type=Path, metavar="FILE", help="of an environment that has FuxiCTR already")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "retort-clients", metavar="DIR")
    options = parser.parse_args(arguments)
    python = options.python or python_with(PACKAGES, options.environments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        trained = subprocess.run(
            [str(python), str(HERE / "fuxictr_deepfm.py"), scratch], env=variables, capture_output=True, text=True
        )
        if trained.returncode:
            print(f"FAIL FuxiCTR does not train\n{trained.stderr[-3000:]}")
            return 1
        command = [sys.executable, "-m", "training", "pack", str(folder / "deepfm.onnx"), "--schema", str(SCHEMA)]
        command += ["--vocabularies", str(folder / "data" / "ads"), "--rows", str(folder / "rows.csv")]
        command += [
            "--probability",
            "y_pred",
            "--expect",
            "fuxictr_pctr",
            *(f"--fill-na={name}={value}" for name, value in FILLS.items()),
        ]
        packed = subprocess.run([*command, "--repository", str(folder / "repository")], text=True, capture_output=True)
        print(packed.stderr, end="")
        if packed.returncode:
            return 1
        wrong = other_ids(folder)
        print(f"{len(wrong)} values have another id than FuxiCTR gives them", *wrong[:5])
        if wrong:
            return 1
        gaps = served(folder)
    worst = max(gaps)
    print(f"{len(gaps)} rows over HTTP: the largest difference to FuxiCTR's own prediction is {worst:.1e}")
    if not worst <= TOLERANCE:
        print(f"FAIL expected at most {TOLERANCE:g}")
        return 1
    return 0


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The cells of checked.csv, which packing never saw."""
    with (folder / "checked.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def other_ids(folder: Path) -> list[tuple[str, str]]:
    """Fields and cells of checked.csv that come to another id (or padded list of them) than FuxiCTR's own processing
    gives: known, unknown, missing, each by the vocabularies that packing reads."""
    schema = FeatureSchema.from_file(SCHEMA)
    carried = read_vocabularies(folder / "data" / "ads", schema, FILLS)
    encoder, wrong = encoder_of(schema, carried, None), []
    theirs = json.loads((folder / "checked.ids.json").read_text(encoding="utf-8"))
    for number, row in enumerate(rows_of(folder)):
        values = {field.name: raw(field, row[field.name]) for field in schema.fields}
        sides = {"context": encoder.encode_context(values), "candidate": encoder.encode_candidates([values])}
        places = {"context": schema.context_id_fields, "candidate": schema.candidate_id_fields}
        for field in schema.fields:
            table, side = carried[field.name].ids, sides[field.role]
            assert table is not None
            if field.is_sequence:
                kept = table[side.sequences[field.name][0]].tolist()
                padding = [0] * ((field.max_length or 0) - len(kept))
                found: Any = [*kept, *padding] if field.keep == "first" else [*padding, *kept]
            else:
                found = int(table[side.ids[0, places[field.role].index(field)]])
            if found != theirs[field.name][number]:
                wrong.append((field.name, row[field.name]))
    return wrong


def served(folder: Path) -> list[float]:
    """|pctr of /predict - FuxiCTR's| of each row of checked.csv: a request each."""
    schema, gaps = FeatureSchema.from_file(SCHEMA), []
    with running_service(folder / "log", "--repository", str(folder / "repository")) as running:
        for row in rows_of(folder):
            sides: dict[str, dict[str, Any]] = {"context": {}, "candidate": {}}
            for field in schema.fields:
                sides[field.role][field.name] = raw(field, row[field.name])
            body = {"context": sides["context"], "candidates": [sides["candidate"]]}
            reply = running.request("POST", "/predict", body)
            if reply.status != 200:
                raise SystemExit(f"FAIL {reply.status}: {json.dumps(reply.json())}")
            gaps.append(abs(reply.json()["pctr"][0] - float(row["fuxictr_pctr"])))
    return gaps


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
