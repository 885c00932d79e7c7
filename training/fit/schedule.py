"""How the learning rate goes up and down over a fit: a factor of it, by epochs done.

    warm-up     x / w                          for x < w = warmup_epochs
    constant    1
    linear      1 - (x - w) / (n - w)          n = max_epochs
    cosine      (1 + cos(pi (x - w) / (n - w))) / 2        of Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983

x counts epochs with their fractions, to the end of the step. It runs over max_epochs also where training stops earlier
and where a refit trains as long as that did, so that both take the same steps.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def factor(schedule: Schedule, done: float, *, warmup_epochs: float, max_epochs: int) -> float:
    """What the learning rate is multiplied by in the step that ends after `done` epochs; 0 < done <= max_epochs."""
    if done < warmup_epochs:
        return done / warmup_epochs
    if schedule == "constant":
        return 1.0
    share = min(1.0, (done - warmup_epochs) / (max_epochs - warmup_epochs))
    return 1 - share if schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
