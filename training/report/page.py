"""report.json -> report.html: one file, nothing loaded from elsewhere, readable on a phone, in light and in dark.

The order is that of a reader's questions: does the student win, against what, at what cost; what was not reached;
then how it came about. Every drawing has its table.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.report import charts
from training.report.values import MISSING, Values, pointer

STYLE = Path(__file__).with_name("style.css")

TITLES = {
    "student": "student",
    "control_train_valid": "control, same rows",
    "control_train": "control, training rows only",
    "control": "control",
    "average": "plain average of teachers",
    "ensemble": "ensemble (gate)",
    "best_teacher": "best single teacher",
}
METRICS: dict[str, tuple[str, str]] = {
    "xauc": ("xAUC", "figure"),
    "auc": ("AUC", "figure"),
    "xlogloss": ("xlogloss", "figure"),
    "logloss": ("logloss", "figure"),
    "normalised_entropy": ("norm. entropy", "figure"),
    "gauc": ("gAUC", "figure"),
    "ece": ("ECE", "figure"),
    "ece_floor": ("ECE floor", "figure"),
    "xece": ("error against truth", "figure"),
    "predicted_over_actual": ("pred./actual", "figure"),
}
MARKS = {"student": "s1", "ensemble": "s2", "average": "s2", "control_train_valid": "s3", "control_train": "s3"}

Section = Callable[["Values"], str]


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    values = Values(report)
    title = html.escape(f"{report['name']}: distillation report")
    sections = "\n".join(filter(None, (section(values) for section in SECTIONS)))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n{sections}\n</main>\n"
        "</body>\n</html>\n"
    )


def header(v: Values) -> str:
    seeds = f"{v.show('/answer/seeds', 'count')} seed{'s' if v.get('/answer/seeds') != 1 else ''} of training"
    facts = [v.show("/created", "moment") + " UTC", seeds, f"{v.show('/data/rows', 'count')} impressions"]
    description = html.escape(v.get("/description") or "")
    return (
        f'<header><p class="kicker">Retort · distillation report</p><h1>{v.show("/name", "text")}</h1>'
        f'<p class="lead">{description}</p><p class="facts">{" · ".join(facts)}</p></header>'
    )


def answer(v: Values) -> str:
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
    rows, reasons = [], []
    for index, target in enumerate(v.get("/targets")):
        at = pointer("targets", index)
        form = target["format"]
        mark = '<span class="yes">✓ reached</span>' if target["reached"] else '<span class="no">✗ not reached</span>'
        rows.append(
            [
                v.show(f"{at}/name", "text"),
                f"{target['relation']} {v.show(f'{at}/wanted', form)}",
                v.show(f"{at}/found", form),
                mark,
            ]
        )
        if target["reason"]:
            reason = "; ".join(v.prose(sentence) for sentence in target["reason"])
            reasons.append(f"<li><b>{v.show(f'{at}/name', 'text')}</b>: {reason}.</li>")
    if not rows:
        return ""
    note = (
        "<p>Gains are asked for where true click probabilities are known. All comparisons are with the control on the "
        "same rows, on test rows.</p>"
    )
    why = f"<h3>What was not reached, and why</h3><ul>{''.join(reasons)}</ul>" if reasons else ""
    return _section(
        "What was to be reached", note + _table(["target", "wanted", "found", ""], rows, left=4) + why, "targets"
    )


def models(v: Values) -> str:
    """Every model on test rows."""
    shown = [
        name for name in METRICS if any(v.has(f"/summary/test/{model}/{name}") for model in ("student", "ensemble"))
    ]
    rows = [
        [label, *(v.spread(f"{at}/{name}", METRICS[name][1]) for name in shown)]
        for label, at in _models(v, "summary", "test")
    ]
    if v.has("/bayes/test"):
        truth = [v.show(f"/bayes/test/{name}", METRICS[name][1]) for name in shown]
        rows.append(["the truth itself (best possible)", *truth])
    note = (
        "<p>Mean over seeds, ± standard deviation between them. xAUC and xlogloss are taken under the known true "
        "probabilities, so they carry no label noise; ECE floor is what a perfect model shows on as many rows.</p>"
        if v.has("/summary/test/student/xauc")
        else "<p>Mean over seeds, ± standard deviation between them. ECE floor is what a perfect model shows on as "
        "many rows. The spread between seeds leaves out the luck of which rows are in the test part.</p>"
    )
    body = note + _table(["test rows", *(METRICS[name][0] for name in shown)], rows, strong=0)
    return _section("Every model, and the controls", body + _seeds(v) + _on_train(v), "models")


def _seeds(v: Values) -> str:
    shown = [name for name in METRICS if v.get(f"/test/student/0/{name}") is not None]
    rows = []
    for label, at in _models(v, "test"):
        for index in range(len(v.get(at))):
            rows.append(
                [
                    label,
                    v.show(f"{at}/{index}/seed", "count"),
                    *(v.show(f"{at}/{index}/{name}", METRICS[name][1]) for name in shown),
                ]
            )
    table = _table(["test rows", "seed", *(METRICS[name][0] for name in shown)], rows)
    return _details("Seed by seed", table)


def _on_train(v: Values) -> str:
    shown = [name for name in METRICS if v.has(f"/summary/train/student/{name}")]
    rows = [
        [label, *(v.spread(f"{at}/{name}", METRICS[name][1]) for name in shown)]
        for label, at in _models(v, "summary", "train")
    ]
    note = "<p>A model far better here than on test rows has learned its rows by heart.</p>"
    return _details("On training rows", note + _table(["training rows", *(METRICS[n][0] for n in shown)], rows))


def differences(v: Values) -> str:
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
            cells.append(f'{v.spread(at, "gain")} <span class="sd">{won}</span>')
        rows.append([f"{TITLES[pair['model']]} − {_against(v, pair['against'])}", *cells])
    note = (
        "<p>Test rows, seed against seed: mean difference ± its standard deviation, and in how many seeds the first of "
        "the two is better. The best single teacher is chosen by these very rows, which favours it.</p>"
    )
    return _section("Differences, paired by seed", note + _table(["", *(METRICS[n][0] for n in shown)], rows), "pairs")


def cost_and_quality(v: Values) -> str:
    metric = v.get("/headline/auc")
    marks = []
    places = [("student", "/cost/student", "/summary/test/student", "s1")]
    places += [("control", "/cost/control", f"/summary/test/{v.get('/answer/against')}", "s3")]
    places += [("ensemble", "/cost/ensemble", "/summary/test/ensemble", "s2")]
    places += [
        (name, pointer("cost", "teachers", name), pointer("summary", "test", "teachers", name), "rest")
        for name in v.get("/cost/teachers") or {}
    ]
    for name, cost, quality, style in places:
        x, y = v.get(f"{cost}/50/p50_ms"), v.get(f"{quality}/{metric}/mean")
        if x is not None and y is not None:
            marks.append(charts.Mark(name, x, y, style, v.get(f"{quality}/{metric}/sd") or 0.0))
    drawing = charts.scatter(
        marks,
        x_title="median milliseconds of session.run, logarithmic",
        y_title=f"{METRICS[metric][0]} on test rows",
        label=f"{METRICS[metric][0]} against latency of student, control, ensemble and teachers",
    )
    counts = list(enumerate(("1", "50", "200")))
    heads = [
        f"{kind} at {v.show(pointer('candidates', index), 'count')}" for index, _ in counts for kind in ("p50", "p99")
    ]
    rows = []
    for name, cost, quality, _ in places:
        if not v.has(cost):
            continue
        times = [v.show(f"{cost}/{count}/{kind}_ms", "ms") for _, count in counts for kind in ("p50", "p99")]
        sizes = [v.show(f"{cost}/{key}", "count") for key in ("parameters_embedding", "parameters_dense")]
        quality_cell = v.spread(f"{quality}/{metric}")
        rows.append([html.escape(name), quality_cell, *times, *sizes, v.show(f"{cost}/bytes", "bytes")])
    note = (
        f"<p>Milliseconds of one core ({v.show('/conditions/cpu', 'text')}, onnxruntime "
        f"{v.show('/conditions/onnxruntime', 'text')}), one request of so many candidates; models take turns, so noise "
        "meets all alike. Parsing and encoding come on top and are the same for all. A bar is one standard deviation "
        f"between seeds. The drawing is at {v.show('/candidates/1', 'count')} candidates.</p>"
    )
    table = _table(
        ["", METRICS[metric][0], *heads, "embedding parameters", "dense parameters", "size on disk"], rows, strong=0
    )
    return _section("Quality against cost", note + _figure(drawing) + table, "cost")


def calibration(v: Values) -> str:
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
    bins = _details("The bins", _table(["", "rows", "predicted", "clicked"], rows))
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
        + _table(["test rows", *(METRICS[name][0] for name in shown)], refit)
    )
    legend = _legend([(name, style) for name, _, style in curves])
    note = (
        "<p>First seed, test rows, bins of equally many impressions. On the diagonal as many are clicked as were "
        "predicted.</p>"
    )
    return _section("Calibration", note + legend + _figure(drawing) + bins + after, "calibration")


def gate(v: Values) -> str:
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
        "it beats the plain average on part C, which neither has seen.</p>" + _table(heads, rows)
    )
    return _section(
        "Gate weights",
        "<p>Mean share of each teacher in the ensemble over test rows, which are also those of the segments below.</p>"
        + _figure(drawing)
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
    return _details(
        "Gate weights by segment (first seed)",
        _table(["field", "value", "rows", *map(html.escape, names)], rows, left=2),
    )


def learning(v: Values) -> str:
    panels, rows = [], []
    curves = v.get("/curves")
    auc = [
        row["valid_auc"] for curve in curves for fit in curve["seeds"] for row in fit["history"] if "valid_auc" in row
    ]
    shared = charts.padded(auc) if auc else None
    for place, curve in enumerate(curves):
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
    body = note + f'<div class="panels">{"".join(panels)}</div>' + _details("The epochs", _table(heads, rows))
    return _section("Learning curves", body, "curves")


def who_saw_what(v: Values) -> str:
    """Static by design (training/steps.py); the numbers of rows are this run's."""
    learn, stop, nothing = '<span class="learns">learns</span>', "stops it", ""
    matrix = [
        ("teachers; control, training rows only", [learn, stop + " (AUC)", nothing, nothing, nothing]),
        ("gate, scale, bias", [nothing, nothing, learn, "gate or average?", nothing]),
        ("student", [learn, stop + " (KL)", nothing, nothing, nothing]),
        ("Platt calibration", [nothing, nothing, nothing, learn, nothing]),
        ("refit of teachers and student; control, same rows", [learn, learn, learn, learn, nothing]),
        ("this report", ["shown", nothing, nothing, nothing, "measured, once"]),
    ]
    parts = v.get("/parts")
    heads = ["", *(part["part"].replace("_", " ").replace("valid a", "valid A") for part in parts)]
    heads = [head.replace("valid b", "valid B").replace("valid c", "valid C") for head in heads]
    facts = [
        ["rows", *(v.show(pointer("parts", i, "rows"), "count") for i in range(len(parts)))],
        ["clicked", *(v.show(pointer("parts", i, "click_rate"), "percent") for i in range(len(parts)))],
    ]
    if any(part["first"] for part in parts):
        facts.append(["from", *(v.show(pointer("parts", i, "first"), "moment") for i in range(len(parts)))])
        facts.append(["to", *(v.show(pointer("parts", i, "last"), "moment") for i in range(len(parts)))])
    note = "<p>Validation rows are parted by the hash of their unit (the user), so no unit is in two of A, B and C.</p>"
    table = _table(heads, [*facts, *([html.escape(name), *cells] for name, cells in matrix)])
    return _section("Who saw which rows", note + table, "rows")


