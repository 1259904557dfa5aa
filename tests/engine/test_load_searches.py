"""The searches over load tests, decided on made-up tests whose truth is known: no model, no time."""

import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from engine.measurements.load_test.rate_search import CLOSE_ENOUGH, find_rate
from engine.measurements.load_test.running import LoadStage, fitted
from engine.measurements.load_test.saturation import LOOKS, is_saturated
from engine.measurements.load_test.sweep import knee_of, pareto_front, plan, sweep
from engine.models import ModelError
from engine.protocol import (
    Conditions,
    LoadPoint,
    LoadSettings,
    LoadSummary,
    LoadTest,
    Percentile,
    TestLoad,
)
from engine.protocol.load import newest_of_each

CAPACITY = 1000.0


class Stage:
    """Answers tests as a service would that keeps p99 under the limit up to `holds` requests a second."""

    def __init__(self, holds: float, verdict=None, capacity: float = CAPACITY, fixed_batch: int | None = None) -> None:
        self.holds, self.verdict, self.capacity = holds, verdict, capacity
        self.asked: list[LoadTest] = []
        self.kept: list[LoadTest] = []
        self.stopped = False
        self.stop_after: int | None = None
        self.variant = SimpleNamespace(record=SimpleNamespace(id="v"))
        self.job = SimpleNamespace(
            spec=SimpleNamespace(job="j", threads=2, device="cpu"), model=SimpleNamespace(fixed_batch=fixed_batch)
        )

    def conditions(self, instances: int) -> Conditions:
        return Conditions(runtime="onnxruntime", device="cpu", processor="avx2")

    def keep(self, test: LoadTest) -> None:
        self.kept.append(test)

    def still_valid(self, tests) -> list[LoadTest]:
        return list(tests)

    def test(self, settings, phase, search=None, purpose="run", stop_saturated=False) -> LoadTest:
        settings, _ = fitted(settings, self.job.model.fixed_batch)
        rate = settings.rate
        verdict = None
        if rate is not None:
            verdict = "PASS" if rate <= self.holds else "FAIL"
            if self.verdict is not None:
                verdict = self.verdict(len(self.asked), purpose, rate, settings) or verdict
        batch = settings.max_batch_size
        achieved = self.capacity if rate is None and settings.offline else rate or 100.0 * batch / (1 + 0.05 * batch)
        test = LoadTest(
            id=str(len(self.asked)),
            variant="v",
            job="j",
            created=0.0,
            conditions=self.conditions(1),
            settings=settings,
            purpose=purpose,
            search=search,
            summary=LoadSummary(
                scenario="Server",
                valid=True,
                seconds=settings.seconds,
                offered_per_s=rate or achieved,
                achieved_per_s=achieved,
                rows_per_s=achieved,
                completed=1000,
                rejected=0,
                failed=0,
                unanswered=0,
                latency_ms={
                    "p50": Percentile(value=2.0),
                    "p99": Percentile(value=1.0 + 0.5 * batch, at_most=1.2 + 0.5 * batch),
                },
                slo_ms=settings.slo_p99_ms,
                verdict=verdict,
            ),
        )
        self.asked.append(test)
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            self.stopped = True
        return test


def task(known=(), **settings) -> TestLoad:
    return TestLoad(
        variant="v", runtime="onnxruntime", settings=LoadSettings(**settings), search="s", known=tuple(known)
    )


# --- the highest rate ------------------------------------------------------------------------------


@pytest.mark.parametrize("holds", [12.0, 130.0, 499.0, 640.0, 933.0])
def test_the_rate_found_holds_and_the_next_higher_does_not(holds: float) -> None:
    stage = Stage(holds)
    found = find_rate(stage, task(slo_p99_ms=10.0))
    assert found.best_rate_per_s is not None
    assert found.best_rate_per_s <= holds
    assert holds <= found.best_rate_per_s * CLOSE_ENOUGH * 1.001
    assert found.confirmed == (3, 3)
    assert found.capacity_per_s == CAPACITY
    assert len(stage.kept) == len(found.points) < 20
    assert f"{found.best_rate_per_s:.4g} requests/s keep p99 under 10 ms" in found.sentence


