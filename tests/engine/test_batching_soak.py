"""Saturation with callers that give up and a model that fails, for long: nothing hangs, leaks or is counted twice.

Ten minutes of it: `python tests/benchmarks/bench_soak.py`.
"""

import pytest
from troubled_batcher import trouble, what_is_wrong


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_minute_of_trouble_leaves_nothing_behind() -> None:
    await leaves_nothing_behind(60)


async def test_a_moment_of_trouble_leaves_nothing_behind() -> None:
    await leaves_nothing_behind(3)


async def leaves_nothing_behind(seconds: float) -> None:
    outcome = await trouble(seconds, every=seconds / 10)
    assert what_is_wrong(outcome) == []
    settled, last = (
        outcome.samples[2],
        outcome.samples[-1],
    )  # the statistics and the first batches are allocated by then
    assert last.memory_bytes - settled.memory_bytes < 20 * 2**20
    assert last.threads == settled.threads
