"""Models a test can hold and let go, and callers that pile up behind them; for the tests of the batcher."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from engine.batching import (
    BatchPolicy,
    DynamicBatcher,
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
