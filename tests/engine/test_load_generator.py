"""The load generator: what is sent when, what is recorded, what makes a run invalid."""

import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gated_models import wait_for

from engine.batching.arrays import Arrays
from engine.batching.executor import Deliver, clock
from engine.batching.policy import BatchPolicy, QueueFull
from engine.batching.queue import COMPLETED, FAILED, Batch, Request
from engine.measurements.load_test.generator import LONGEST_WAITS, LoadGenerator, priorities
from engine.measurements.load_test.record import Record
from engine.measurements.load_test.request import Load
from engine.measurements.load_test.summary import summarise
from engine.measurements.load_test.target import BatcherTarget, Dropped
from engine.protocol import LoadSummary
from engine.protocol.load import BYTES_A_REQUEST

POOL = [{"x": np.full((1, 2), float(value))} for value in range(10)]


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2}


def sleeping(seconds: float) -> Callable[[Arrays], Arrays]:
    def run(inputs: Arrays) -> Arrays:
        time.sleep(seconds)
        return double(inputs)

    return run


class Answering:
    """A target that answers each request at once, in the sender's thread, as the test says."""

    def __init__(self, answer: Callable[[Request], int | None] = lambda request: COMPLETED) -> None:
        self.seen: list[Request] = []
        self.inputs: list[Any] = []
        self._answer = answer

    def open(self, deliver: Deliver) -> None:
        self._deliver = deliver

    def send(self, request: Request) -> None:
        self.seen.append(request)
        self.inputs.append(request.inputs)
        status = self._answer(request)
        if status is None:
            return
        request.status = status
        if status == FAILED:
            request.error = ValueError("no luck")
        request.batch = Batch([request], request.rows, clock(), 0)
        request.batch.started = request.batch.finished = clock()
        self._deliver([request])

    def close(self) -> None:
        pass

    def natural_concurrency(self, rows: int) -> int:
        return 4


def run(target: Any, load: Load, pool: list[Arrays] = POOL) -> tuple[LoadGenerator, Record, LoadSummary]:
    generator = LoadGenerator(target, pool, load)
    record = generator.run()
    return generator, record, summarise(record, load, generator.sending_ended)


def test_an_open_loop_follows_its_schedule_and_counts_from_it() -> None:
    target = Answering()
    _, record, summary = run(target, Load(rate=500, seconds=1, seed=4))
    assert record.count == len(target.seen) == pytest.approx(500, rel=0.3)
    assert (record.sent[: record.count] >= record.scheduled[: record.count]).all()
    assert (record.finished[: record.count] >= record.sent[: record.count]).all()
    assert (np.diff(record.scheduled[: record.count]) >= 0).all()
    assert summary.scenario == "Server"
    assert summary.completed == record.count
    assert summary.offered_per_s == pytest.approx(record.count, rel=0.05)
    assert summary.batch_sizes == {"1": record.count}
    assert set(summary.latency_ms) == {"p50", "p90", "p95", "p99", "p999"}
    assert summary.latency_ms["p50"].low is not None
    assert summary.latency_ms["p999"].at_most is None  # 500 requests prove nothing about p99.9
    assert summary.requests_for_p99 == 459


def test_everything_is_prepared_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = LoadGenerator(Answering(), POOL, Load(rate=1e5, seconds=0.05))
    prepared = []

    def noting() -> float:
        prepared.append((bool(np.isfinite(generator.record.scheduled).all()), len(generator._drawn) > 0))
        return clock()

    monkeypatch.setattr("engine.measurements.load_test.generator.clock", noting)
    generator.run()
    assert prepared[0] == (True, True)


def test_requests_are_drawn_from_the_pool_the_same_from_the_same_seed() -> None:
    def drawn(seed: int) -> list[float]:
        target = Answering()
        run(target, Load(arrivals="closed", requests=200, seed=seed))
        return [inputs["x"][0, 0] for inputs in target.inputs]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == set(range(10))