def test_a_service_that_holds_at_any_rate_is_bounded_by_its_capacity() -> None:
    found = find_rate(Stage(1e9), task(slo_p99_ms=10.0))
    assert CAPACITY / CLOSE_ENOUGH <= found.best_rate_per_s <= CAPACITY
    assert found.bracket_high_per_s is None
    assert "the capacity is 1000" in found.sentence


@pytest.mark.parametrize("holds", [0.99 * CAPACITY, 1.3 * CAPACITY, 7.7 * CAPACITY])
def test_what_our_callers_got_from_a_server_is_not_taken_for_its_capacity(holds: float) -> None:
    found = find_rate(Stage(holds), task(slo_p99_ms=10.0, url="http://there"))
    assert holds / CLOSE_ENOUGH <= found.best_rate_per_s <= holds
    assert holds < found.bracket_high_per_s <= found.best_rate_per_s * CLOSE_ENOUGH * 1.001
    assert found.bracket_verdict == "FAIL"
    assert f"; {found.bracket_high_per_s:.4g} did not" in found.sentence


def test_one_that_never_holds_is_said_to() -> None:
    found = find_rate(Stage(0.0), task(slo_p99_ms=10.0))
    assert found.best_rate_per_s is None
    assert found.confirmed is None
    assert found.sentence.startswith("No rate keeps p99 under 10 ms")


def test_confirmations_use_new_seeds_and_a_failed_one_lowers_the_rate() -> None:
    failed = []

    def verdict(number, purpose, rate, settings):
        if purpose == "confirmation" and not failed:
            failed.append(rate)
            return "FAIL"
        return None

    stage = Stage(700.0, verdict)
    found = find_rate(stage, task(slo_p99_ms=10.0))
    assert found.best_rate_per_s == pytest.approx(failed[0] * 0.95)
    assert found.bracket_high_per_s == pytest.approx(failed[0])
    seeds = [test.settings.seed for test in stage.kept]
    assert len(set(seeds[1:])) >= 3
    assert len({test.settings.seed for test in stage.kept if test.purpose == "confirmation"}) == 3


def test_an_unclear_test_is_repeated_longer_and_counts_as_failed_in_the_end() -> None:
    def verdict(number, purpose, rate, settings):
        return "UNCLEAR" if rate > 400 else None

    stage = Stage(1e9, verdict)
    found = find_rate(stage, task(slo_p99_ms=10.0, seconds=10.0))
    assert found.best_rate_per_s <= 400
    first = [test.settings for test in stage.kept if test.settings.rate == 500.0]
    assert len(first) == 3
    measured = [one.seconds - one.warm_up_seconds for one in first]
    assert measured == pytest.approx([measured[0], 2 * measured[0], 4 * measured[0]])
    assert len({one.seed for one in first}) == 3


def enough_requests(number, purpose, rate, settings):
    """PASS and FAIL need their 459 requests, as in a real test."""
    return None if rate * (settings.seconds - settings.warm_up_seconds) >= 459 else "UNCLEAR"


@pytest.mark.parametrize("capacity", [0.7, 2.0, 5.0])
def test_a_slow_model_is_tested_as_long_as_a_claim_takes(capacity: float) -> None:
    found = find_rate(Stage(1e9, enough_requests, capacity), task(slo_p99_ms=10_000.0))
    assert found.best_rate_per_s is not None
    assert capacity / CLOSE_ENOUGH <= found.best_rate_per_s <= capacity
    failing = find_rate(Stage(0.0, enough_requests, capacity), task(slo_p99_ms=10.0))
    assert failing.sentence.startswith("No rate keeps p99 under 10 ms: even ")
    assert "they take tests of more than 1800 s" in failing.sentence


