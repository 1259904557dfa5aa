"""The batcher where naive ones fail, with real threads and a real event loop."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.batch_executor import BatchExecutor
from engine.batch_queue import COMPLETED, Request
from engine.batching import (
    BatcherClosed,
    BatchPolicy,
    DeadlineExceeded,
    DynamicBatcher,
    QueueFull,
    RequestTooLarge,
)

Arrays = dict[str, Any]


def rows(*values: float, width: int = 2) -> Arrays:
    return {"x": np.repeat(np.array(values, np.float64)[:, None], width, axis=1)}


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"][:, 0] * 2}


class Gate:
    """A model that waits at a gate, so that a test decides how long it is busy."""

    def __init__(self, run: Callable[[Arrays], Arrays] = double) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.seen: list[list[float]] = []
        self._run = run

    def __call__(self, inputs: Arrays) -> Arrays:
        self.sizes.append(len(inputs["x"]))
        self.seen.append(inputs["x"][:, 0].tolist())
        self.entered.release()
        assert self.open.wait(60)
        return self._run(inputs)

    async def busy(self, times: int = 1) -> None:
        for _ in range(times):
            await until(lambda: self.entered.acquire(blocking=False))


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        await asyncio.sleep(0.002)


def wait_for(condition: Callable[[], bool]) -> None:
    """`until` for tests without an event loop."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.001)


def asleep(batcher: DynamicBatcher) -> int:
    """How many instances wait for something to do."""
    assert batcher._executor is not None
    return len(batcher._executor._sleepers)


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, 30)


@asynccontextmanager
async def behind_a_busy_model(model: Gate, **policy: Any) -> AsyncIterator[tuple[DynamicBatcher, "Start"]]:
    """The batcher while its only instance is occupied by one request; calls started in the block pile up."""
    async with DynamicBatcher(model, BatchPolicy(**policy)) as batcher:
        calls: list[asyncio.Task[Arrays]] = []

        async def start(*inputs: Arrays, **options: Any) -> list[asyncio.Task[Arrays]]:
            before = batcher.depth
            new = [asyncio.create_task(batcher.predict(each, **options)) for each in inputs]
            await until(lambda: batcher.depth >= before + len(inputs) or any(task.done() for task in new))
            calls.extend(new)
            return new

        first = asyncio.create_task(batcher.predict(rows(0)))
        await model.busy()
        try:
            yield batcher, start
        finally:
            model.open.set()
            await soon(asyncio.gather(first, *calls, return_exceptions=True))


Start = Callable[..., Coroutine[Any, Any, list[asyncio.Task[Arrays]]]]


async def test_every_caller_gets_its_own_rows_under_mixed_load() -> None:
    """Several sizes, shapes and cancellations at once; two instances."""
    chance = random.Random(7)
    largest = 0

    def model(inputs: Arrays) -> Arrays:
        nonlocal largest
        largest = max(largest, len(inputs["x"]))
        if chance.random() < 0.2:
            time.sleep(0.001)
        return double(inputs)

    async with DynamicBatcher(model, BatchPolicy(max_batch_size=16, max_wait_ms=1, instances=2)) as batcher:

        async def call(number: int) -> str:
            values = [number * 10.0 + row for row in range(chance.randint(1, 5))]
            await asyncio.sleep(chance.random() * 0.2)
            task = asyncio.ensure_future(batcher.predict(rows(*values, width=chance.choice([2, 2, 2, 3]))))
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.002)
                task.cancel()
            try:
                outputs = await task
            except asyncio.CancelledError:
                return "cancelled"
            assert outputs["y"].tolist() == [2 * value for value in values]
            return "completed"

        ends = await soon(asyncio.gather(*(call(number) for number in range(2000))))
        assert {"completed", "cancelled"} == set(ends)
        totals = batcher.statistics.totals()
    assert 1 < largest <= 16
    assert sum(totals.by_status.values()) == totals.accepted
    assert totals.in_system == 0
    assert totals.rows == sum(size * count for size, count in totals.batch_sizes.items())
    assert totals.run_requests >= ends.count("completed")