def data(v: Values) -> str:
    facts = [
        ("files", ", ".join(v.show(pointer("data", "files", i), "text") for i in range(len(v.get("/data/files"))))),
        ("fingerprint (sha256)", f"<code>{v.show('/data/fingerprint', 'text')}</code>"),
        ("rows left out by the split", v.show("/data/unused_rows", "count")),
        ("rows that could not be read", v.show("/data/bad_rows", "count")),
    ]
    for field in v.get("/data/bad_cells"):
        count = v.show(pointer("data", "bad_cells", field), "count")
        facts.append((f"cells of {field} that were no value, taken as missing", count))
    listed = _table(["", ""], [[html.escape(name), value] for name, value in facts], left=2)
    rows = [
        [
            f"<code>{html.escape(field['field'])}</code>",
            *(
                v.show(pointer("fields", index, key), form)
                for key, form in (
                    ("ids", "count"),
                    ("missing_in_train", "percent"),
                    ("missing_in_test", "percent"),
                    ("unknown_in_test", "percent"),
                )
            ),
        ]
        for index, field in enumerate(v.get("/fields"))
    ]
    heads = ["field", "ids", "missing, training", "missing, test", "unknown, test"]
    return _section("The log", listed + _details("Fields", _table(heads, rows)), "log")


def sweep(v: Values) -> str:
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
        best = _table(["best of", *map(html.escape, heads)], lines)
    note = "<p>Student and control tried the same settings with the same budget, judged on validation rows.</p>"
    table = _details("Every trial", _table([html.escape(key.replace("_", " ")) for key in keys], rows))
    return _section("How student and control were tuned", note + best + table, "sweep")


