"""A report as Markdown (`training/results.py`).

Every number is taken from report.json and sweep.json as runs wrote them; nothing is computed here but means, spreads
and paired differences over seeds.
"""

from __future__ import annotations

import math
import shlex
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.markdown import spread, table
from training.report.values import written

MODELS = ("student", "ensemble", "average", "control_train_valid", "control_train")
COLUMNS = {
    "auc": "AUC",
    "logloss": "logloss",
    "ece": "ECE",
    "ece_floor": "ECE floor",
    "predicted_over_actual": "predicted/actual",
}
UNDER_THE_TRUTH = {
    "xauc": "xAUC",
    "xlogloss": "xlogloss",
    "logloss": "logloss",
    "xece": "error against the truth",
    "predicted_over_actual": "predicted/actual",
}


def section(report: Mapping[str, Any]) -> Iterator[str]:
    """A report, and the sweep that it carries below it."""
    test, source = report["test"], report["recipe"]["source"]
    seed = f", log seed {source['seed']}" if source["kind"] == "synthetic" else ""
    yield f"### {report['name']}{seed}"
    yield ""
    yield f"    {_command(report)}"
    yield ""
    took = f", {report['seconds']:.0f} s" if report["seconds"] is not None else ""
    yield f"{report['created'][:10]}, {report['conditions']['cpu']}{took}."
    yield ""
    columns = UNDER_THE_TRUTH if report["headline"]["auc"] == "xauc" else COLUMNS
    models = [(name, test[name]) for name in MODELS]
    models += [(f"teacher {name}", entries) for name, entries in test["teachers"].items()]
    rows = [[name, *(spread([entry[key] for entry in entries]) for key in columns)] for name, entries in models]
    yield from table(["test rows", *columns.values()], rows)
    yield ""
    yield "Paired by seed, mean ± standard error, and each seed:"
    yield ""
    rivals = [(name, test[name]) for name in ("control_train_valid", "ensemble")]
    best = report["best_teacher"]
    rivals += [(f"best teacher ({best})", test["teachers"][best])] if best else []
    rows = [
        [f"student less {name}", *(_paired(test["student"], entries, key) for key in list(columns)[:3])]
        for name, entries in rivals
    ]
    yield from table(["", *list(columns.values())[:3]], rows)
    yield ""
    if report["targets"]:
        yield from table(
            ["what was to be reached", "wanted", "found", ""], [_target(each) for each in report["targets"]]
        )
        yield ""
        for missed in (target for target in report["targets"] if not target["reached"]):
            reason = "; ".join(written(report, sentence) for sentence in missed["reason"])
            yield from textwrap.wrap(f"- **{missed['name']}**: {reason}.", 119, subsequent_indent="  ")
        if not all(target["reached"] for target in report["targets"]):
            yield ""
    if report.get("sweep"):
        yield from _sweep(report["sweep"])


def _command(report: Mapping[str, Any]) -> str:
    source = report["recipe"]["source"]
    seed = [f"source.seed={source['seed']}"] if source.get("seed") else []
    settings = "".join(f" --set {shlex.quote(setting)}" for setting in report.get("overrides", seed))
    return f"python -m training run {report['name']} --seeds {len(report['seeds'])}{settings}"


def _paired(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], key: str) -> str:
    differences = [a[key] - b[key] for a, b in zip(one, other, strict=True)]
    mean = f"{statistics.mean(differences):+.4f}"
    if len(differences) == 1:
        return mean
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{mean} ± {error:.4f} ({', '.join(f'{difference:+.4f}' for difference in differences)})"


def _target(target: Mapping[str, Any]) -> list[str]:
    verdict = "reached" if target["reached"] else "**not reached**"
    return [target["name"], f"{target['relation']} {target['wanted']:.4g}", f"{target['found']:.4g}", verdict]


def _sweep(sweep: Mapping[str, Any]) -> Iterator[str]:
    """A table a side of the mean AUC and logloss by learning rate and init; the chosen pair in bold."""
    grid = sweep["grid"]
    seeds = len(grid["seeds"])
    yield f"#### How its networks were tuned, {seeds} seed{'s' if seeds > 1 else ''} a trial"
    yield ""
    tried = " ".join(f"{rate:g}" for rate in grid["learning_rate"])
    drawn = " ".join(f"{sd:g}" for sd in grid["init_sd"])
    command = f"python -m training sweep {sweep['recipe']['name']} --seeds {seeds}"
    yield f"    {command} --learning-rates {tried} --init-sds {drawn}"
    yield ""
    yield f"Judged by {sweep['judged_by']}."
    if sweep.get("edges"):
        yield f"At the edge of the grid, so perhaps not the best there is: {'; '.join(sweep['edges'])}."
    yield "AUC, logloss (epochs, a seed each) by learning rate and embedding init:"
    for side, best in sweep["best"].items():
        cells: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
        for trial in sweep["trials"]:
            if trial["side"] == side:
                cells.setdefault((trial["learning_rate"], trial["init_sd"]), []).append(trial)
        rows = []
        for rate in grid["learning_rate"]:
            row = [f"{rate:g}"]
            for sd in grid["init_sd"]:
                trials = cells[rate, sd]
                if any("diverged" in trial for trial in trials):
                    row.append("diverged")
                    continue
                auc, logloss = (statistics.mean(t[key] for t in trials) for key in ("valid_auc", "valid_logloss"))
                text = f"{auc:.4f}, {logloss:.4f} ({'/'.join(str(t['epochs']) for t in trials)})"
                row.append(f"**{text}**" if (best["learning_rate"], best["init_sd"]) == (rate, sd) else text)
            rows.append(row)
        yield ""
        yield from table([side, *(f"init {sd:g}" for sd in grid["init_sd"])], rows)
    yield ""
