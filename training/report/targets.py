"""What the recipe `synthetic` promises, whether this run reached it, and if not, why.

A target is that recipe's promise, about a log whose truth is known. No other recipe and no other log has any: there the
same differences stand in the report, paired by seed, and nobody says what they should have been. The control is always
the hard-label network that saw the same rows as the student, validation included.

A reason is made of this run's own numbers: the steps that a gain is made of (best teacher, average, gate, student), its
values seed by seed, the student's distance from its ensemble, what the refit and the chance of clicks did to the level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.report.values import find

Tree = dict[str, Any]

CONTROL = "control_train_valid"
PROMISED_BY = "synthetic"
"""The recipe that promises these targets, and the kind of its source."""


def judge(report: Mapping[str, Any]) -> list[Tree]:
    """Each target of the recipe `synthetic`; none for another.

    A target has `name`, `relation` and `wanted`, `found` and its `sd` between seeds (null for one seed, or where it is
    no mean over seeds), `format`, `reached`, and `reason` where it was not: sentences in which `{/json/pointer|format}`
    stands for that number of the report.
    """
    is_promised = find(report, "/recipe/name") == find(report, "/recipe/source/kind") == PROMISED_BY
    if not is_promised or report["headline"]["auc"] != "xauc" or CONTROL not in report["test"]:
        return []
    targets = [
        _ensemble_gain(report),
        _student_gain(report),
        _student_logloss(report),
        _student_every_seed(report),
        _above_best_teacher(report),
        _near_its_ensemble(report),
        _ensemble_on_the_whole(report),
        _cheaper(report),
        _calibrated(report),
    ]
    return [target for target in targets if target is not None]


def find_difference(report: Mapping[str, Any], model: str, against: str, metric: str) -> tuple[Tree, str] | None:
    """One paired difference and its JSON pointer; None where either side lacks the figure."""
    for index, pair in enumerate(report["differences"]):
        if (pair["model"], pair["against"]) == (model, against) and metric in pair["metrics"]:
            return pair["metrics"][metric], f"/differences/{index}/metrics/{metric}"
    return None


_REACHED = {
    "at least": lambda found, wanted: found >= wanted,
    "at most": lambda found, wanted: found <= wanted,
    "above": lambda found, wanted: found > wanted,
}


def _target(
    name: str, relation: str, wanted: float, found: float, form: str, reason: Sequence[str], sd: float | None = None
) -> Tree:
    reached = bool(_REACHED[relation](found, wanted))
    return {
        "name": name,
        "relation": relation,
        "wanted": wanted,
        "found": found,
        "sd": sd,
        "format": form,
        "reached": reached,
        "reason": [] if reached else [sentence for sentence in reason if sentence],
    }


def _ensemble_gain(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "ensemble", CONTROL, "xauc")
    if found is None:
        return None
    reason = [_by_seed(*found), _steps_of_the_ensemble(report, "xauc"), _control_reason(report)]
    name = "ensemble over the control, xAUC"
    return _target(name, "at least", 0.008, found[0]["mean"], "gain", reason, found[0]["sd"])


def _student_gain(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "student", CONTROL, "xauc")
    if found is None:
        return None
    reason = [_by_seed(*found), *_imitation(report, "xauc"), _control_reason(report)]
    return _target(
        "student over the control, xAUC", "at least", 0.010, found[0]["mean"], "gain", reason, found[0]["sd"]
    )


def _student_logloss(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "student", CONTROL, "logloss")
    if found is None:
        return None
    truth = find_difference(report, "student", CONTROL, "xlogloss")
    reason = [
        _by_seed(*found),
        f"under the true probabilities, without the chance of clicks, it is {{{truth[1]}/mean|gain}}" if truth else "",
        *_imitation(report, "logloss"),
        "predicted over actual clicks is {/summary/test/student/predicted_over_actual/mean|number} for the student, "
        f"{{/summary/test/{CONTROL}/predicted_over_actual/mean|number}} for the control, "
        "{/bayes/test/predicted_over_actual|number} for the truth itself",
    ]
    return _target(
        "student against the control, logloss", "at most", -0.005, found[0]["mean"], "gain", reason, found[0]["sd"]
    )


def _student_every_seed(report: Mapping[str, Any]) -> Tree | None:
    auc = find_difference(report, "student", CONTROL, "xauc")
    loss = find_difference(report, "student", CONTROL, "logloss")
    if auc is None or loss is None:
        return None
    is_better = [gain > 0 > less for gain, less in zip(auc[0]["by_seed"], loss[0]["by_seed"], strict=True)]
    reason = [
        f"with seed {{/seeds/{k}|count}} the student differs from the control by {{{auc[1]}/by_seed/{k}|gain}} in xAUC "
        f"and {{{loss[1]}/by_seed/{k}|gain}} in logloss, its ensemble is {{/kl_ensemble_student/{k}|figure}} nats away"
        for k, better in enumerate(is_better)
        if not better
    ]
    name = "seeds in which the student is better in both"
    return _target(name, "at least", len(is_better), sum(is_better), "count", reason)


def _above_best_teacher(report: Mapping[str, Any]) -> Tree | None:
    found = find_difference(report, "student", "best_teacher", "xauc")
    if found is None:
        return None
    ensemble = find_difference(report, "ensemble", "best_teacher", "xauc")
    own = find_difference(report, "student", "ensemble", "xauc")
    steps = ""
    if ensemble and own:
        steps = (
            f"the ensemble stands {{{ensemble[1]}/mean|gain}} above that teacher, the student {{{own[1]}/mean|gain}} "
            f"from the ensemble ({_kl(report)})"
        )
    reason = ["the best refitted teacher is {/best_teacher|text}, chosen by these very rows", _by_seed(*found), steps]
    return _target(
        "student over the best single teacher, xAUC", "above", 0.0, found[0]["mean"], "gain", reason, found[0]["sd"]
    )


def _near_its_ensemble(report: Mapping[str, Any]) -> Tree | None:
    """Judged only where the ensemble's gain is sure enough for a share of it (`paired.share_of_gap`): of a single seed
    it is a ratio of two chances."""
    kept = report["answer"]["kept_of_ensemble_gain"]
    if kept is None:
        return None
    ensemble = find_difference(report, "ensemble", CONTROL, "xauc")
    own = find_difference(report, "student", "ensemble", "xauc")
    places = [f"/curves/{i}" for i, curve in enumerate(report["curves"]) if curve["model"] == "student"]
    epochs = [f"{{{at}/seeds/{k}/epochs|count}}" for at in places for k in range(len(report["seeds"]))]
    reason = [
        f"the ensemble’s gain, {_by_seed(*ensemble)}" if ensemble else "",
        f"the student less its ensemble, {_by_seed(*own)}" if own else "",
        f"how far it is from its ensemble on test rows, {_kl(report)}",
        f"its distance on validation rows was least at epoch {', '.join(epochs)}, of at most "
        "{/recipe/student/fit/max_epochs|count}",
    ]
    return _target("share of the ensemble's gain that the student keeps", "at least", 0.95, kept, "share", reason)


def _ensemble_on_the_whole(report: Mapping[str, Any]) -> Tree | None:
    found = report["summary"]["test"]["ensemble"].get("predicted_over_actual")
    if not found:
        return None
    part = {entry["part"]: f"/parts/{index}" for index, entry in enumerate(report["parts"])}
    seeds = [f"{{/test/ensemble/{k}/predicted_over_actual|number}}" for k in range(len(report["seeds"]))]
    reason = [
        f"by seed: {', '.join(seeds)}, and {{/bayes/test/predicted_over_actual|number}} for the truth itself on the "
        "same rows",
        "before the refit it was {/summary/before_refit/ensemble/predicted_over_actual/mean|number}",
        f"{{{part['train']}/click_rate|percent}} of training impressions were clicked, "
        f"{{{part['valid_c']}/click_rate|percent}} of part C, which sets the level, and "
        f"{{{part['test']}/click_rate|percent}} of test impressions",
        f"the chance of clicks alone moves the level of part C by {{{part['valid_c']}/level_noise|percent}} and "
        f"that of test rows by {{{part['test']}/level_noise|percent}} (one standard deviation)",
    ]
    name = "ensemble, predicted over actual clicks, off by"
    return _target(name, "at most", 0.05, abs(found["mean"] - 1), "share", reason)


def _cheaper(report: Mapping[str, Any]) -> Tree:
    found = report["answer"]["times_cheaper_than_ensemble"]["50"]
    reason = [
        "at {/candidates/1|count} candidates the ensemble takes {/cost/ensemble/50/p50_ms|ms} ms and the student "
        "{/cost/student/50/p50_ms|ms} ms; at {/candidates/0|count}, "
        "{/cost/ensemble/1/p50_ms|ms} and {/cost/student/1/p50_ms|ms}; at {/candidates/2|count} it is "
        "{/answer/times_cheaper_than_ensemble/200|ratio} times",
        "the ensemble has {/cost/ensemble/parameters_dense|count} parameters in layers, the student "
        "{/cost/student/parameters_dense|count}",
    ]
    name = "times the student is cheaper than the ensemble, session.run at 50 candidates"
    return _target(name, "at least", 5.0, found, "ratio", reason)


def _calibrated(report: Mapping[str, Any]) -> Tree | None:
    """The calibration error against the truth, and what label noise alone gives a perfect model of this size."""
    student = report["summary"]["test"]["student"].get("xece")
    floor = report["summary"]["test"]["ensemble"].get("ece_floor")
    if not student or not floor:
        return None
    reason = [
        "against the true probabilities the student is off by {/summary/test/student/xece/mean|figure}, its ensemble "
        "by {/summary/test/ensemble/xece/mean|figure}",
        "before the refit, with the networks that calibration was fitted to, the student was off by "
        "{/summary/before_refit/student/xece/mean|figure}",
        "it predicts {/summary/test/student/predicted_over_actual/mean|number} of the actual clicks, the truth itself "
        "{/bayes/test/predicted_over_actual|number}",
    ]
    name = "student, calibration error against the truth (twice the noise floor of the ensemble)"
    return _target(name, "at most", 2 * floor["mean"], student["mean"], "figure", reason, student["sd"])


def _by_seed(difference: Mapping[str, Any], at: str) -> str:
    return "by seed: " + ", ".join(f"{{{at}/by_seed/{k}|gain}}" for k in range(difference["of"]))


def _kl(report: Mapping[str, Any]) -> str:
    """How far the student is from what it imitates."""
    seeds = ", ".join(f"{{/kl_ensemble_student/{k}|figure}}" for k in range(len(report["kl_ensemble_student"])))
    return f"KL by seed: {seeds} nats"


def _steps_of_the_ensemble(report: Mapping[str, Any], metric: str) -> str:
    """The ensemble's gain as a sum: the best teacher, the average on top of it, the gate on top of that."""
    best = find_difference(report, "best_teacher", CONTROL, metric)
    average = find_difference(report, "average", "best_teacher", metric)
    gate = find_difference(report, "ensemble", "average", metric)
    if not (best and average and gate):
        return ""
    return (
        f"of it the best teacher alone ({{/best_teacher|text}}) is {{{best[1]}/mean|gain}}, the plain average on top "
        f"{{{average[1]}/mean|gain}}, the gate on top of that {{{gate[1]}/mean|gain}}"
    )


def _imitation(report: Mapping[str, Any], metric: str) -> list[str]:
    """The student's difference from the control as a sum: the ensemble's, and the student's from the ensemble."""
    ensemble = find_difference(report, "ensemble", CONTROL, metric)
    own = find_difference(report, "student", "ensemble", metric)
    if not (ensemble and own):
        return []
    return [
        f"its ensemble differs from the control by {{{ensemble[1]}/mean|gain}}, the student from its ensemble by "
        f"{{{own[1]}/mean|gain}} ({_kl(report)})",
    ]


def _control_reason(report: Mapping[str, Any]) -> str:
    """A strong control is the commonest reason, and no fault."""
    fresh = find_difference(report, CONTROL, "control_train", "xauc")
    return f"validation rows gave the control {{{fresh[1]}/mean|gain}} of xAUC" if fresh else ""
