"""The highest rate that keeps p99 under a limit: bisection over open-loop tests that say PASS, FAIL or UNCLEAR.

One test a rate, as LoadGen's FindPeakPerformance has it, is fooled by noise. Here a rate passes or fails only with
99 % confidence (order statistics, `percentiles`); an unclear one is tested longer; what was found is confirmed with
new seeds, and lowered when they do not all pass. A closed loop first gives the capacity, the upper end of the search.
Every test is stored as it ends: a search that was cancelled goes on from there.

A slow model takes long: a claim needs 459 requests, at one a second eight minutes of them. A test lasts as long as the
claim needs and at least as long as the user asks, up to `LONGEST_TEST_SECONDS` or what is asked. A rate that stays
unclear is taken for too high, so that nothing is promised; but it is called UNCLEAR, with what would settle it.
"""

from __future__ import annotations

import math
import time
import uuid

import msgspec

from ...models import ModelError
from ...protocol import Conditions, LoadSearch, LoadSettings, LoadTest, TestLoad
from ...protocol.load import MOST_RATE, MOST_REQUESTS, Verdict
from .percentiles import requests_needed
from .running import LoadStage, Purpose, fitted

CLOSE_ENOUGH = 1.05
"""The bracket's upper end over its lower when the search ends."""

CAPACITY_SECONDS = (4.0, 30.0, 240.0)
"""Of the closed loop that finds the capacity, beside its warm-up: the next where too few were answered …"""

CAPACITY_REQUESTS = 20
"""… that is, fewer than this: of a model that takes seconds, four of them say nothing."""

FIRST_SHARE, LOWEST_SHARE = 0.5, 1 / 256
"""Of the capacity: the first rate tried, and the lowest."""

BEYOND = 2.0
"""Times the capacity of a server: tried when every rate up to it passed. Its capacity may be what our callers asked."""

DOUBLINGS = 2
"""An unclear test is repeated twice as long, this many times; then it counts as not passed."""

LONGEST_TEST_SECONDS = 1800.0
"""Of a single test, unless more is asked for: half an hour proves p99 at a rate down to 0.28/s."""

ROOM = 1.1
"""How many times 459 requests a test must have room for, lest a few fewer arrive."""

CONFIRMATIONS = 3
"""New seeds that all must pass."""

STEP_BACK = 0.95
"""What a rate that was not confirmed is multiplied with."""

MOST_STEPS_BACK = 4


def find_rate(stage: LoadStage, task: TestLoad) -> LoadSearch:
    """The search. Ends early, with what is known, when the user asks it to stop.

    Raises ModelError when nothing is answered at all.
    """
    search = _Search(stage, task)
    settings = task.settings
    assert settings.slo_p99_ms is not None
    capacity = search.capacity()
    most = capacity if settings.url is None else MOST_RATE
    lowest = max(capacity * LOWEST_SHARE, search.least_rate)
    low: float | None = None
    high: float | None = None
    rate = max(capacity * FIRST_SHARE, lowest)
    while not stage.stopped and lowest <= rate <= most:
        verdict = search.decide(rate)
        if stage.stopped:
            break  # in the middle of this test: it says nothing
        if verdict == "PASS":
            low = rate
        else:
            high = rate
        if low is None:
            rate /= 2
            continue
        top = high if high is not None else capacity
        if top / low > CLOSE_ENOUGH:
            rate = (low * top) ** 0.5
        elif high is not None or low >= most / CLOSE_ENOUGH:
            break
        else:
            rate = min(BEYOND * max(low, capacity), most)
    passed = candidate = low
    confirmed: tuple[int, int] | None = None
    for _ in range(MOST_STEPS_BACK if candidate is not None else 0):
        assert candidate is not None
        if stage.stopped:
            break
        found = search.confirm(candidate)
        if stage.stopped:
            break
        confirmed = found
        if confirmed[0] == confirmed[1]:
            break
        high, candidate = candidate, candidate * STEP_BACK
    sure = confirmed is not None and confirmed[0] == confirmed[1]
    return search.result(capacity, candidate if sure else None, high, confirmed, passed)