async def test_no_wake_up_is_lost() -> None:
    """Callers that come just as the instances fall asleep, thousands of times, with waits that run out."""
    chance = random.Random(3)
    policy = BatchPolicy(max_batch_size=4, max_wait_ms=0.2, wait="always", instances=2)
    async with DynamicBatcher(double, policy) as batcher:

        async def caller() -> None:
            for _ in range(700):
                await batcher.predict(rows(1.0))
                pause = chance.choice([0, 0, 0.0001, 0.0002, 0.0004])
                if pause:
                    await asyncio.sleep(pause)

        await soon(asyncio.gather(*(caller() for _ in range(3))))
        assert batcher.statistics.totals().by_status == {"completed": 2100}


async def test_a_batch_grows_while_the_model_is_busy() -> None:
    model = Gate()
    async with behind_a_busy_model(model, max_batch_size=32, max_wait_ms=0) as (_, start):
        calls = []
        for value in range(1, 21):
            calls += await start(rows(value))
        model.open.set()
        assert [(await soon(call))["y"][0] for call in calls] == [2.0 * value for value in range(1, 21)]
    assert model.sizes == [1, 20]


async def test_a_lone_request_for_an_idle_model_does_not_wait() -> None:
    async with DynamicBatcher(double, BatchPolicy(max_wait_ms=60_000)) as batcher:
        for _ in range(3):
            assert (await soon(batcher.predict(rows(4))))["y"].tolist() == [8]


async def test_a_policy_that_always_waits_waits_and_no_longer_than_it_says() -> None:
    async with DynamicBatcher(double, BatchPolicy(max_wait_ms=80, wait="always")) as batcher:
        start = time.monotonic()
        await soon(batcher.predict(rows(1)))
        assert time.monotonic() - start >= 0.079
        await soon(asyncio.gather(batcher.predict(rows(1)), batcher.predict(rows(2))))
        assert batcher.statistics.totals().batch_sizes == {1: 1, 2: 1}


async def test_a_full_batch_does_not_wait_for_its_time() -> None:
    async with DynamicBatcher(double, BatchPolicy(max_batch_size=4, max_wait_ms=60_000, wait="always")) as batcher:
        first = asyncio.create_task(batcher.predict(rows(9)))
        await until(
            lambda: batcher.depth == 1 and asleep(batcher) == 1
        )  # it waits for company with its eye on the clock
        await soon(asyncio.gather(first, *(batcher.predict(rows(value)) for value in range(7))))
        assert batcher.statistics.totals().batch_sizes == {4: 2}


async def test_what_a_batch_left_behind_wakes_the_next_instance() -> None:
    model = Gate()
    policy = BatchPolicy(max_batch_size=8, max_wait_ms=60_000, wait="always", instances=2)
    async with DynamicBatcher(model, policy) as batcher:
        small = asyncio.create_task(batcher.predict(rows(1, 2, 3)))
        await until(lambda: batcher.depth == 1 and asleep(batcher) == 2)
        large = asyncio.create_task(batcher.predict(rows(*range(8))))  # does not fit beside the first
        await model.busy(times=2)
        model.open.set()
        await soon(asyncio.gather(small, large))
    assert sorted(model.sizes) == [3, 8]


def test_a_wake_up_in_the_moment_the_time_runs_out_is_neither_lost_nor_left_over() -> None:
    """The wait of the only instance runs out, and before it can say so it is woken."""
    done: list[Request] = []
    executor = BatchExecutor(double, BatchPolicy(max_batch_size=2, max_wait_ms=20, wait="always"), done.extend)

    def submit() -> None:
        executor.submit(Request(rows(1), 1, ("x",)))

    class Unlucky:
        """The instance's token, with bad timing."""

        def __init__(self, token: Any) -> None:
            self.token, self.waits = token, 0
            self.release = token.release

        def acquire(self, timeout: float = -1) -> bool:
            if self.waits == 1 and not executor._lock.locked():
                self.waits = 2
                submit()  # as it falls asleep again: its wake-up would fail if one were left over
            got: bool = self.token.acquire(timeout=timeout)
            if not got and not self.waits:
                self.waits = 1
                submit()
                executor.set_policy(executor.policy)  # wakes whoever sleeps
            return got

    try:
        wait_for(lambda: bool(executor._sleepers))
        unlucky = executor._instances[0].token = Unlucky(executor._instances[0].token)  # type: ignore[assignment]
        submit()
        wait_for(lambda: len(done) == 3)
        assert unlucky.waits == 2
    finally:
        executor.close(drain=True)
        assert executor.join(30)
    assert {request.status for request in done} == {COMPLETED}


