"""Times several arms against each other so that drift, spikes and the order of running cancel out.

The method ("paired randomised blocks"):
- A *block* is calls of one arm back to back for at least `BLOCK_SECONDS`; its figure is the median time of a call.
- A *round* runs every arm once in an order drawn with a seed, then once in the opposite order (A B B A): anything
  that grows linearly during a round adds the same to each arm.
- Two arms are compared by the difference of their mean log block medians, round by round.
- Rounds go on until the interval is narrow enough (looked at after 10, 20, 40, … rounds) or time is up. That
  depends on the interval's width alone, never on the verdict.

All arms live in one process, so what is drawn once per process (memory layout, thread placement) is not in the
interval. The A/A arm, a second load of the baseline, shows how much of that there is; it widens every verdict.
Times are seconds. The clock can be given, so that the statistics are tested on synthetic arms.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from .statistics import Interval, trimmed_mean_interval

BLOCK_SECONDS = 0.05
"""Least length of a block: a thousand times the timer's overhead, and longer than a scheduler's time slice."""

FIRST_LOOK = 10
"""Rounds before the first look at the interval."""

FEWEST_ROUNDS = 5
"""Never fewer, however long they take."""

HALF_WIDTH = 0.02
"""Half of the interval at which rounds stop, as a fraction of the ratio."""

COARSE, PATIENCE = 0.1, 3
"""An interval wider than this (the machine is busy) is worth going on for, up to so many times the budget."""

WARM = 1.03
"""An arm is warm when its last three blocks differ by less than this factor."""

WARM_UP_SECONDS = 2.0
"""Warm-up of an arm ends then, stable or not."""

Clock = Callable[[], float]


@dataclass
class Arm:
    """One thing to be timed. `call` makes one call and returns when its result is there."""

    name: str
    call: Callable[[], object]
    settle: Callable[[], None] = lambda: None
    calls_per_block: int = 1
    stable: bool = True
    """Warm-up reached a steady state."""
    times: list[np.ndarray] = field(default_factory=list)
    """Seconds of every call of every block, in order."""
    rounds: list[float] = field(default_factory=list)
    """Mean log block median of each round."""


def warm_up(arm: Arm, clock: Clock = time.perf_counter) -> None:
    """Call the arm until its times are steady, and choose how many calls make a block."""
    start, medians = clock(), []
    first = _seconds(arm, 1, clock)[0]  # one-off work (allocation, autotuning) shows here and is thrown away
    arm.calls_per_block = max(1, round(BLOCK_SECONDS / max(_seconds(arm, 1, clock)[0], 1e-7)))
    while True:
        medians.append(float(np.median(_seconds(arm, arm.calls_per_block, clock))))
        arm.calls_per_block = max(1, int(np.ceil(BLOCK_SECONDS / max(medians[-1], 1e-7))))
        steady = len(medians) >= 3 and max(medians[-3:]) <= WARM * min(medians[-3:])
        if steady or (clock() - start > WARM_UP_SECONDS + first and len(medians) >= 2):
            arm.stable = steady
            return


def time_rounds(
    arms: list[Arm],
    watched: tuple[Arm, Arm],
    *,
    budget: float,
    seed: int = 0,
    progress: Callable[[int, float, float], None] = lambda rounds, seconds, half_width: None,
    clock: Clock = time.perf_counter,
) -> None:
    """Run rounds over the arms, which are warm, until the ratio of the `watched` two is known well enough.

    `budget`: seconds after which no further round starts (once there are `FEWEST_ROUNDS`, and unless the interval
    is still `COARSE`).
    `progress(rounds done, seconds, half-width so far)` is called before every block and may raise to end it all.
    """
    random = np.random.default_rng(seed)
    start, look, half_width = clock(), FIRST_LOOK, float("nan")
    with _no_garbage_collection():
        while True:
            done = len(watched[0].rounds)
            spent = clock() - start
            if done >= FEWEST_ROUNDS and spent > budget:
                half_width = log_ratio(*watched).half_width
                if half_width <= COARSE or spent > PATIENCE * budget:
                    return
            if done == look:
                half_width = log_ratio(*watched).half_width
                if half_width <= HALF_WIDTH:
                    return
                look *= 2
            order = [arms[i] for i in random.permutation(len(arms))]
            logs: dict[str, list[float]] = {arm.name: [] for arm in arms}
            for arm in (*order, *reversed(order)):
                progress(done, clock() - start, half_width)
                if arm.calls_per_block >= 3:
                    arm.call()  # the other arms have emptied the caches: a steady state is what is measured
                block = _seconds(arm, arm.calls_per_block, clock)
                arm.settle()
                arm.times.append(block)
                logs[arm.name].append(float(np.log(np.median(block))))
            for arm in arms:
                arm.rounds.append(float(np.mean(logs[arm.name])))


def log_ratio(slow: Arm, fast: Arm) -> Interval:
    """log(time of `slow` / time of `fast`) with its interval: above 0 when `fast` is the faster one."""
    return trimmed_mean_interval(np.array(slow.rounds) - np.array(fast.rounds))


def _seconds(arm: Arm, calls: int, clock: Clock) -> np.ndarray:
    """Time `calls` calls one by one. The list of stamps is made beforehand: nothing but the call is inside."""
    stamps = [0.0] * (calls + 1)
    call = arm.call
    stamps[0] = clock()
    for position in range(1, calls + 1):
        call()
        stamps[position] = clock()
    return np.diff(np.array(stamps))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a call would be charged to it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
