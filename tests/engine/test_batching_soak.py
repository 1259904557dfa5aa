"""Saturation with callers that give up and a model that fails, for long: nothing hangs, leaks or is counted twice."""

import asyncio
import gc
import random
import time
from collections import Counter

import numpy as np
import psutil
import pytest
from gated_models import Arrays

from engine.batching import BatchPolicy, DeadlineExceeded, DynamicBatcher, QueueFull

CALLERS = 300


class Unreliable(Exception):
    """What the model raises now and then."""


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_minute_of_trouble_leaves_nothing_behind() -> None:
    await trouble(seconds=60)


async def test_a_moment_of_trouble_leaves_nothing_behind() -> None:
    await trouble(seconds=3)


async def trouble(seconds: float) -> None:
    chance = random.Random(1)
    ends: Counter[str] = Counter()
    sent = 0

    def model(inputs: Arrays) -> Arrays:
        time.sleep(0.0005)
        if (inputs["x"][:, 0] < 0).any():
            raise Unreliable
        return {"y": inputs["x"] * 2}

    policy = BatchPolicy(max_batch_size=16, max_wait_ms=1, instances=2, max_queue_size=250, default_timeout_ms=500)
    async with DynamicBatcher(model, policy) as batcher:
        stop = time.monotonic() + seconds

        async def caller() -> None:
            nonlocal sent
            while time.monotonic() < stop:
                values = np.full((chance.randint(1, 4), chance.choice([2, 2, 3])), chance.random())
                if chance.random() < 0.01:
                    values[0, 0] = -1
                call = asyncio.ensure_future(batcher.predict({"x": values}))
                sent += 1
                if chance.random() < 0.05:
                    await asyncio.sleep(chance.random() * 0.01)
                    call.cancel()
                try:
                    outputs = await asyncio.wait_for(call, 30)
                    assert (outputs["y"] == values * 2).all()
                    ends["completed"] += 1
                except (QueueFull, DeadlineExceeded, Unreliable) as error:
                    ends[type(error).__name__] += 1
                    await asyncio.sleep(0.002)
                except asyncio.CancelledError:
                    ends["cancelled"] += 1

        async def memory() -> list[int]:
            sizes = []
            while time.monotonic() < stop:
                await asyncio.sleep(seconds / 10)
                gc.collect()
                sizes.append(psutil.Process().memory_info().rss)
            return sizes

        watch = asyncio.create_task(memory())
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        sizes = await watch
        totals = batcher.statistics.totals()
    assert sum(ends.values()) == sent == sum(totals.by_status.values())
    assert totals.in_system == 0
    assert batcher.depth == 0
    assert totals.by_status["failed"] >= ends["Unreliable"] > 0
    assert totals.by_status["completed"] >= ends["completed"] > 0
    assert min(ends["cancelled"], ends["QueueFull"]) > 0
    assert sizes[-1] - sizes[2] < 20 * 2**20  # the statistics and the first batches are allocated by then
