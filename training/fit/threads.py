"""Pieces of work shared out among threads, each of which runs torch by itself.

torch shares out every operator among its threads and waits for the slowest at the end of each. Where a step is a few
large pieces that do not need one another, threads meet twice a step instead of thirty times: on two cores with other
work beside it, half the time is won, and on idle ones a tenth. How many threads there are is torch's number, and the
pieces do not depend on it: whoever cuts them alike gets the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def share_out(work: Callable[[int], None], count: int) -> None:
    """work(0), ..., work(count - 1), in any order, perhaps at once; an error of one is raised."""
    threads = torch.get_num_threads()
    if min(threads, count) <= 1:
        for number in range(count):
            work(number)
        return
    workers = min(threads, count)
    pool = _pool(workers, threads // workers, threads)
    torch.set_num_threads(threads // workers)  # MKL has one number for all threads
    try:
        for done in [pool.submit(work, number) for number in range(count)]:
            done.result()
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _pool(workers: int, threads_of_each: int, threads: int) -> ThreadPoolExecutor:
    """Workers with so many threads of torch each. torch's own number is set anew because a worker's becomes it."""
    met = Barrier(workers + 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pieces")

    def begin() -> None:
        torch.set_num_threads(threads_of_each)
        torch.set_grad_enabled(False)
        met.wait()

    for _ in range(workers):
        pool.submit(begin)
    met.wait()
    torch.set_num_threads(threads)
    return pool
