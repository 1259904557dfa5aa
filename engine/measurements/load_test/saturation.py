"""Whether a load is more than a service can bear: the requests under way grow steadily, not just up and down.

At a rate r above the capacity c the backlog grows by r - c a second, for ever. A queue below saturation wanders, and
its values follow each other closely, so a plain regression is far too sure of itself: means of blocks are regressed
(batch means), the growth must be certain, and it must be a noticeable share of the rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

BLOCKS = 8
"""Means that the line is drawn through."""

T_99 = 3.143
"""Student's t for a one-sided 99 % bound with `BLOCKS` - 2 degrees of freedom."""

LEAST_SHARE = 0.02
"""Growth below this share of the rate is not called saturation: nobody can tell it from a slow wave in a short test."""


def backlog_growth(seconds: Sequence[float], outstanding: Sequence[int]) -> tuple[float, float] | None:
    """(slope, its lower 99 % bound) of the requests under way, a second; None for fewer than two values a block."""
    if len(seconds) < 2 * BLOCKS:
        return None
    edges = np.linspace(0, len(seconds), BLOCKS + 1).astype(int)
    times = np.array([np.mean(seconds[a:b]) for a, b in itertools.pairwise(edges)])
    levels = np.array([np.mean(outstanding[a:b]) for a, b in itertools.pairwise(edges)])
    centred = times - times.mean()
    spread = float((centred**2).sum())
    if spread <= 0:
        return None
    slope = float((centred * levels).sum()) / spread
    residual = levels - levels.mean() - slope * centred
    error = float(np.sqrt((residual**2).sum() / (BLOCKS - 2) / spread))
    return slope, slope - T_99 * error


def is_saturated(seconds: Sequence[float], outstanding: Sequence[int], rate: float) -> bool:
    """The backlog of a load of `rate` requests a second grows for certain, by `LEAST_SHARE` of the rate or more."""
    growth = backlog_growth(seconds, outstanding)
    return growth is not None and growth[1] > 0 and growth[0] > LEAST_SHARE * rate