class _Search:
    """Tests that were done, here or by a job before, and those that are to be done."""

    def __init__(self, stage: LoadStage, task: TestLoad) -> None:
        self.stage, self.task = stage, task
        # As they are stored: else no test of an earlier job would be known again.
        self.settings, _ = fitted(task.settings, stage.job.model.fixed_batch)
        self.asked = self.settings.duration or 0.0
        self.longest = max(LONGEST_TEST_SECONDS, self.asked)
        self.verdicts: dict[float, Verdict] = {}
        """Rate → the newest verdict on it."""
        self.tests: list[LoadTest] = []
        """Those that ended by themselves."""
        self._conditions: Conditions | None = None
        known = stage.still_valid(task.known)
        self._known = {_question(test.purpose, test.settings): test for test in known}
        self._reused = 0

    @property
    def least_rate(self) -> float:
        """Below it the longest test has too few requests for any claim."""
        return ROOM * requests_needed(0.99) / max(self.longest - self.settings.warm_up_seconds, 1e-9)

    def capacity(self) -> float:
        """Requests a second with every instance busy."""
        achieved = 0.0
        for seconds in CAPACITY_SECONDS:
            length = self.settings.warm_up_seconds + seconds
            test = self._test(self._with(offline=True, seconds=length, slo_p99_ms=None), "capacity", "capacity")
            achieved = test.summary.achieved_per_s
            if self.stage.stopped:
                break
            summary = test.summary
            if not summary.completed and (summary.not_completed or seconds == CAPACITY_SECONDS[-1]):
                failed = [note for note in test.notes if note.startswith("Failed:")]
                raise ModelError(" ".join([f"No search: {'; '.join(summary.reasons)}.", *failed]))
            if achieved * seconds >= CAPACITY_REQUESTS:
                break
        return max(achieved, 1e-3)

    def decide(self, rate: float) -> Verdict:
        """Does p99 stay under the limit at this rate, for certain?"""
        number = sum(test.purpose == "probe" for test in self.tests) + 1
        return self._decided(rate, self.settings.seed + number, "probe", f"probe {number}")

    def confirm(self, rate: float) -> tuple[int, int]:
        """(seeds that passed, seeds tried); stops at the first that did not."""
        for number in range(1, CONFIRMATIONS + 1):
            seed = self.settings.seed + 1000 + number
            if self._decided(rate, seed, "confirmation", f"confirmation {number} of {CONFIRMATIONS}") != "PASS":
                return number - 1, number
        return CONFIRMATIONS, CONFIRMATIONS

    def _decided(self, rate: float, seed: int, purpose: Purpose, phase: str) -> Verdict:
        warm_up = self.settings.warm_up_seconds
        # Half as many again as a claim needs, so that one late request does not leave it unclear.
        needed = 1.5 * requests_needed(0.99, late=1) / rate
        seconds = max(self.asked - warm_up, needed)
        verdict: Verdict = "UNCLEAR"
        before = 0.0
        for doubling in range(DOUBLINGS + 1):
            length = min(warm_up + seconds * 2**doubling, self.longest, MOST_REQUESTS / rate)
            if length <= before:
                break
            before = length
            settings = self._with(rate=rate, seed=seed + 10_000 * doubling, seconds=length)
            verdict = self._test(settings, f"{phase}: {rate:.4g}/s", purpose).verdict or "UNCLEAR"
            if self.stage.stopped:
                return "UNCLEAR"
            if verdict != "UNCLEAR":
                break
        self.verdicts[rate] = verdict
        return verdict

    def _with(self, **changes: object) -> LoadSettings:
        return msgspec.structs.replace(self.settings, **changes)

    def _test(self, settings: LoadSettings, phase: str, purpose: Purpose) -> LoadTest:
        test = self._known.get(_question(purpose, settings))
        self._reused += test is not None
        if test is None:
            test = self.stage.test(settings, phase, self.task.search, purpose, stop_saturated=purpose != "capacity")
            if not self.stage.stopped:
                self.stage.keep(test)
        self._conditions = test.conditions
        if not self.stage.stopped:
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
            if test.verdict == "PASS" and test.settings.rate == best
            if (p99 := test.summary.latency_ms.get("p99")) is not None and p99.at_most is not None
        ]
        if best is not None and confirmed is not None:
            sentence = f"{best:.4g} requests/s keep p99 under {limit:g} ms"
            sentence += f" (at most {max(bounds):.3g} ms)" if bounds else ""
            unclear = high is not None and self.verdicts.get(high) == "UNCLEAR"
            sentence += (
                f"; {high:.4g} {'stayed UNCLEAR' if unclear else 'did not'}"
                if high is not None
                else f"; the capacity is {capacity:.4g}"
            )
            sentence += f"; confirmed with {confirmed[0]} of {confirmed[1]} seeds."
        elif self.stage.stopped:
            sentence = "Stopped before a rate was confirmed"
            sentence += f"; {reached:.4g} requests/s passed once." if reached is not None else "."
        elif reached is not None:
            sentence = (
                f"No rate was confirmed: p99 under {limit:g} ms held once at {reached:.4g} requests/s, not again."
            )
            sentence += f" {self._unsettled()}" if "UNCLEAR" in self.verdicts.values() else ""
        elif not self.verdicts:
            wanted = _round_up(1.1 * self.longest * self.least_rate / (FIRST_SHARE * capacity))
            sentence = (
                f"UNCLEAR: the model answers {capacity:.3g} requests/s, and a claim about p99 takes"
                f" {requests_needed(0.99)} requests: more than a test of {self.longest:g} s can send."
                f" Give seconds = {wanted:g} or more."
            )
        elif all(verdict == "FAIL" for verdict in self.verdicts.values()):
            least = min(self.verdicts)
            sentence = f"No rate keeps p99 under {limit:g} ms: even {least:.3g} requests/s did not."
            if least / 2 >= capacity * LOWEST_SHARE:
                sentence += f" (Lower ones were not tried: they take tests of more than {self.longest:g} s.)"
        else:
            sentence = f"UNCLEAR whether any rate keeps p99 under {limit:g} ms. {self._unsettled()}"
        sentence += reused_in_words(self._reused, len(self.tests))
        return LoadSearch(
            id=uuid.uuid4().hex[:12],
            variant=self.stage.variant.record.id,
            job=self.stage.job.spec.job,
            created=time.time(),
            conditions=self._conditions or self.stage.conditions(self.settings.instances),
            settings=self.settings,
            search=self.task.search,
            sentence=sentence,
            points=tuple(test.as_point() for test in self.tests),
            capacity_per_s=capacity if any(test.purpose == "capacity" for test in self.tests) else None,
            best_rate_per_s=best,
            bracket_high_per_s=high,
            bracket_verdict=self.verdicts.get(high) if high is not None else None,
            p99_at_most_ms=max(bounds) if bounds and best is not None else None,
            confirmed=confirmed,
        )

    def _unsettled(self) -> str:
        """About the lowest rate that stayed unclear: why, and what would settle it."""
        rate = min(rate for rate, verdict in self.verdicts.items() if verdict == "UNCLEAR")
        test = [one for one in self.tests if one.settings.rate == rate and one.verdict == "UNCLEAR"][-1]
        summary = test.summary
        if not summary.valid:
            return f"The test at {rate:.4g} requests/s is INVALID: {'; '.join(summary.reasons)}."
        p99 = summary.latency_ms.get("p99")
        sentence = f"At {rate:.4g} requests/s p99 was {p99.value:.3g} ms" if p99 else f"At {rate:.4g} requests/s"
        sentence += f" over {summary.completed:,} requests in {summary.seconds:g} s, too close to call."
        return f"{sentence} Longer tests settle it (seconds = {_round_up(2 * summary.seconds):g}), or another limit."


def reused_in_words(reused: int, tests: int) -> str:
    """How much of a search was not measured now; "" for nothing."""
    return f" {reused} of {tests} tests were done before; --again does them anew." if reused else ""


def _question(purpose: str, settings: LoadSettings) -> bytes:
    """What a test asked; two with the same need not both be run."""
    return msgspec.json.encode([purpose, msgspec.structs.replace(settings, rate=_rounded(settings.rate))])


def _round_up(seconds: float) -> float:
    """To two digits."""
    step = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return math.ceil(seconds / step) * step


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else float(f"{rate:.6g}")
