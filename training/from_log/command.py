"""The command `python -m training from-log`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.errors import DataError

DESCRIPTION = """\
Makes a training log of what the service logged: exposures with their features, joined with the impressions and clicks
that came back, each once, within the attribution window; parted by time; with a recipe that trains on it.

  python -m service --repository models/repository --experiments models/experiments.yaml --log log --log-features 1
  python -m training from-log log --schema models/repository/student/4/schema.json --out logs/monday
  python -m training run logs/monday/recipe.yaml --repository models/repository      version 5, which goes live

FOLDER is that of --log, or of `python -m service compact`; several machines' are read together. --schema says what the
features are: the one in the bundle that was served, or an edited copy. Written to --out, a new folder:

  log.parquet    a row an impression, in the order of time: request_id, candidate, time, unit, click, the arm, its
                 propensity, model and version, pctr as it was answered, split, and the features
  schema.json    of that log: the same fields, as they were sent
  recipe.yaml    the networks of --recipe over it
  unlabelled.parquet      with --unlabelled: the same of candidates of which nobody knows a click, for the student
  report.json    how many rows there are, and of everything that is none, why (docs/journal.md)

Requests that forced an arm are left out: somebody was trying it. An impression whose window has not closed waits for
the next time, clicked or not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="of the service's log")
    add("--schema", type=Path, required=True, metavar="FILE", help="what the features are: YAML or JSON")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--recipe", default="synthetic", metavar="RECIPE", help="whose networks and settings are taken [synthetic]")
    add("--window", type=_seconds, default=86400.0, metavar="S", help="attribution window of the experiment [86400]")
    add("--as-of", type=_moment, metavar="S", help="seconds since 1970, or `now` [the time of the last record]")
    add("--experiment", metavar="NAME", help="of this experiment alone [all, and requests outside any]")
    add("--keep-forced", action="store_true", help="requests that forced an arm, too")
    add(
        "--unlabelled",
        type=_share_or_all,
        default=0.0,
        metavar="SHARE",
        help="of the candidates that were scored and make no row, not shown or still waiting: the student learns from "
        "them what the ensemble says [0]",
    )
    add("--catalogue", type=Path, metavar="FILE", help="of the service, where requests named candidates by its ids")
    add("--valid", type=_share, default=0.2, metavar="SHARE", help="of the rows, before the test's [0.2]")
    add("--test", type=_share, default=0.1, metavar="SHARE", help="of the rows, the latest [0.1]")


def _seconds(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1e11:
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}")
    return number


def _moment(text: str) -> float:
    return time.time() if text == "now" else _seconds(text)


def _share(text: str) -> float:
    number = _number(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text!r}")
    return number


def _share_or_all(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def command(arguments: argparse.Namespace) -> int:
    """Joins, writes, prints the path of the recipe last."""
    from models.schema import FeatureSchema
    from training.data.split import Fractions, TimeSplit
    from training.from_log.join import Choice, join
    from training.from_log.write import RECIPE, said, write
    from training.recipe import load_recipe

    if arguments.valid + arguments.test >= 1:
        raise DataError(f"--valid {arguments.valid:g} and --test {arguments.test:g} leave no rows to train on")
    if arguments.out.exists():
        raise DataError(f"--out {arguments.out}: is there already; expected a new folder, since nothing is overwritten")
    schema = FeatureSchema.from_file(arguments.schema)
    template = replace(load_recipe(arguments.recipe), schema=schema)
    choice = Choice(
        arguments.window, arguments.as_of, arguments.experiment, arguments.keep_forced, arguments.unlabelled
    )
    catalogue = None if arguments.catalogue is None else read_catalogue(arguments.catalogue)
    joined = join(arguments.folders, schema, choice, catalogue=catalogue)
    stated = {
        "folders": [str(folder) for folder in arguments.folders],
        "window_seconds": arguments.window,
        "experiment": arguments.experiment,
    }
    split = TimeSplit(fractions=Fractions(valid=arguments.valid, test=arguments.test))
    report = write(arguments.out, joined, template, split, stated)
    print("\n".join(said(report, [field.name for field in schema.fields])), file=sys.stderr)
    print(arguments.out / RECIPE)
    return 0


def read_catalogue(path: Path) -> dict[str, dict[str, Any]]:
    """The candidates of a catalogue's file, JSON lines, by id. `DataError` for a file that is none."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if isinstance(record, dict) and type(record.get("id")) is str and type(record.get("candidate")) is dict:
                    found[record["id"]] = record["candidate"]
                elif number > 1:  # the first may be the service's own header
                    raise DataError(f"{path}:{number}: expected an id and a candidate")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path}: expected a catalogue, JSON lines: {error}") from None
    return found
