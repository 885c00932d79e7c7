"""How it came about: calibration, learning curves, gate weights, tuning."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from training.report import charts
from training.report.pieces import METRICS, TITLES, details, figure, legend, section, table
from training.report.values import Values, pointer


def calibration(v: Values) -> str:
    """Whether as many are clicked as were predicted, before and after the refit."""
    chosen = [
        ("student", "student", "s1"),
        ("ensemble", "ensemble", "s2"),
        ("control", str(v.get("/answer/against")), "s3"),
    ]
    curves = [
        (name, [(bin_["pctr"], bin_["label"]) for bin_ in v.get(f"/calibration/reliability/{model}")], style)
        for name, model, style in chosen
        if v.get(f"/calibration/reliability/{model}")
    ]
    drawing = charts.reliability(
        curves, label="Chart: share clicked against predicted click rate, by bin; the numbers are under The bins"
    )
    rows = []
    for name, model, _ in chosen:
        for index in range(len(v.get(f"/calibration/reliability/{model}") or [])):
            at = f"/calibration/reliability/{model}/{index}"
            rows.append(
                [
                    name,
                    v.show(f"{at}/rows", "count"),
                    v.show(f"{at}/pctr", "percent"),
                    v.show(f"{at}/label", "percent"),
                ]
            )
    bins = details("The bins", table(["model", "rows", "predicted", "clicked"], rows, label="Bins"))
    changed = v.get("/calibration/before_after_refit")
    shown = [name for name in METRICS if any(name in metrics for metrics in changed.values())]
    refit = [
        [
            f"{TITLES[model]}, {key}",
            *(v.spread(f"/calibration/before_after_refit/{model}/{name}/{key}", METRICS[name][1]) for name in shown),
        ]
        for model in changed
        for key in ("before", "after")
    ]
    after = (
        "<h3>Before and after training again</h3><p>Scale and bias of the calibration are fitted on validation part C, "
        "with networks that have not seen it, and carried over to the networks that are trained again on training and "
        "validation rows and served.</p>"
        + table(["test rows", *(METRICS[name][0] for name in shown)], refit, label="Calibration before and after")
        if v.get("/recipe/merge_validation") is not False
        else ""
    )
    keys = legend([(name, style) for name, _, style in curves])
    note = (
        "<p>A bid multiplies the predicted click rate, so it has to be right, not only in the right order. "
        + _level(v)
        + "The chart has the first seed’s test rows in bins of equally many impressions: on the diagonal as many are "
        "clicked as were predicted.</p>"
    )
    return section("Calibration", note + keys + figure(drawing) + bins + after, "calibration")


MEASURED = {
    "valid_auc": ("AUC", "AUC on validation rows"),
    "valid_kl": ("distance to the ensemble", "KL to the ensemble on validation rows, in nats"),
    "valid_kd": ("distillation loss", "distillation loss on validation rows"),
}
"""What stops a fit, by its key in a history: on a panel, and in full."""

COLUMNS = {
    "train_loss": "training loss",
    "valid_auc": "valid AUC",
    "valid_logloss": "valid logloss",
    "valid_kl": "valid KL to the ensemble",
    "valid_kd": "valid distillation loss",
    "teacher_hint_norm": "length of the teachers’ hint",
    "student_hint_norm": "length of the student’s hint",
}


def curves(v: Values) -> str:
    """Every fit, epoch by epoch."""
    fitted = [(place, curve) for place, curve in enumerate(v.get("/curves")) if _stopped_by(v, curve)]
    auc = [
        row["valid_auc"]
        for _, curve in fitted
        if _stopped_by(v, curve) == "valid_auc"
        for fit in curve["seeds"]
        for row in fit["history"]
        if row.get("valid_auc") is not None
    ]
    shared = charts.padded(auc) if auc else None
    panels, rows = [], []
    every_row = [row for _, curve in fitted for fit in curve["seeds"] for row in fit["history"]]
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in every_row)]
    for place, curve in fitted:
        measured = _stopped_by(v, curve)
        style = "s1" if curve["model"] == "student" else "s3" if curve["model"] == "control" else "rest"
        short, whole = MEASURED[measured]
        drawing = charts.lines(
            [_line(fit, measured, style) for fit in curve["seeds"] if _line(fit, measured, style).points],
            x_title="epoch",
            label=f"Chart: {curve['model']}, {whole} by epoch; the numbers are under The epochs",
            y_range=shared if measured == "valid_auc" else None,
        )
        kind = "teacher " if curve["is_teacher"] else ""
        caption = f"<figcaption>{kind}<b>{html.escape(curve['model'])}</b> · {short}</figcaption>"
        panels.append(f"<figure>{caption}{drawing}</figure>")
        for seed, fit in enumerate(curve["seeds"]):
            at = pointer("curves", place, "seeds", seed)
            for row, found in enumerate(fit["history"]):
                point = f"{at}/history/{row}"
                mark = " ●" if row == fit["epochs"] - 1 else " clicks alone" if found.get("fine_tune") else ""
                rows.append(
                    [
                        html.escape(curve["model"]),
                        v.show(f"{at}/seed", "count"),
                        v.show(f"{point}/epoch", "count") + mark,
                        *(v.show(f"{point}/{name}", "figure") for name in columns),
                    ]
                )
    heads = ["network", "seed", "epoch", *(COLUMNS[name] for name in columns)]
    several = v.get("/answer/seeds") != 1
    note = (
        f"<p>On validation part A, which none of them learns from{': one line a seed' if several else ''}. The dot is "
        "the epoch that was kept. Panels of AUC (more is better) share one scale; a distance or loss (less is better) "
        "is the student’s from its ensemble, and needs no clicks to be measured."
    )
    if any(row.get("fine_tune") for row in every_row):
        note += " Dashed: fine-tuning on clicks alone, after the ensemble had taught."
    if v.get("/recipe/merge_validation") is not False:
        note += " The networks that are served were trained again on training and validation rows, for as many epochs."
    epochs = details("The epochs", table(heads, rows, label="Every epoch of every network"))
    return section("Learning curves", f'{note}</p><div class="panels">{"".join(panels)}</div>{epochs}', "curves")


def _stopped_by(v: Values, curve: Mapping[str, Any]) -> str:
    """The figure that a panel shows: what decided on the epoch; empty where nothing was measured."""
    history = [row for fit in curve["seeds"] for row in fit["history"]]
    wanted = ["valid_auc"]
    if curve["model"] == "student" and not curve["is_teacher"] and v.get("/recipe/student/fit/stop_by") != "valid_auc":
        wanted = ["valid_kd", "valid_kl", "valid_auc"]
    return next((name for name in wanted if any(row.get(name) is not None for row in history)), "")


def _line(fit: Mapping[str, Any], measured: str, style: str) -> charts.Line:
    """A fit's curve; epochs without the figure are left out."""
    known = [row for row in fit["history"] if row.get(measured) is not None]
    kept = fit["history"][fit["epochs"] - 1]["epoch"] if fit["history"] else None
    return charts.Line(
        [(row["epoch"], row[measured]) for row in known],
        style,
        picked=next((index for index, row in enumerate(known) if row["epoch"] == kept), None),
        dashed=next((index for index, row in enumerate(known) if row.get("fine_tune")), None),
    )


