"""Ratios of two arms that took turns, with intervals, and what they say about a limit."""

import math
from collections.abc import Sequence

import numpy as np

from engine.measurements.statistics import Interval, trimmed_mean_interval


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """ours / theirs, from pairs measured one after the other: the geometric mean and its 95 % interval."""
    return Interval(*(math.exp(end) for end in trimmed_mean_interval(np.log(ours) - np.log(theirs))))


def mean(values: Sequence[float]) -> Interval:
    """The mean of one value a round and its 95 % interval."""
    return trimmed_mean_interval(np.asarray(values, np.float64))


def shown(interval: Interval, digits: int = 3) -> str:
    """ "0.998 (0.991 … 1.004)"."""
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} … {interval.high:.{digits}f})"


def within(interval: Interval, low: float, high: float) -> str:
    """In words, whether the true value lies between the two."""
    if low <= interval.low and interval.high <= high:
        return "YES"
    if interval.high < low or interval.low > high:
        return "NO"
    return "probably" if low <= interval.value <= high else "UNCLEAR"
