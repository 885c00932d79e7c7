"""`python -m service results`: what the service has logged, or a joined log, in; the report out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.answers.page import to_html, to_markdown
from service.answers.report import Question, report, to_json
from service.answers.rows import LATEST, Rows, read_rows
from service.errors import AnswersError, ConfigError
from service.experiments.file import ExperimentFile, read_experiments

TEACHING = """
examples:
  python -m service results --experiments experiments.yaml --log log               the folder of `--log` of the service
  python -m service results --experiments experiments.yaml --log joined-2026-11-20.jsonl joined-2026-11-21.jsonl
  python -m service results --experiments experiments.yaml --log postgresql://reader@db.example/clicks
  python -m service results --experiments e.yaml --log joined.csv --segment device --format html --out a.html

A folder is joined here, and so is a database that `ship` took it to: exposures with impressions and clicks by request
id, within the experiment's attribution window (docs/journal.md). The columns of a joined log, and what each number
means and assumes: docs/answers.md. The same log gives the same bytes.

exit codes  0 answered, 2 wrong option or file
"""


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m service results",
        description="What an experiment has shown: lift one may look at every day, split, guard-rails, and a decision.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--experiments", type=Path, required=True, metavar="PATH", help="the experiment file")
    parser.add_argument("--experiment", metavar="NAME", help="one of its experiments; without, the default one")
    parser.add_argument(
        "--log",
        type=_place,
        required=True,
        nargs="+",
        metavar="PATH",
        help="folders of the service's log, the database it was shipped to, or a joined log: .jsonl or .csv",
    )
    parser.add_argument("--segment", nargs="*", default=[], metavar="COLUMN", help="columns to split predictions by")
    parser.add_argument(
        "--as-of", type=_seconds, metavar="SECONDS", help="now, since 1970; without, the time of the last row"
    )
    parser.add_argument(
        "--replay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check each unit's arm against the published hash; not where the log holds hashed units [yes]",
    )
    parser.add_argument("--format", choices=("json", "markdown", "html"), default="markdown", help="[markdown]")
    parser.add_argument("--out", type=Path, metavar="PATH", help="a file instead of the terminal")
    return parser


def _place(text: str) -> Path | str:
    """A path, or, where it is a database's, the URL."""
    return text if text.partition("://")[0] in ("postgresql", "postgres") else Path(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not abs(seconds) <= LATEST:
        raise argparse.ArgumentTypeError(f"expected seconds since 1970, got {text}")
    return seconds


ReadFolders = Callable[[Sequence[Path], str, float, Sequence[str]], Rows]
"""(folders, experiment, attribution window in seconds, segments) -> rows."""
ReadLog = Callable[[Sequence[Path | str], str, float, Sequence[str]], Rows]
"""The same of folders, or of the URL of a database."""


def main(arguments: Sequence[str], read_log: ReadLog) -> int:
    """The command; returns its exit code. `read_log` joins what the service has logged."""
    options = make_parser().parse_args(arguments)
    try:
        text = answer(options, read_log)
        if options.out is None:
            sys.stdout.write(text)
        else:
            options.out.write_text(text, encoding="utf-8")
    except (AnswersError, ConfigError) as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"retort: --out {options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def answer(options: argparse.Namespace, read_log: ReadLog) -> str:
    """What is printed."""
    file = read_experiments(options.experiments)
    tree = tree_of(
        file,
        options.experiment or file.default.name,
        options.log,
        read_log,
        replay=options.replay,
        as_of=options.as_of,
        segments=options.segment,
    )
    return {"json": to_json, "markdown": to_markdown, "html": to_html}[options.format](tree)


def tree_of(
    file: ExperimentFile,
    name: str,
    log: Sequence[Path | str],
    read_log: ReadLog,
    *,
    replay: bool = True,
    as_of: float | None = None,
    segments: Sequence[str] = (),
) -> dict[str, Any]:
    """The report of one experiment of the file from folders of the service's log, from a database (its URL), or from
    joined logs. Raises `AnswersError` where none can be made."""
    names = [experiment.name for experiment in file.experiments]
    if name not in names:
        raise AnswersError(f"--experiment: no '{name}' in the experiment file (there are: {', '.join(names)})")
    experiment = file.experiments[names.index(name)]
    question = Question(experiment, file.assigner(experiment) if replay else None, as_of)
    files = [place for place in log if isinstance(place, Path) and not place.is_dir()]
    if files and len(files) < len(log):
        raise AnswersError("--log: expected folders, files or a database, got both: a request might be in two of them")
    if files:
        rows = read_rows(files, segments)
    else:
        rows = read_log(log, experiment.name, experiment.analysis.attribution_window_seconds, segments)
    return report(question, rows)
