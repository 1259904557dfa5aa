"""A failure, a refusal or a caller who gives up touches nobody else and leaves nothing behind."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gated_models import Arrays, Gate, behind_a_busy_model, double, rows, soon, until

from engine.batching import (
    BatcherClosed,
    BatchPolicy,
    DeadlineExceeded,
    DynamicBatcher,
    QueueFull,
    QueuePolicy,
    RequestTooLarge,
)


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


async def test_nothing_is_turned_away_for_its_time_limit_while_an_instance_is_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.batching.queue.DEADLINE_SECONDS", 0.6)  # so that a busy machine wakes up in time
    policy = BatchPolicy(max_wait_ms=60_000, wait="always", default_timeout_ms=1000)
    async with DynamicBatcher(double, policy) as batcher:
        assert (await soon(batcher.predict(rows(1))))["y"].tolist() == [2]
        assert batcher.statistics.totals().by_status == {"completed": 1}


async def test_a_policy_may_forbid_time_limits_of_requests_own() -> None:
    model = Gate()
    async with behind_a_busy_model(model, allow_timeout_override=False) as (_, start):
        [call] = await start(rows(1), timeout_ms=1)
        await asyncio.sleep(0.02)  # longer than the limit that must not count
        model.open.set()
        assert (await soon(call))["y"].tolist() == [2]


async def test_a_requests_own_time_limit_shortens_the_default_and_never_lengthens_it() -> None:
    model = Gate()
    async with behind_a_busy_model(model, default_timeout_ms=20) as (batcher, start):
        [greedy] = await start(rows(1), timeout_ms=60_000)
        with pytest.raises(DeadlineExceeded):
            await soon(greedy)
        model.open.set()
        assert batcher.statistics.totals().by_status["expired"] == 1


async def test_each_priority_waits_by_its_own_policy() -> None:
    policies = {
        1: QueuePolicy(max_queue_size=1),
        2: QueuePolicy(default_timeout_ms=20),
        3: QueuePolicy(default_timeout_ms=20, allow_timeout_override=False, timeout_action="delay"),
    }
    model = Gate()
    async with behind_a_busy_model(model, priority_levels=4, priority_queue_policies=policies) as (_, start):
        [first] = await start(rows(1), priority=1)
        with pytest.raises(QueueFull, match="1 requests of priority 1 wait already"):
            await (await start(rows(2), priority=1))[0]
        [late] = await start(rows(3), priority=2)
        [delayed] = await start(rows(4), priority=3, timeout_ms=1)
        [plain] = await start(rows(5), priority=4)
        with pytest.raises(DeadlineExceeded):
            await soon(late)
        model.open.set()
        assert [(await soon(call))["y"].tolist() for call in (first, delayed, plain)] == [[2], [8], [10]]


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
