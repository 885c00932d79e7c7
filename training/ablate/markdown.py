"""A filled table as Markdown: every number is taken from tables/<table>.json.

Of each row, AUC and logloss on test rows and AUC on train rows (what the last is above the first is learned by heart),
the difference to the row it is compared with, seed by seed, and for a student what it keeps of its ensemble's gain.
Below, what the paper claims and whether it held.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.ablate.paired import LEAST_SEEDS
from training.report.markdown import spread, table

_NAMES = {"xauc": ("xAUC", "xauc", "xlogloss"), "auc": ("AUC", "auc", "logloss")}


def markdown(filled: Mapping[str, Any]) -> Iterator[str]:
    """One section."""
    title, auc, loss = _NAMES[filled["metric"]]
    yield f"### {filled['recipe']['name']}: {filled['title']}"
    yield ""
    overrides = "".join(f" --set {override}" for override in filled["overrides"])
    yield (
        f"    python -m training ablate {filled['recipe']['name']} --table {filled['table']} "
        f"--seeds {len(filled['seeds'])}{overrides}"
    )
    yield ""
    yield f"{filled['created'][:10]}, {filled['conditions']['cpu']}."
    yield ""
    has_share = any("ensemble" in row for row in filled["rows"])
    heads = [*filled["heads"], f"test {title}", f"test {loss}", f"train {title}", "difference"]
    heads += ["less its ensemble", "share of its gain"] if has_share else []
    yield from table(heads, [_row(row, auc, loss, has_share) for row in filled["rows"]])
    yield ""
    notes = list(filled["notes"])
    if filled["untuned"]:
        notes.append(f"nobody tuned {', '.join(filled['untuned'])} on this log: the recipe's zoo does not name them")
    for note in notes:
        yield f"{note[0].upper()}{note[1:]}."
        yield ""
    if filled["claims"]:
        yield f"Whether it held here, pair by pair ({title}, 95% interval over seeds):"
        yield ""
        yield from table(
            ["claim", "held", "open", "did not hold", "differences"], [_claim(c) for c in filled["claims"]]
        )
        yield ""


def _row(row: Mapping[str, Any], auc: str, loss: str, has_share: bool) -> list[str]:
    test, train = ([entry[section] for entry in row["seeds"]] for section in ("test", "train"))
    cells = [*row["cells"], *(spread([entry[key] for entry in test]) for key in (auc, loss))]
    cells.append(spread([entry[auc] for entry in train]))
    cells.append(_difference(row["difference"]) if "difference" in row else "")
    if has_share:
        is_student = "ensemble" in row
        share = row.get("share_of_ensembles_gain")
        cells.append(_difference(row["less_ensemble"]) if is_student else "")
        cells.append(f"{100 * share:.0f}%" if share is not None else "no sure gain" if is_student else "")
    return cells


def _difference(difference: Mapping[str, Any]) -> str:
    if difference["error"] is None:
        return f"{difference['mean']:+.4f}"
    return f"{difference['mean']:+.4f} ± {difference['error']:.4f}"


def _claim(claim: Mapping[str, Any]) -> list[str]:
    pairs: Sequence[Mapping[str, Any]] = claim["pairs"]
    if any(pair["verdict"] is None for pair in pairs):
        return [claim["text"], f"not judged: fewer than {LEAST_SEEDS} seeds", "", "", ""]
    found = Counter(pair["verdict"] for pair in pairs)
    means = [pair["difference"]["mean"] for pair in pairs]
    if len(pairs) == 1:
        only = pairs[0]["difference"]
        differences = f"{only['mean']:+.4f} ({only['low']:+.4f} to {only['high']:+.4f})"
    else:
        differences = f"{min(means):+.4f} to {max(means):+.4f}, median {statistics.median(means):+.4f}"
    counts = [str(found[name]) for name in ("holds", "open", "does not hold")]
    return [claim["text"], *counts, differences]