def test_a_slow_model_can_not_slow_an_open_loop_down() -> None:
    """The first request blocks for half a second: those after it are sent, and their wait counts."""
    gate = threading.Event()

    def blocked(inputs: Arrays) -> Arrays:
        if not gate.is_set():
            gate.wait(0.5)
            gate.set()
        return double(inputs)

    target = BatcherTarget(blocked, BatchPolicy(max_batch_size=4))
    _, record, summary = run(target, Load(arrivals="constant", rate=100, seconds=1))
    used = slice(0, record.count)
    assert summary.offered_per_s == pytest.approx(100, rel=0.05)
    latency = record.finished[used] - record.scheduled[used]
    assert latency[:5].min() > 0.4
    assert latency.max() >= 0.5
    assert summary.completed == record.count


def test_behind_a_backlog_requests_are_sent_in_groups_and_nobody_waits_longer_for_it() -> None:
    load = Load(arrivals="constant", rate=2000, seconds=1.0, drain_seconds=10.0)
    _, record, summary = run(BatcherTarget(sleeping(0.02), BatchPolicy(max_batch_size=20)), load)  # 1,000/s at most
    late = np.arange(record.count) > record.count // 2  # half a second in, some 500 requests wait
    sent = record.sent[: record.count]
    groups = 1 + int((np.diff(sent[late]) > 0.0004).sum())
    assert groups < late.sum() / 4, "two thousand wake-ups a second would stop the model's threads as often"
    lag = (sent - record.scheduled[: record.count])[late]
    wait = (record.finished[: record.count] - record.scheduled[: record.count])[late]
    assert np.median(lag / wait) < 0.03
    assert summary.valid, summary.reasons


def test_without_a_backlog_every_request_is_sent_when_it_is_due() -> None:
    _, record, _ = run(BatcherTarget(double, BatchPolicy(max_batch_size=20)), Load(rate=1000, seconds=0.5))
    lag = record.sent[: record.count] - record.scheduled[: record.count]
    assert np.median(lag) < 0.001, "most are on their way before the next one is due"


def test_a_closed_loop_never_has_more_under_way_than_callers() -> None:
    most = 0
    lock = threading.Lock()
    inside = 0

    def model(inputs: Arrays) -> Arrays:
        nonlocal most, inside
        with lock:
            inside += len(inputs["x"])
            most = max(most, inside)
        time.sleep(0.001)
        with lock:
            inside -= len(inputs["x"])
        return double(inputs)

    target = BatcherTarget(model, BatchPolicy(max_batch_size=2, instances=4, max_wait_ms=0))
    generator, record, summary = run(target, Load(arrivals="closed", concurrency=5, seconds=5, requests=300))
    assert summary.completed == record.count == 300
    assert 2 <= most <= 5
    assert generator.outstanding == 0
    assert summary.lag_ms == {}
    assert summary.valid


def test_offline_keeps_the_batches_full() -> None:
    target = BatcherTarget(sleeping(0.002), BatchPolicy(max_batch_size=8))
    _, record, summary = run(target, Load(arrivals="offline", seconds=5, requests=800))
    assert summary.scenario == "Offline"
    assert summary.completed == record.count == 800
    assert summary.batch_sizes["8"] >= 0.9 * 100


def test_offline_counts_rows_however_they_come() -> None:
    """Four batches an instance are under way, not four times as many as a batch has rows."""
    policy = BatchPolicy(max_batch_size=8, instances=2, max_queue_size=50)
    target = BatcherTarget(sleeping(0.001), policy)
    target.open(lambda requests: None)
    assert [target.natural_concurrency(rows) for rows in (1, 3, 8)] == [50, 22, 8]
    target.close()


def test_an_offline_load_waits_for_a_slow_model_as_long_as_answers_come() -> None:
    """What is under way takes four times a batch: here more than the time that an open loop would be given."""
    target = BatcherTarget(sleeping(0.3), BatchPolicy(max_batch_size=2))
    load = Load(arrivals="offline", seconds=0.7, drain_seconds=0.4)
    generator, record, summary = run(target, load)
    assert record.finished[: record.count].max() > generator.sending_ended + 0.6
    assert summary.unanswered == 0
    assert summary.valid


