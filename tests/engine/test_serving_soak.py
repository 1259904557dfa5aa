"""A server under callers that vanish, send nonsense and hit a model that fails: nobody hangs and nothing is kept."""

import asyncio
import json
import os
import random
from collections import Counter

import pytest
from engines import wait_until
from served_models import serving

SECONDS, CALLERS = 15, 24

GOOD = json.dumps({"inputs": {"x": [[1, 2, 3]]}}).encode()
POISON = json.dumps({"inputs": {"x": [[-1, 2, 3]]}}).encode()


def fails_now_and_then(inputs):
    if (inputs["x"] < 0).any():
        raise ValueError("a negative number")
    return {"y": inputs["x"] * 2}


async def call(port: int, body: bytes, patience: float | None) -> int:
    """The status; 0 for a caller that hung up after `patience` seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(patience):
            return int((await reader.readline()).split()[1])
    except TimeoutError:
        return 0
    finally:
        writer.transport.abort()


async def hammer(port: int) -> Counter[int]:
    chance, counts = random.Random(0), Counter[int]()
    end = asyncio.get_running_loop().time() + SECONDS

    async def caller() -> None:
        while asyncio.get_running_loop().time() < end:
            kind = chance.random()
            body = GOOD if kind < 0.7 else POISON if kind < 0.85 else chance.randbytes(50)
            # Nobody waits for ever: a request without an answer would show as one without a status.
            status = await call(port, body, patience=chance.random() * 0.02 if chance.random() < 0.2 else 60)
            counts[status] += 1
            if status == 200:
                assert body is GOOD
            elif status:
                assert status == (500 if body is POISON else 400)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return counts


@pytest.mark.slow
def test_every_request_is_accounted_for_and_nothing_is_left_behind():
    with serving(fails_now_and_then, max_batch_size=16) as server:
        asyncio.run(hammer(server.port))  # sockets and memory as they are once all is warm
        wait_until(server.door.idle.is_set)
        before = len(os.listdir("/proc/self/fd"))
        seen = server.model.counts().succeeded + sum(server.model.counts().failed.values())
        counts = asyncio.run(hammer(server.port))
        wait_until(server.door.idle.is_set)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)
        totals = server.model.batcher.statistics.totals()
        assert totals.in_system == 0
        assert server.model.batcher.depth == 0
        assert server.door.held.bytes == 0
        ended = server.model.counts()
        answered = ended.succeeded + sum(ended.failed.values()) - seen
        assert sum(counts.values()) - counts[0] <= answered <= sum(counts.values())
        assert min(counts[200], counts[500], counts[400]) > 100
        assert totals.accepted == sum(totals.by_status.values())
