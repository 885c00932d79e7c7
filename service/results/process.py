"""`python -m service.results.process`: one report for the service, in a process of its own, which gives way to scoring.

One line of JSON in: the experiment file's text, the experiment's name, the log's folder, and whether assignments are
replayed. One of JSON out: the report as text in both of its forms, or why there is none. The process ends at once when
whoever started it does (its standard input closes), comes behind whoever scores, and is the first to go where memory
runs out: reading a log takes a multiple of its size.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

NICENESS = 10
"""A tenth of a worker's weight. The lowest, 19, has a seventieth: there a report of a second took minutes."""


def main() -> int:
    """Reads the question, writes the answer; returns the exit code."""
    question = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _give_way()
    from service.answers.command import tree_of
    from service.answers.page import to_html
    from service.answers.report import to_json
    from service.errors import AnswersError, ConfigError
    from service.experiments.file import parse_experiments
    from service.journal.sinks.answers import read_log

    try:
        file = parse_experiments(question["file"], "the experiment file")
        folder = Path(question["log"])
        tree = tree_of(file, question["experiment"], [folder], read_log, replay=question["replay"])
        answer = {"json": to_json(tree), "html": to_html(tree)}
    except (AnswersError, ConfigError) as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)
    sys.stdout.flush()
    return 0


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _give_way() -> None:
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # not on every system
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    code = main()
    os._exit(code)  # without waiting for the thread that reads