def test_an_offline_load_gives_a_model_that_hangs_up_and_says_what_to_do() -> None:
    hang = threading.Event()

    def hangs(inputs: Arrays) -> Arrays:
        if hangs.left == 0:  # type: ignore[attr-defined]
            hang.wait(30)
        hangs.left -= 1  # type: ignore[attr-defined]
        time.sleep(0.1)
        return double(inputs)

    hangs.left = 5  # type: ignore[attr-defined]
    target = BatcherTarget(hangs, BatchPolicy(max_batch_size=1))
    generator = LoadGenerator(target, POOL, Load(arrivals="offline", seconds=1.0, drain_seconds=0.2))
    began = time.monotonic()
    thread = threading.Thread(target=generator.run)
    thread.start()
    wait_for(lambda: generator.sending_ended > 0)
    wait_for(lambda: generator.load.drain_seconds > 0.2)
    assert time.monotonic() - began > 1 + LONGEST_WAITS * 0.4  # four were under way: the last waited for them all
    hang.set()
    thread.join(30)
    assert generator.load.relief.startswith("Lower max_batch_size or instances")
    assert Load(rate=5).relief == "Lower the load"


def test_single_stream_is_one_after_the_other() -> None:
    _, record, summary = run(Answering(), Load(arrivals="closed", requests=50))
    assert summary.scenario == "SingleStream"
    assert (record.sent[1:50] >= record.finished[:49]).all()


