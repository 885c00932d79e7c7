"""The command `python -m training pack`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from training.errors import PackError

DESCRIPTION = """\
Makes a bundle of an ONNX graph that another library trained, so that the service scores raw requests with it.

  python -m training pack deepfm.onnx --schema ads.schema.yaml --vocabularies data/ads --rows sample.csv \\
      --probability y_pred --expect fuxictr_pctr

GRAPH takes encoded ids (int64 or int32, any number of rows): one input a field, called as the field, [batch] or
[batch, 1], a sequence [batch, max_length]; or the inputs of docs/bundle.md. It gives a logit, a probability or both.
SCHEMA says what each field is (docs/schema.md): its type as it was trained, its role, its kind.
VOCABULARIES is FuxiCTR's data folder (feature_map.json, feature_vocab.json), or a folder of <field>.json:
  ["a", "b"]                                               the graph takes ids 0 missing, 1 unknown, 2 "a", 3 "b"
  {"ids": {"a": 1, "b": 2}, "missing": 0, "unknown": 3}    any other numbering
  {"edges": [0, 1.5], "ids": [1, 2, 3], "missing": 0}      ranges of a number: ids[i] of edges[i-1] <= x < edges[i]
ROWS are raw rows like those it was trained on, 100 or more, CSV, TSV, Parquet or JSON lines (.jsonl). With the label's
column they are also measured; with --expect, the column of your library's own predictions, every row has to come out
the same within 1e-5. Give it: it is what proves that vocabularies, missing values and lists came over right.

What is wrong is refused before anything is written. Printed last: the folder of the new version.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("graph", type=Path, metavar="GRAPH", help="the .onnx file, external data beside it")
    parser.add_argument("--schema", type=Path, required=True, metavar="FILE", help="YAML or JSON: docs/schema.md")
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE", help="raw rows; labels are optional")
    parser.add_argument(
        "--vocabularies", type=Path, metavar="DIR", help="its values and ids; none only where every field is hashed"
    )
    parser.add_argument("--logit", metavar="NAME", help="the output that is a logit (default: one called logit)")
    parser.add_argument("--probability", metavar="NAME", help="the output that is a probability (default: pctr)")
    parser.add_argument("--expect", metavar="COLUMN", help="of ROWS: the probability your library gave each row")
    parser.add_argument("--name", help="of the model (default: GRAPH's, without .onnx)")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("models/repository"),
        metavar="DIR",
        help="where bundles go (default models/repository)",
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="FIELD=NAME", help="a field's input, where called otherwise"
    )
    parser.add_argument(
        "--fill-na",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="FuxiCTR's fill_na of a field, where it is not the default ('' for str, 0 for int and float)",
    )
    parser.add_argument(
        "--allow-unknown", action="append", default=[], metavar="FIELD", help="its vocabulary may know none of the rows"
    )
    parser.add_argument("--scale", type=_finite, default=1.0, help="pctr = sigmoid(scale * logit + bias) (default 1)")
    parser.add_argument("--bias", type=_finite, default=0.0, help="the same (default 0)")
    parser.add_argument(
        "--negatives-kept",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="of the log's impressions without a click, the share it was trained on; corrected for (default 1)",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """What the command does with its arguments; the exit code. Errors are raised."""
    from models.manifest import Calibration
    from training.pack.pack import Order, pack

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    calibration = Calibration(
        scale=arguments.scale, bias=arguments.bias, negative_sampling_rate=arguments.negatives_kept
    )
    order = Order(
        graph=arguments.graph,
        schema=arguments.schema,
        rows=arguments.rows,
        name=arguments.name or arguments.graph.name.removesuffix(".onnx"),
        repository=arguments.repository,
        vocabularies=arguments.vocabularies,
        logit=arguments.logit,
        probability=arguments.probability,
        expect=arguments.expect,
        calibration=calibration,
        renamed=_pairs("--input", arguments.input),
        fills=_pairs("--fill-na", arguments.fill_na),
        allow_unknown=arguments.allow_unknown,
    )
    packed = pack(order, say)
    for name, missing in packed.missing.items():
        unknown = packed.unknown[name]
        if missing or unknown:
            say(f"field {name}: {missing:.1%} of the rows' values missing, {unknown:.1%} unknown")
    for name, count in packed.bad_cells.items():
        say(f"! field {name}: {count} cells are no value of its type, and count as missing")
    if packed.bad_rows:
        say(f"! {packed.bad_rows} rows cannot be read and were left out")
    if packed.metrics:
        shown = ("auc", "logloss", "predicted_over_actual", "ece")
        say(", ".join(f"{name} {packed.metrics[name]:.4f}" for name in shown if name in packed.metrics))
    if packed.expected_error is None:
        say("! no --expect: that vocabularies came over right is not proven; give a column of your own predictions")
    else:
        say(f"every row within {packed.expected_error:.1e} of the predictions expected")
    published = packed.published
    what = "is new" if published.is_new else "was this model already"
    say(f"{published.name} version {published.version} {what}. Serve it:")
    say(f"  python -m service --repository {arguments.repository} --show-example")
    print(published.path)
    return 0


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or name in pairs:
            raise PackError(f"{option} {text}: expected FIELD=..., once a field")
        pairs[name] = value
    return pairs


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number


def _share(text: str) -> float:
    number = _finite(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0, at most 1, got {text!r}")
    return number
