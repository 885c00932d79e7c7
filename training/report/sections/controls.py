"""What else could explain the gain: the tables of `ablate` that lie beside the run."""

from __future__ import annotations

from training.report.pieces import METRICS, section, table
from training.report.values import MISSING, Values, pointer

AT = "/tables/controls"


def controls(v: Values) -> str:
    """The recipe's student beside self-distillation, the plain average and every teacher; then every other table's
    claims. Nothing where nobody has run `ablate` in this folder."""
    if not v.has("/tables"):
        return ""
    body = _controls(v) if v.has(AT) else _not_filled()
    return section("What else could explain the gain", body + _others(v), "explains")


def _not_filled() -> str:
    return (
        "<p>Whether a student taught by itself, or by the plain average, is as good was not tried here: "
        "<code>python -m training ablate RECIPE --table controls</code> does.</p>"
    )


def _controls(v: Values) -> str:
    metric = v.get(f"{AT}/metric")
    auc, loss = (METRICS[name][0] for name in (metric, "xlogloss" if metric == "xauc" else "logloss"))
    loss_key = "xlogloss" if metric == "xauc" else "logloss"
    rows, strong = [], None
    for index, row in enumerate(v.get(f"{AT}/rows")):
        at = pointer("tables", "controls", "rows", index)
        if row["model"] == "student" and row["name"].endswith("of the ensemble"):
            strong = index
        rows.append(
            [
                v.show(f"{at}/name", "text"),
                v.spread(f"{at}/test/{metric}"),
                v.spread(f"{at}/test/{loss_key}"),
                _difference(v, f"{at}/difference"),
                _difference(v, f"{at}/less_ensemble"),
            ]
        )
    against = next((row["against"] for row in v.get(f"{AT}/rows") if row["against"]), None)
    place = next((index for index, row in enumerate(v.get(f"{AT}/rows")) if row["against"]), 0)
    fair = f"less {v.show(f'{AT}/rows/{place}/against', 'text')}" if against else "difference"
    note = (
        "<p>A gain over the control may have other reasons than what the teachers know: more rows, softer labels of "
        "whatever origin, the mere averaging of several networks. Each has its own control here, all trained for this "
        f"table from {v.show(f'{AT}/seeds', 'count')} {'seed' if v.get(f'{AT}/seeds') == 1 else 'seeds'} "
        f"({v.show(f'{AT}/created', 'moment')} UTC). Test rows; in small figures "
        f"the {v.show('/confidence', 'share')} interval over seeds.</p>"
    )
    shown = table(["model", auc, loss, fair, "less its ensemble"], rows, strong=strong, label="Controls")
    return note + _differs(v, AT) + _claims(v, AT) + shown


def _difference(v: Values, at: str) -> str:
    if not v.has(f"{at}/mean"):
        return MISSING
    shown = v.show(f"{at}/mean", "gain")
    if v.has(f"{at}/low", f"{at}/high"):
        shown += f' <span class="sd">{v.show(f"{at}/low", "gain")} to {v.show(f"{at}/high", "gain")}</span>'
    return shown


def _differs(v: Values, at: str) -> str:
    """Of another recipe than the run: in what."""
    parts = [f"<code>{v.show(f'{at}/differs/{index}', 'text')}</code>" for index in range(len(v.get(f"{at}/differs")))]
    if not parts:
        return ""
    return (
        f"<p><strong>Trained by another recipe than this run, on the same log:</strong> {', '.join(parts)} differ.</p>"
    )


def _claims(v: Values, at: str) -> str:
    items = []
    for index, claim in enumerate(v.get(f"{at}/claims")):
        place = f"{at}/claims/{index}"
        said = _said(v, place, claim)
        items.append(f"<li>{v.show(f'{place}/text', 'text')}: {said}</li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _said(v: Values, at: str, claim: dict[str, object]) -> str:
    if not claim["is_judged"]:
        return "not judged, fewer than three seeds."
    if claim["pairs"] == claim["untuned"]:
        return "not judged, nobody tuned a network of it."
    if claim["pairs"] == 1:
        word = '<span class="yes">yes</span>' if claim["holds"] else "open"
        word = '<span class="no">no, the opposite</span>' if claim["opposite"] else word
        low, high = (v.show(f"{at}/difference/{end}", "gain") for end in ("low", "high"))
        return f"{word}, {v.show(f'{at}/difference/mean', 'gain')} ({low} to {high})."
    said = f"in {v.show(f'{at}/holds', 'count')} of {v.show(f'{at}/pairs', 'count')} comparisons"
    if claim["open"]:
        said += f", {v.show(f'{at}/open', 'count')} open"
    if claim["opposite"]:
        said += f', <span class="no">the opposite in {v.show(f"{at}/opposite", "count")}</span>'
    if claim["untuned"]:
        said += f", {v.show(f'{at}/untuned', 'count')} not judged because nobody tuned a network of it"
    return f"{said}."


def _others(v: Values) -> str:
    """What other tables of the folder say, claim by claim."""
    shown = ""
    for index in range(len(v.get("/tables/others"))):
        at = f"/tables/others/{index}"
        if v.get(f"{at}/claims"):
            shown += f"<h3>{v.show(f'{at}/title', 'text')}</h3>{_differs(v, at)}{_claims(v, at)}"
    return shown
