"""What a reader wants first: does the student win, and was what was promised reached?"""

from __future__ import annotations

import html

from training.report.pieces import METRICS, section, table
from training.report.values import MISSING, Values, pointer


def header(v: Values) -> str:
    """Which run this is."""
    seeds = f"trained {v.show('/answer/seeds', 'count')} times, from as many seeds"
    if v.get("/answer/seeds") == 1:
        seeds = "trained once, from one seed"
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
    if v.get("/answer/seeds") == 1:
        ahead = "ahead of" if v.get("/answer/gain/better_in") else "not ahead of"
        few = f"The student is {ahead} its control in the one seed that was run: not proven."
    else:
        few = f"The student is ahead of its control in {won}; fewer than three prove nothing."
    said = {
        "wins": "The student beats its control.",
        "loses": "The student is worse than its control.",
        "open": f"Whether the student beats its control is open: ahead in {won}, which chance may have done.",
        "few": few,
        "unknown": "The student cannot be compared with its control on these rows.",
    }[v.get("/answer/verdict")]
    is_merged = v.get("/recipe/merge_validation") is not False
    rows = " and validation" if v.get("/answer/against") == "control_train_valid" and is_merged else ""
    lead = (
        "The student is the small network that would serve; it was trained to imitate an ensemble of larger ones, its "
        "teachers. The control is the same small network, trained on clicks alone, on exactly the same training"
        f'{rows} rows: what would be served without teachers. <a href="#words">What the words mean</a>.'
    )
    share = (v.show("/answer/kept_of_ensemble_gain", "share"), "of what the ensemble gains over the control is kept")
    less = (
        v.show("/answer/student_less_ensemble/mean", "gain"),
        f"{auc} against the ensemble it imitates{_interval(v, '/answer/student_less_ensemble')}",
    )
    tiles = [
        (
            v.show("/answer/gain/mean", "gain"),
            f"{auc} over the control (more is better){_interval(v, '/answer/gain')}",
        ),
        (
            v.show("/answer/logloss/mean", "gain"),
            f"{loss} against the control (less is better){_interval(v, '/answer/logloss')}",
        ),
        share if (v.get("/answer/kept_of_ensemble_gain") or 0) > 0 else less,
        (
            v.show("/answer/times_cheaper_than_ensemble/50", "ratio") + " times",
            f"faster than the ensemble, at {v.show('/candidates/1', 'count')} candidates a request",
        ),
        (v.show("/cost/student/50/p50_ms", "ms") + " ms", "of one core for such a request (median)"),
    ]
    shown = "".join(
        f'<div class="tile"><div class="big">{big}</div><div class="small">{small}</div></div>'
        for big, small in tiles
        if not big.startswith(MISSING)
    )
    return (
        f'<section class="answer {v.get("/answer/verdict")}" id="answer"><h2>{said}</h2><p>{lead}</p>'
        f'<div class="tiles">{shown}</div>{_why(v)}{_missed(v)}</section>'
    )


def _interval(v: Values, at: str) -> str:
    """The 95% interval of a mean difference; nothing of one seed."""
    if not v.has(f"{at}/low", f"{at}/high"):
        return ""
    low, high = (v.show(f"{at}/{end}", "gain") for end in ("low", "high"))
    return f"; with {v.show('/confidence', 'share')} confidence between {low} and {high}"


def _why(v: Values) -> str:
    """Where the difference comes from, how sure it is, and what to do where there is none."""
    metric = v.get("/headline/auc")
    gain, ensemble = v.get("/answer/gain"), v.get("/answer/ensemble_gain")
    if not gain or not ensemble:
        return ""
    auc = METRICS[metric][0]
    said = [
        f"The ensemble itself is {v.show('/answer/ensemble_gain/mean', 'gain')} {auc} from the control"
        + (
            f", the student {v.show('/answer/student_less_ensemble/mean', 'gain')} from the ensemble."
            if v.has("/answer/student_less_ensemble")
            else "."
        )
    ]
    verdict = v.get("/answer/verdict")
    if verdict in ("wins", "loses", "open"):
        where = {
            "wins": "above zero, so it is more than the random start of training does",
            "loses": "below zero, so it is more than the random start of training does",
            "open": "on both sides of zero, so the random start of training alone may have done it",
        }[verdict]
        won = f"{v.show('/answer/gain/better_in', 'count')} of {v.show('/answer/gain/of', 'count')}"
        low, high = (v.show(f"/answer/gain/{end}", "gain") for end in ("low", "high"))
        said.append(
            f"The student is ahead of the control in {won} seeds; the {v.show('/confidence', 'share')} interval of the "
            f"mean, {low} to {high}, lies {where}. The luck of which impressions are test rows comes on top."
        )
    said += _below_the_ensemble(v)
    if verdict == "few":
        said.append("Three seeds would show how far it depends on the random start.")
    elif verdict == "open":
        said.append("More seeds, or a longer test part, would tell; until then the two are level.")
    if gain["mean"] <= 0:
        if ensemble["mean"] <= 0:
            said.append(
                "The teachers together know no more than the control does: there was nothing to teach. Better tuned "
                "or other teachers come first (training sweep)."
            )
        else:
            said.append(
                "The teachers do know more, and the student did not learn it: a larger student (training search), a "
                "higher kd_weight or more epochs are what to try."
            )
    return f'<p class="why">{" ".join(said)}</p>'


REMEMBERED = 0.5
"""Of its distance from the ensemble on new rows: nearer than this where it learned, it has its labels by heart."""


def _below_the_ensemble(v: Values) -> list[str]:
    """What keeps a student below its ensemble: its size, or the rows it had."""
    less, kl = v.get("/answer/student_less_ensemble"), v.get("/answer/kl_from_ensemble") or {}
    if not less or less["mean"] >= 0 or not kl.get("train") or not kl.get("test"):
        return []
    test, train = (v.show(f"/answer/kl_from_ensemble/{part}/mean", "figure") for part in ("test", "train"))
    far = (
        f"From what the ensemble says of test rows the student is {test} nats away (KL), of the rows it learned from "
        f"{train}:"
    )
    if kl["train"]["mean"] < REMEMBERED * kl["test"]["mean"]:
        return [
            f"{far} it knows its own labels better than what lies between them. More rows, l2 or dropout are what to "
            "try, before a larger student."
        ]
    return [f"{far} it has not learned its own labels either. A larger student or more epochs are what to try."]


def _missed(v: Values) -> str:
    targets = v.get("/targets")
    if not targets:
        return ""
    reached = f"{v.show('/answer/targets_reached', 'count')} of {v.show('/answer/targets', 'count')} targets reached"
    why = "listed below" if all(target["reached"] for target in targets) else "what was not, and why, is listed below"
    return f'<p class="note">{reached}; <a href="#targets">{why}</a>.</p>'


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
    if not any("share of the ensemble" in target["name"] for target in v.get("/targets")):
        note += (
            "<p>Which share of the ensemble’s gain the student keeps is judged only from three seeds on, and where "
            "that gain is beyond three standard errors.</p>"
        )
    why = f"<h3>What was not reached, and why</h3><ul>{''.join(reasons)}</ul>" if reasons else ""
    return section(
        "What was promised",
        note + table(["target", "wanted", "found", ""], rows, left=4, label="Targets") + why,
        "targets",
    )
