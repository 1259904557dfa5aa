"""The highest rate that keeps p99 under a limit: bisection over open-loop tests that say PASS, FAIL or UNCLEAR.

One test a rate, as LoadGen's FindPeakPerformance has it, is fooled by noise. Here a rate passes or fails only with
99 % confidence (order statistics, `percentiles`); an unclear one is tested longer; what was found is confirmed with
new seeds, and lowered when they do not all pass. A closed loop first gives the capacity, the upper end of the search.
Every test is stored as it ends: a search that was cancelled goes on from there.
"""

from __future__ import annotations

import time
import uuid
from typing import Literal

import msgspec

from ...protocol import LoadPoint, LoadSearch, LoadSettings, LoadTest, TestLoad
from .percentiles import requests_needed
from .running import LoadStage, Purpose

CLOSE_ENOUGH = 1.05
"""The bracket's upper end over its lower when the search ends."""

CAPACITY_SECONDS = 4.0
"""Of the closed loop that finds the capacity, beside its warm-up."""

FIRST_SHARE, LOWEST_SHARE = 0.5, 1 / 256
"""Of the capacity: the first rate tried, and the lowest."""

DOUBLINGS = 2
"""An unclear test is repeated twice as long, this many times; then it counts as failed."""

LONGEST_TEST_SECONDS = 180.0

CONFIRMATIONS = 3
"""New seeds that all must pass."""

STEP_BACK = 0.95
"""What a rate that was not confirmed is multiplied with."""

MOST_STEPS_BACK = 4


def find_rate(stage: LoadStage, task: TestLoad) -> LoadSearch:
    """The search. Ends early, with what is known, when the user asks it to stop."""
    search = _Search(stage, task)
    settings = task.settings
    assert settings.slo_p99_ms is not None
    capacity = search.capacity()
    low, high = None, None
    rate = capacity * FIRST_SHARE
    while not stage.stopped and rate >= capacity * LOWEST_SHARE:
        if search.passes(rate):
            low = rate
        else:
            high = rate
        if low is None:
            rate /= 2
            continue
        top = high if high is not None else capacity
        if top / low <= CLOSE_ENOUGH:
            break
        rate = (low * top) ** 0.5
    confirmed: tuple[int, int] | None = None
    for _ in range(MOST_STEPS_BACK if low is not None else 0):
        assert low is not None
        if stage.stopped:
            break
        confirmed = search.confirm(low)
        if confirmed[0] == confirmed[1]:
            break
        high, low = low, low * STEP_BACK
    sure = confirmed is not None and confirmed[0] == confirmed[1]
    return search.result(capacity, low if sure else None, high, confirmed, low)


