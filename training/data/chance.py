"""Rows and units drawn by hash: the same ones everywhere and always, whatever is read beside them."""

import numpy as np
import numpy.typing as npt


def uniform(hashes: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float64]:
    """Each hash as a number in [0, 1), independent of it for another seed [n]."""
    top = scramble(hashes ^ scramble(np.array([seed], np.uint64))) >> np.uint64(11)
    return top.astype(np.float64) * 2.0**-53


def scramble(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64 (Steele, Lea, Flood, OOPSLA 2014): numbers, even consecutive ones, to hashes, one to one."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
