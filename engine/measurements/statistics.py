"""The intervals behind every verdict: on a ratio of times, a paired difference of accuracies, a share.

All are 95 % intervals unless told otherwise. Small numbers of rounds are the usual case here, so plain percentile
bootstraps, which are too narrow then, are widened; skewed shares get score intervals, which stay right at 0 of n.
"""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
"""Bootstrap resamples: percentiles then vary by less than a tenth of the interval's width."""

TRIM = 0.2
"""Share of rounds cut from each end before averaging: a spike of another process must not carry the result."""

CORRELATED = 0.2
"""Lag-1 autocorrelation of rounds from which neighbours are resampled together."""

Z95 = statistics.NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def trimmed_mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Trimmed mean of one value per round, with a bootstrap interval.

    Rounds are resampled in blocks when neighbours are correlated (moving-block bootstrap, Künsch 1989). The
    percentiles are expanded for small samples as Hesterberg (2015, "What Teachers Should Know About the Bootstrap",
    section 5.3.3) proposes. Needs at least 3 values; raises ValueError below.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"an interval needs at least 3 rounds, not {count}")
    random = np.random.default_rng([seed, count])
    block = math.ceil(count ** (1 / 3)) if _autocorrelation(values) > max(CORRELATED, 2 / math.sqrt(count)) else 1
    starts = random.integers(0, count - block + 1, (RESAMPLES, math.ceil(count / block)))
    indices = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count]
    means = _trimmed(np.sort(values[indices], axis=1))
    kept = count - 2 * int(TRIM * count)
    tail = _expanded_tail(kept)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(_trimmed(np.sort(values)[None])[0]), float(low), float(high))


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of one value a sample, with an expanded percentile bootstrap interval.

    With many samples the normal interval is the same and costs nothing, so it is used from 2000 on.
    """
    count = len(values)
    mean = float(values.mean())
    if count < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    if count >= 2000:
        half = Z95 * float(values.std(ddof=1)) / math.sqrt(count)
        return Interval(mean, mean - half, mean + half)
    random = np.random.default_rng([seed, count])
    means = values[random.integers(0, count, (RESAMPLES // 2, count))].mean(axis=1)
    tail = _expanded_tail(count)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def resampled_interval(statistic: Callable[[np.ndarray], float], count: int, resamples: int, seed: int = 0) -> Interval:
    """Any statistic of the samples' indices, with an expanded percentile bootstrap interval."""
    random = np.random.default_rng([seed, count])
    values = np.array([statistic(random.integers(0, count, count)) for _ in range(resamples)])
    tail = _expanded_tail(count)
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(statistic(np.arange(count))), float(low), float(high))


def wilson_interval(hits: int, count: int) -> Interval:
    """A share (hits of count), with Wilson's score interval (1927)."""
    share, z = hits / count, Z95
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference_interval(lost: int, gained: int, count: int) -> Interval:
    """The drop (lost - gained) / count of a paired comparison, with Tango's score interval.

    `lost`: samples the baseline had right and the variant wrong; `gained`: the other way round; both of `count`.
    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998). Its ends are found by bisection.
    """

    def score(difference: float) -> float:
        a = 2 * count
        b = -lost - gained + (2 * count - lost + gained) * difference
        c = -gained * difference * (1 - difference)
        other = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = count * (2 * other + difference * (1 - difference))
        gap = lost - gained - count * difference
        if variance <= 0:
            return 0.0 if gap == 0 else math.copysign(math.inf, gap)
        return gap / math.sqrt(variance)

    drop = (lost - gained) / count
    return Interval(drop, _root(score, Z95, -1.0, drop), _root(score, -Z95, drop, 1.0))


def samples_needed(drop: float, discordant: float, limit: float) -> int:
    """About how many samples would make the interval of this drop end on one side of the limit.

    `discordant`: share of samples on which the two disagree. Normal approximation: half-width z·√(q/n).
    """
    gap = abs(limit - drop)
    return math.ceil(Z95**2 * max(discordant - drop * drop, 1e-6) / max(gap, 1e-6) ** 2)


def _trimmed(ordered: np.ndarray) -> np.ndarray:
    cut = int(TRIM * ordered.shape[1])
    return ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)


def _expanded_tail(count: int) -> float:
    """The percentile to read instead of 2.5 %, so that a bootstrap of `count` values covers 95 %."""
    return statistics.NormalDist().cdf(-math.sqrt(count / (count - 1)) * _student(count - 1))


def _student(freedom: int) -> float:
    """97.5 % quantile of Student's t; an expansion in 1/freedom, right to 1 % from 3 degrees on."""
    z, v = Z95, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def _autocorrelation(values: np.ndarray) -> float:
    centred = values - values.mean()
    power = float((centred**2).sum())
    return float((centred[1:] * centred[:-1]).sum()) / power if power > 0 else 0.0


def _root(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a falling function crosses `target` between `low` and `high`."""
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) > target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
