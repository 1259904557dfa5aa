"""How much the batcher and the load generator cost, and whether they tell the truth.

    python tests/benchmarks/bench_batching.py [--quick] [--rounds 5]

1. The batcher behind asyncio and a null model. Goal: at least 100,000 requests/s with 256 callers.
2. Generator and batcher without asyncio. Goals: at least 50,000 requests/s from 256 callers, as fast as possible, and
   on a schedule of 52,000/s, without the generator falling behind.
3. What a request costs an idle batcher (batch 1, nobody else): the added latency.
4. Without batching the mean wait against M/G/1, and Little's law, on a model that sleeps.
5. Batched throughput at saturation against the same model called with full batches in a plain loop.
6. What waiting for company brings and costs: mean latency without it, where it pays, and always.

CPU time a request stands beside each rate: on a busy machine it is the figure to compare. The threads share one
interpreter, so the best to expect is one core's worth: 1 / (CPU time a request).
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from goals import Goals, arguments
from intervals import mean

from engine.batching import BatchPolicy, DynamicBatcher
from engine.batching.arrays import Arrays
from engine.measurements.load_test.generator import LoadGenerator
from engine.measurements.load_test.record import Record
from engine.measurements.load_test.request import Load
from engine.measurements.load_test.summary import summarise
from engine.measurements.load_test.target import BatcherTarget
from engine.protocol import LoadSummary

SECONDS, QUICK_SECONDS = 3.0, 0.5

BATCHER, TOGETHER, SCHEDULED = 100_000, 50_000, 52_000
"""Requests a second: goals of the batcher alone and with the generator, and the rate that is asked of the latter."""

ROW: Arrays = {"input": np.zeros((1, 16), np.float32)}


def null(inputs: Arrays) -> Arrays:
    return {"output": inputs["input"]}


def sleeping(fixed: float, per_row: float = 0.0) -> Callable[[Arrays], Arrays]:
    def run(inputs: Arrays) -> Arrays:
        time.sleep(fixed + per_row * len(inputs["input"]))
        return null(inputs)

    return run


def load_test(
    run: Callable[[Arrays], Arrays], policy: BatchPolicy, load: Load
) -> tuple[LoadSummary, Record, float, BatcherTarget]:
    """The summary, the record, CPU seconds a request, the target."""
    target = BatcherTarget(run, policy)
    generator = LoadGenerator(target, [ROW], load)
    cpu = time.process_time()
    record = generator.run()
    cpu = time.process_time() - cpu
    return summarise(record, load, generator.sending_ended), record, cpu / record.count, target


async def asyncio_callers(callers: int, seconds: float) -> float:
    """Calls a second."""
    calls = 0
    async with DynamicBatcher(null, BatchPolicy(max_batch_size=32, max_wait_ms=2)) as batcher:
        stop = time.monotonic() + seconds

        async def caller() -> None:
            nonlocal calls
            while time.monotonic() < stop:
                await batcher.predict(ROW)
                calls += 1

        cpu, start = time.process_time(), time.monotonic()
        await asyncio.gather(*(caller() for _ in range(callers)))
        elapsed, cpu = time.monotonic() - start, time.process_time() - cpu
        totals = batcher.statistics.totals()
    print(
        f"   {callers:4d} callers: {calls / elapsed:9,.0f} requests/s, {cpu / calls * 1e6:5.1f} µs of CPU each,"
        f" mean batch {totals.rows / totals.runs:.1f}"
    )
    return calls / elapsed


def show(label: str, summary: LoadSummary, cpu: float) -> None:
    lag = f", lag p99 {summary.lag_ms['p99']:.2f} ms" if summary.lag_ms else ""
    print(
        f"   {label}: {summary.achieved_per_s:9,.0f} requests/s, {cpu * 1e6:5.1f} µs of CPU each,"
        f" p50 {summary.latency_ms['p50'].value:.3f} p99 {summary.latency_ms['p99'].value:.3f} ms{lag}"
        f"{'' if summary.valid else ' INVALID'}"
    )


def main() -> int:
    """All parts; the first two are judged."""
    parser = arguments(__doc__, "3 minutes")
    parser.add_argument("--rounds", type=int, default=5, help="of what is judged, at least 3")
    parser.add_argument("--quick", action="store_true", help="3 rounds of half a second: shows that it works")
    asked = parser.parse_args()
    rounds, seconds = (3, QUICK_SECONDS) if asked.quick else (asked.rounds, SECONDS)
    goals = Goals()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("1. batcher behind asyncio, null model")
    for callers in (32, 1024):
        asyncio.run(asyncio_callers(callers, seconds))
    rates = [asyncio.run(asyncio_callers(256, seconds)) for _ in range(rounds)]
    goals.at_least(f"batcher, null model, 256 callers: {BATCHER:,} requests/s", mean(rates), BATCHER, 0)

    print("2. generator and batcher, null model")
    policy = BatchPolicy(max_batch_size=32, max_wait_ms=1, max_queue_size=100_000)
    for load in (
        Load(rate=SCHEDULED, seconds=seconds),
        Load(arrivals="closed", concurrency=256, seconds=seconds),
        Load(arrivals="offline", seconds=seconds),
    ):
        rates, invalid = [], 0
        for _ in range(rounds):
            summary, _, cpu, _ = load_test(null, policy, load)
            show(f"{summary.scenario:12}", summary, cpu)
            rates.append(summary.achieved_per_s)
            invalid += not summary.valid
        what = f"generator and batcher, null model, {summary.scenario}"
        goals.at_least(f"{what}: {TOGETHER:,} requests/s", mean(rates), TOGETHER, 0)
        if load.open_loop and invalid:  # what robbed the generator of its core may not be ours
            goals.undecided(f"{what} at {SCHEDULED:,}/s: every run valid", f"{invalid} of {rounds} runs INVALID")
        elif load.open_loop:
            goals.counted(f"{what} at {SCHEDULED:,}/s: every run valid", True, f"{rounds} of {rounds}")

    print("3. one request at a time, null model")
    summary, _, cpu, _ = load_test(null, policy, Load(arrivals="closed", seconds=seconds))
    show("SingleStream", summary, cpu)
    summary, _, cpu, _ = load_test(null, policy, Load(rate=100, seconds=seconds))
    show("Server 100/s", summary, cpu)

    print("4. theory: a model that sleeps 2 ms, no batching, load 0.55")
    alone = BatchPolicy(max_batch_size=1, max_wait_ms=0)
    summary, record, _, target = load_test(sleeping(0.002), alone, Load(rate=250, seconds=10 * seconds))
    used = slice(0, record.count)
    sent, service = record.sent[used], (record.computed - record.taken)[used]
    rate = record.count / summary.seconds
    expected = rate * (service**2).mean() / (2 * (1 - rate * service.mean()))
    waited = (record.taken[used] - sent).mean()
    inside = target.executor.statistics.totals().request_seconds
    law = inside / (record.finished[used] - sent).sum()
    print(f"   mean wait {waited * 1e3:.3f} ms, M/G/1 says {expected * 1e3:.3f} ms; Little's law L / λW = {law:.4f}")

    print("5. saturation: a model of 1 ms + 0.1 ms a row, batches of 32")
    model, full = sleeping(0.001, 0.0001), {"input": np.zeros((32, 16), np.float32)}
    start, runs = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        model(full)
        runs += 1
    plain = runs * 32 / (time.monotonic() - start)
    batches = BatchPolicy(max_batch_size=32)
    for load in (Load(arrivals="offline", seconds=seconds), Load(rate=2 * plain, seconds=seconds)):
        summary, _, cpu, _ = load_test(model, batches, load)
        share = summary.achieved_per_s / plain
        print(f"   {summary.scenario:7}: {summary.achieved_per_s:,.0f} rows/s = {share:.1%} of a plain loop")

    print("6. waiting up to 10 ms: mean latency, a model of 5 ms whatever the batch")
    for load in (Load(arrivals="closed", concurrency=8, seconds=seconds), Load(rate=250, seconds=seconds)):
        means = []
        for waiting in (BatchPolicy(max_wait_ms=0), BatchPolicy(), BatchPolicy(wait="always")):
            summary, record, _, _ = load_test(sleeping(0.005), waiting, load)
            means.append(float(np.nanmean(record.finished - record.scheduled)) * 1e3)
        never, paying, always = means
        print(f"   {summary.scenario:11}: never {never:.2f} ms, when it pays {paying:.2f} ms, always {always:.2f} ms")
    return goals.judged()


if __name__ == "__main__":
    sys.exit(main())