def _form_of(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "text"
    return "plain" if isinstance(value, int) or abs(value) < 0.01 else "figure"


def provenance(v: Values) -> str:
    facts = [
        (f"bundle {model['name']}", f"version {v.show(pointer('published', index, 'version'), 'count')}")
        for index, model in enumerate(v.get("/published"))
    ]
    facts += [
        (
            f"{name}: largest difference of the exported graph from torch, in logit",
            v.show(pointer("parity_error", name), "tiny"),
        )
        for name in v.get("/parity_error")
    ]
    facts.append(("this run took (cached steps left out)", v.show("/seconds", "seconds")))
    facts.append(
        ("KL of the student from its ensemble, test rows, first seed", v.show("/kl_ensemble_student/0", "figure"))
    )
    listed = _table(["", ""], [[html.escape(name), value] for name, value in facts], left=2)
    recipe = html.escape(json.dumps(v.get("/recipe"), indent=2, ensure_ascii=False))
    return _section("Where this comes from", listed + _details("The recipe, whole", f"<pre>{recipe}</pre>"), "from")


SECTIONS: tuple[Section, ...] = (
    header,
    answer,
    models,
    cost_and_quality,
    targets,
    differences,
    calibration,
    learning,
    gate,
    who_saw_what,
    sweep,
    data,
    provenance,
)


def _models(v: Values, *path: str) -> list[tuple[str, str]]:
    """(title, pointer) of every model under a path: student, controls, average, ensemble, teachers."""
    tree = v.get(pointer(*path))
    found = [(TITLES.get(name, html.escape(name)), pointer(*path, name)) for name in tree if name != "teachers"]
    teachers = tree.get("teachers", {})
    return found + [(f"teacher {html.escape(name)}", pointer(*path, "teachers", name)) for name in teachers]


def _against(v: Values, name: str) -> str:
    if name == "best_teacher":
        return f"{TITLES[name]} ({v.show('/best_teacher', 'text')})"
    return TITLES[name]


def _section(title: str, body: str, anchor: str) -> str:
    return f'<section id="{anchor}"><h2>{title}</h2>{body}</section>'


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


def _figure(drawing: str) -> str:
    return f'<figure class="wide">{drawing}</figure>'


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    return (
        '<p class="legend">' + " ".join(f'<span class="key {style}">{name}</span>' for name, style in entries) + "</p>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, strong: int | None = None) -> str:
    """A table that scrolls sideways in its own box; the first `left` columns are words, the others numbers."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{'' if place < left else ' class=num'}>{cell}</{tag}>" for place, cell in enumerate(row))

    body = "".join(
        f"<tr{' class=strong' if place == strong else ''}>{cells(row, 'td')}</tr>" for place, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{cells(heads, "th")}</tr></thead><tbody>{body}</tbody></table></div>'