def test_requests_are_spread_over_the_priorities_the_same_from_the_same_seed() -> None:
    def sent(seed: int) -> list[int]:
        target = Answering()
        run(target, Load(arrivals="closed", requests=9000, seed=seed, priority_levels=3))
        return [request.priority for request in target.seen]

    first = sent(1)
    assert first == sent(1) != sent(2)
    assert first == priorities(Load(arrivals="closed", seed=1, priority_levels=3), 0, 9000).tolist()
    assert [first.count(level) / 9000 for level in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_multi_stream_sends_several_samples_at_once_and_never_mixes_shapes() -> None:
    target = Answering()
    pool = [*POOL, {"x": np.ones((1, 3))}]
    _, _, summary = run(target, Load(arrivals="closed", requests=60, samples_per_request=8), pool)
    assert summary.scenario == "MultiStream"
    assert {inputs["x"].shape for inputs in target.inputs} == {(8, 2), (8, 3)}
    assert len({tuple(inputs["x"][:, 0]) for inputs in target.inputs}) > 3


def test_requests_of_several_samples_take_no_more_memory_than_the_pool_may(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = [{"x": np.full((1, 2 + value % 2), float(value))} for value in range(100)]
    load = Load(arrivals="closed", requests=10, samples_per_request=8)
    assert len(LoadGenerator(Answering(), pool, load).inputs) == 100
    bound = sum(inputs["x"].nbytes for inputs in pool)
    monkeypatch.setattr("engine.measurements.load_test.generator.POOL_BYTES", bound)
    several = LoadGenerator(Answering(), pool, load).inputs
    assert len(several) > 8
    assert {inputs["x"].shape for inputs in several} == {(8, 2), (8, 3)}
    assert sum(inputs["x"].nbytes for inputs in several) <= 1.1 * bound
    monkeypatch.setattr("engine.measurements.load_test.generator.POOL_BYTES", 1)
    assert len(LoadGenerator(Answering(), pool, load).inputs) == 1


def test_rejections_and_failures_are_counted_and_are_no_latencies() -> None:
    def answer(request: Request) -> int:
        if request.tag % 4 == 0:
            raise QueueFull("full")
        return FAILED if request.tag % 4 == 1 else COMPLETED

    generator, record, summary = run(Answering(answer), Load(arrivals="closed", requests=100))
    assert (summary.completed, summary.rejected, summary.failed, summary.unanswered) == (50, 25, 25, 0)
    assert generator.errors == ["ValueError: no luck"]
    assert generator.outstanding == 0
    assert np.isfinite(record.finished[:100]).all()


def test_a_run_with_unanswered_requests_is_invalid() -> None:
    def answer(request: Request) -> int | None:
        return None if request.tag == 7 else COMPLETED

    load = Load(rate=200, seconds=0.3, drain_seconds=0.1)
    _, _, summary = run(Answering(answer), load)
    assert not summary.valid
    assert summary.unanswered == 1
    assert summary.reasons[0].startswith("1 requests were never answered: they were given up 0.1 s after the last one")


def test_requests_that_the_end_cut_off_make_a_run_invalid() -> None:
    """The batcher hands back unrun what waits at the end: that is no failure of the model, and no answer either."""
    slow = BatcherTarget(sleeping(0.1), BatchPolicy(max_batch_size=1, max_wait_ms=0))
    _, record, summary = run(slow, Load(arrivals="constant", rate=100, seconds=0.5, drain_seconds=0.3))
    assert summary.completed > 0
    assert summary.failed == 0
    assert summary.unanswered == record.count - summary.completed > 20
    assert not summary.valid
    assert "were never answered" in summary.reasons[0]


def test_requests_that_had_no_room_here_make_a_run_invalid_and_are_no_rejections() -> None:
    def answer(request: Request) -> int:
        if request.tag % 4 == 0:
            raise Dropped("no connection is free")
        return COMPLETED

    _, _, summary = run(Answering(answer), Load(arrivals="closed", requests=100))
    assert (summary.completed, summary.rejected, summary.failed, summary.dropped) == (75, 0, 0, 25)
    assert not summary.valid
    assert summary.reasons[0].startswith("25 requests were dropped here and never sent")


def test_a_model_that_ended_its_thread_makes_a_run_invalid() -> None:
    def ends(inputs: Arrays) -> Arrays:
        if ends.left == 0:  # type: ignore[attr-defined]
            raise SystemExit
        ends.left -= 1  # type: ignore[attr-defined]
        return double(inputs)

    ends.left = 20  # type: ignore[attr-defined]
    target = BatcherTarget(ends, BatchPolicy(max_batch_size=1, max_wait_ms=0))
    _, _, summary = run(target, Load(arrivals="constant", rate=200, seconds=0.5))
    assert summary.rejected == 0
    assert summary.unanswered > 10
    assert not summary.valid


def test_a_run_whose_generator_fell_behind_is_invalid() -> None:
    def slow_to_accept(request: Request) -> int:
        time.sleep(0.01)  # a target that breaks its promise not to block
        return COMPLETED

    _, _, summary = run(Answering(slow_to_accept), Load(rate=300, seconds=0.5, slo_p99_ms=20))
    assert not summary.valid
    assert "fell behind" in summary.reasons[0]
    assert summary.lag_ms["p99"] > 20


def test_a_run_without_an_answer_is_invalid_and_has_no_percentiles() -> None:
    _, _, summary = run(Answering(lambda request: FAILED), Load(arrivals="closed", requests=20))
    assert not summary.valid
    assert summary.reasons == ("no request was completed",)
    assert summary.latency_ms == {}


def test_the_warm_up_counts_for_nothing() -> None:
    _, record, summary = run(Answering(), Load(arrivals="constant", rate=200, seconds=1, warm_up_seconds=0.5))
    assert record.count == pytest.approx(199, abs=1)
    assert summary.completed == pytest.approx(100, abs=2)
    assert summary.offered_per_s == pytest.approx(200, rel=0.1)


@pytest.mark.parametrize(
    ("requests", "late_every", "verdict"), [(459, 10_000, "PASS"), (300, 10_000, "UNCLEAR"), (300, 5, "FAIL")]
)
def test_the_verdict_on_a_limit_is_a_claim_that_holds(requests: int, late_every: int, verdict: str) -> None:
    def record_of(count: int) -> Record:
        record = Record.empty(count)
        record.count = count
        times = np.arange(count) * 0.001
        record.scheduled[:] = record.sent[:] = record.taken[:] = record.started[:] = record.computed[:] = times
        record.finished[:] = times + np.where(np.arange(count) % late_every == late_every - 1, 0.050, 0.001)
        record.status[:] = COMPLETED
        record.rows[:] = record.batch_rows[:] = 1
        return record

    summary = summarise(record_of(requests), Load(rate=1000, seconds=10, slo_p99_ms=10), 10.0)
    assert summary.verdict == verdict
    assert summary.valid


@pytest.mark.parametrize("latency", [0.001, 1.0, 3.0])
def test_throughput_is_what_was_completed_in_the_measured_time_however_long_each_request_took(latency: float) -> None:
    """Those that are under way as the warm-up ends are answered in the time that is measured, as many as at its end."""
    record = Record.empty(1000)
    record.count = 1000
    times = np.arange(1000) * 0.01
    record.scheduled[:] = record.sent[:] = record.taken[:] = record.started[:] = record.computed[:] = times
    record.finished[:] = times + latency
    record.status[:] = COMPLETED
    record.rows[:] = record.batch_rows[:] = 2
    summary = summarise(record, Load(rate=100, seconds=10, warm_up_seconds=4.0), 10.0)
    assert summary.achieved_per_s == pytest.approx(100, abs=0.5)
    assert summary.rows_per_s == pytest.approx(200, abs=1)
    assert summary.completed == 600


def test_rates_are_over_the_whole_time_also_after_the_last_arrival() -> None:
    _, _, summary = run(Answering(), Load(arrivals="constant", rate=5, seconds=0.75, warm_up_seconds=0.1))
    assert summary.completed == 3
    assert 0.65 <= summary.seconds < 0.9


def start(generator: LoadGenerator) -> threading.Thread:
    thread = threading.Thread(target=generator.run)
    thread.start()
    wait_for(lambda: generator.record.count > 0)
    return thread


def test_the_rate_changes_during_the_run() -> None:
    target = Answering()
    generator = LoadGenerator(target, POOL, Load(arrivals="constant", rate=20, seconds=60))
    thread = start(generator)
    generator.set_rate(2000)
    wait_for(lambda: generator.record.count > 400)
    generator.stop()
    thread.join(30)
    gaps = np.diff(generator.record.scheduled[: generator.record.count])
    assert gaps[-100:] == pytest.approx(1 / 2000)
    assert gaps[0] == pytest.approx(1 / 20)
    assert [mark.text for mark in generator.marks] == ["rate 2000/s"]
    assert generator.sending_ended < 30


def test_the_concurrency_changes_during_the_run() -> None:
    generator = LoadGenerator(
        BatcherTarget(sleeping(0.01), BatchPolicy(max_batch_size=32, max_wait_ms=0)),
        POOL,
        Load(arrivals="closed", seconds=60),
    )
    thread = start(generator)
    generator.set_concurrency(16)
    wait_for(lambda: generator.outstanding == 16)
    with pytest.raises(ValueError, match="no rate"):
        generator.set_rate(5)
    generator.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert generator.outstanding == 0  # what was under way when it was stopped got its answer
    assert generator.record.batch_rows.max() > 8


def test_a_pause_sends_nothing_and_puts_the_schedule_off() -> None:
    generator = LoadGenerator(Answering(), POOL, Load(arrivals="constant", rate=500, seconds=60))
    thread = start(generator)
    generator.pause()
    wait_for(lambda: _still(generator))
    generator.resume()
    sent = generator.record.count
    wait_for(lambda: generator.record.count > sent + 100)
    generator.stop()
    thread.join(30)
    record = generator.record
    lag = record.sent[: record.count] - record.scheduled[: record.count]
    assert np.median(lag[-100:]) < 0.05  # those put off are not late
    assert np.diff(record.scheduled[: record.count]).max() > 0.1


def test_a_pause_is_no_ones_latency_not_even_of_those_due_as_it_begins() -> None:
    """The generator hears of the pause while it sends: by then the next requests are due and not sent yet."""
    generator: LoadGenerator

    def answer(request: Request) -> int:
        if request.tag == 20:
            generator.pause()
            time.sleep(0.03)
            threading.Timer(0.5, generator.resume).start()
        return COMPLETED

    generator = LoadGenerator(Answering(answer), POOL, Load(arrivals="constant", rate=100, seconds=3, requests=60))
    record = generator.run()
    assert record.count == 60
    waited = record.scheduled[21] - record.scheduled[20]
    assert 0.5 <= waited < 2
    assert (record.finished[:60] - record.scheduled[:60]).max() < 0.3


def _still(generator: LoadGenerator) -> bool:
    before = generator.record.count
    time.sleep(0.12)  # longer than the generator looks away
    return generator.record.count == before


def test_looking_shows_what_happened_since_the_last_look() -> None:
    generator = LoadGenerator(Answering(), POOL, Load(arrivals="constant", rate=300, seconds=60))
    thread = start(generator)
    generator.look()
    before = generator.record.count
    wait_for(lambda: generator.record.count > before + 100)
    figures = generator.look()
    generator.stop()
    thread.join(30)
    assert figures.completed >= 100
    assert figures.throughput_per_s == pytest.approx(figures.completed / figures.seconds)
    assert figures.p50_ms is not None
    assert figures.p99_ms is not None
    assert figures.p50_ms <= figures.p99_ms
    assert figures.mean_batch == 1.0
    rest = generator.look()
    assert rest.completed + figures.completed <= generator.record.count


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({}, "needs a rate"),
        ({"rate": -1}, "rate"),
        ({"rate": 1, "seconds": 0}, "seconds"),
        ({"rate": 1, "warm_up_seconds": 10}, "warm_up_seconds"),
        ({"arrivals": "closed", "concurrency": 0}, "concurrency"),
        ({"arrivals": "replay"}, "trace"),
        ({"arrivals": "offline", "requests": 0}, "requests"),
    ],
)
def test_a_load_that_makes_no_sense_says_so(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Load(**wrong)


def test_a_request_takes_as_much_memory_as_is_said() -> None:
    """What a plan is refused by: laid out, followed, recorded and summed up."""
    count = 200_000
    load = Load(rate=count / 10, seconds=10, slo_p99_ms=10)
    tracemalloc.start()
    try:
        generator = LoadGenerator(Answering(), POOL, load)
        assert generator._schedule is not None
        followed = generator._follow(generator._schedule)
        record = generator.record
        record.count = planned = len(followed)
        for times in (record.sent, record.taken, record.started, record.computed, record.finished):
            times[:] = record.scheduled
        record.status[:], record.rows[:], record.batch_rows[:] = COMPLETED, 1, 1
        held, _ = tracemalloc.get_traced_memory()
        summarise(record, load, 10.0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    own = sum(getattr(record, name).nbytes for name in record.__slots__ if name != "count")
    assert own == 57 * planned
    assert 81 * planned <= held < 90 * planned
    assert 0.7 * BYTES_A_REQUEST * planned < most <= BYTES_A_REQUEST * planned


def test_more_requests_than_memory_has_room_for_are_refused_before_and_while_it_runs() -> None:
    with pytest.raises(ValueError, match=r"864,000,000,000 requests.*180 bytes"):
        Load(rate=1e7, seconds=86_400)
    with pytest.raises(ValueError, match="are the most"):
        Load(arrivals="replay", trace=(0.0, 1e-6), seconds=86_400)
    generator = LoadGenerator(Answering(), POOL, Load(arrivals="constant", rate=20, seconds=60))
    thread = start(generator)
    with pytest.raises(ValueError, match="are the most"):
        generator.set_rate(1e7)
    generator.stop()
    thread.join(30)
    assert generator.marks == []


def test_a_closed_loop_ends_when_there_is_no_room_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.measurements.load_test.generator.MOST_REQUESTS", 300)
    generator, record, summary = run(Answering(), Load(arrivals="closed", seconds=60))
    assert summary.completed == record.count == 300
    assert [mark.text for mark in generator.marks] == ["ended after 300 requests, the most whose times are kept"]


def test_littles_law_holds() -> None:
    """The batcher's own count of requests inside, integrated over time, against the recorded sojourns."""
    target = BatcherTarget(sleeping(0.005), BatchPolicy(max_batch_size=4, max_wait_ms=2))
    _, record, summary = run(target, Load(rate=300, seconds=2, seed=1))
    used = slice(0, record.count)
    assert summary.completed == record.count
    inside = target.executor.statistics.totals().request_seconds
    assert inside == pytest.approx((record.finished[used] - record.sent[used]).sum(), rel=0.02)


def test_without_batching_requests_wait_as_lindley_says() -> None:
    """Every request's wait follows from when it and those before it came and how long they took."""
    target = BatcherTarget(sleeping(0.002), BatchPolicy(max_batch_size=1, max_wait_ms=0))
    _, record, _ = run(target, Load(rate=250, seconds=3, seed=2))
    used = slice(0, record.count)
    sent, taken, done = record.sent[used], record.taken[used], record.computed[used]
    free = np.maximum(sent, np.concatenate([[0.0], done[:-1]]))
    waits, predicted = taken - sent, free - sent
    assert (waits >= predicted - 1e-6).all()
    assert waits.mean() == pytest.approx(predicted.mean(), rel=0.10, abs=0.0005)
