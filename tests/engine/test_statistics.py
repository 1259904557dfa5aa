"""The intervals cover what they promise, and agree with published figures."""

import math

import numpy as np
import pytest

from engine.measurements.statistics import (
    mean_interval,
    paired_difference_interval,
    resampled_interval,
    samples_needed,
    trimmed_mean_interval,
    wilson_interval,
)


def test_tangos_interval_is_that_of_his_paper() -> None:
    """Tango 1998, crossover trial of soft contact lenses: 44 pairs, discordant 1 and 0."""
    _, low, high = paired_difference_interval(0, 1, 44)
    assert low == pytest.approx(-0.118, abs=0.002)
    assert high == pytest.approx(0.061, abs=0.002)


def test_no_discordant_sample_still_leaves_doubt() -> None:
    drop = paired_difference_interval(0, 0, 100)
    assert drop.value == 0
    assert drop.high == pytest.approx(-drop.low)
    assert drop.high == pytest.approx(1.96**2 / (100 + 1.96**2), rel=0.01)


def test_tangos_interval_turns_round_with_the_arms() -> None:
    value, low, high = paired_difference_interval(12, 5, 400)
    assert paired_difference_interval(5, 12, 400) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize(("lost", "gained", "count"), [(0.02, 0.01, 500), (0.005, 0.005, 1000), (0.1, 0.02, 200)])
def test_tangos_interval_covers_the_true_drop_19_times_in_20(lost: float, gained: float, count: int) -> None:
    random = np.random.default_rng(0)
    draws = random.multinomial(count, [lost, gained, 1 - lost - gained], 2000)
    inside = 0
    for b, c, _ in draws[:800]:
        _, low, high = paired_difference_interval(int(b), int(c), count)
        inside += low <= lost - gained <= high
    assert 0.93 <= inside / 800 <= 0.985


def test_wilsons_interval_at_the_edges() -> None:
    assert wilson_interval(0, 381).high <= 0.01
    assert wilson_interval(0, 370).high > 0.01
    assert wilson_interval(10, 10).low == pytest.approx(0.722, abs=0.001)  # Wilson's own arithmetic: 10/13.84
    assert wilson_interval(10, 10).high == 1


@pytest.mark.parametrize("rounds", [6, 10, 20])
def test_the_interval_of_few_rounds_covers_19_times_in_20(rounds: int) -> None:
    random = np.random.default_rng(1)
    inside = 0
    for trial in range(300):
        interval = trimmed_mean_interval(random.normal(0.3, 0.1, rounds), seed=trial)
        inside += interval.low <= 0.3 <= interval.high
    assert inside / 300 >= 0.92


def test_a_spike_does_not_carry_the_result() -> None:
    values = np.random.default_rng(2).normal(0, 0.01, 20)
    values[3] = 5
    interval = trimmed_mean_interval(values)
    assert abs(interval.value) < 0.01
    assert interval.half_width < 0.03


def test_correlated_rounds_give_a_wider_interval() -> None:
    random = np.random.default_rng(3)
    noise = random.normal(0, 1, 200)
    drifting = np.convolve(noise, np.ones(8) / 8, "valid")[:120]
    shuffled = random.permutation(drifting)
    assert trimmed_mean_interval(drifting).half_width > 1.3 * trimmed_mean_interval(shuffled).half_width


def test_too_few_rounds_give_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 3 rounds"):
        trimmed_mean_interval(np.zeros(2))


@pytest.mark.parametrize("count", [40, 5000])
def test_the_interval_of_a_mean_covers(count: int) -> None:
    random = np.random.default_rng(4)
    inside = 0
    for trial in range(200):
        _, low, high = mean_interval(random.exponential(1, count), seed=trial)
        inside += low <= 1 <= high
    assert inside / 200 >= 0.9


def test_any_statistic_can_be_resampled() -> None:
    values = np.random.default_rng(5).normal(3, 1, 400)
    value, low, high = resampled_interval(lambda rows: float(np.median(values[rows])), 400, 500)
    assert value == np.median(values)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(math.pi / 2 / 400), rel=0.35)


def test_the_samples_said_to_be_needed_do_settle_it() -> None:
    drop, discordant, limit = 0.004, 0.02, 0.01
    needed = samples_needed(drop, discordant, limit)
    lost = round(needed * (discordant + drop) / 2)
    gained = round(needed * (discordant - drop) / 2)
    assert paired_difference_interval(lost, gained, needed).high == pytest.approx(limit, abs=0.001)