async def test_only_the_poisoned_request_fails() -> None:
    def picky(inputs: Arrays) -> Arrays:
        if 13.0 in inputs["x"]:
            raise ValueError("unlucky")
        return double(inputs)

    model = Gate(picky)
    async with behind_a_busy_model(model, max_batch_size=32) as (batcher, start):
        calls = await start(*(rows(value) for value in range(32)))
        model.open.set()
        ends = await soon(asyncio.gather(*calls, return_exceptions=True))
        assert isinstance(ends[13], ValueError)
        for value, end in enumerate(ends):
            if value != 13:
                assert isinstance(end, dict)
                assert end["y"].tolist() == [2 * value]
        assert len(model.sizes) == 2 + 2 * 5  # by halves: two runs for each of the five levels below the batch of 32
        totals = batcher.statistics.totals()
        assert (totals.by_status["completed"], totals.by_status["failed"]) == (32, 1)


async def test_without_isolation_the_whole_batch_fails_but_no_other() -> None:
    def picky(inputs: Arrays) -> Arrays:
        if 13.0 in inputs["x"]:
            raise ValueError("unlucky")
        return double(inputs)

    model = Gate(picky)
    async with behind_a_busy_model(model, max_batch_size=4, isolate_failures=False) as (_, start):
        calls = await start(*(rows(value) for value in (1, 13, 3, 4, 5, 6)))
        model.open.set()
        ends = await soon(asyncio.gather(*calls, return_exceptions=True))
    assert [isinstance(end, ValueError) for end in ends] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("error", [RuntimeError("broken"), StopIteration("odd"), MemoryError()])
async def test_a_model_that_always_fails_answers_everybody_and_may_recover(error: Exception) -> None:
    broken = True

    def model(inputs: Arrays) -> Arrays:
        if broken:
            raise error
        return double(inputs)

    async with DynamicBatcher(model, BatchPolicy(max_batch_size=8)) as batcher:
        ends = await soon(asyncio.gather(*(batcher.predict(rows(v)) for v in range(20)), return_exceptions=True))
        wanted = RuntimeError if isinstance(error, StopIteration) else type(error)
        assert all(isinstance(end, wanted) for end in ends)
        broken = False
        assert (await soon(batcher.predict(rows(4))))["y"].tolist() == [8]


async def test_a_model_that_ends_its_thread_is_said_to_all_now_and_later() -> None:
    def model(inputs: Arrays) -> Arrays:
        raise SystemExit(3)

    async with DynamicBatcher(model, BatchPolicy()) as batcher:
        with pytest.raises(RuntimeError, match="SystemExit"):
            await soon(batcher.predict(rows(1)))
        with pytest.raises(BatcherClosed, match="SystemExit"):
            await soon(batcher.predict(rows(1)))


async def test_a_caller_that_gives_up_is_not_run_and_shifts_nobody() -> None:
    model = Gate()
    async with behind_a_busy_model(model, max_batch_size=32) as (batcher, start):
        calls = await start(*(rows(value) for value in range(1, 7)))
        calls[2].cancel()
        await until(lambda: batcher.depth == 5)
        model.open.set()
        ends = await soon(asyncio.gather(*calls, return_exceptions=True))
        assert isinstance(ends[2], asyncio.CancelledError)
        assert [end["y"][0] for i, end in enumerate(ends) if i != 2 and isinstance(end, dict)] == [2, 4, 8, 10, 12]
        assert batcher.statistics.totals().by_status == {"completed": 6, "cancelled": 1}
    assert model.seen == [[0], [1, 2, 4, 5, 6]]


async def test_a_caller_that_gives_up_while_it_runs_harms_nobody() -> None:
    model = Gate()
    async with DynamicBatcher(model, BatchPolicy()) as batcher:
        first = asyncio.create_task(batcher.predict(rows(1)))
        await model.busy()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        model.open.set()
        assert (await soon(batcher.predict(rows(5))))["y"].tolist() == [10]


