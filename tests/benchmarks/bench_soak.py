"""Ten minutes at saturation with callers that give up and requests that fail: no hang, no leak, no call lost.

    python tests/benchmarks/bench_soak.py [--minutes 10] [--quick]

300 callers keep more requests in the queue than it takes; 5 % cancel within 10 ms, 1 % make the model raise (and their
batch is run again by halves), the requests have one to four rows and two shapes, and each may wait half a second. Every
call has to end once, with its own rows, and both sides have to have counted the same. Memory, threads and rate are
compared between the second minute and the last (in less than three minutes, between the second fifth and the last): a
batcher that slows down by the minute leaks something.

Before that, for a tenth of the time each: the load generator as fast as it can while its knobs are turned at random
(largest batch, wait, instances, pause; now and then a row makes the model fail), and the gRPC door of a server whose
callers give up, send nonsense and hit failures. Every request has to be accounted for once there too.
"""

import asyncio
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import msgspec
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "engine"), str(REPOSITORY / "tests" / "benchmarks")]

from goals import Goals, arguments  # noqa: E402
from served_models import RunningServer, serving  # noqa: E402
from troubled_batcher import Sample, trouble, what_is_wrong  # noqa: E402

from engine.batching.arrays import Arrays  # noqa: E402
from engine.batching.policy import BatchPolicy  # noqa: E402
from engine.measurements.load_test.generator import LoadGenerator  # noqa: E402
from engine.measurements.load_test.request import Load  # noqa: E402
from engine.measurements.load_test.target import BatcherTarget  # noqa: E402
from engine.serving.grpc_messages import CLASSES, SERVICE  # noqa: E402

MOST_GROWTH = 8 * 2**20
"""Bytes that the process may have more in the last part; it grows and shrinks by a few for the allocator's reasons."""

EVERY = 5.0
"""Seconds between samples."""


def main() -> int:
    """All three, judged."""
    parser = arguments(__doc__, "12 minutes")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="half a minute: shows that it works")
    asked = parser.parse_args()
    seconds = 30.0 if asked.quick else asked.minutes * 60
    goals = Goals()
    print(f"{seconds / 60:g} minutes; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for title, soaked in (
        ("generator with its knobs turned", turned_knobs(seconds / 10)),
        ("gRPC door", grpc_door(seconds / 10)),
        ("batcher at saturation", saturated(seconds)),
    ):
        print("\n".join(f"WRONG: {sentence}" for sentence in soaked) or f"{title}: every request accounted for once")
        goals.counted(
            f"{title}: no hang, no leak, every request accounted for once", not soaked, "; ".join(soaked) or "so it was"
        )
    return goals.judged()


def turned_knobs(seconds: float) -> list[str]:
    """What is wrong with a load test whose knobs are turned all the time."""
    chance = random.Random(2)

    def model(inputs: Arrays) -> Arrays:
        time.sleep(0.0002)
        if (inputs["x"][:, 0] < 0).any():
            raise ValueError("a negative number")
        return {"y": inputs["x"]}

    pool = [{"x": np.full((rows, 2), value, np.float32)} for rows in (1, 2, 3) for value in (0.0, *[1.0] * 8)]
    pool.append({"x": np.full((1, 2), -1, np.float32)})
    target = BatcherTarget(model, BatchPolicy(max_batch_size=8, max_queue_size=2000, default_timeout_ms=1000.0))
    generator = LoadGenerator(target, pool, Load(arrivals="closed", concurrency=64, seconds=seconds))
    over, turns = threading.Event(), 0

    def turn() -> None:
        nonlocal turns
        while not over.wait(chance.random() * 0.2):
            if not generator.started:
                continue
            turns += 1
            executor, which = target.executor, chance.randrange(5)
            if which == 4:
                generator.pause()
                over.wait(0.05)
                generator.resume()
            elif which == 3:
                generator.set_concurrency(chance.choice([1, 16, 64, 256]))
            else:
                name, values = (
                    ("max_batch_size", [3, 8, 32]),
                    ("max_wait_ms", [0.0, 1.0, 10.0]),
                    ("instances", [1, 2, 4]),
                )[which]
                executor.set_policy(msgspec.structs.replace(executor.policy, **{name: chance.choice(values)}))

    turning = threading.Thread(target=turn, daemon=True)
    turning.start()
    before = threading.active_count()
    record = generator.run()
    over.set()
    turning.join(5)
    totals = target.executor.statistics.totals()
    ended = int((~np.isnan(record.finished[: record.count])).sum())
    print(f"   {record.count:,} requests, knobs turned {turns} times; {_counts(totals.by_status)}", flush=True)
    found = {
        f"{record.count} requests were sent and {ended} ended": ended != record.count,
        f"the batcher counted {totals.by_status}": sum(totals.by_status.values()) != record.count,
        f"{totals.in_system} requests are left in the batcher": totals.in_system != 0,
        f"there were {before} threads and are {threading.active_count()}": threading.active_count() > before,
        "no knob was turned": turns == 0,
        "no request failed": not totals.by_status.get("failed"),
    }
    return [sentence for sentence, wrong in found.items() if wrong]


