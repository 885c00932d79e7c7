"""`python -m service results`: a joined log in, the report out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.answers.page import to_html, to_markdown
from service.answers.report import Question, report, to_json
from service.answers.rows import LATEST, read_rows
from service.errors import AnswersError, ConfigError
from service.experiments.file import read_experiments

TEACHING = """
examples:
  python -m service results --experiments experiments.yaml --log joined-2026-11-20.jsonl joined-2026-11-21.jsonl
  python -m service results --experiments e.yaml --log joined.csv --segment device --format html --out a.html

The log's columns, and what each number means and assumes: docs/answers.md. The same log gives the same bytes.

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
        "--log", type=Path, required=True, nargs="+", metavar="PATH", help="the joined log: .jsonl or .csv"
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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not abs(seconds) <= LATEST:
        raise argparse.ArgumentTypeError(f"expected seconds since 1970, got {text}")
    return seconds


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        text = answer(options)
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


def answer(options: argparse.Namespace) -> str:
    """What is printed."""
    file = read_experiments(options.experiments)
    names = [experiment.name for experiment in file.experiments]
    name = options.experiment or file.default.name
    if name not in names:
        raise AnswersError(f"--experiment: no '{name}' in {options.experiments} (there are: {', '.join(names)})")
    experiment = file.experiments[names.index(name)]
    question = Question(experiment, file.assigner(experiment) if options.replay else None, options.as_of)
    tree = report(question, read_rows(options.log, options.segment))
    return {"json": to_json, "markdown": to_markdown, "html": to_html}[options.format](tree)
