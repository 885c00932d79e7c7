"""What a reader wants first: does the student win, and was what was promised reached?"""

from __future__ import annotations

import html

from training.report.pieces import METRICS, section, table
from training.report.values import MISSING, Values, pointer


def header(v: Values) -> str:
    """Which run this is."""
    seeds = f"{v.show('/answer/seeds', 'count')} seed{'s' if v.get('/answer/seeds') != 1 else ''} of training"
    facts = [v.show("/created", "moment") + " UTC", seeds, f"{v.show('/data/rows', 'count')} impressions"]
    description = html.escape(v.get("/description") or "")
    return (
        f'<header><p class="kicker">Retort · distillation report</p><h1>{v.show("/name", "text")}</h1>'
        f'<p class="lead">{description}</p><p class="facts">{" · ".join(facts)}</p></header>'
    )


def verdict(v: Values) -> str:
    """Does the student win, by how much, against which control, at what cost."""
    auc = METRICS[v.get("/headline/auc")][0]
    loss = METRICS[v.get("/headline/logloss")][0]
    won = f"{v.show('/answer/gain/better_in', 'count')} of {v.show('/answer/gain/of', 'count')} seeds"
    said = {
        "wins": f"The student beats its control in {won}.",
        "ahead": "The student is ahead of its control in the one seed that was run.",
        "mixed": f"The student is ahead of its control in {won}: not proven.",
        "loses": "The student does not beat its control.",
        "unknown": "The student cannot be compared with its control on these rows.",
    }[v.get("/answer/verdict")]
    rows = " and validation" if v.get("/answer/against") == "control_train_valid" else ""
    lead = (
        "The control is the same network, trained on clicks alone, on exactly the same training"
        f"{rows} rows: what would be served without teachers. The ensemble is what the student imitates."
    )
    tiles = [
        (v.spread("/answer/gain", "gain"), f"{auc} over the control"),
        (v.spread("/answer/logloss", "gain"), f"{loss} against the control (less is better)"),
        (v.show("/answer/kept_of_ensemble_gain", "share"), "of the ensemble’s gain kept"),
        (
            v.show("/answer/times_cheaper_than_ensemble/50", "ratio") + " times",
            f"cheaper than the ensemble, at {v.show('/candidates/1', 'count')} candidates",
        ),
        (v.show("/cost/student/50/p50_ms", "ms") + " ms", "of one core for those (median session.run)"),
    ]
    shown = "".join(
        f'<div class="tile"><div class="big">{big}</div><div class="small">{small}</div></div>'
        for big, small in tiles
        if not big.startswith(MISSING)
    )
    return (
        f'<section class="answer {v.get("/answer/verdict")}"><h2>{said}</h2><p>{lead}</p>'
        f'<div class="tiles">{shown}</div>{_missed(v)}</section>'
    )


def _missed(v: Values) -> str:
    targets = v.get("/targets")
    if not targets:
        return ""
    reached = f"{v.show('/answer/targets_reached', 'count')} of {v.show('/answer/targets', 'count')} targets reached"
    return f'<p class="note">{reached}; <a href="#targets">each with its reason below</a>.</p>'


def targets(v: Values) -> str:
    """What the recipe promises, what was reached of it, and why the rest was not; nothing where it promises nothing."""
    rows, reasons = [], []
    for index, target in enumerate(v.get("/targets") or []):
        at = pointer("targets", index)
        form = target["format"]
        mark = '<span class="yes">✓ reached</span>' if target["reached"] else '<span class="no">✗ not reached</span>'
        rows.append(
            [
                v.show(f"{at}/name", "text"),
                f"{target['relation']} {v.show(f'{at}/wanted', form)}",
                v.spread(at, form, mean="found"),
                mark,
            ]
        )
        if target["reason"]:
            reason = "; ".join(v.prose(sentence) for sentence in target["reason"])
            reasons.append(f"<li><b>{v.show(f'{at}/name', 'text')}</b>: {reason}.</li>")
    if not rows:
        return ""
    note = (
        "<p>Promised by this recipe alone, on a log whose true click probabilities are known. All on test rows, means "
        "over seeds ± standard deviation; the control is the one on the same rows.</p>"
    )
    why = f"<h3>What was not reached, and why</h3><ul>{''.join(reasons)}</ul>" if reasons else ""
    return section("What was promised", note + table(["target", "wanted", "found", ""], rows, left=4) + why, "targets")
