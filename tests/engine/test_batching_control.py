"""Closing, pausing and changing the policy while requests wait and run; and what the statistics say."""

import asyncio
import threading
import time

import msgspec
import pytest
from gated_models import Arrays, Gate, behind_a_busy_model, double, rows, soon, until

from engine.batching import (
    BatcherClosed,
    BatchPolicy,
    DynamicBatcher,
    RequestTooLarge,
)


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
