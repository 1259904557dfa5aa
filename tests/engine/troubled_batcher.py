"""A batcher at saturation with callers that give up, requests that make the model fail, and more of them than fit.

Used by a unit test for a moment, by a slow test for a minute and by the benchmark for ten.
"""

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import psutil
from gated_models import Arrays

from engine.batching import BatchPolicy, DeadlineExceeded, DynamicBatcher, QueueFull
from engine.batching.statistics import Totals

CALLERS = 300

POISON, GIVES_UP = 0.01, 0.05
"""Shares of the requests that make the model raise, and of those whose caller cancels within 10 ms."""

FEWEST_SAMPLES = 5
"""A busy machine takes its time over each."""

HANG_SECONDS = 30.0
"""A call that takes longer never ends."""

POLICY = BatchPolicy(max_batch_size=16, max_wait_ms=1, instances=2, max_queue_size=250, default_timeout_ms=500)


class Unreliable(Exception):
    """What the model raises when a poisoned request is in the batch."""


@dataclass(frozen=True)
class Sample:
    """The process at one moment, garbage collected before."""

    seconds: float
    sent: int
    memory_bytes: int
    threads: int
    cpu_seconds: float


@dataclass
class Outcome:
    """What became of every call, as its caller saw it and as the batcher counted it."""

    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    """Calls that got other rows than their own."""
    samples: list[Sample] = field(default_factory=list)
    totals: Totals | None = None
    depth: int = -1


async def trouble(seconds: float, every: float, told: Callable[[Sample], None] = lambda sample: None) -> Outcome:
    """Load the batcher for so long, or longer until there are `FEWEST_SAMPLES`: one each `every` seconds.

    Samples go to `told` and into the outcome.
    """
    chance = random.Random(1)
    outcome = Outcome()

    def model(inputs: Arrays) -> Arrays:
        time.sleep(0.0005)
        if (inputs["x"][:, 0] < 0).any():
            raise Unreliable
        return {"y": inputs["x"] * 2}

    gc.collect()
    gc.freeze()  # what was there before takes no part: collecting it again and again would take most of a short run
    async with DynamicBatcher(model, POLICY) as batcher:
        start = time.monotonic()

        def going_on() -> bool:
            return time.monotonic() - start < seconds or len(outcome.samples) < FEWEST_SAMPLES

        async def caller() -> None:
            while going_on():
                values = np.full((chance.randint(1, 4), chance.choice([2, 2, 3])), chance.random())
                if chance.random() < POISON:
                    values[0, 0] = -1
                call = asyncio.ensure_future(batcher.predict({"x": values}))
                outcome.sent += 1
                if chance.random() < GIVES_UP:
                    await asyncio.sleep(chance.random() * 0.01)
                    call.cancel()
                try:
                    outputs = await asyncio.wait_for(call, HANG_SECONDS)
                    outcome.wrong += not np.array_equal(outputs["y"], values * 2)
                    outcome.ends["completed"] += 1
                except (QueueFull, DeadlineExceeded, Unreliable) as error:
                    outcome.ends[type(error).__name__] += 1
                    await asyncio.sleep(0.002)
                except asyncio.CancelledError:
                    outcome.ends["cancelled"] += 1
                except TimeoutError:
                    outcome.ends["hung"] += 1

        async def watch() -> None:
            while going_on():
                await asyncio.sleep(every)
                gc.collect()
                memory = psutil.Process().memory_info().rss
                now, cpu = time.monotonic() - start, time.process_time()
                sample = Sample(now, outcome.sent, memory, threading.active_count(), cpu)
                outcome.samples.append(sample)
                told(sample)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        await watching
        outcome.totals, outcome.depth = batcher.statistics.totals(), batcher.depth
    gc.unfreeze()
    return outcome


def what_is_wrong(outcome: Outcome) -> list[str]:
    """Sentences; empty if every call ended exactly once, with its own rows, and both sides counted the same."""
    totals, ends = outcome.totals, outcome.ends
    assert totals is not None
    counted = totals.by_status
    found = {
        f"{outcome.sent} calls were made and {sum(ends.values())} ended": sum(ends.values()) != outcome.sent,
        f"{outcome.sent} calls were made and the batcher counted {counted}": sum(counted.values()) != outcome.sent,
        f"{ends['hung']} calls never ended": ends["hung"] > 0,
        f"{outcome.wrong} calls got other rows than their own": outcome.wrong > 0,
        f"{totals.in_system} requests are left in the batcher": totals.in_system != 0 or outcome.depth != 0,
        # A caller may give up after its request was run or failed: then only the batcher's figure has it.
        "more calls completed than the batcher counted": ends["completed"] > counted.get("completed", 0),
        "more calls failed than the batcher counted": ends["Unreliable"] > counted.get("failed", 0),
        "a full queue was not counted as often as it was met": ends["QueueFull"] != counted.get("rejected", 0),
        f"some trouble never came: {dict(ends)}": min(ends[kind] for kind in MUST_HAPPEN) == 0,
    }
    return [sentence for sentence, wrong in found.items() if wrong]


MUST_HAPPEN = ("completed", "cancelled", "QueueFull", "Unreliable")
