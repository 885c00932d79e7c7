"""Memory that a step has given back is taken again by the next, instead of being asked of the system anew.

glibc hands blocks of more than 32 MB back at once, and the system then gives them page by page, each of them zeroed:
that was a third of an AutoInt's step and half of a FiBiNET's. Kept, the same steps hold up to a fifth more memory at
their peak, because blocks of other sizes do not fit exactly where the last ones lay. Only where there is glibc;
elsewhere nothing is done. No number depends on it.
"""

from __future__ import annotations

import ctypes
import functools

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3)'s options."""
LARGEST = 2**30
"""Bytes. What is larger, a whole table, is still given back when it is freed."""


@functools.cache
def keep_freed_memory() -> bool:
    """From now on, in this process; whether there was a way to ask for it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; no way to ask for one by no name
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, 2 * LARGEST - 1))
