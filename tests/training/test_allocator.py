"""Memory is taken from the system once, not once a step."""

from __future__ import annotations

import ctypes
import resource

import pytest

from training.fit.allocator import keep_freed_memory

BYTES = 100_000_000


def test_a_large_block_is_laid_where_the_last_one_was() -> None:
    """One that glibc would give back, 24,000 pages of it, costs pages the first time only."""
    if not keep_freed_memory():
        pytest.skip("another C library than glibc")
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p

    def pages_for_a_block() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(BYTES)))
        ctypes.memset(block, 1, BYTES)
        library.free(block)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages_for_a_block()

    assert pages_for_a_block() < 0.1 * BYTES / resource.getpagesize()
