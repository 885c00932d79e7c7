"""What was trained: the networks, how they are put together, and every choice that is not the usual one."""

from __future__ import annotations

import html

from training.report.pieces import section, table
from training.report.values import MISSING, Values, pointer

SCHEMES = {
    "pretrain": "The teachers were trained first; the student then learned from them as they stood.",
    "cotrain": "Teachers, ensemble and student were trained at once; the student’s learning left the teachers alone.",
    "mutual": "Teachers and student were trained at once, as peers that teach one another.",
}
LOSSES = {
    "soft": "the ensemble’s click probabilities (soft labels)",
    "hint": "the teachers’ hidden layers (hints)",
    "mse": "the ensemble’s logits (squared distance)",
}
GATES = {
    "average": "The ensemble is the plain average of the teachers.",
    "static": "The ensemble weighs the teachers alike on every row, by weights it learned.",
    "per_teacher": "The ensemble weighs the teachers row by row, each by its own prediction (the gate).",
    "full": "The ensemble weighs the teachers row by row, each by the predictions of all (the gate).",
    "hints": "The ensemble weighs the teachers row by row by their predictions and hidden layers (the gate).",
    "stacking": "The ensemble is a logistic regression on the teachers’ predictions (stacking).",
}
COPIES = {
    "seeds": "from other starting points",
    "folds": "each without its own random part of the rows",
    "disjoint": "each on its own random part of the rows",
    "bags": "each on rows drawn with replacement",
    "days": "each on its own days",
    "leave_one_out": "each without its own days",
}


def trained(v: Values) -> str:
    """Nothing where the report carries no whole recipe."""
    if not v.has("/recipe/teachers", "/recipe/student/network"):
        return ""
    said = [SCHEMES.get(v.get("/recipe/scheme/kind") or "pretrain", "")]
    said.append(GATES.get(v.get("/recipe/gate/form") or "per_teacher", ""))
    losses = v.get("/recipe/student/fit/losses") or {"soft": 1.0}
    weight = "/recipe/student/fit/kd_weight"
    share = f"by a share of {v.show(weight, 'share')} " if v.has(weight) else ""
    if v.get("/recipe/scheme/kind") == "mutual":
        said.append(f"The student learned {share}from its peers, and by the rest from clicks.")
    else:
        taught = " and ".join(LOSSES.get(name, html.escape(name)) for name in losses)
        said.append(f"The student learned {share}to imitate {taught}, and by the rest from clicks.")
    if v.get("/recipe/merge_validation") is not False:
        said.append("Once everything was decided, all were trained again on training and validation rows together.")
    else:
        said.append("The student stands as it was stopped: validation rows were not learned from.")
    body = f"<p>{' '.join(said)}</p>" + table(
        ["network", "kind", "hidden layers", "embedding", "learning rate", "epochs, each seed", "numbers in layers"],
        _networks(v),
        left=2,
        label="Networks that were trained",
    )
    return section("What was trained", body + _choices(v), "trained")


def _networks(v: Values) -> list[list[str]]:
    epochs = {curve["model"]: place for place, curve in enumerate(v.get("/curves") or [])}
    rows = [
        _network(v, "student", "/recipe/student", epochs.get("student"), "/cost/student"),
        _network(v, "control", "/recipe/control", epochs.get("control"), "/cost/control"),
    ]
    for name, teacher in v.get("/recipe/teachers").items():
        at = pointer("recipe", "teachers", name)
        copies = teacher.get("copies")
        if not copies:
            cost = pointer("cost", "teachers", name)
            rows.append(_network(v, f"teacher {html.escape(name)}", at, epochs.get(name), cost))
            continue
        title = (
            f"teachers {html.escape(name)}, {v.show(f'{at}/copies/count', 'count')} copies, "
            f"{COPIES.get(copies['by'], html.escape(copies['by']))}"
        )
        rows.append(_network(v, title, at, None, pointer("cost", "teachers", f"{name}-1")))
    return rows


def _network(v: Values, title: str, at: str, curve: int | None, cost: str) -> list[str]:
    hidden = v.get(f"{at}/options/hidden") or []
    layers = " · ".join(v.show(f"{at}/options/hidden/{index}", "count") for index in range(len(hidden)))
    epochs = MISSING
    if curve is not None:
        seeds = range(len(v.get(f"/curves/{curve}/seeds")))
        epochs = ", ".join(v.show(f"/curves/{curve}/seeds/{seed}/epochs", "count") for seed in seeds)
    return [
        title,
        v.show(f"{at}/network", "text"),
        layers or MISSING,
        v.show(f"{at}/options/dim", "count"),
        v.show(f"{at}/fit/learning_rate", "plain"),
        epochs,
        v.show(f"{cost}/parameters_dense", "count"),
    ]


def _choices(v: Values) -> str:
    """A line for each choice that is not the default, as the recipe spells it."""
    if not v.has("/choices"):
        return ""
    items = []
    for index in range(len(v.get("/choices"))):
        at = f"/choices/{index}"
        usual = f" (usual: {_spelled(v, f'{at}/usual')})" if v.has(f"{at}/usual") else ""
        items.append(f"<li><code>{v.show(f'{at}/setting', 'text')}</code> is {_spelled(v, f'{at}/value')}{usual}</li>")
    if not items:
        return "<p>All choices of the method are the usual ones.</p>"
    return f"<h3>Choices that are not the usual ones</h3><ul>{''.join(items)}</ul>"


def _spelled(v: Values, at: str) -> str:
    value = v.get(at)
    if isinstance(value, dict):
        return ", ".join(f"{html.escape(key)} {_spelled(v, at + pointer(key))}" for key in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_spelled(v, f"{at}/{index}") for index in range(len(value)))
    return v.show(at, "text" if isinstance(value, str) else "plain")