async def test_a_full_queue_turns_away_with_its_own_error() -> None:
    model = Gate()
    async with behind_a_busy_model(model, max_batch_size=2, max_queue_size=3) as (batcher, start):
        calls = await start(*(rows(value) for value in range(1, 4)))
        with pytest.raises(QueueFull, match="3 requests wait"):
            await batcher.predict(rows(9))
        calls[0].cancel()
        await until(lambda: batcher.depth == 2)
        calls += await start(rows(4))  # a place became free
        model.open.set()
        assert (await soon(calls[3]))["y"].tolist() == [8]
        assert batcher.statistics.totals().by_status["rejected"] == 1


async def test_requests_that_make_no_sense_are_refused_alone() -> None:
    async with DynamicBatcher(double, BatchPolicy(max_batch_size=4, priority_levels=2)) as batcher:
        with pytest.raises(RequestTooLarge, match="5 rows, the largest batch is 4"):
            await batcher.predict(rows(1, 2, 3, 4, 5))
        for inputs, word in [
            ({}, "at least one input"),
            ({"x": np.zeros((0, 2))}, "at least one row"),
            ({"x": np.float32(1)[()]}, "numpy array"),
            ({"x": np.array(1.0)}, "batch axis"),
            ({"x": np.zeros((1, 2)), "z": np.zeros((2, 2))}, "2 rows, another input has 1"),
        ]:
            with pytest.raises((ValueError, TypeError), match=word):
                await batcher.predict(inputs)
        with pytest.raises(ValueError, match="priority"):
            await batcher.predict(rows(1), priority=3)
        with pytest.raises(ValueError, match="timeout_ms"):
            await batcher.predict(rows(1), timeout_ms=0)
        assert (await soon(batcher.predict(rows(1, 2, 3, 4))))["y"].tolist() == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("outputs", "word"),
    [
        (lambda n: {"y": np.zeros(n + 1)}, "for a batch of"),
        (lambda n: {"y": np.zeros(())}, "no batch axis"),
        (lambda n: {"y": np.zeros(n), "z": np.zeros(n - 1)}, "'z'"),
        (lambda n: np.zeros(n), "dictionary"),
        (lambda n: {}, "dictionary"),
    ],
)
async def test_outputs_that_do_not_match_the_rows_are_an_error(outputs: Callable[[int], Any], word: str) -> None:
    async with DynamicBatcher(lambda inputs: outputs(len(inputs["x"])), BatchPolicy()) as batcher:
        with pytest.raises((ValueError, TypeError), match=word):
            await soon(batcher.predict(rows(1, 2)))


async def test_the_event_loop_goes_on_while_the_model_runs() -> None:
    model = Gate()
    threads: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        threads.append(threading.get_ident())
        return model(inputs)

    async with DynamicBatcher(run, BatchPolicy()) as batcher:
        call = asyncio.create_task(batcher.predict(rows(1)))
        await model.busy()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not call.done()
        model.open.set()
        await soon(call)
    assert threads[0] != threading.get_ident()


async def test_leaving_runs_what_waits() -> None:
    async with DynamicBatcher(double, BatchPolicy(max_wait_ms=60_000, wait="always")) as batcher:
        calls = [asyncio.create_task(batcher.predict(rows(value))) for value in range(5)]
        await until(lambda: batcher.depth == 5)
    assert [(await call)["y"][0] for call in calls] == [0, 2, 4, 6, 8]
    with pytest.raises(BatcherClosed):
        await batcher.predict(rows(1))


async def test_closing_without_draining_tells_who_waits_and_finishes_who_runs() -> None:
    model = Gate()
    batcher = DynamicBatcher(model, BatchPolicy())
    batcher.start()
    running = asyncio.create_task(batcher.predict(rows(1)))
    await model.busy()
    waiting = asyncio.create_task(batcher.predict(rows(2)))
    await until(lambda: batcher.depth == 1)
    closing = asyncio.create_task(batcher.close(drain=False))
    with pytest.raises(BatcherClosed):
        await soon(waiting)
    model.open.set()
    assert (await soon(running))["y"].tolist() == [2]
    await soon(closing)


