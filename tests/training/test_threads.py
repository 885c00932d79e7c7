"""How pieces of work are shared out among threads, and how threads wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from training.fit.threads import share_out


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_piece_is_done_once_with_a_thread_of_torch_each(count: int) -> None:
    """And torch has its number of threads back, also when a piece fails."""
    torch.set_num_threads(2)
    done: list[int] = []

    def work(number: int) -> None:
        done.append(number)

    share_out(work, count)

    assert sorted(done) == list(range(count))
    assert torch.get_num_threads() == 2


def test_an_error_of_a_piece_is_raised() -> None:
    """Not lost in its thread."""
    torch.set_num_threads(2)

    def work(number: int) -> None:
        raise IndexError(f"piece {number}")

    with pytest.raises(IndexError, match="piece 0"):
        share_out(work, 2)
    assert torch.get_num_threads() == 2


def test_threads_wait_without_spinning_unless_the_user_says_otherwise() -> None:
    """`training` says so before anything of it loads torch."""
    code = "import os, sys, training; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}

    def told(**more: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], env=variables | more, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert told() == "PASSIVE False"
    assert told(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE False"
