"""What the values of a sample suggest: lists in text, times, codes or quantities, and who knows the label.

Each function looks at a `Profile` or two and states one thing; `infer.py` makes a proposal of them.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.column_names import is_id, is_quantity, is_time, side_of, words_of
from training.data.profile import Profile, form_of, profile_of
from training.data.timestamps import EPOCH_UNITS
from training.fit.metrics import auc

FEW_VALUES = 64
"""Integers with at most so many values are taken for codes unless their name says quantity."""

_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+", re.ASCII)

_PATTERNS = (
    "%Y%m%d",
    "%y%m%d%H",
    "%Y%m%d%H",
    "%Y%m%d%H%M%S",
    "%Y/%m/%d %H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%d/%b/%Y:%H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
)


def time_form(profile: Profile, warn: Callable[[str], None]) -> dict[str, str] | None:
    """How a column's times are written, as the schema says it; None where it holds no times."""
    if profile.form == "time":
        return {"format": "iso8601"}
    if profile.lengths is not None or profile.form not in ("text", "number"):
        return None
    named = is_time(profile.name)
    values = (
        profile.values
        if profile.distinct <= 2000
        else [profile.values[i] for i in range(0, profile.distinct, profile.distinct // 1000)]
    )
    if profile.type in ("integer", "float"):
        numbers = np.array([float(v) for v in values if form_of(str(v)) in ("integer", "integral", "decimal")])
        if not named or not len(numbers):
            return None
        for unit, scale in EPOCH_UNITS.items():
            seconds = numbers * scale / 1e6
            if ((seconds > 0.95e9) & (seconds < 2.2e9)).mean() > 0.99:  # 2000 to 2039
                return {"format": "epoch", "unit": unit}
        if ((numbers > 0.95e18) & (numbers < 2.2e18)).mean() > 0.99:
            warn(f"{profile.name}: nanoseconds since 1970 are not read; divide by 1000 and say unit: us")
            return None
        if profile.form == "number":
            return None
    texts = [str(v) for v in values]
    if profile.type == "string" and _share(texts, datetime.fromisoformat) > 0.995:
        return {"format": "iso8601"}
    if not named and profile.type != "string":
        return None
    fitting = [p for p in _PATTERNS if _share(texts, lambda text, p=p: _strict(text, p)) > 0.995]  # type: ignore[misc]
    if not fitting:
        return None
    twin = fitting[0].replace("%m/%d", "%d/%m")
    if twin != fitting[0] and twin in fitting:
        warn(f"{profile.name}: day and month cannot be told apart; {fitting[0]!r} was taken")
    return {"format": fitting[0]}


def _strict(text: str, pattern: str) -> datetime:
    """strptime, but digits only as wide as the pattern means, and years that logs can have."""
    when = datetime.strptime(text, pattern)
    if text.isdigit() and when.strftime(pattern) != text:
        raise ValueError
    if not 1990 <= when.year <= 2100:
        raise ValueError
    return when


def _share(texts: Sequence[str], parse: Callable[[str], object]) -> float:
    good = 0
    for text in texts:
        try:
            parse(text)
            good += 1
        except (ValueError, OverflowError):
            pass
    return good / max(1, len(texts))


def is_counter(profile: Profile) -> bool:
    """Whether integers run on from row to row, as the numbers of rows do."""
    numbers = profile.numbers[profile.codes[profile.codes >= 0]]
    steps = np.diff(numbers)
    return bool(len(steps) and (steps > 0).mean() > 0.99)


def is_code(profile: Profile) -> bool:
    """Whether numbers name things rather than measure them."""
    if profile.type == "float":
        return profile.distinct <= 16 and not is_quantity(profile.name)
    if is_id(profile.name):
        return True
    if is_quantity(profile.name):
        return profile.distinct <= 16
    if profile.distinct <= FEW_VALUES:
        return True
    # `region` or `publisher` alone, with values that repeat: a name for things.
    is_a_thing = side_of(profile.name) is not None and len(words_of(profile.name)) == 1
    return is_a_thing and profile.distinct < 0.1 * profile.present


def has_decimal_commas(profile: Profile) -> bool:
    """Whether a text column holds numbers written 8,12: whole ones and such with one comma, hardly anything else.

    A list of whole numbers looks alike only where none has more than two elements.
    """
    if profile.form != "text" or profile.type != "string":
        return False
    rows = dict.fromkeys(("comma", "whole", "list", "other"), 0)
    for value, count in zip(profile.values, profile.counts.tolist(), strict=True):
        text = str(value)
        kind = "comma" if _COMMA_NUMBER.fullmatch(text) else "whole" if _WHOLE.fullmatch(text) else "other"
        rows["list" if text.count(",") > 1 else kind] += count
    return not rows["list"] and rows["comma"] > 0.05 * profile.present and rows["other"] < 0.05 * profile.present


def separator_of(profile: Profile) -> tuple[str | None, Profile | None]:
    """(what separates the elements of a text column that holds lists, the elements), or (None, None)."""
    if profile.form != "text" or profile.type != "string" or profile.lengths is not None:
        return None, None
    if has_decimal_commas(profile):
        return None, None
    texts = [str(v) for v in profile.values]
    for separator in ("|", ";", ", ", ",", " "):
        split = [text.split(separator) for text in texts]
        several = sum(int(c) for c, parts in zip(profile.counts, split, strict=True) if len(parts) > 1)
        if several < 0.05 * profile.present:
            continue
        elements = [e for parts in split for e in parts if e]
        distinct = set(elements)
        if len(texts) < 8 or len(distinct) > 0.7 * len(texts) or max(map(len, distinct)) > 64:
            continue
        if sum(1 for e in distinct if re.search(r"[\[\](){}\"]", e)) > 0.01 * len(distinct):
            continue
        if separator == " " and sum(any(c.isdigit() for c in e) for e in elements) < 0.95 * len(elements):
            continue  # words of a text
        lengths = {len(parts) for parts in split}
        if len(lengths) == 1 and all(form_of(e) == "decimal" for e in list(distinct)[:100]):
            continue  # coordinates
        rows = [split[c] if c >= 0 else [] for c in profile.codes.tolist()]
        lists = pa.array([[e for e in parts if e] for parts in rows], pa.list_(pa.string()))
        return separator, profile_of(profile.name, lists)
    return None, None


def determined_by(profile: Profile, key: Profile) -> float:
    """How surely the key's value tells the column's: share of rows that agree with the key's most common value,
    over keys met more than once; 0 where one value is nearly everywhere anyway."""
    if key.lengths is not None or len(key.codes) != len(profile.codes):
        return 0.0
    both = (key.codes >= 0) & (key.counts[key.codes] > 1)
    if both.sum() < 50:
        return 0.0
    keys, values = key.codes[both], profile.codes[both] + 1
    if np.bincount(values).max() > 0.95 * len(values):
        return 0.0
    pairs, counts = np.unique(keys * (profile.distinct + 1) + values, return_counts=True)
    best = np.zeros(key.distinct, np.int64)
    np.maximum.at(best, pairs // (profile.distinct + 1), counts)
    return float(best.sum() / len(values))


def knows_label(profile: Profile, clicks: npt.NDArray[np.bool_]) -> tuple[float, float, object]:
    """(AUC of the column alone on held-out rows; the share of clicks that have a value which always comes with a
    click, and the commonest such value or None).

    Click rates by value are learned on a random half and tried on the other, so that many rare values cannot know
    the label by heart.
    """
    codes = profile.codes + 1
    is_binned = profile.type in ("integer", "float") and profile.distinct > 1000
    if is_binned:
        ranks = np.argsort(np.argsort(profile.numbers, kind="stable"), kind="stable")
        codes = np.append(0, ranks * 256 // profile.distinct + 1)[profile.codes + 1]
    # A seed of its own: a log made with numpy's first random numbers must not be halved along its own clicks.
    learned = np.random.default_rng(0x5EED_1EA4).random(len(codes)) < 0.5
    size = int(codes.max()) + 1 if len(codes) else 1
    base = float(clicks.mean())
    rows = np.bincount(codes[learned], minlength=size)
    rates = (np.bincount(codes[learned], clicks[learned], size) + 5 * base) / (rows + 5)
    held = ~learned
    score = auc(clicks[held], rates[codes[held]]) if clicks[held].any() and not clicks[held].all() else 0.5
    later = np.bincount(codes[held], minlength=size)
    later_rates = np.bincount(codes[held], clicks[held], size) / np.maximum(1, later)
    always = (rows >= 30) & (later >= 30) & (later_rates >= 0.99) & (rates > 0.5 * base + 0.45) & (base <= 0.9)
    if not always.any():
        return score, 0.0, None
    share = float(later[always].sum() / clicks[held].sum())
    code = int(np.argmax(later * always))
    if not code:
        return score, share, "nothing"
    if is_binned:
        return score, share, float(np.sort(profile.numbers)[(code - 1) * profile.distinct // 256])
    return score, share, profile.values[code - 1]
