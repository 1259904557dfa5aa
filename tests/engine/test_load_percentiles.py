"""Bounds of percentiles hold, and claims need as many requests as MLPerf LoadGen says."""

import math

import numpy as np
import pytest

from engine.measurements.load_test.percentiles import late_allowed, quantile, requests_needed


@pytest.mark.parametrize(
    ("share", "late", "needed"),
    [
        # Recomputed with exact binomials from loadgen/early_stopping.cc; 662 stands in mlperf.conf.
        *zip([0.90] * 5, [0, 1, 5, 10, 50], [44, 64, 127, 197, 681]),
        *zip([0.95] * 5, [0, 1, 5, 10, 50], [90, 130, 259, 398, 1372]),
        *zip([0.99] * 5, [0, 1, 5, 10, 50], [459, 662, 1307, 2010, 6898]),
        *zip([0.999] * 5, [0, 1, 5, 10, 50], [4603, 6636, 13105, 20140, 69058]),
    ],
)
def test_a_claim_needs_as_many_requests_as_loadgen_says(share: float, late: int, needed: int) -> None:
    assert requests_needed(share, late) == needed
    assert late_allowed(needed, share) == late
    assert (late_allowed(needed - 1, share) or -1) < late or late == 0
    if late == 0:
        assert late_allowed(needed - 1, share) is None


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_binomial_sums_are_exact(count: int, share: float) -> None:
    """Against sums over whole binomial coefficients."""
    chances = [math.comb(count, k) * (1 - share) ** k * share ** (count - k) for k in range(count + 1)]
    within = [k for k in range(count + 1) if math.fsum(chances[: k + 1]) <= 0.01]
    assert late_allowed(count, share) == (within[-1] if within else None)


def test_the_interval_covers_the_true_quantile_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    runs, truth = 2000, -math.log(0.1)  # the p90 of an exponential
    inside = below = 0
    for _ in range(runs):
        found = quantile(np.sort(random.exponential(1.0, 400)), 0.9)
        assert found.low is not None
        assert found.high is not None
        assert found.at_most is not None
        inside += found.low <= truth <= found.high
        below += truth <= found.at_most
    assert inside / runs >= 0.94
    assert inside / runs <= 0.98  # nor wider than it must be
    assert below / runs >= 0.985


def test_too_few_values_give_an_estimate_and_no_bound() -> None:
    found = quantile(np.arange(1.0, 101.0), 0.99)
    assert found.estimate == 99
    assert found.high is None
    assert found.at_most is None
    with pytest.raises(ValueError, match="no values"):
        quantile(np.empty(0), 0.5)


def test_a_million_values_are_no_burden() -> None:
    found = quantile(np.linspace(0, 1, 1_000_001), 0.99)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.99 < found.high
    assert found.high - found.low < 0.001