def test_a_model_too_slow_for_any_claim_is_unclear_and_the_sentence_says_how_long_it_takes() -> None:
    stage = Stage(1e9, enough_requests, capacity=0.2)
    found = find_rate(stage, task(slo_p99_ms=10_000.0))
    assert found.best_rate_per_s is None
    assert {test.purpose for test in stage.asked} == {"capacity"}
    assert found.sentence == (
        "UNCLEAR: the model answers 0.2 requests/s, and a claim about p99 takes 459 requests: more than a test of"
        " 1800 s can send. Give seconds = 5600 or more."
    )
    again = find_rate(Stage(1e9, enough_requests, capacity=0.2), task(slo_p99_ms=10_000.0, seconds=5600.0))
    assert again.best_rate_per_s is not None


def test_a_slow_model_that_answers_nothing_in_four_seconds_gets_longer_to_show_its_capacity() -> None:
    stage = Stage(1e9, enough_requests, capacity=0.6)
    find_rate(stage, task(slo_p99_ms=10_000.0))
    lengths = [test.settings.seconds for test in stage.asked if test.purpose == "capacity"]
    assert lengths == [5.0, 31.0, 241.0]


def test_tests_are_as_long_as_the_user_asks() -> None:
    stage = Stage(640.0)
    find_rate(stage, task(slo_p99_ms=10.0, seconds=600.0))
    assert {test.settings.seconds for test in stage.asked if test.purpose != "capacity"} == {600.0}


def test_what_stays_unclear_is_not_called_failing() -> None:
    found = find_rate(Stage(1e9, lambda *test: "UNCLEAR"), task(slo_p99_ms=10.0))
    assert found.best_rate_per_s is None
    assert found.sentence.startswith("UNCLEAR whether any rate keeps p99 under 10 ms. At ")
    assert "over 1,000 requests" in found.sentence
    assert "Longer tests settle it (seconds = " in found.sentence
    partly = find_rate(Stage(1e9, lambda n, p, rate, s: "UNCLEAR" if rate > 400 else None), task(slo_p99_ms=10.0))
    assert "stayed UNCLEAR; confirmed with 3 of 3 seeds" in partly.sentence


@pytest.mark.parametrize("settings", [{"slo_p99_ms": 10.0}, {"slo_p99_ms": 10.0, "rows_per_request": 2}])
def test_a_cancelled_search_on_a_model_with_one_batch_size_goes_on_too(settings: dict) -> None:
    stage = Stage(640.0, fixed_batch=4)
    find_rate(stage, task(**settings))
    resumed = Stage(640.0, fixed_batch=4)
    find_rate(resumed, task(stage.kept[:4], **settings))
    assert len(resumed.asked) == len(stage.kept) - 4
    swept = Stage(640.0, fixed_batch=4)
    asked = {"sweep": True, "sweep_waits_ms": (0.0, 1.0, 2.0), "sweep_instances": (1,), "rows_per_request": 8}
    sweep(swept, task(**asked))
    again = Stage(640.0, fixed_batch=4)
    sweep(again, task(swept.kept[:2], **asked))
    assert len(again.asked) == 1


