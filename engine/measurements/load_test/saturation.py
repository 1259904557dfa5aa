"""Whether a load is more than a service can bear: the requests under way grow steadily, not just up and down.

At a rate r above the capacity c the backlog grows by r - c a second, for ever. Below it the backlog wanders, for as
long as the queue remembers: hundreds of requests at a load of 0.9, thousands at 0.95. A plain regression over a short
test takes such a wave for growth three times in ten. So the growth must be
- certain: a line through the means of blocks (batch means), whose slope is above 0 at a level that is shared out
  over the few moments at which it is looked at;
- no filling: until the first answers come the requests under way grow in any service;
- large: more than a service that is only just able to bear the load lets its backlog wander in so many requests. That
  is the spread of the number of arrivals, √n of n (Poisson; more where they clump), and three times that is asked for.

In 400 simulations each of a server with constant service times, 150 to 3,000 requests long and looked at four times,
loads of 0.6 to 0.98 were called saturated at most 0.5 % of the times; 1.2 was 20 % of the times at 150 requests and
95 % at 700, 1.5 was 86 % at 150.
"""

from __future__ import annotations

import itertools

import numpy as np

from .record import Floats

BLOCKS = 8
"""Means that the line is drawn through."""

LOOKS = (0.25, 0.5, 0.75, 1.0)
"""Shares of a test at which it is looked at: whoever looks all the time sees growth sooner or later."""

T_LOOKS = 4.317
"""Student's t for a one-sided 99.75 % bound (99 % for all looks together) with `BLOCKS` - 2 degrees of freedom."""

LEAST_SHARE = 0.02
"""Growth below this share of the rate is not called saturation: nobody can tell it from a slow wave in a short test."""

LEAST_REQUESTS = 100
"""Before so many nothing is said."""

WANDERING = 3.0
"""Growth over the whole time must be more than this many times √(requests · clumping)."""

FIRST, FILLING = 20, 1.5
"""So many first requests tell how long an answer takes; before so many times that nothing is said."""

POINTS = 64
"""Moments at which the requests under way are counted."""


def is_saturated(sent: Floats, finished: Floats, start: float, end: float) -> bool:
    """The backlog of an open loop grew for certain, and noticeably, from `start` to `end` (seconds).

    `sent`, `finished`: seconds, of every request that was sent, in the order of sending; NaN for one that has not
    finished.
    """
    start = max(start, _filled(sent, finished))
    sent, finished = np.sort(sent), np.sort(finished)
    requests = _until(sent, end) - _until(sent, start)
    if requests < LEAST_REQUESTS or end <= start:
        return False
    moments = np.linspace(start, end, POINTS)
    under_way = _until(sent, moments) - _until(finished, moments)
    slope, error = _line(moments, under_way)
    growth = slope * (end - start)
    arrivals = np.diff(_until(sent, np.linspace(start, end, POINTS // 2 + 1)))
    clumping = max(1.0, float(arrivals.var() / arrivals.mean()))
    least = max(LEAST_SHARE * float(requests), WANDERING * float(np.sqrt(requests * clumping)))
    return slope > T_LOOKS * error and growth > least


def _filled(sent: Floats, finished: Floats) -> float:
    """From when on a service whose answers take long would have as many under way as it will ever have, going by the
    first requests, which hardly wait for others; infinity while most of those have no answer."""
    if not len(sent):
        return float("inf")
    took = finished[:FIRST] - sent[:FIRST]
    return float(sent[0] + FILLING * np.median(np.where(np.isnan(took), np.inf, took)))


def _line(moments: Floats, levels: Floats) -> tuple[float, float]:
    """(slope, its standard error) of a line through the means of blocks."""
    edges = np.linspace(0, len(moments), BLOCKS + 1).astype(int)
    times = np.array([np.mean(moments[a:b]) for a, b in itertools.pairwise(edges)])
    means = np.array([np.mean(levels[a:b]) for a, b in itertools.pairwise(edges)])
    centred = times - times.mean()
    spread = float((centred**2).sum())
    slope = float((centred * means).sum()) / spread
    residual = means - means.mean() - slope * centred
    return slope, float(np.sqrt((residual**2).sum() / (BLOCKS - 2) / spread))


def _until(ordered: Floats, moments: float | Floats) -> Floats:
    """How many lie at or before; NaN, which are ordered last, never do."""
    return np.asarray(np.searchsorted(ordered, moments, side="right"), np.float64)
