"""Paired rounds recover a known ratio through drift and spikes, on a clock of the test's own; naive timing does not."""

from collections.abc import Callable

import numpy as np
import pytest

from engine.context import JobCancelled
from engine.measurements.latency import speed_verdict
from engine.measurements.timing import BLOCK_SECONDS, Arm, log_ratio, time_rounds, warm_up


class Machine:
    """A made-up machine: its clock runs only inside calls, it slows down by `drift` a second, and it has spikes."""

    def __init__(self, seed: int, drift: float = 0.0, spikes: float = 0.0, noise: float = 0.02) -> None:
        self.now = 0.0
        self.random = np.random.default_rng(seed)
        self.drift, self.spikes, self.noise = drift, spikes, noise

    def clock(self) -> float:
        return self.now

    def call(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            took = seconds * (1 + self.drift * self.now) * np.exp(self.random.normal(0, self.noise))
            if self.random.random() < self.spikes:
                took += self.random.exponential(20 * seconds)
            self.now += took

        return run


def timed(machine: Machine, *seconds: float, budget: float = 60, seed: int = 0) -> list[Arm]:
    """Arms of these true times, warmed up and timed against the first."""
    arms = [Arm(f"arm {number}", machine.call(value)) for number, value in enumerate(seconds)]
    for arm in arms:
        warm_up(arm, machine.clock)
    time_rounds(arms, (arms[0], arms[1]), budget=budget, seed=seed, clock=machine.clock)
    return arms


def naive_ratio(machine: Machine, slow: float, fast: float, blocks: int = 40, calls: int = 5) -> float:
    """A A A A … B B B B …, means: how timing is usually done."""

    def mean(seconds: float) -> float:
        call, start = machine.call(seconds), machine.now
        for _ in range(blocks * calls):
            call()
        return (machine.now - start) / (blocks * calls)

    first = mean(slow)
    return first / mean(fast)


@pytest.mark.parametrize("seed", range(6))
def test_the_ratio_is_recovered_through_drift_and_spikes(seed: int) -> None:
    machine = Machine(seed, drift=0.05, spikes=0.03)
    slow, fast = timed(machine, 0.013, 0.010, seed=seed)
    value, low, high = (np.exp(part) for part in log_ratio(slow, fast))
    assert value == pytest.approx(1.3, rel=0.02)
    assert low <= 1.3 * 1.005
    assert high >= 1.3 / 1.005
    assert speed_verdict(low, high, 0.01) == "FASTER"


def test_naive_timing_fails_where_pairing_does_not() -> None:
    errors = [abs(naive_ratio(Machine(seed, drift=0.05, spikes=0.03), 0.013, 0.010) / 1.3 - 1) for seed in range(6)]
    assert max(errors) > 0.1
    assert sum(error > 0.02 for error in errors) >= 5, "each of these would fail the test above"


def test_two_independent_runs_agree() -> None:
    ratios = [
        log_ratio(*timed(Machine(seed, drift=0.02, spikes=0.02), 0.012, 0.010, seed=seed)).value for seed in range(12)
    ]
    gaps = np.abs(np.diff(ratios))
    assert (gaps <= 0.03).mean() >= 0.95


def test_the_same_thing_twice_is_the_same() -> None:
    verdicts = []
    for seed in range(12):
        first, again = timed(Machine(seed, drift=0.03, spikes=0.02), 0.010, 0.010, seed=seed)
        _, low, high = (np.exp(part) for part in log_ratio(first, again))
        verdicts.append(speed_verdict(low, high, 0.02))
    assert verdicts.count("SAME") >= 10
    assert {"FASTER", "SLOWER"}.isdisjoint(verdicts)


def test_a_quiet_machine_needs_few_rounds_and_a_noisy_one_more() -> None:
    quiet = timed(Machine(0, noise=0.005), 0.012, 0.010)
    noisy = timed(Machine(0, noise=0.3), 0.012, 0.010)
    assert len(quiet[0].rounds) == 10
    assert len(noisy[0].rounds) > 10


def test_rounds_end_when_time_is_up() -> None:
    machine = Machine(0, noise=0.02)
    arms = timed(machine, 2.0, 1.0, budget=1.0)
    assert len(arms[0].rounds) == 5
    assert arms[0].calls_per_block == 1


def test_a_block_lasts_at_least_its_length() -> None:
    machine = Machine(0)
    arms = timed(machine, 0.0012, 0.0007)
    for arm in arms:
        assert np.median([block.sum() for block in arm.times]) >= 0.9 * BLOCK_SECONDS


def test_warm_up_waits_for_a_steady_state_but_not_for_ever() -> None:
    machine = Machine(0, noise=0.001)
    calls = 0

    def cooling() -> None:
        nonlocal calls
        calls += 1
        machine.now += 0.01 * (1 + 3 * 0.95**calls)

    arm = Arm("cooling", cooling)
    warm_up(arm, machine.clock)
    assert arm.stable
    assert 3 * 0.95**calls < 0.2

    def restless() -> None:
        nonlocal calls
        calls += 1
        machine.now += 0.01 * 1.3 ** (calls // 4 % 5)

    arm = Arm("restless", restless)
    warm_up(arm, machine.clock)
    assert not arm.stable


def test_every_arm_runs_equally_often_and_settles_after_each_block() -> None:
    machine, settled = Machine(0), []
    arms = [Arm(str(n), machine.call(0.01), settle=lambda n=n: settled.append(n)) for n in range(3)]  # type: ignore[misc]
    for arm in arms:
        warm_up(arm, machine.clock)
    time_rounds(arms, (arms[0], arms[1]), budget=60, clock=machine.clock)
    assert len({len(arm.times) for arm in arms}) == 1
    assert len(settled) == sum(len(arm.times) for arm in arms)
    first_round = settled[:6]
    assert first_round == first_round[::-1]


def test_a_cancelled_job_stops_in_the_middle() -> None:
    machine, seen = Machine(0), []
    arms = [Arm(str(n), machine.call(0.01)) for n in range(2)]

    def progress(rounds: int, seconds: float, half_width: float) -> None:
        seen.append(rounds)
        if len(seen) == 7:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        time_rounds(arms, (arms[0], arms[1]), budget=60, progress=progress, clock=machine.clock)
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("low", "high", "floor", "verdict"),
    [
        (1.02, 1.05, None, "FASTER"),
        (1.02, 1.05, 0.03, "UNDECIDED"),
        (0.90, 0.95, 0.01, "SLOWER"),
        (0.995, 1.008, 0.01, "SAME"),
        (0.97, 1.02, 0.01, "UNDECIDED"),
        (0.97, 1.02, 0.05, "SAME"),
    ],
)
def test_the_verdict_follows_the_interval_and_the_noise_floor(
    low: float, high: float, floor: float | None, verdict: str
) -> None:
    assert speed_verdict(low, high, floor) == verdict