class _Search:
    """Tests that were done, here or by a job before, and those that are to be done."""

    def __init__(self, stage: LoadStage, task: TestLoad) -> None:
        self.stage, self.task, self.settings = stage, task, task.settings
        self.tests: list[LoadTest] = []
        self._known = {_question(test.purpose, test.settings): test for test in task.known if test.summary.completed}

    def capacity(self) -> float:
        """Requests a second with every instance busy."""
        seconds = self.settings.warm_up_seconds + CAPACITY_SECONDS
        settings = self._with(offline=True, seconds=seconds, slo_p99_ms=None)
        return max(self._test(settings, "capacity", "capacity").summary.achieved_per_s, 1e-3)

    def passes(self, rate: float) -> bool:
        """p99 stays under the limit at this rate, for certain."""
        number = sum(test.purpose == "probe" for test in self.tests) + 1
        return self._decided(rate, self.settings.seed + number, "probe", f"probe {number}") == "PASS"

    def confirm(self, rate: float) -> tuple[int, int]:
        """(seeds that passed, seeds tried); stops at the first that did not."""
        for number in range(1, CONFIRMATIONS + 1):
            seed = self.settings.seed + 1000 + number
            if self._decided(rate, seed, "confirmation", f"confirmation {number} of {CONFIRMATIONS}") != "PASS":
                return number - 1, number
        return CONFIRMATIONS, CONFIRMATIONS

    def _decided(self, rate: float, seed: int, purpose: Purpose, phase: str) -> Literal["PASS", "FAIL", "UNCLEAR"]:
        warm_up = self.settings.warm_up_seconds
        # Half as many again as a claim needs, so that one late request does not leave it unclear.
        needed = 1.5 * requests_needed(0.99, late=1) / rate
        seconds = max(self.settings.seconds - warm_up, needed)
        verdict: Literal["PASS", "FAIL", "UNCLEAR"] = "UNCLEAR"
        for doubling in range(DOUBLINGS + 1):
            length = min(warm_up + seconds * 2**doubling, LONGEST_TEST_SECONDS)
            settings = self._with(rate=rate, seed=seed + 10_000 * doubling, seconds=length)
            verdict = verdict_of(self._test(settings, f"{phase}: {rate:.4g}/s", purpose))
            if verdict != "UNCLEAR" or self.stage.stopped:
                break
        return verdict

    def _with(self, **changes: object) -> LoadSettings:
        return msgspec.structs.replace(self.settings, **changes)

    def _test(self, settings: LoadSettings, phase: str, purpose: Purpose) -> LoadTest:
        test = self._known.get(_question(purpose, settings))
        if test is None:
            test = self.stage.test(settings, phase, self.task.search, purpose, stop_saturated=purpose != "capacity")
            if not self.stage.stopped:
                self.stage.keep(test)
        self.tests.append(test)
        return test

    def result(
        self,
        capacity: float,
        best: float | None,
        high: float | None,
        confirmed: tuple[int, int] | None,
        reached: float | None,
    ) -> LoadSearch:
        limit = self.settings.slo_p99_ms
        bounds = [
            p99.at_most
            for test in self.tests
            if test.purpose == "confirmation" and test.settings.rate == best
            if (p99 := test.summary.latency_ms.get("p99")) is not None and p99.at_most is not None
        ]
        if best is not None and confirmed is not None:
            sentence = f"{best:.4g} requests/s keep p99 under {limit:g} ms"
            sentence += f" (at most {max(bounds):.3g} ms)" if bounds else ""
            sentence += f"; {high:.4g} did not" if high is not None else f"; the capacity is {capacity:.4g}"
            sentence += f"; confirmed with {confirmed[0]} of {confirmed[1]} seeds."
        elif self.stage.stopped:
            sentence = "Stopped before a rate was confirmed"
            sentence += f"; {reached:.4g} requests/s passed once." if reached is not None else "."
        elif reached is not None:
            sentence = (
                f"No rate was confirmed: p99 under {limit:g} ms held once at {reached:.4g} requests/s, not again."
            )
        else:
            sentence = f"No rate keeps p99 under {limit:g} ms: even {capacity * LOWEST_SHARE:.3g} requests/s did not."
        return LoadSearch(
            id=uuid.uuid4().hex[:12],
            variant=self.stage.variant.record.id,
            job=self.stage.job.spec.job,
            created=time.time(),
            conditions=self.tests[0].conditions,
            settings=self.settings,
            search=self.task.search,
            sentence=sentence,
            points=tuple(point_of(test) for test in self.tests),
            capacity_per_s=capacity,
            best_rate_per_s=best,
            bracket_high_per_s=high,
            p99_at_most_ms=max(bounds) if bounds and best is not None else None,
            confirmed=confirmed,
        )


def verdict_of(test: LoadTest) -> Literal["PASS", "FAIL", "UNCLEAR"]:
    """A saturated load fails whatever its requests so far say; a test that does not count says nothing."""
    if test.saturated:
        return "FAIL"
    if not test.summary.valid:
        return "UNCLEAR"
    return test.summary.verdict or "UNCLEAR"


def point_of(test: LoadTest) -> LoadPoint:
    """A test as one line of a search."""
    summary = test.summary
    p50, p99 = summary.latency_ms.get("p50"), summary.latency_ms.get("p99")
    return LoadPoint(
        settings=test.settings,
        offered_per_s=summary.offered_per_s,
        achieved_per_s=summary.achieved_per_s,
        rows_per_s=summary.rows_per_s,
        p50_ms=p50.value if p50 else None,
        p99_ms=p99.value if p99 else None,
        verdict=verdict_of(test) if test.settings.slo_p99_ms is not None else None,
    )


def _question(purpose: str, settings: LoadSettings) -> bytes:
    """What a test asked; two with the same need not both be run."""
    return msgspec.json.encode([purpose, msgspec.structs.replace(settings, rate=_rounded(settings.rate))])


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else float(f"{rate:.6g}")
