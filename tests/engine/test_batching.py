"""Batches: who shares one, when it goes, and that no wake-up is lost. Real threads, a real event loop."""

import asyncio
import random
import threading
import time
from typing import Any

import numpy as np
from gated_models import Arrays, Gate, asleep, behind_a_busy_model, double, rows, soon, until, wait_for

from engine.batching import (
    BatchPolicy,
    DynamicBatcher,
)
from engine.batching.executor import BatchExecutor
from engine.batching.queue import COMPLETED, QUEUED, TAKEN, Request


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


def test_answers_are_handed_out_while_the_next_batch_runs_and_at_once_when_there_is_none() -> None:
    """Callers that wake up want the interpreter: were they woken before, the model would wait for them."""
    requests = [Request(rows(number), 1, ("x",), tag=number) for number in range(3)]
    events: list[Any] = []

    def deliver(ended: list[Request]) -> None:
        events.extend(("answered", request.tag, [other.status for other in requests]) for request in ended)

    def model(inputs: Arrays) -> Arrays:
        events.append(("run", int(inputs["x"][0, 0])))
        return double(inputs)

    executor = BatchExecutor(model, BatchPolicy(max_batch_size=1), deliver)
    try:
        executor.pause()
        for request in requests:
            executor.submit(request)
        executor.resume()
        wait_for(lambda: len(events) == 6)
    finally:
        executor.close(drain=True)
        assert executor.join(10)
    done, taken, waits = COMPLETED, TAKEN, QUEUED
    assert events == [
        ("run", 0),
        ("answered", 0, [done, taken, waits]),
        ("run", 1),
        ("answered", 1, [done, done, taken]),
        ("run", 2),
        ("answered", 2, [done, done, done]),
    ]


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