def test_a_search_that_was_cancelled_goes_on_where_it_stopped() -> None:
    stage = Stage(640.0)
    whole = find_rate(stage, task(slo_p99_ms=10.0))
    half = stage.kept[: len(stage.kept) // 2]
    resumed = Stage(640.0)
    again = find_rate(resumed, task(half, slo_p99_ms=10.0))
    assert again.best_rate_per_s == whole.best_rate_per_s
    assert len(resumed.asked) == len(stage.kept) - len(half)
    assert len(again.points) == len(whole.points)


def test_a_model_whose_first_batches_end_after_the_first_capacity_test_gets_longer() -> None:
    """All it was sent lay in the warm-up: nothing failed, so nothing is refused."""
    stage = Stage(1e9, enough_requests, 3.0)
    whole = stage.test

    def slow(settings, *given, **more) -> LoadTest:
        test = whole(settings, *given, **more)
        if settings.offline and settings.seconds < 10:
            nothing = msgspec.structs.replace(
                test.summary, completed=0, achieved_per_s=0.0, valid=False, reasons=("no request was completed",)
            )
            return msgspec.structs.replace(test, summary=nothing)
        return test

    stage.test = slow
    found = find_rate(stage, task(slo_p99_ms=60_000.0))
    assert found.best_rate_per_s is not None
    assert [test.settings.seconds for test in stage.asked if test.settings.offline] == [5.0, 31.0]


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "UNCLEAR"])
def test_one_that_is_stopped_in_a_probe_claims_nothing_by_it(verdict: str) -> None:
    stage = Stage(640.0, lambda number, *_: verdict if number == 2 else None)
    stage.stop_after = 3
    found = find_rate(stage, task(slo_p99_ms=10.0))
    assert (found.best_rate_per_s, found.bracket_high_per_s, found.bracket_verdict) == (None, None, None)
    assert found.sentence == "Stopped before a rate was confirmed; 500 requests/s passed once."
    assert len(stage.kept) == len(found.points) == 2  # the one that was stopped is not a finding


def test_a_capacity_test_that_was_cut_short_tells_no_capacity() -> None:
    stage = Stage(640.0)
    stage.stop_after = 1
    found = find_rate(stage, task(slo_p99_ms=10.0))
    assert (found.capacity_per_s, found.points) == (None, ())
    assert found.sentence == "Stopped before a rate was confirmed."
    assert found.conditions == stage.conditions(1)


def test_one_that_is_stopped_in_a_confirmation_does_not_lower_the_rate() -> None:
    whole = Stage(640.0)
    best = find_rate(whole, task(slo_p99_ms=10.0)).best_rate_per_s
    first = next(number for number, test in enumerate(whole.asked) if test.purpose == "confirmation")
    stage = Stage(640.0, lambda number, *_: "UNCLEAR" if number == first else None)
    stage.stop_after = first + 1
    found = find_rate(stage, task(slo_p99_ms=10.0))
    assert found.best_rate_per_s is None
    assert found.bracket_high_per_s > 640.0
    assert found.sentence == f"Stopped before a rate was confirmed; {best:.4g} requests/s passed once."


def test_a_rate_that_no_confirmation_bears_out_is_named_as_it_was_tried() -> None:
    stage = Stage(640.0, lambda number, purpose, *_: "FAIL" if purpose == "confirmation" else None)
    found = find_rate(stage, task(slo_p99_ms=10.0))
    tried = {test.settings.rate for test in stage.asked}
    assert found.best_rate_per_s is None
    assert found.bracket_high_per_s in tried
    passed = max(test.settings.rate for test in stage.asked if test.verdict == "PASS")
    assert f"held once at {passed:.4g} requests/s, not again" in found.sentence


def test_a_service_that_answers_nothing_is_not_called_slow() -> None:
    stage = Stage(640.0)
    whole = stage.test

    def failing(*given, **more) -> LoadTest:
        test = whole(*given, **more)
        summary = msgspec.structs.replace(
            test.summary,
            completed=0,
            failed=900,
            achieved_per_s=0.0,
            valid=False,
            reasons=("no request was completed",),
        )
        return msgspec.structs.replace(test, summary=summary, notes=("Failed: 500 Internal Server Error.",))

    stage.test = failing
    with pytest.raises(ModelError, match=r"No search: no request was completed. Failed: 500 Internal Server Error."):
        find_rate(stage, task(slo_p99_ms=10.0))
    assert len(stage.asked) == 1


def test_tests_that_were_done_before_are_counted_in_the_finding() -> None:
    stage = Stage(640.0)
    assert "were done before" not in find_rate(stage, task(slo_p99_ms=10.0)).sentence
    again = find_rate(Stage(640.0), task(stage.kept[:3], slo_p99_ms=10.0))
    assert again.sentence.endswith(f" 3 of {len(again.points)} tests were done before; --again does them anew.")


