"""Ten minutes at saturation with callers that give up and requests that fail: no hang, no leak, no call lost.

    python tests/benchmarks/bench_soak.py [--minutes 10] [--quick]

300 callers keep more requests in the queue than it takes; 5 % cancel within 10 ms, 1 % make the model raise (and their
batch is run again by halves), the requests have one to four rows and two shapes, and each may wait half a second. Every
call has to end once, with its own rows, and both sides have to have counted the same. Memory, threads and rate are
compared between the second minute and the last (in less than three minutes, between the second fifth and the last): a
batcher that slows down by the minute leaks something. Exits with 1 if anything was wrong.
"""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "engine")]

from troubled_batcher import Sample, trouble, what_is_wrong  # noqa: E402

MOST_GROWTH = 8 * 2**20
"""Bytes that the process may have more in the last part; it grows and shrinks by a few for the allocator's reasons."""

EVERY = 5.0
"""Seconds between samples."""


def main() -> int:
    """Soak, print a line a minute and the account."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--quick", action="store_true", help="half a minute: shows that it works")
    asked = arguments.parse_args()
    seconds = 30.0 if asked.quick else asked.minutes * 60
    print(f"{seconds / 60:g} minutes; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
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
    print("\n".join(f"WRONG: {sentence}" for sentence in wrong) or "no hang, no leak, every call accounted for once")
    return 1 if wrong else 0


def _speed(first: Sample, last: Sample) -> tuple[float, float]:
    """(calls a second, microseconds of CPU a call) between two samples."""
    calls = last.sent - first.sent
    return calls / (last.seconds - first.seconds), (last.cpu_seconds - first.cpu_seconds) / calls * 1e6


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
