"""What a batcher did, in arrays laid out beforehand: recording a batch costs a few microseconds and no memory.

One row for each of the last `CAPACITY` runs of the model, and totals since the start. Times are seconds of the
batcher's monotonic clock. Written under the batcher's lock; `read` may be called from any thread.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .queue import STATUS_NAMES, Batch

CAPACITY = 65_536
"""Runs that are remembered one by one; half a minute at two thousand batches a second."""

RUN = np.dtype(
    [
        ("finished", "f8"),
        ("queue", "f8"),
        ("forming", "f8"),
        ("compute", "f8"),
        ("rows", "i4"),
        ("requests", "i4"),
        ("depth", "i4"),
        ("instance", "i4"),
    ]
)
"""One run. `queue` is the mean wait of its requests until an instance was free for them, `forming` the time from
then to the model's call (joining the inputs), `depth` the requests left in the queue."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the start. Mean batch is `rows / runs`; mean queue time `queue_seconds / run_requests`."""

    accepted: int
    by_status: dict[str, int]
    """How many requests ended "completed", "failed", "expired", "cancelled", "closed" or "rejected"."""
    runs: int
    run_requests: int
    rows: int
    queue_seconds: float
    """Summed over requests; the two below over runs."""
    forming_seconds: float
    compute_seconds: float
    batch_sizes: dict[int, int]
    """Rows of a run → number of runs."""
    in_system: int
    """Requests that wait or run now."""
    request_seconds: float
    """Summed over requests, from acceptance until it was handed back: divided by the time passed, Little's L."""


class BatchStatistics:
    """Counts and times of one batcher."""

    def __init__(self, max_batch_size: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._runs = np.zeros(CAPACITY, RUN)
        self._sizes = np.zeros(max_batch_size + 1, np.int64)
        self._ended = [0] * len(STATUS_NAMES)
        self._accepted = self._run_count = self._run_requests = self._rows = 0
        self._queue = self._forming = self._compute = 0.0
        self._in_system = 0
        self._start = clock()
        self._dwelt = 0.0
        """Seconds since the start, summed over the requests that left, less those summed over all that entered: with
        what the ones inside have had so far, the integral of their number over time."""

    def make_room(self, max_batch_size: int) -> None:
        """Before a policy with larger batches takes effect."""
        if max_batch_size >= len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.zeros(max_batch_size + 1 - len(self._sizes), np.int64)])

    def entered(self, now: float) -> None:
        """A request was accepted."""
        self._dwelt -= now - self._start
        self._in_system += 1
        self._accepted += 1

    def left(self, now: float, status: int, count: int = 1, accepted: bool = True) -> None:
        """Requests ended; `accepted` False for those that never entered."""
        if accepted:
            self._dwelt += count * (now - self._start)
            self._in_system -= count
        self._ended[status] += count

    def held(self, seconds: float) -> None:
        """So long, summed, requests that had left waited to be handed back."""
        self._dwelt += seconds

    def ran(self, batch: Batch, queue_seconds: float) -> None:
        """The model was called once; `queue_seconds` summed over its requests."""
        requests = len(batch.requests)
        forming, compute = batch.started - batch.taken, batch.finished - batch.started
        self._runs[self._run_count % CAPACITY] = (
            batch.finished,
            queue_seconds / requests,
            forming,
            compute,
            batch.rows,
            requests,
            batch.depth,
            batch.instance,
        )
        self._run_count += 1
        self._run_requests += requests
        self._rows += batch.rows
        self._queue += queue_seconds
        self._forming += forming
        self._compute += compute
        self._sizes[batch.rows] += 1

    def totals(self) -> Totals:
        now = self._clock()
        return Totals(
            accepted=self._accepted,
            by_status={name: n for name, n in zip(STATUS_NAMES, self._ended) if n},
            runs=self._run_count,
            run_requests=self._run_requests,
            rows=self._rows,
            queue_seconds=self._queue,
            forming_seconds=self._forming,
            compute_seconds=self._compute,
            batch_sizes={int(size): int(self._sizes[size]) for size in np.flatnonzero(self._sizes)},
            in_system=self._in_system,
            request_seconds=self._dwelt + self._in_system * (now - self._start),
        )

    def runs(self, since: int = 0) -> npt.NDArray[np.void]:
        """The runs number `since` and later that are still remembered, oldest first (a copy, dtype `RUN`)."""
        first = max(since, self._run_count - CAPACITY)
        return self._runs[np.arange(first, self._run_count) % CAPACITY]