def test_only_tests_that_count_and_ran_as_they_would_now_are_taken_over() -> None:
    one = Stage(640.0).test(LoadSettings(rate=5.0, slo_p99_ms=1.0), "")
    where = Conditions(runtime="onnxruntime", device="cpu", processor="avx2", threads=2, versions={"onnxruntime": "1"})
    one = msgspec.structs.replace(one, conditions=where)
    invalid = msgspec.structs.replace(one, summary=msgspec.structs.replace(one.summary, valid=False))
    saturated = msgspec.structs.replace(invalid, saturated=True)
    other = msgspec.structs.replace(one, conditions=msgspec.structs.replace(where, versions={"onnxruntime": "2"}))
    fewer = msgspec.structs.replace(one, conditions=msgspec.structs.replace(where, threads=1))
    now = SimpleNamespace(conditions=lambda instances: where, job=Stage(1.0).job)
    assert LoadStage.still_valid(now, [one, invalid, saturated, other, fewer]) == [one, saturated]
    url = msgspec.structs.replace(one.settings, url="http://there")
    old = msgspec.structs.replace(one, settings=url, created=time.time() - 7200)
    fresh = msgspec.structs.replace(old, created=time.time() - 60)
    assert LoadStage.still_valid(now, [old, fresh]) == [fresh]


def test_of_tests_that_asked_the_same_the_newest_stands() -> None:
    """A search that was made again has its figures from now, not from then."""
    stage = Stage(640.0)
    first = [stage.test(LoadSettings(rate=rate), "", purpose="point") for rate in (5.0, 6.0)]
    later = msgspec.structs.replace(first[0], id="later", created=9.0)
    confirmation = msgspec.structs.replace(first[0], id="confirmation", purpose="confirmation", created=1.0)
    assert newest_of_each([later, *first, confirmation]) == [first[1], confirmation, later]


def test_a_saturated_test_fails_whatever_its_verdict() -> None:
    test = Stage(1e9).test(LoadSettings(rate=5.0, slo_p99_ms=1.0), "")
    assert test.verdict == "PASS"
    assert msgspec.structs.replace(test, saturated=True).verdict == "FAIL"
    invalid = msgspec.structs.replace(test.summary, valid=False)
    assert msgspec.structs.replace(test, summary=invalid).verdict == "UNCLEAR"


# --- saturation ------------------------------------------------------------------------------------