def _level(v: Values) -> str:
    """The student's calibration in a sentence."""
    at = "/summary/test/student"
    if not v.has(f"{at}/predicted_over_actual/mean", f"{at}/ece/mean", f"{at}/ece_floor/mean"):
        return ""
    return (
        f"The student predicts {v.show(f'{at}/predicted_over_actual/mean', 'share')} of the clicks there are; its ECE "
        f"is {v.show(f'{at}/ece/mean', 'figure')}, where a perfect model would show "
        f"{v.show(f'{at}/ece_floor/mean', 'figure')} by chance. "
    )


CHOSEN = {"gate": "gate", "average": "plain average"}


def gate(v: Values) -> str:
    """Whom the ensemble listens to, and why gate or average."""
    names = v.get("/gate/teachers") or []
    if not names:
        return ""
    entries = []
    for name in names:
        at = pointer("gate", "mean_weights", name)
        mean = v.get(f"{at}/mean")
        if mean is not None:
            entries.append((name, mean, v.show(f"{at}/mean", "percent", tag="tspan")))
    drawing = charts.bars(entries, label="Chart: mean weight of each teacher, written beside its bar")
    heads = ["seed", "chosen", "average, part B", "gate, part B", "average, part C", "gate, part C", "scale", "bias"]
    rows = []
    for index in range(len(v.get("/gate/by_seed"))):
        at = f"/gate/by_seed/{index}"
        keys = ("average_ce_b", "gate_ce_b", "average_ce_c", "gate_ce_c")
        rows.append(
            [
                v.show(f"{at}/seed", "count"),
                CHOSEN.get(v.get(f"{at}/chosen"), html.escape(str(v.get(f"{at}/chosen")))),
                *(v.show(f"{at}/{key}", "figure") for key in keys),
                v.show(f"{at}/scale", "number"),
                v.show(f"{at}/bias", "number"),
            ]
        )
    evidence = (
        f"<h3>Why gate or average</h3><p>{_evidence(v)}</p>"
        + table(heads, rows, label="Gate against average, by seed")
        + _labels(v)
    )
    share = "absolute weight" if v.get("/recipe/gate/form") == "stacking" else "weight"
    every = {row["chosen"] for row in v.get("/gate/by_seed")}
    listened = "It is the plain average: each teacher weighs the same. " if every == {"average"} else ""
    return section(
        "Whom the ensemble listens to",
        f"<p>Mean share of each teacher’s {share} in the ensemble, over test rows. {listened}</p>"
        + figure(drawing)
        + _by_prediction(v, names)
        + evidence
        + _segments(v, names),
        "gate",
    )


