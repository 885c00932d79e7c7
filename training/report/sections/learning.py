"""How it came about: calibration, learning curves, gate weights, tuning."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

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
    drawing = charts.reliability(curves, label="Reliability: clicked share against predicted rate, by bin")
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
    bins = details("The bins", table(["", "rows", "predicted", "clicked"], rows))
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
        "<h3>Before and after the refit</h3><p>Scale and bias are fitted on validation part C, with networks that have "
        "not seen it, and carried over to the networks retrained on training and validation rows.</p>"
        + table(["test rows", *(METRICS[name][0] for name in shown)], refit)
    )
    keys = legend([(name, style) for name, _, style in curves])
    note = (
        "<p>First seed, test rows, bins of equally many impressions. On the diagonal as many are clicked as were "
        "predicted.</p>"
    )
    return section("Calibration", note + keys + figure(drawing) + bins + after, "calibration")


def curves(v: Values) -> str:
    """Every fit, epoch by epoch."""
    panels, rows = [], []
    fitted = v.get("/curves")
    auc = [
        row["valid_auc"] for curve in fitted for fit in curve["seeds"] for row in fit["history"] if "valid_auc" in row
    ]
    shared = charts.padded(auc) if auc else None
    for place, curve in enumerate(fitted):
        measured = "valid_auc" if "valid_auc" in curve["seeds"][0]["history"][0] else "valid_kl"
        style = "s1" if curve["model"] == "student" else "s3" if curve["model"] == "control" else "rest"
        drawn = [
            charts.Line([(row["epoch"], row[measured]) for row in fit["history"]], style, picked=fit["epochs"] - 1)
            for fit in curve["seeds"]
            if fit["history"] and measured in fit["history"][0]
        ]
        if not drawn:
            continue
        what = "AUC" if measured == "valid_auc" else "KL to the ensemble, nats"
        drawing = charts.lines(
            drawn,
            x_title="epoch",
            label=f"{curve['model']}: {what} on validation rows by epoch",
            y_range=shared if measured == "valid_auc" else None,
        )
        kind = "teacher " if curve["is_teacher"] else ""
        caption = f"<figcaption>{kind}<b>{html.escape(curve['model'])}</b> · {what}</figcaption>"
        panels.append(f"<figure>{caption}{drawing}</figure>")
        for seed, fit in enumerate(curve["seeds"]):
            at = pointer("curves", place, "seeds", seed)
            for row in range(len(fit["history"])):
                point = f"{at}/history/{row}"
                rows.append(
                    [
                        html.escape(curve["model"]),
                        v.show(f"{at}/seed", "count"),
                        v.show(f"{point}/epoch", "count") + (" ●" if row == fit["epochs"] - 1 else ""),
                        v.show(f"{point}/train_loss", "figure"),
                        v.show(f"{point}/valid_auc", "figure"),
                        v.show(f"{point}/valid_logloss", "figure"),
                        v.show(f"{point}/valid_kl", "figure"),
                    ]
                )
    heads = ["", "seed", "epoch", "training loss", "valid AUC", "valid logloss", "valid KL"]
    note = (
        "<p>Validation part A, one line a seed; the dot is the epoch kept, whose number the refit repeats on training "
        "and validation rows. Teachers and control are stopped by AUC, on one scale here; the student is stopped by "
        "its distance to the ensemble and needs no labels for it.</p>"
    )
    body = note + f'<div class="panels">{"".join(panels)}</div>' + details("The epochs", table(heads, rows))
    return section("Learning curves", body, "curves")


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
    drawing = charts.bars(entries, label="Mean gate weight of each teacher")
    heads = ["seed", "chosen", "average, part B", "gate, part B", "average, part C", "gate, part C", "scale", "bias"]
    rows = []
    for index in range(len(v.get("/gate/by_seed"))):
        at = f"/gate/by_seed/{index}"
        keys = ("average_ce_b", "gate_ce_b", "average_ce_c", "gate_ce_c")
        rows.append(
            [
                v.show(f"{at}/seed", "count"),
                v.show(f"{at}/chosen", "text"),
                *(v.show(f"{at}/{key}", "figure") for key in keys),
                v.show(f"{at}/scale", "number"),
                v.show(f"{at}/bias", "number"),
            ]
        )
    evidence = (
        "<h3>Why gate or average</h3><p>Cross-entropy with clicks: the gate is fitted on part B, and kept only where "
        "it beats the plain average on part C, which neither has seen.</p>" + table(heads, rows)
    )
    return section(
        "Gate weights",
        "<p>Mean share of each teacher in the ensemble over test rows, which are also those of the segments below.</p>"
        + figure(drawing)
        + evidence
        + _segments(v, names),
        "gate",
    )


def _segments(v: Values, names: Sequence[str]) -> str:
    rows = []
    for index, segment in enumerate(v.get("/gate/by_segment") or []):
        at = pointer("gate", "by_segment", index)
        weights = [v.show(at + pointer("weights", name), "percent") for name in names]
        rows.append(
            [html.escape(segment["field"]), v.show(f"{at}/value", "text"), v.show(f"{at}/rows", "count"), *weights]
        )
    if not rows:
        return ""
    return details(
        "Gate weights by segment (first seed)",
        table(["field", "value", "rows", *map(html.escape, names)], rows, left=2),
    )


def sweep(v: Values) -> str:
    """How teachers, control and student were tuned; nothing where they were not."""
    found = v.get("/sweep")
    trials = found.get("trials") if isinstance(found, Mapping) else found
    if not trials:
        return ""
    at = "/sweep/trials" if isinstance(found, Mapping) else "/sweep"
    keys = list(trials[0])
    rows = [
        [v.show(f"{at}/{index}{pointer(key)}", _form_of(trial.get(key))) for key in keys]
        for index, trial in enumerate(trials)
    ]
    best = ""
    if isinstance(found, Mapping) and isinstance(found.get("best"), Mapping):
        sides = list(found["best"])
        heads = list(found["best"][sides[0]])
        lines = [
            [
                html.escape(side),
                *(v.show(pointer("sweep", "best", side, key), _form_of(found["best"][side].get(key))) for key in heads),
            ]
            for side in sides
        ]
        best = table(["best of", *map(html.escape, heads)], lines)
    note = "<p>Each side tried the same settings with the same budget, judged on validation rows.</p>"
    trials_table = details("Every trial", table([html.escape(key.replace("_", " ")) for key in keys], rows))
    return section("How the networks were tuned", note + best + trials_table, "sweep")


def _form_of(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "text"
    return "plain" if isinstance(value, int) or abs(value) < 0.01 else "figure"
