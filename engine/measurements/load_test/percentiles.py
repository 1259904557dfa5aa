"""Percentiles of latencies with bounds that hold, from order statistics: no assumption on the distribution.

The number of requests slower than the true p-quantile is binomial. That gives exact confidence bounds, and tells
how many requests a claim needs: to say "p99 is below the limit" with 99 % confidence one needs 459 requests with
none too late, 662 with one (MLPerf LoadGen's early-stopping rule, loadgen/early_stopping.cc).

All of it takes requests as independent. Under queueing neighbours are not, so a run should also be long (a
hundred times the longest busy period at least) and a claim be confirmed with other seeds.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

CONFIDENCE = 0.99
"""Of a claim that a quantile is below a limit; LoadGen's."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """One quantile of a sample, in the sample's unit; bounds are None where there are too few values for them."""

    estimate: float
    low: float | None
    high: float | None
    """Two-sided 95 % confidence interval."""
    at_most: float | None
    """The true quantile is below this with 99 % confidence: what a claim may be built on."""


def quantile(ordered: Values, share: float) -> Quantile:
    """The `share`-quantile (0.99 is p99) of values in ascending order. Raises ValueError for an empty sample."""
    count = len(ordered)
    if not count:
        raise ValueError("no values, no quantile")
    estimate = ordered[min(count - 1, int(np.ceil(share * count)) - 1)]
    below = _binomial_cdf(count, share)
    # P(X_(r) <= quantile) = P(at least r values are below it); ranks count from 1
    low_rank = int(np.searchsorted(below, 0.025, side="right"))
    high_rank = int(np.searchsorted(below, 0.975, side="left")) + 1
    late = late_allowed(count, share)
    return Quantile(
        estimate=float(estimate),
        low=float(ordered[low_rank - 1]) if low_rank >= 1 else None,
        high=float(ordered[high_rank - 1]) if high_rank <= count else None,
        at_most=float(ordered[count - late - 1]) if late is not None else None,
    )


def late_allowed(count: int, share: float, confidence: float = CONFIDENCE) -> int | None:
    """How many of `count` requests may be over the limit and still prove that the quantile is not; None: too few."""
    late = int(np.searchsorted(_binomial_cdf(count, 1 - share), 1 - confidence, side="right")) - 1
    return late if late >= 0 else None


def requests_needed(share: float, late: int = 0, confidence: float = CONFIDENCE) -> int:
    """How many requests prove that a quantile is below a limit when `late` of them were over it."""
    few, many = late, late + 1

    def proves(count: int) -> bool:
        allowed = late_allowed(count, share, confidence)
        return allowed is not None and allowed >= late

    while not proves(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if proves(middle) else (middle, many)
    return many


def _binomial_cdf(count: int, chance: float) -> Values:
    """P(B ≤ k) for k = 0, 1, … of B ~ Binomial(count, chance), as far as it is below 1 by more than rounding."""
    mean, spread = count * chance, np.sqrt(count * chance * (1 - chance))
    first = max(0, int(mean - 12 * spread - 12))
    last = min(count, int(mean + 12 * spread + 12))
    k = np.arange(first, last + 1, dtype=np.float64)
    steps = np.log((count - k[1:] + 1) / k[1:]) + np.log(chance) - np.log1p(-chance)
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    terms = np.exp(logs - logs.max())
    # Twelve standard deviations hold all but 1e-30 of the mass, so the sum stands for 1.
    cdf = np.cumsum(terms) / terms.sum()
    return np.concatenate([np.zeros(first), cdf])
