"""Every model beside the others: figures on test rows, differences paired by seed, quality against cost."""

from __future__ import annotations

import html

from training.report import charts
from training.report.pieces import METRICS, details, figure, models_of, section, table, title
from training.report.values import MISSING, Values, pointer

MOST_NAMES = 8
"""Of more teachers than these a chart names the best alone; the table has them all."""


def every_model(v: Values) -> str:
    """Every model on test rows."""
    shown = [
        name for name in METRICS if any(v.has(f"/summary/test/{model}/{name}") for model in ("student", "ensemble"))
    ]
    rows = [
        [label, *(v.spread(f"{at}/{name}", METRICS[name][1]) for name in shown)]
        for label, at in models_of(v, "summary", "test")
    ]
    if v.has("/bayes/test"):
        truth = [v.show(f"/bayes/test/{name}", METRICS[name][1]) for name in shown]
        rows.append(["the truth itself (best possible)", *truth])
    several = v.get("/answer/seeds") != 1
    spread = "Mean over seeds, ± standard deviation between them. " if several else "One seed: no spread is known. "
    note = (
        f"<p>{spread}xAUC and xlogloss are taken under the known true probabilities, so they carry no label noise; ECE "
        "floor is what a perfect model shows on as many rows.</p>"
        if v.has("/summary/test/student/xauc")
        else f"<p>{spread}ECE floor is what a perfect model shows on as many rows. The luck of which rows are in the "
        "test part comes on top.</p>"
    )
    if v.get("/recipe/merge_validation") is False:
        note += "<p>Validation rows were not learned from, so both controls are one network.</p>"
    heads = ["test rows", *(METRICS[name][0] for name in shown)]
    body = note + table(heads, rows, strong=0, label="Every model on test rows")
    return section("Every model, and the controls", body + _as_served(v) + _seeds(v) + _on_train(v), "models")


def _as_served(v: Values) -> str:
    """With what stands in for fields that a request does not have; nothing where the log has none such."""
    shown = [name for name in METRICS if v.has(f"/summary/as_served/student/{name}")]
    if not shown:
        return ""
    rows = [
        [label, *(v.spread(f"{at}/{name}", METRICS[name][1]) for name in shown)]
        for label, at in models_of(v, "summary", "as_served")
    ]
    note = (
        "<p>The log has fields that a request does not, a position for one. Above, models had them of each row; here, "
        "as in service, the value that the schema puts in their place.</p>"
    )
    heads = ["test rows, as served", *(METRICS[name][0] for name in shown)]
    return "<h3>As they are served</h3>" + note + table(heads, rows, strong=0, label="Every model as it is served")


def _seeds(v: Values) -> str:
    shown = [name for name in METRICS if v.get(f"/test/student/0/{name}") is not None]
    rows = []
    for label, at in models_of(v, "test"):
        for index in range(len(v.get(at))):
            rows.append(
                [
                    label,
                    v.show(f"{at}/{index}/seed", "count"),
                    *(v.show(f"{at}/{index}/{name}", METRICS[name][1]) for name in shown),
                ]
            )
    heads = ["test rows", "seed", *(METRICS[name][0] for name in shown)]
    rows_of_seeds = table(heads, rows, label="Every model on test rows, seed by seed")
    return details("Seed by seed", rows_of_seeds)


def _on_train(v: Values) -> str:
    shown = [name for name in METRICS if v.has(f"/summary/train/student/{name}")]
    rows = [
        [label, *(v.spread(f"{at}/{name}", METRICS[name][1]) for name in shown)]
        for label, at in models_of(v, "summary", "train")
    ]
    note = "<p>A model far better here than on test rows has learned its rows by heart.</p>"
    heads = ["training rows", *(METRICS[n][0] for n in shown)]
    return details("On training rows", note + table(heads, rows, label="Every model on training rows"))


def differences(v: Values) -> str:
    """One model against another on the same rows, seed by seed."""
    shown = [
        name
        for name in ("xauc", "auc", "xlogloss", "logloss", "normalised_entropy", "gauc", "ece")
        if any(name in pair["metrics"] for pair in v.get("/differences"))
    ]
    rows = []
    for index, pair in enumerate(v.get("/differences")):
        cells = []
        for name in shown:
            at = pointer("differences", index, "metrics", name)
            if not v.has(at):
                cells.append(MISSING)
                continue
            won = f"{v.show(f'{at}/better_in', 'count')}/{v.show(f'{at}/of', 'count')}"
            cells.append(f'{v.show(f"{at}/mean", "gain")} <span class="sd">{_interval(v, at)}{won}</span>')
        rows.append([f"{title(v, pair['model'])} − {title(v, pair['against'])}", *cells])
    note = (
        f"<p>Test rows, seed against seed: mean difference, its {v.show('/confidence', 'share')} interval, and in how "
        "many seeds the first of the two is better. An interval on both sides of zero leaves it open. The best single "
        "teacher is chosen by these very rows, which favours it.</p>"
    )
    heads = ["one less the other", *(METRICS[n][0] for n in shown)]
    return section("Differences, paired by seed", note + table(heads, rows, label="Paired differences"), "pairs")