def queue(load: float, seed: int, requests: int = 700, clump: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(sent, finished) of an M/D/1 queue whose service takes a second; bursts of `clump`."""
    random = np.random.default_rng(seed)
    sent = np.repeat(np.cumsum(random.exponential(clump / load, int(1.15 * requests) // clump)), clump)
    ends = np.maximum.accumulate(sent - np.arange(len(sent))) + np.arange(1, len(sent) + 1)
    return sent, ends


def called_saturated(load: float, seed: int, requests: int = 700, clump: int = 1) -> bool:
    """At any of the moments at which a test is looked at; what finishes later has not finished then."""
    sent, finished = queue(load, seed, requests, clump)
    start, end = sent[-1] * 0.13, sent[-1]
    moments = [start + share * (end - start) for share in LOOKS]
    return any(
        is_saturated(sent[sent <= now], np.where(finished <= now, finished, np.nan)[sent <= now], start, now)
        for now in moments
    )


@pytest.mark.parametrize(("load", "clump"), [(0.8, 1), (0.9, 1), (0.95, 1), (0.8, 8)])
@pytest.mark.parametrize("requests", [150, 700])
def test_a_queue_that_only_wanders_is_hardly_ever_called_saturated(load: float, clump: int, requests: int) -> None:
    assert sum(called_saturated(load, seed, requests, clump) for seed in range(200)) <= 4


@pytest.mark.parametrize(("load", "requests"), [(2.0, 150), (1.3, 700), (1.1, 6000)])
def test_one_above_its_capacity_nearly_always_is(load: float, requests: int) -> None:
    assert sum(called_saturated(load, seed, requests) for seed in range(50)) >= 47


@pytest.mark.parametrize(("rate", "seconds", "latency"), [(86.0, 12.5, 3.0), (60.0, 17.0, 3.0), (200.0, 5.0, 3.0)])
def test_a_service_whose_answers_only_take_long_is_not_called_saturated(rate, seconds, latency) -> None:
    """As many as it will ever have under way come together in the first seconds, and none waits for another."""
    sent = np.cumsum(np.random.default_rng(1).exponential(1 / rate, int(rate * seconds)))
    finished = sent + latency
    for share in LOOKS:
        now = 1.0 + share * (seconds - 1.0)
        so_far = sent <= now
        assert not is_saturated(sent[so_far], np.where(finished <= now, finished, np.nan)[so_far], 1.0, now)


def test_a_few_requests_say_nothing() -> None:
    def growing(count: int) -> bool:
        """Of three requests two are answered."""
        sent = np.arange(float(count))
        return is_saturated(sent, np.where(np.arange(count) % 3, sent + 0.5, np.nan), 0.0, float(count))

    assert not growing(90)
    assert growing(200)


# --- the sweep -------------------------------------------------------------------------------------


def point(rows: float, p99: float | None, **settings) -> LoadPoint:
    return LoadPoint(
        settings=LoadSettings(**settings),
        offered_per_s=rows,
        achieved_per_s=rows,
        rows_per_s=rows,
        p50_ms=1,
        p99_ms=p99,
    )


def test_the_front_leaves_out_what_another_beats_in_both() -> None:
    points = [point(100, 5), point(200, 6), point(150, 7), point(300, 20), point(300, 25), point(400, None)]
    assert pareto_front(points) == (0, 1, 3)
    assert knee_of(points, (0, 1, 3)) == 1
    assert pareto_front([]) == ()
    assert knee_of([], ()) is None


def test_the_plan_gives_every_batch_enough_callers_and_the_cores_are_shared() -> None:
    rows = plan(LoadSettings(sweep=True, sweep_batch_sizes=(8, 1), sweep_waits_ms=(0.0,)), 2, None)
    assert [[(one.max_batch_size, one.instances, one.concurrency) for one in row] for row in rows] == [
        [(1, 1, 1), (8, 1, 8)],
        [(1, 2, 2), (8, 2, 16)],
    ]
    assert not any(one.sweep for row in rows for one in row)
    at_a_rate = plan(LoadSettings(sweep=True, rate=50.0, sweep_batch_sizes=(8,), sweep_instances=(1,)), 2, None)
    assert {one.concurrency for row in at_a_rate for one in row} == {None}
    assert [
        one.max_batch_size for row in plan(LoadSettings(sweep=True, sweep_instances=(1,)), 2, 4) for one in row
    ] == [
        4,
        4,
    ]


@pytest.mark.parametrize(
    ("cores", "counts"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (6, (1, 2, 4, 6)),
        (16, (1, 2, 4, 8, 16)),
        (32, (1, 4, 16, 32)),
        (96, (1, 4, 16, 64)),
        (256, (1, 4, 16, 64)),
    ],
)
def test_the_instances_of_a_sweep_are_few_and_settings_may_have_so_many(cores: int, counts: tuple[int, ...]) -> None:
    rows = plan(LoadSettings(sweep=True, sweep_batch_sizes=(1, 65_536), sweep_waits_ms=(0.0,)), cores, None)
    assert tuple(row[0].instances for row in rows) == counts
    for row in rows:  # as they are stored and read again
        assert [msgspec.convert(msgspec.to_builtins(one), LoadSettings) for one in row] == row


def test_larger_batches_are_given_up_after_two_that_gained_nothing() -> None:
    stage = Stage(1e9)
    sizes = (1, 64, 256, 512, 1024, 2048)
    found = sweep(
        stage, task(sweep=True, sweep_batch_sizes=sizes, sweep_waits_ms=(0.0,), sweep_instances=(1,), concurrency=4)
    )
    assert [one.settings.max_batch_size for one in found.points] == [1, 64, 256, 512, 1024]


def test_a_limit_chooses_the_highest_throughput_within_it() -> None:
    def verdict(number, purpose, rate, settings):
        return None

    stage = Stage(1e9, verdict)
    plain = Stage.test

    def judged(settings, *arguments, **options):
        test = plain(stage, settings, *arguments, **options)
        within = test.summary.latency_ms["p99"].value <= settings.slo_p99_ms
        return msgspec.structs.replace(
            test, summary=msgspec.structs.replace(test.summary, verdict="PASS" if within else "FAIL")
        )

    stage.test = judged
    found = sweep(
        stage,
        task(
            sweep=True, slo_p99_ms=6.0, sweep_batch_sizes=(1, 2, 4, 8, 16), sweep_waits_ms=(0.0,), sweep_instances=(1,)
        ),
    )
    assert found.points[found.recommended].settings.max_batch_size == 8
    assert "the highest throughput with p99 under 6 ms" in found.sentence
    none = sweep(stage, task(sweep=True, slo_p99_ms=0.5, sweep_batch_sizes=(1, 2), sweep_waits_ms=(0.0,)))
    assert none.recommended is None
    assert none.sentence.startswith("No setting keeps p99 under 0.5 ms; the nearest is batch 1")


def test_a_sweep_too_short_for_any_claim_is_unclear_and_names_what_was_measured_below_the_limit() -> None:
    stage = Stage(1e9)
    plain = Stage.test

    def unsettled(settings, *arguments, **options):
        test = plain(stage, settings, *arguments, **options)
        return msgspec.structs.replace(test, summary=msgspec.structs.replace(test.summary, verdict="UNCLEAR"))

    stage.test = unsettled
    sizes = {"sweep": True, "sweep_batch_sizes": (1, 2, 4, 8, 16), "sweep_waits_ms": (0.0,), "sweep_instances": (1,)}
    below = sweep(stage, task(slo_p99_ms=6.0, **sizes))
    assert below.recommended is None
    assert below.sentence.startswith("UNCLEAR whether any setting keeps p99 under 6 ms: longer tests (seconds)")
    assert "The most throughput with a measured p99 below it: batch 8" in below.sentence
    above = sweep(stage, task(slo_p99_ms=0.5, **sizes))
    assert "The nearest is batch 1" in above.sentence


def test_a_sweep_goes_on_where_it_stopped() -> None:
    stage = Stage(1e9)
    whole = sweep(stage, task(sweep=True, sweep_batch_sizes=(1, 2, 4), sweep_waits_ms=(0.0,), sweep_instances=(1,)))
    resumed = Stage(1e9)
    again = sweep(
        resumed,
        task(stage.kept[:2], sweep=True, sweep_batch_sizes=(1, 2, 4), sweep_waits_ms=(0.0,), sweep_instances=(1,)),
    )
    assert len(resumed.asked) == 1
    assert again.points == whole.points


def test_a_setting_that_leaves_requests_without_an_answer_is_not_recommended() -> None:
    """p99 of those that were answered may be short because the others were turned away."""
    stage = Stage(1e9)
    plain = Stage.test

    def turning_away(settings, *arguments, **options):
        test = plain(stage, settings, *arguments, **options)
        rejected = 670 if settings.max_batch_size == 1 else 2
        return msgspec.structs.replace(test, summary=msgspec.structs.replace(test.summary, rejected=rejected))

    sizes = {"sweep": True, "sweep_batch_sizes": (1, 8), "sweep_waits_ms": (0.0,), "sweep_instances": (1,)}
    assert sweep(stage, task(rate=900.0, **sizes)).points[0].p99_ms < 2
    stage.test = turning_away
    found = sweep(stage, task(rate=900.0, **sizes))
    assert found.front == (1,)
    assert found.sentence.startswith("Take batch 8")
    assert "1 setting was left out: up to 40% of the requests were rejected or failed." in found.sentence
