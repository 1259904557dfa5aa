"""The times of every request of a load test: arrays, 57 bytes a request, and not objects.

Times are seconds since the start of the run; NaN for what did not happen. Counting all requests exactly is cheaper
than any sketch at these sizes: a million of them are 57 MB (180 with all that a test does with them, see
`protocol.load.BYTES_A_REQUEST`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...batching.queue import COMPLETED, REJECTED, STATUS_NAMES

Floats = npt.NDArray[np.float64]

DROPPED = len(STATUS_NAMES)
"""A status beside the batcher's own: the sender itself had no room for the request, so it was never sent."""


@dataclass(slots=True)
class Record:
    """Every request of a run, by number. `count` of each array are used; a time that did not come is NaN."""

    count: int
    scheduled: Floats
    """When it should have been sent; in a closed loop, when it was."""
    sent: Floats
    taken: Floats
    """When an instance was free for it."""
    started: Floats
    """When the model was called with it."""
    computed: Floats
    """When the model returned."""
    finished: Floats
    """When its caller had the answer (or the refusal)."""
    batch_rows: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    status: npt.NDArray[np.int8]
    """See `batching.queue.STATUS_NAMES`, and `DROPPED`; 0 was never answered."""

    @classmethod
    def empty(cls, capacity: int) -> "Record":
        def times() -> Floats:
            return np.full(capacity, np.nan)

        def sizes() -> npt.NDArray[np.int32]:
            return np.zeros(capacity, np.int32)

        status = np.zeros(capacity, np.int8)
        return cls(0, times(), times(), times(), times(), times(), times(), sizes(), sizes(), status)

    def completed_between(self, start: float, end: float) -> npt.NDArray[np.intp]:
        """Numbers of the requests whose answers came in this time, whenever they were scheduled."""
        finished = self.finished[: self.count]
        within = (finished >= start) & (finished <= end)
        return np.flatnonzero(within & (self.status[: self.count] == COMPLETED))

    def grow(self, capacity: int) -> None:
        more = Record.empty(capacity - len(self.sent))
        for name in self.__slots__:
            if name != "count":
                setattr(self, name, np.concatenate([getattr(self, name), getattr(more, name)]))


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that was changed in the middle of a run."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What happened since the last look. Latencies in milliseconds; None without answers."""

    time: float
    seconds: float
    sent: int
    completed: int
    rejected: int
    failed: int
    throughput_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    outstanding: int
    mean_batch: float | None


def look_at(
    record: Record, numbers: npt.NDArray[np.int64], sent: int, outstanding: int, since: float, now: float
) -> LiveFigures:
    """Figures of the requests with these numbers, settled between two times."""
    status = record.status[numbers]
    done = numbers[status == COMPLETED]
    latency = (record.finished[done] - record.scheduled[done]) * 1e3
    rows = record.rows[done]
    runs = float((rows / np.maximum(record.batch_rows[done], 1)).sum())
    seconds = max(now - since, 1e-9)
    return LiveFigures(
        time=now,
        seconds=seconds,
        sent=sent,
        completed=len(done),
        rejected=int((status == REJECTED).sum()),
        failed=int(((status > COMPLETED) & (status != REJECTED)).sum()),
        throughput_per_s=len(done) / seconds,
        p50_ms=float(np.quantile(latency, 0.5)) if len(done) else None,
        p99_ms=float(np.quantile(latency, 0.99)) if len(done) else None,
        outstanding=outstanding,
        mean_batch=float(rows.sum()) / runs if len(done) else None,
    )
