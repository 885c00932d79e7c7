"""How fast the student may be: what `training search` tried, AUC against latency, and its choice."""

from __future__ import annotations

import html

from training.report import charts
from training.report.pieces import details, figure, legend, section, table
from training.report.values import MISSING, Values, pointer


def header(v: Values) -> str:
    """Which search this is, for a page of its own."""
    description = html.escape(v.get("/recipe/description") or "")
    return (
        f'<header><p class="kicker">Retort · student search</p><h1>{v.show("/recipe/name", "text")}</h1>'
        f'<p class="lead">{description}</p></header>'
    )


def search(v: Values) -> str:
    """The choice in words, the drawing, the finalists; nothing where nobody searched."""
    if not v.has("/search"):
        return ""
    said = [v.prose(sentence) for sentence in v.get("/search/said")]
    conclusion = f"<p><strong>{said[0]}</strong></p>" + "".join(f"<p>{sentence}</p>" for sentence in said[1:])
    tried = v.get("/search/trials")
    done = [(index, row) for index, row in enumerate(tried) if not row["error"]]
    finalists = v.get("/search/finalists")
    own = next(row for row in finalists if row["trial"] is None)["auc"]
    marks = [
        charts.Mark("", row["p50_ms"], row["over_own"], "rest", title=_title(v, "trials", index)) for index, row in done
    ]
    for index, row in enumerate(finalists):
        gains = [auc - same for auc, same in zip(row["auc"], own, strict=True)]
        mean = sum(gains) / len(gains)
        spread = (sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)) ** 0.5 if len(gains) > 1 else 0.0
        name = "chosen" if row["chosen"] else "the recipe’s" if row["trial"] is None else f"trial {row['trial']}"
        style = "s1" if row["chosen"] else "s3" if row["trial"] is None else "s2"
        trial = v.show(pointer("search", "finalists", index, "trial"), "count", tag="tspan")
        shown = f"trial {trial}" if name.startswith("trial") else ""
        title = _title(v, "finalists", index)
        marks.append(charts.Mark(name, row["p50_ms"], mean, style, spread, title=title, shown=shown))
    front = sorted((row["p50_ms"], row["over_own"]) for _, row in done if row["on_front"])
    drawing = charts.scatter(
        marks,
        x_title="median milliseconds a request, logarithmic",
        y_title="AUC on validation rows, above the recipe’s student",
        label="Chart: AUC against latency of every student tried; the tables below have the numbers",
        path=front,
    )
    keys = legend(
        [("chosen", "s1"), ("other finalists", "s2"), ("the recipe’s student", "s3"), ("tried, one dot each", "rest")]
    )
    again = (
        "The finalists were trained again with seeds that had no say in picking them; a bar is one standard deviation "
        "between those. "
        if v.get("/search/seeds/are_apart") is not False
        else ""
    )
    itself = ""
    if v.has("/search/own/ratio_to_itself"):
        itself = (
            f" (which, timed against itself, took {v.show('/search/own/ratio_to_itself', 'share')}: so much is noise)"
        )
    note = (
        f"<p>{v.show('/search/trials_count', 'count')} of {v.show('/search/space_size', 'count')} possible students "
        "were trained on the same teachers and gate. A small dot is a trial: its AUC less that of the recipe’s student "
        f"on the same seeds; the dotted line joins those that none other beats in both. {again}Latency is the median "
        f"of session.run, timed in turns with the recipe’s student{itself}. Test rows were not looked at.</p>"
    )
    return section(
        "How fast may the student be?",
        conclusion + note + keys + figure(drawing) + _finalists(v) + details("Every trial", _trials(v)),
        "search",
    )


def _title(v: Values, rows: str, index: int) -> str:
    return v.show(pointer("search", rows, index, "name"), "text", tag="title")


def _finalists(v: Values) -> str:
    rows, strong = [], None
    for index, row in enumerate(v.get("/search/finalists")):
        at = pointer("search", "finalists", index)
        strong = index if row["chosen"] else strong
        origin = "the recipe’s" if row["trial"] is None else f"trial {v.show(f'{at}/trial', 'count')}"
        loss = v.show(f"{at}/loss/mean", "figure")
        if v.has(f"{at}/loss/se"):
            loss += f' <span class="sd">± {v.show(f"{at}/loss/se", "figure")}</span>'
        verdict = "best" if row["is_best"] else row["loss"]["verdict"]
        rows.append(
            [
                origin + (" (chosen)" if row["chosen"] else ""),
                v.show(f"{at}/name", "text"),
                v.show(f"{at}/p50_ms", "ms"),
                v.show(f"{at}/ratio", "share"),
                v.spread(at),
                loss,
                verdict,
            ]
        )
    heads = ["finalist", "student", "ms", "of the recipe’s time", "AUC", "loss to the best", "limit"]
    note = (
        f'<p class="note">Loss is paired by seed, ± its standard error. Within or beyond the limit of '
        f"{v.show('/search/within', 'plain')} is said only where two standard errors do not reach across it.</p>"
    )
    return "<h3>Finalists, fastest first</h3>" + table(heads, rows, left=2, strong=strong, label="Finalists") + note


def _trials(v: Values) -> str:
    rows = []
    for index, row in enumerate(v.get("/search/trials")):
        at = pointer("search", "trials", index)
        if row["error"]:
            failed = f"failed: {v.show(f'{at}/error', 'text')}"
            rows.append([v.show(f"{at}/trial", "count"), v.show(f"{at}/name", "text"), *[MISSING] * 5, failed])
            continue
        epochs = ", ".join(v.show(f"{at}/epochs/{seed}", "count") for seed in range(len(row["epochs"])))
        rows.append(
            [
                v.show(f"{at}/trial", "count"),
                v.show(f"{at}/name", "text"),
                v.show(f"{at}/p50_ms", "ms"),
                v.show(f"{at}/mean", "figure"),
                v.show(f"{at}/over_own", "gain"),
                epochs,
                v.show(f"{at}/size/spec/parameters_dense", "count"),
                "on the front" if row["on_front"] else "",
            ]
        )
    heads = ["trial", "student", "ms", "AUC", "above the recipe’s", "epochs", "dense parameters", ""]
    return table(heads, rows, left=2, label="Every trial")
