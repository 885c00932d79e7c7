"""What a run sets out to reach, whether it did, and if not, why: numbers in words, taken from the report itself.

The gains are asked for where the truth is known, on the built-in log: real logs have no figure they must reach. The
control is always the hard-label network that saw the same rows as the student, validation included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]

CONTROL = "control_train_valid"


def judge(report: Mapping[str, Any]) -> list[Tree]:
    """Each target: `name`, `wanted`, `found` (null: not known here), `reached`, `reason` where it was not.

    A reason is a list of sentences; `{/json/pointer|format}` in one stands for that number of the report.
    """
    targets: list[Tree | None] = [_cheaper(report)]
    if report["summary"]["test"].get("ensemble"):
        targets.insert(0, _ensemble_on_the_whole(report))
    if report["headline"]["auc"] == "xauc" and CONTROL in report["test"]:
        targets = [
            _ensemble_gain(report),
            _student_gain(report),
            _student_logloss(report),
            _student_every_seed(report),
            _above_best_teacher(report),
            _near_its_ensemble(report),
            *targets,
            _calibrated(report),
        ]
    return [target for target in targets if target is not None]


def find_difference(report: Mapping[str, Any], model: str, against: str, metric: str) -> tuple[Tree, str] | None:
    """One paired difference and its JSON pointer; None where either side lacks the figure."""
    for index, pair in enumerate(report["differences"]):
        if (pair["model"], pair["against"]) == (model, against) and metric in pair["metrics"]:
            return pair["metrics"][metric], f"/differences/{index}/metrics/{metric}"
    return None


def _target(name: str, wanted: float, found: float, reached: bool, form: str, reason: list[str], relation: str) -> Tree:
    return {
        "name": name,
        "relation": relation,
        "wanted": wanted,
        "found": found,
        "format": form,
        "reached": reached,
        "reason": [] if reached else reason,
    }


def _at_least(name: str, wanted: float, found: float, form: str, reason: list[str]) -> Tree:
    return _target(name, wanted, found, found >= wanted, form, reason, "at least")


def _at_most(name: str, wanted: float, found: float, form: str, reason: list[str]) -> Tree:
    return _target(name, wanted, found, found <= wanted, form, reason, "at most")


def _ensemble_gain(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "ensemble", CONTROL, "xauc")
    if found is None:
        return None
    best = find_difference(report, "ensemble", "best_teacher", "xauc")
    average = find_difference(report, "ensemble", "average", "xauc")
    reason = [f"the ensemble gains {{{found[1]}/mean|gain}} over the control on average"]
    if best:
        reason.append(f"combining the teachers adds {{{best[1]}/mean|gain}} to the best of them alone")
    if average:
        reason.append(f"the gate adds {{{average[1]}/mean|gain}} to their plain average")
    reason += _control_reason(report)
    return _at_least("ensemble over the control, xAUC", 0.008, found[0]["mean"], "gain", reason)


def _student_gain(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "student", CONTROL, "xauc")
    if found is None:
        return None
    return _at_least(
        "student over the control, xAUC", 0.010, found[0]["mean"], "gain", _student_reason(report, found[1], "xauc")
    )


def _student_logloss(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "student", CONTROL, "logloss")
    if found is None:
        return None
    reason = _student_reason(report, found[1], "logloss")
    return _at_most("student against the control, logloss", -0.005, found[0]["mean"], "gain", reason)


def _student_every_seed(report: Mapping[str, Any]) -> Tree | None:
    auc = find_difference(report, "student", CONTROL, "xauc")
    loss = find_difference(report, "student", CONTROL, "logloss")
    if auc is None or loss is None:
        return None
    worse, path = min((auc, loss), key=lambda pair: pair[0]["better_in"])
    reason = [f"better in {{{path}/better_in|count}} of {{{path}/of|count}} seeds"]
    return _at_least("seeds in which the student is better in both", worse["of"], worse["better_in"], "count", reason)


def _above_best_teacher(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "student", "best_teacher", "xauc")
    if found is None:
        return None
    reason = [
        "the best refitted teacher alone is {/best_teacher|text}, chosen by its test figure",
        f"the student differs from it by {{{found[1]}/mean|gain}}",
    ]
    return _target(
        "student over the best single teacher, xAUC",
        0.0,
        found[0]["mean"],
        found[0]["mean"] > 0,
        "gain",
        reason,
        "above",
    )


def _near_its_ensemble(report: Mapping[str, Any]) -> Tree | None:
    kept = report["answer"]["kept_of_ensemble_gain"]
    if kept is None:
        return None
    reason = [
        "the student keeps {/answer/kept_of_ensemble_gain|share} of the gain of its ensemble",
        "its logit is {/kl_ensemble_student/0|figure} nats of KL from the ensemble's on test rows",
    ]
    return _at_least("share of the ensemble's gain that the student keeps", 0.95, kept, "share", reason)


def _ensemble_on_the_whole(report: Mapping[str, Any]) -> Tree:
    found = report["summary"]["test"]["ensemble"]["predicted_over_actual"]["mean"]
    rates = {entry["part"]: index for index, entry in enumerate(report["parts"])}
    reason = [
        f"calibration was fitted on validation part C, where {{/parts/{rates['valid_c']}/click_rate|percent}} of "
        f"impressions were clicked; on test rows it was {{/parts/{rates['test']}/click_rate|percent}}"
    ]
    return _at_most("ensemble, predicted over actual clicks, off by", 0.05, abs(found - 1), "share", reason)


def _calibrated(report: Mapping[str, Any]) -> Tree | None:
    """The calibration error against the truth, and what label noise alone gives a perfect model of this size."""
    student = report["summary"]["test"]["student"]
    ensemble = report["summary"]["test"]["ensemble"]
    if not student.get("xece") or not ensemble.get("ece_floor"):
        return None
    reason = [
        "against the true probabilities the student is off by {/summary/test/student/xece/mean|figure}, its ensemble "
        "by {/summary/test/ensemble/xece/mean|figure}",
        "before the refit, where calibration was fitted, the student was off by "
        "{/summary/before_refit/student/xece/mean|figure}",
    ]
    return _at_most(
        "student, calibration error against the truth (twice the noise floor of the ensemble)",
        2 * ensemble["ece_floor"]["mean"],
        student["xece"]["mean"],
        "figure",
        reason,
    )


def _cheaper(report: Mapping[str, Any]) -> Tree:
    found = report["answer"]["times_cheaper_than_ensemble"]["50"]
    reason = [
        "the ensemble takes {/cost/ensemble/50/p50_ms|ms} ms and the student {/cost/student/50/p50_ms|ms} ms",
        "with few fields and small networks most of that is the running of nodes, not their arithmetic",
    ]
    return _at_least(
        "times the student is cheaper than the ensemble, session.run at 50 candidates", 5.0, found, "ratio", reason
    )


def _student_reason(report: Mapping[str, Any], path: str, metric: str) -> list[str]:
    reason = [f"the student differs from the control by {{{path}/mean|gain}}"]
    ensemble = find_difference(report, "ensemble", CONTROL, metric)
    if ensemble:
        reason.append(f"its ensemble, which it imitates, by {{{ensemble[1]}/mean|gain}}")
    return reason + _control_reason(report)


def _control_reason(report: Mapping[str, Any]) -> list[str]:
    """A strong control is the commonest reason, and no fault."""
    fresh = find_difference(report, CONTROL, "control_train", "xauc")
    return [f"training on validation rows too gave the control {{{fresh[1]}/mean|gain}} of xAUC"] if fresh else []