async def test_a_model_that_hangs_cannot_hold_its_callers_at_shutdown() -> None:
    model = Gate()
    batcher = DynamicBatcher(model, BatchPolicy())
    batcher.start()
    call = asyncio.create_task(batcher.predict(rows(1)))
    await model.busy()
    await soon(batcher.close(timeout=0.1))
    with pytest.raises(BatcherClosed, match="while the model ran"):
        await soon(call)
    assert batcher.statistics.totals().in_system == 0
    model.open.set()


async def test_a_time_limit_ends_the_wait_also_while_the_model_is_busy() -> None:
    model = Gate()
    async with behind_a_busy_model(model, default_timeout_ms=60_000) as (batcher, start):
        [late] = await start(rows(1), timeout_ms=20)
        [patient] = await start(rows(2))
        with pytest.raises(DeadlineExceeded, match="longer than its limit"):
            await soon(late)
        assert not patient.done()
        model.open.set()
        assert (await soon(patient))["y"].tolist() == [4]
        assert batcher.statistics.totals().by_status == {"completed": 2, "expired": 1}
    assert model.seen == [[0], [2]]


async def test_a_policy_may_forbid_time_limits_of_requests_own() -> None:
    model = Gate()
    async with behind_a_busy_model(model, allow_timeout_override=False) as (_, start):
        [call] = await start(rows(1), timeout_ms=1)
        await asyncio.sleep(0.02)  # longer than the limit that must not count
        model.open.set()
        assert (await soon(call))["y"].tolist() == [2]


async def test_urgent_requests_overtake() -> None:
    model = Gate()
    async with behind_a_busy_model(model, max_batch_size=2, priority_levels=3, default_priority=2) as (_, start):
        for value, priority in ((1, None), (2, 3), (3, 1), (4, 1), (5, 2)):
            await start(rows(value), priority=priority)
        model.open.set()
    assert model.seen == [[0], [3, 4], [1, 5], [2]]


async def test_shapes_are_batched_apart() -> None:
    model = Gate()
    async with behind_a_busy_model(model, max_batch_size=8) as (_, start):
        wide = await start(*(rows(value, width=3) for value in (1, 2)))
        narrow = await start(*(rows(value) for value in (3, 4)))
        integers = await start({"x": np.array([[5, 5]])})
        model.open.set()
        assert [(await soon(call))["y"][0] for call in wide + narrow + integers] == [2, 4, 6, 8, 10]
    assert model.seen == [[0], [1, 2], [3, 4], [5]]


