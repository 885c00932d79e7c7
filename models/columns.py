"""Column: one field of a chunk of a log, as a reader hands it over: all that the column path takes.

Four forms, because four things reach us from files:

    Column.text(cells)               CSV cells: untyped text, parsed to the field's type; split for a sequence
    Column.typed(values, missing)    Parquet: numpy numbers, booleans, or an object array of str; never parsed
    Column.lists(elements, offsets)  Parquet lists: a text or typed column, and where each row starts in it
    column.coded(codes)              a text or typed column of distinct values and a code a row: the fastest
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Column:
    """n cells of one field. Make it with the class methods, which check shapes and dtypes once.

    `values` are the cells, or the distinct values where `codes` [n] says which row holds which (-1: missing).
    `missing` [len(values)] marks cells to be taken as missing whatever `values` holds there.
    `offsets` [n + 1] makes it a column of lists: row i holds elements offsets[i] to offsets[i + 1].
    """

    form: Literal["text", "typed"]
    values: NDArray[Any]
    missing: NDArray[np.bool_] | None = None
    codes: NDArray[np.integer[Any]] | None = None
    offsets: NDArray[np.integer[Any]] | None = None

    @classmethod
    def text(cls, cells: NDArray[np.object_]) -> Column:
        """CSV cells: an object array of str, or None where the file has no cell. "" is missing too."""
        if cells.dtype != object or cells.ndim != 1:
            raise TypeError(f"expected a flat object array of str, got {_shape(cells)}")
        return cls("text", cells)

    @classmethod
    def typed(cls, values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> Column:
        """Values of a typed file: booleans, integers, floats (NaN is missing), an object array of str.

        float16 and float32 are widened, never rounded. A string here is a string: "7" does not fit an integer
        field, as in JSON. A reader that wants it parsed hands it over as `text`.
        """
        if values.ndim != 1 or (values.dtype != object and values.dtype.kind not in "biuf"):
            raise TypeError(f"expected a flat bool, int, float or object array, got {_shape(values)}")
        if values.dtype.kind == "f" and values.dtype.itemsize > 8:
            raise TypeError(f"expected at most float64, got {values.dtype}")
        if missing is not None and (missing.shape != values.shape or missing.dtype != bool):
            raise TypeError(f"expected a bool mask of {len(values)}, got {_shape(missing)}")
        return cls("typed", values, missing)

    @classmethod
    def lists(cls, elements: Column, offsets: NDArray[np.integer[Any]]) -> Column:
        """Rows of elements: row i is elements[offsets[i]:offsets[i + 1]]. A null list is an empty one."""
        if offsets.ndim != 1 or len(offsets) == 0 or elements.offsets is not None:
            raise TypeError("expected offsets of n + 1 entries and a column of elements that are no lists")
        if offsets[0] < 0 or offsets[-1] > len(elements) or bool((offsets[1:] < offsets[:-1]).any()):
            raise TypeError(f"expected offsets that grow from 0 to at most {len(elements)}")
        return replace(elements, offsets=offsets)

    def coded(self, codes: NDArray[np.integer[Any]]) -> Column:
        """This column's cells as distinct values: row i holds cell codes[i]; -1 is missing."""
        if self.codes is not None or self.offsets is not None:
            raise TypeError("expected a column that has neither codes nor offsets yet")
        if codes.ndim != 1 or (len(codes) and (codes.min() < -1 or codes.max() >= len(self.values))):
            raise TypeError(f"expected codes from -1 to {len(self.values) - 1}")
        return replace(self, codes=codes)

    @property
    def elements(self) -> Column:
        """A column of lists without its offsets: one cell an element."""
        return replace(self, offsets=None)

    def __len__(self) -> int:
        """Rows: n."""
        if self.offsets is not None:
            return len(self.offsets) - 1
        return len(self.values) if self.codes is None else len(self.codes)


def _shape(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"
