"""Units as the published reference values have them: each impression its own unit."""

from __future__ import annotations

import numpy as np

from service.answers.lift import CLICKS, IMPRESSIONS
from service.answers.moments import Moments


def independent(impressions: float, clicks: float) -> Moments:
    """The moments of `impressions` units with one impression each, `clicks` of them clicked."""
    n, c = float(impressions), float(clicks)
    return Moments((CLICKS, IMPRESSIONS), np.array([[n, c, n], [c, c, c], [n, c, n]]))