def grpc_door(seconds: float) -> list[str]:
    """What is wrong with a server whose callers over gRPC give trouble."""

    def model(inputs: Arrays) -> Arrays:
        if (inputs["x"] < 0).any():
            raise ValueError("a negative number")
        return {"y": inputs["x"] * 2}

    with serving(model, max_batch_size=16) as server:
        sent = asyncio.run(hammer(server, seconds))
        end = time.monotonic() + 20
        while (server.model.batcher.depth or server.door.held.bytes) and time.monotonic() < end:
            time.sleep(0.05)
        counts, totals = server.model.counts(), server.model.batcher.statistics.totals()
        answered = counts.succeeded + sum(counts.failed.values())
        held = server.door.held.bytes
    total = sum(sent.values())
    print(f"   {total:,} calls: {_counts(sent)}", flush=True)
    found = {
        f"{total - sent['CANCELLED']} calls were answered and {answered} counted": not (
            total - sent["CANCELLED"] <= answered <= total
        ),
        f"{totals.in_system} requests are left in the batcher": totals.in_system != 0,
        f"{held} bytes are held for nobody": held != 0,
        f"some trouble never came, or another one: {dict(sent)}": set(sent)
        != {"OK", "CANCELLED", "INTERNAL", "INVALID_ARGUMENT"},
    }
    return [sentence for sentence, wrong in found.items() if wrong]


async def hammer(server: RunningServer, seconds: float) -> Counter[str]:
    """What became of the calls of 24 callers, by gRPC's code."""
    chance, ends = random.Random(3), Counter[str]()

    def message(value: float) -> bytes:
        made = CLASSES["ModelInferRequest"](model_name="double")
        made.inputs.add(name="x", datatype="FP32", shape=[1, 3])
        made.raw_input_contents.append(np.full(3, value, "<f4").tobytes())
        return made.SerializeToString()

    good, poison = message(1.0), message(-1.0)
    end = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        async def caller() -> None:
            while time.monotonic() < end:
                kind = chance.random()
                body = good if kind < 0.7 else poison if kind < 0.85 else b"\xff" * chance.randint(1, 50)
                call = infer(body, timeout=60)
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.random() * 0.005)
                    call.cancel()
                ends[(await call.code()).name] += 1

        await asyncio.gather(*(caller() for _ in range(24)))
    return ends


def saturated(seconds: float) -> list[str]:
    """What is wrong with the batcher after so long at saturation; a line a minute is printed."""
    part = 60.0 if seconds >= 180 else seconds / 5
    shown: list[Sample] = [Sample(0.0, 0, 0, 0, time.process_time())]

    def show(sample: Sample) -> None:
        past = shown[-1]
        if sample.seconds >= past.seconds + part * 0.99:
            rate, cpu = _speed(past, sample)
            memory = f"{sample.memory_bytes / 2**20:6.1f} MiB, {sample.threads} threads"
            print(f"   {sample.seconds:5.0f} s: {rate:6,.0f} calls/s, {cpu:5.1f} µs of CPU each, {memory}", flush=True)
            shown.append(sample)

    outcome = asyncio.run(trouble(seconds, min(EVERY, part / 5), show))
    wrong = what_is_wrong(outcome)
    settled = [sample for sample in outcome.samples if part < sample.seconds <= 2 * part]
    last = [sample for sample in outcome.samples if sample.seconds > seconds - part]
    growth = np.median([s.memory_bytes for s in last]) - np.median([s.memory_bytes for s in settled])
    threads = [max(sample.threads for sample in samples) for samples in (settled, last)]
    speeds = [_speed(samples[0], samples[-1]) for samples in (settled, last)]
    if growth > MOST_GROWTH:
        wrong.append(f"the process grew by {growth / 2**20:.1f} MiB")
    if threads[1] > threads[0]:
        wrong.append(f"there were {threads[0]} threads and are {threads[1]}")
    assert outcome.totals is not None
    print(f"calls made {outcome.sent:,}; as the callers saw them: {_counts(outcome.ends)}")
    print(f"as the batcher counted them: {_counts(outcome.totals.by_status)}; left in it: {outcome.totals.in_system}")
    print(f"memory {growth / 2**20:+.1f} MiB, threads {threads[0]} → {threads[1]}, ", end="")
    print(
        f"rate {speeds[0][0]:,.0f} → {speeds[1][0]:,.0f} calls/s, CPU {speeds[0][1]:.1f} → {speeds[1][1]:.1f} µs a call"
    )
    return wrong


def _speed(first: Sample, last: Sample) -> tuple[float, float]:
    """(calls a second, microseconds of CPU a call) between two samples."""
    calls = last.sent - first.sent
    return calls / (last.seconds - first.seconds), (last.cpu_seconds - first.cpu_seconds) / calls * 1e6


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
