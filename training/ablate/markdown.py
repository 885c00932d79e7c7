"""A filled table as Markdown: every number is taken from tables/<table>.json.

Of each row, AUC and logloss on test rows and AUC on train rows (what the last is above the first is learned by heart),
the difference to the row it is compared with, seed by seed with its interval, and for a student what it keeps of its
ensemble's gain.
Below, what the paper claims and whether it held.
"""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.ablate.paired import LEAST_SEEDS, UNTUNED
from training.markdown import spread, table

_NAMES = {"xauc": ("xAUC", "xauc", "xlogloss"), "auc": ("AUC", "auc", "logloss")}


def overview(tables: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every claim by log: on how many of its pairs it held. A log is a recipe with its overrides."""
    logs = list(dict.fromkeys(_log(filled) for filled in tables))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for filled in tables:
        for claim in filled["claims"]:
            by_log = found.setdefault((filled["table"], claim["text"]), {})
            by_log[_log(filled)] = _in_short(claim["pairs"])
    yield "### Every claim, by log"
    yield ""
    yield (
        "Pairs on which it held, of all that are judged; in brackets where the opposite is as sure. The rest is open. "
        "A pair with a network that nobody tuned on that log is not judged."
    )
    yield ""
    rows = [[name, text, *(by_log.get(log, "") for log in logs)] for (name, text), by_log in found.items()]
    yield from table(["table", "claim", *logs], rows)
    yield ""


def _log(filled: Mapping[str, Any]) -> str:
    return ", ".join([filled["recipe"]["name"], *filled["overrides"]])


def _in_short(pairs: Sequence[Mapping[str, Any]]) -> str:
    verdicts = Counter(pair["verdict"] for pair in pairs)
    if None in verdicts:
        return "not judged"
    against = f" ({verdicts['does not hold']} against)" if verdicts["does not hold"] else ""
    unjudged = f", {verdicts[UNTUNED]} untuned" if verdicts[UNTUNED] else ""
    return f"{verdicts['holds']} of {len(pairs) - verdicts[UNTUNED]}{against}{unjudged}"


def section(filled: Mapping[str, Any]) -> Iterator[str]:
    """One table."""
    title, auc, loss = _NAMES[filled["metric"]]
    yield f"### {filled['recipe']['name']}: {filled['title']}"
    yield ""
    asked = filled.get("asked", filled["recipe"]["name"])
    overrides = "".join(f" --set {shlex.quote(override)}" for override in filled["overrides"])
    yield (
        f"    python -m training ablate {shlex.quote(asked)} --table {filled['table']} "
        f"--seeds {len(filled['seeds'])}{overrides}"
    )
    yield ""
    yield (
        f"{filled['created'][:10]}, {filled['conditions']['cpu']}. Means ± standard deviation over seeds; differences "
        "are paired by seed, in brackets the 95% interval of the mean."
    )
    yield ""
    has_share = any("ensemble" in row for row in filled["rows"])
    heads = [*filled["heads"], f"test {title}", f"test {loss}", f"train {title}", "compared with", "difference"]
    heads += ["less its ensemble", "share of its gain"] if has_share else []
    yield from table(heads, [_row(row, auc, loss, has_share) for row in filled["rows"]])
    yield ""
    notes = list(filled["notes"])
    if filled["untuned"]:
        notes.append(f"nobody tuned {', '.join(filled['untuned'])} on this log: the recipe's zoo does not name them")
    if filled.get("untuned_students"):
        names = ", ".join(filled["untuned_students"])
        notes.append(
            f"nobody tuned a student {names} on this log: the recipe's students do not name them, and they distil by "
            "what was best on clicks"
        )
    by_reason: dict[str, list[str]] = {}
    for each in filled.get("left_out", ()):
        by_reason.setdefault(each["reason"], []).append(_name(each["cells"]))
    notes += [f"left out: {'; '.join(names)}. {reason}" for reason, names in by_reason.items()]
    for note in notes:
        yield f"{note[0].upper()}{note[1:]}."
        yield ""
    if filled["claims"]:
        yield f"Whether it held here, pair by pair ({title}, 95% interval over seeds):"
        yield ""
        yield from table(
            ["claim", "held", "open", "did not hold", "untuned: not judged", "differences"],
            [_claim(c) for c in filled["claims"]],
        )
        yield ""


def _row(row: Mapping[str, Any], auc: str, loss: str, has_share: bool) -> list[str]:
    test, train = ([entry[section] for entry in row["seeds"]] for section in ("test", "train"))
    cells = [*row["cells"], *(spread([entry[key] for entry in test]) for key in (auc, loss))]
    cells.append(spread([entry[auc] for entry in train]))
    cells += [_name(row["against"]), _difference(row["difference"])] if "difference" in row else ["", ""]
    if has_share:
        is_student = "ensemble" in row
        share = row.get("share_of_ensembles_gain")
        cells.append(_difference(row["less_ensemble"]) if is_student else "")
        cells.append(f"{100 * share:.0f}%" if share is not None else "no sure gain" if is_student else "")
    return cells


def _name(cells: Sequence[str]) -> str:
    return ", ".join(filter(None, cells))


def _difference(difference: Mapping[str, Any]) -> str:
    if difference["error"] is None:
        return f"{difference['mean']:+.4f}"
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def _claim(claim: Mapping[str, Any]) -> list[str]:
    pairs: Sequence[Mapping[str, Any]] = claim["pairs"]
    if any(pair["verdict"] is None for pair in pairs):
        return [claim["text"], f"not judged: fewer than {LEAST_SEEDS} seeds", "", "", "", ""]
    found = Counter(pair["verdict"] for pair in pairs)
    means = [pair["difference"]["mean"] for pair in pairs]
    if len(pairs) == 1:
        differences = _difference(pairs[0]["difference"])
    else:
        differences = f"{min(means):+.4f} to {max(means):+.4f}, median {statistics.median(means):+.4f}"
    counts = [str(found[name]) for name in ("holds", "open", "does not hold", UNTUNED)]
    return [claim["text"], *counts, differences]
