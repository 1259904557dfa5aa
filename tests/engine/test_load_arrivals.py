"""Schedules: the right rate, the right spread, the same from the same seed; and queueing theory as their judge."""

import numpy as np
import pytest

from engine.measurements.load_test.arrivals import Kind, Schedule, Times


@pytest.mark.parametrize("kind", ["poisson", "constant", "bursty"])
def test_a_schedule_has_its_rate_and_comes_again_from_its_seed(kind: Kind) -> None:
    times = Schedule(kind, 1000, 50, seed=3).times
    assert len(times) == pytest.approx(50_000, rel=0.03)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 50
    assert (times == Schedule(kind, 1000, 50, seed=3).times).all()
    if kind != "constant":
        assert (
            len(times) != len(Schedule(kind, 1000, 50, seed=4).times)
            or (times != Schedule(kind, 1000, 50, seed=4).times).any()
        )


def test_the_spread_is_that_of_its_kind() -> None:
    def counts(kind: Kind) -> Times:
        return np.histogram(Schedule(kind, 1000, 100, seed=1, burst_size=8).times, bins=1000)[0].astype(np.float64)

    def dispersion(kind: Kind) -> float:
        """Variance over mean of the arrivals in 0.1 s: 1 for Poisson."""
        return float(counts(kind).var() / counts(kind).mean())

    assert dispersion("constant") < 0.01
    assert dispersion("poisson") == pytest.approx(1, abs=0.15)
    assert dispersion("bursty") == pytest.approx(8, rel=0.15)


def test_a_replay_keeps_the_pattern_and_repeats_it() -> None:
    times = Schedule("replay", 10, 1.0, trace=(100.0, 100.1, 100.5)).times  # gaps 0.1 and 0.4, mean 0.25
    assert np.diff(times) == pytest.approx([0.16, 0.04] * 4, abs=1e-9)
    assert times[0] == pytest.approx(0.04)
    with pytest.raises(ValueError, match="trace"):
        Schedule("replay", 10, 1.0, trace=(5.0, 5.0))


def test_a_replay_may_end_with_its_trace() -> None:
    schedule = Schedule("replay", 4, 60.0, trace=(100.0, 100.1, 100.5), once=True)  # 4/s is its own rate
    assert schedule.times == pytest.approx([0.0, 0.1, 0.5])
    schedule.change_rate(0.05, 2.0)
    assert schedule.times == pytest.approx([0.0, 0.25, 1.05])


def test_a_new_rate_bends_what_is_to_come_and_nothing_else() -> None:
    schedule = Schedule("poisson", 1000, 20, seed=2)
    before = schedule.times
    schedule.change_rate(10, 4000)
    after = schedule.times
    due = int(np.searchsorted(before, 10))
    assert (after[:due] == before[:due]).all()
    assert after[due] > 10
    assert len(after) - due == pytest.approx(40_000, rel=0.03)


def test_a_pause_puts_off_the_rest() -> None:
    schedule = Schedule("constant", 10, 2.0)
    schedule.shift(5, 1.0)
    assert schedule.times[:7] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 1.6, 1.7])
    assert schedule.times[-1] < 2.0


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": float("nan")}, {"seconds": 0}])
def test_a_schedule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Schedule("poisson", **({"rate": 1.0, "seconds": 1.0} | wrong))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_poisson_arrivals_wait_as_long_as_theory_says(load: float) -> None:
    """M/D/1: mean wait = load · service / (2 (1 − load)), by Lindley's recursion over the schedule."""
    service = 0.001
    times = Schedule("poisson", load / service, 1000, seed=11).times
    waits = np.empty(len(times))
    wait = 0.0
    for place, gap in enumerate(np.diff(times, prepend=times[0])):
        wait = max(0.0, wait + service - gap) if place else 0.0
        waits[place] = wait
    assert waits.mean() == pytest.approx(load * service / (2 * (1 - load)), rel=0.03)