def _interval(v: Values, at: str) -> str:
    if not v.has(f"{at}/low", f"{at}/high"):
        return ""
    return f"{v.show(f'{at}/low', 'gain')} to {v.show(f'{at}/high', 'gain')}, "


def cost_and_quality(v: Values) -> str:
    """What each model costs in session.run, and what it gives for it."""
    metric = v.get("/headline/auc")
    marks = []
    places = [("student", "/cost/student", "/summary/test/student", "s1")]
    places += [("control", "/cost/control", f"/summary/test/{v.get('/answer/against')}", "s3")]
    places += [("ensemble", "/cost/ensemble", "/summary/test/ensemble", "s2")]
    places += [
        (name, pointer("cost", "teachers", name), pointer("summary", "test", "teachers", name), "rest")
        for name in v.get("/cost/teachers") or {}
    ]
    is_crowded = len(places) > 3 + MOST_NAMES
    for name, cost, quality, style in places:
        x, y = v.get(f"{cost}/50/p50_ms"), v.get(f"{quality}/{metric}/mean")
        if x is not None and y is not None:
            whole = f"<title>{html.escape(name)}</title>"
            is_named = style != "rest" or not is_crowded or name == v.get("/best_teacher")
            shown = name if is_named else ""
            marks.append(charts.Mark(shown, x, y, style, v.get(f"{quality}/{metric}/sd") or 0.0, title=whole))
    drawing = charts.scatter(
        marks,
        x_title="median milliseconds a request, logarithmic",
        y_title=f"{METRICS[metric][0]} on test rows",
        label=f"Chart: {METRICS[metric][0]} against latency of student, control, ensemble and teachers; the table "
        "below has the numbers",
    )
    counts = list(enumerate(("1", "50", "200")))
    heads = [
        f"{kind} ms at {v.show(pointer('candidates', index), 'count')}"
        for index, _ in counts
        for kind in ("median", "slowest hundredth,")
    ]
    rows = []
    is_known = any(v.has(cost.replace("/cost/", "/training_seconds/", 1) + "/mean") for _, cost, _, _ in places)
    for name, cost, quality, _ in places:
        if not v.has(cost):
            continue
        times = [v.show(f"{cost}/{count}/{kind}_ms", "ms") for _, count in counts for kind in ("p50", "p99")]
        sizes = [v.show(f"{cost}/{key}", "count") for key in ("parameters_embedding", "parameters_dense")]
        quality_cell = v.spread(f"{quality}/{metric}")
        trained = [v.show(cost.replace("/cost/", "/training_seconds/", 1) + "/mean", "seconds")] if is_known else []
        rows.append([html.escape(name), quality_cell, *times, *sizes, v.show(f"{cost}/bytes", "bytes"), *trained])
    note = (
        f"<p>How long scoring one request of so many candidates takes, in milliseconds of one core "
        f"({v.show('/conditions/cpu', 'text')}, onnxruntime {v.show('/conditions/onnxruntime', 'text')}). Models take "
        "turns, so noise meets all alike: trust ratios more than milliseconds. Reading and encoding a request come on "
        "top and are the same for all. The chart is at "
        f"{v.show('/candidates/1', 'count')} candidates; a bar is one standard deviation between seeds."
        + (" Of the teachers only the best is named there.</p>" if is_crowded else "</p>")
    )
    if is_known:
        note += (
            "<p>Training is the time of one core (or GPU) for a seed, refit included; of the ensemble that of all its "
            "teachers and the gate, beside whatever else the machine did; a process’s first fit also loads and "
            "compiles what it needs. The student’s comes on top of the ensemble’s, without which it has no teacher.</p>"
        )
    if v.has("/training_seconds/together"):
        note += (
            "<p>Teachers and student were trained at once, in "
            f"{v.show('/training_seconds/together/mean', 'seconds')} a seed.</p>"
        )
    sizes = ["numbers in embeddings", "numbers in layers", "size on disk"] + (["training"] if is_known else [])
    costs = table(
        ["model", METRICS[metric][0], *heads, *sizes], rows, strong=0, label="Quality and cost of every model"
    )
    return section("Quality against cost", note + figure(drawing) + costs, "cost")
