"""A graph in smaller numbers beside the float32 one: what it gains, what it loses, which of them ships."""

from __future__ import annotations

from training.report.pieces import METRICS, section, table
from training.report.values import Values, pointer

SHOWN = ("auc", "xauc", "logloss", "xlogloss", "ece", "predicted_over_actual")
COUNTS = ("1", "50", "200")


def quantized(v: Values) -> str:
    """Nothing where no such graph was made."""
    found = v.get("/quantization") or {}
    parts = []
    for name in found:
        at = pointer("quantization", name)
        metrics = [key for key in SHOWN if v.has(f"{at}/float32/metrics/{key}")]
        rows = [
            [
                title,
                *(v.show(f"{at}/{which}/metrics/{key}", "figure") for key in metrics),
                *(v.show(f"{at}/{which}/latency/{count}/p50_ms", "ms") for count in COUNTS),
                v.show(f"{at}/{which}/bytes", "bytes"),
            ]
            for title, which in (("float32", "float32"), ("smaller numbers", "quantized"))
        ]
        what = f"layers {v.show(f'{at}/layers', 'text')}, tables {v.show(f'{at}/tables', 'text')}"
        if v.get(f"{at}/ships") == "quantized":
            said = "<strong>It ships</strong>: it is as good within the recipe's bounds."
        else:
            reasons = "; ".join(v.show(pointer("quantization", name, "reasons", i), "text") for i in _reasons(v, at))
            said = f"<strong>It was refused, the float32 graph ships</strong>: {reasons}."
        note = (
            f"<p>The {name} was also "
            f"exported with {what}. {said} Measured on {v.show(f'{at}/rows', 'count')} test rows; milliseconds are the "
            "median of session.run at 1, 50 and 200 candidates, the two taking turns.</p>"
        )
        heads = [
            "graph",
            *(METRICS[key][0] for key in metrics),
            *(f"ms at {count}" for count in COUNTS),
            "size on disk",
        ]
        parts.append(note + table(heads, rows, label=f"Two graphs of the {name}"))
    return section("In smaller numbers", "".join(parts), "quantized") if parts else ""


def _reasons(v: Values, at: str) -> range:
    return range(len(v.get(f"{at}/reasons") or []))