async def test_inputs_named_in_another_order_share_a_batch() -> None:
    def add(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"][:, 0] + inputs["z"][:, 0]}

    async with DynamicBatcher(add, BatchPolicy(max_batch_size=2, max_wait_ms=60_000, wait="always")) as batcher:
        one, two = np.ones((1, 1)), np.full((1, 1), 2.0)
        calls = batcher.predict({"x": one, "z": two}), batcher.predict({"z": two, "x": one})
        assert [end["y"].tolist() for end in await soon(asyncio.gather(*calls))] == [[3], [3]]
        assert batcher.statistics.totals().batch_sizes == {2: 1}


async def test_a_new_policy_holds_from_the_next_batch_on() -> None:
    model = Gate()
    async with behind_a_busy_model(model, max_batch_size=8) as (batcher, start):
        calls = await start(*(rows(value) for value in range(1, 9)), rows(9, 9, 9, 9))
        batcher.set_policy(msgspec.structs.replace(batcher.policy, max_batch_size=3))
        with pytest.raises(RequestTooLarge, match="now 3"):
            await soon(calls[8])
        model.open.set()
        await soon(asyncio.gather(*calls[:8]))
    assert model.sizes == [1, 3, 3, 2]


async def test_a_shorter_wait_holds_for_who_waits_already() -> None:
    policy = BatchPolicy(max_wait_ms=60_000, wait="always")
    async with DynamicBatcher(double, policy) as batcher:
        call = asyncio.create_task(batcher.predict(rows(1)))
        await until(lambda: batcher.depth == 1)
        batcher.set_policy(msgspec.structs.replace(policy, max_wait_ms=1))
        await soon(call)


async def test_pause_holds_everything_and_resume_lets_it_go() -> None:
    async with DynamicBatcher(double, BatchPolicy()) as batcher:
        batcher.pause()
        calls = [asyncio.create_task(batcher.predict(rows(value))) for value in range(5)]
        await until(lambda: batcher.depth == 5)
        await asyncio.sleep(0.05)  # an instance that did not heed the pause would have run them
        assert batcher.depth == 5
        batcher.resume()
        await soon(asyncio.gather(*calls))
        assert batcher.statistics.totals().batch_sizes == {5: 1}


async def test_instances_run_side_by_side_and_their_number_can_change() -> None:
    together = threading.Barrier(3)

    def model(inputs: Arrays) -> Arrays:
        if inputs["x"][0, 0] < 0:
            together.wait(30)  # passes only when three runs are in the model at once
        return double(inputs)

    policy = BatchPolicy(max_batch_size=1)
    async with DynamicBatcher(model, policy) as batcher:
        batcher.set_policy(msgspec.structs.replace(policy, instances=3))
        await soon(asyncio.gather(*(batcher.predict(rows(-1)) for _ in range(3))))
        batcher.set_policy(policy)
        await until(lambda: sum(t.name.startswith("batch-instance") for t in threading.enumerate()) == 1)
        assert (await soon(batcher.predict(rows(2))))["y"].tolist() == [4]
        assert {run["instance"] for run in batcher.statistics.runs()} == {0, 1, 2}


async def test_copies_of_a_model_get_an_instance_each() -> None:
    gates = [Gate(), Gate()]
    async with DynamicBatcher(gates, BatchPolicy(max_batch_size=1, instances=2)) as batcher:
        calls = [asyncio.create_task(batcher.predict(rows(value))) for value in (1, 2)]
        await gates[0].busy()
        await gates[1].busy()
        for gate in gates:
            gate.open.set()
        await soon(asyncio.gather(*calls))
        with pytest.raises(ValueError, match="3 instances asked for, 2 copies"):
            batcher.set_policy(BatchPolicy(instances=3))


async def test_statistics_tell_queue_forming_and_compute_time_apart() -> None:
    def model(inputs: Arrays) -> Arrays:
        time.sleep(0.02)
        return double(inputs)

    async with DynamicBatcher(model, BatchPolicy(max_batch_size=1)) as batcher:
        start = time.monotonic()
        await soon(asyncio.gather(*(batcher.predict(rows(value)) for value in range(5))))
        elapsed = time.monotonic() - start
        totals = batcher.statistics.totals()
        runs = batcher.statistics.runs()
    assert totals.runs == len(runs) == 5
    assert 5 * 0.02 <= totals.compute_seconds <= elapsed
    assert totals.queue_seconds >= (1 + 2 + 3 + 4) * 0.02
    assert runs["compute"].min() >= 0.02
    assert (runs["forming"] < runs["compute"]).all()
    assert runs["queue"].argmax() == 4
    assert runs["depth"].tolist() == [4, 3, 2, 1, 0]
    assert totals.request_seconds >= totals.queue_seconds + totals.compute_seconds
    assert len(batcher.statistics.runs(since=3)) == 2


async def test_threads_end_with_the_batcher() -> None:
    async with DynamicBatcher(double, BatchPolicy(instances=4)) as batcher:
        await batcher.predict(rows(1))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch-instance")]


async def test_finished_requests_are_freed_without_a_garbage_collection() -> None:
    def picky(inputs: Arrays) -> Arrays:
        if 3.0 in inputs["x"]:
            raise ValueError("unlucky")
        return double(inputs)

    async with DynamicBatcher(picky, BatchPolicy(max_batch_size=4)) as batcher:
        inputs = [rows(value) for value in range(1, 9)]
        traces = [weakref.ref(each["x"]) for each in inputs]
        gc.collect()
        gc.disable()
        try:
            calls = [batcher.predict(each) for each in inputs]
            ends = await soon(asyncio.gather(*calls, return_exceptions=True))
            assert sum(isinstance(end, ValueError) for end in ends) == 1
            del inputs, calls, ends
            await asyncio.sleep(0)
            await until(lambda: not any(trace() is not None for trace in traces), seconds=5)
        finally:
            gc.enable()
