"""How the page writes a value; what is not known is a dash."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

NOTHING = "–"


def count(value: float | None) -> str:
    """Whole, with separators."""
    return NOTHING if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share of 1."""
    return NOTHING if value is None else f"{100 * value:.4g}%".replace("-", "−")


def change(value: float | None) -> str:
    """A relative change, with its sign."""
    return NOTHING if value is None else f"{100 * value:+.2f}%".replace("-", "−")


def figure(value: float | None) -> str:
    """Three digits."""
    return NOTHING if value is None else f"{value:.3g}".replace("-", "−")


def rail_name(name: str) -> str:
    """A guard-rail of the report, in words."""
    return _RAILS.get(name, name.replace("_", " "))


def rail(name: str, value: float | None) -> str:
    """Its bound, or what was found: shares, but for calibration's |ln(predicted/actual)|."""
    return figure(value) if name == "calibration" else percent(value)


_RAILS = {
    "errors": "error rate",
    "fallbacks": "fallback rate",
    "slow": "share of slow answers",
    "calibration": "calibration error",
    "ctr_loss": "CTR loss",
}


def milliseconds(seconds: float | None) -> str:
    """From seconds; above the last bucket it is only known to be above."""
    if seconds is None:
        return NOTHING
    return "> 1 s" if math.isinf(seconds) else f"{1000 * seconds:.3g} ms"


def between(bounds: Sequence[float] | None, form: Callable[[float | None], str]) -> str:
    """An interval."""
    return NOTHING if bounds is None else f"{form(bounds[0])} to {form(bounds[1])}"


def size(value: float) -> str:
    """Bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def plural(number: float, one: str, many: str | None = None) -> str:
    """`1 arm`, `2 arms`."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"