def _evidence(v: Values) -> str:
    """Where the gate learned, and what decided."""
    if v.get("/recipe/scheme/kind") == "cotrain":
        learned = "the gate was trained together with the teachers, its scale and bias on part B"
    elif v.get("/recipe/gate/learns_on") == "train":
        learned = "the gate is fitted on training rows, its scale and bias on part B"
    else:
        learned = "the gate is fitted on part B"
    if v.get("/recipe/gate/form") == "average":
        return "The recipe wants the plain average. Cross-entropy with clicks, in nats; less is better."
    if v.get("/recipe/gate/fallback") is False:
        return f"Cross-entropy with clicks, in nats; less is better: {learned}, and kept whatever part C says."
    return (
        f"Cross-entropy with clicks, in nats; less is better: {learned}, and kept only where it beats the plain "
        "average on part C, which neither has seen."
    )


def _labels(v: Values) -> str:
    """How well soft labels of training rows foretell clicks, where some teachers had not seen the rows."""
    if not v.has("/gate/labels/0/all", "/gate/labels/0/unseen"):
        return ""
    rows = [
        [
            f"{v.show(f'/gate/labels/{index}/seed', 'count')}, {title}",
            *(v.show(f"/gate/labels/{index}/{key}/{name}", "figure") for name in ("auc", "logloss")),
        ]
        for index in range(len(v.get("/gate/labels")))
        for key, title in (("all", "all teachers"), ("unseen", "teachers that did not learn from the row"))
        if v.has(f"/gate/labels/{index}/{key}")
    ]
    note = (
        "<h3>What training rows were labelled with</h3><p>Measured against the clicks of those very rows. Far "
        "better by all teachers is what they remember, not what they know.</p>"
    )
    return note + table(["seed, labelled by", "AUC", "logloss"], rows, label="Soft labels of training rows")


def _by_prediction(v: Values, names: Sequence[str]) -> str:
    """Weights from the impressions thought least likely to be clicked to the likeliest."""
    found = [(i, s) for i, s in enumerate(v.get("/gate/by_segment") or []) if s["field"] == "pctr decile"]
    if not found:
        return ""
    rows = [
        [
            v.show(f"/gate/by_segment/{index}/value", "text"),
            v.show(f"/gate/by_segment/{index}/rows", "count"),
            *(v.show(pointer("gate", "by_segment", index, "weights", name), "percent") for name in names),
        ]
        for index, _ in found
    ]
    shades = [[segment["weights"][name] for name in names] for _, segment in found]
    note = (
        "<h3>By predicted click rate</h3><p>Test rows of the first seed in ten groups, from the least likely to be "
        "clicked to the likeliest; the darker, the more weight.</p>"
    )
    heads = ["group", "rows", *map(html.escape, names)]
    return note + table(heads, rows, shades=shades, label="Gate weights by predicted click rate")


def _segments(v: Values, names: Sequence[str]) -> str:
    rows = []
    shades = []
    for index, segment in enumerate(v.get("/gate/by_segment") or []):
        if segment["field"] == "pctr decile":
            continue
        at = pointer("gate", "by_segment", index)
        shades.append([segment["weights"][name] for name in names])
        weights = [v.show(at + pointer("weights", name), "percent") for name in names]
        rows.append(
            [html.escape(segment["field"]), v.show(f"{at}/value", "text"), v.show(f"{at}/rows", "count"), *weights]
        )
    if not rows:
        return ""
    return details(
        "By the values of fields (first seed)",
        table(
            ["field", "value", "rows", *map(html.escape, names)],
            rows,
            left=2,
            shades=shades,
            label="Gate weights by the values of fields",
        ),
    )


def sweep(v: Values) -> str:
    """How teachers, control and student were tuned; nothing where they were not."""
    found = v.get("/sweep")
    trials = found.get("trials") if isinstance(found, Mapping) else found
    if not trials:
        return ""
    at = "/sweep/trials" if isinstance(found, Mapping) else "/sweep"
    keys = list(dict.fromkeys(key for trial in trials for key in trial))
    rows = [
        [v.show(f"{at}/{index}{pointer(key)}", _form_of(key, trial.get(key))) for key in keys]
        for index, trial in enumerate(trials)
    ]
    best = ""
    if isinstance(found, Mapping) and isinstance(found.get("best"), Mapping):
        sides = list(found["best"])
        heads = list(found["best"][sides[0]])
        lines = [
            [
                html.escape(side),
                *(
                    v.show(pointer("sweep", "best", side, key), _form_of(key, found["best"][side].get(key)))
                    for key in heads
                ),
            ]
            for side in sides
        ]
        titles = [_head(head) for head in heads]
        best = table(["best of", *titles], lines, label="Best settings")
    note = "<p>Each side tried the same settings with the same budget, judged on validation rows.</p>"
    titles = [_head(key) for key in keys]
    trials_table = details("Every trial", table(titles, rows, label="Every trial of the tuning"))
    return section("How the networks were tuned", note + best + trials_table, "sweep")


_FORMS = {"learning_rate": "plain", "init_sd": "plain", "epochs": "ratio", "seed": "count"}


def _form_of(key: str, value: object) -> str:
    """How a column of a sweep is written; settings as they were given."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "text"
    return _FORMS.get(key, "figure")


def _head(key: str) -> str:
    """A column of a sweep, in words."""
    return html.escape(key.replace("_", " ").replace("auc", "AUC").replace("sd", "spread"))
