"""Which requests make the next batch, and when: the decision without threads, clocks or models.

A request belongs to a *group* of those it can share a batch with (same names, dtypes and shapes but for the
rows). A group is ready when it is full, when it reached a preferred size, or when it need not wait any more; shortly
before one of its deadlines it need not, so none passes while an instance is idle.
Of the ready groups the one with the most urgent, then oldest request goes first, so a rare shape neither blocks
the others nor starves. Times are seconds of one monotonic clock, always passed in. Not thread-safe.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from .policy import BatchPolicy

FOREVER = float("inf")

QUEUED, TAKEN, COMPLETED, FAILED, EXPIRED, CANCELLED, CLOSED, REJECTED = range(8)
"""What became of a request. Every one ends in exactly one of those after `TAKEN`."""

STATUS_NAMES = ("queued", "running", "completed", "failed", "expired", "cancelled", "closed", "rejected")

PATIENCE = 3.0
"""A batch that waits for one more request gives up after this many usual gaps without an arrival."""

WAKE_SECONDS = 60e-6
"""What a thread's timed wait costs on Linux beyond its time; no wait shorter than this can pay."""

DEADLINE_SECONDS = 0.005
"""So long before the first of its deadlines a group waits for company no more: a thread that is woken may have to wait
for the interpreter (Python hands it over every 5 ms). Of a shorter limit at least half is left for company."""

GROUPS_KEPT = 64
"""Empty groups are kept up to this number, for what they know about their arrivals."""

GAP_WEIGHT = 0.1
"""Weight of the newest gap between arrivals in their moving average."""

Key = tuple[Any, ...]
"""What requests of one batch have in common: ((name, dtype, shape without rows), …)."""


class Batch:
    """Requests that run together. Times are None until the thing happened."""

    __slots__ = ("depth", "finished", "instance", "requests", "rows", "started", "taken")

    def __init__(self, requests: list["Request"], rows: int, taken: float, depth: int) -> None:
        self.requests = requests
        """Empty once its figures were recorded."""
        self.rows = rows
        self.taken = taken
        """When an instance was free for it: the end of queueing."""
        self.started = 0.0
        """When the model was called."""
        self.finished = 0.0
        self.instance = 0
        self.depth = depth
        """Requests left in the queue when it was taken."""


class Request(msgspec.Struct, eq=False):
    """One caller's rows on their way through the batcher. (A struct of msgspec is made in half the time.)"""

    inputs: dict[str, Any] | None
    rows: int
    key: Key
    priority: int = 1
    deadline: float = FOREVER
    future: Any = None
    tag: int = 0
    """The sender's own number for it."""
    level: int = 0
    """Order of service: priority, then whether the deadline has passed already. Set when it is queued."""
    status: int = QUEUED
    """What became of it."""
    arrival: float = 0.0
    outputs: dict[str, Any] | None = None
    error: BaseException | None = None
    batch: Batch | None = None


class ServiceTimes:
    """What a batch of n rows is expected to take: a + b·n, least squares over the recent batches."""

    DECAY = 0.98

    def __init__(self) -> None:
        self._weight = self._n = self._nn = self._t = self._nt = 0.0
        self.fixed = 0.0
        self.per_row = 0.0

    @property
    def known(self) -> bool:
        return self._weight > 0

    def record(self, rows: int, seconds: float) -> None:
        keep = self.DECAY
        self._weight = self._weight * keep + 1
        self._n = self._n * keep + rows
        self._nn = self._nn * keep + rows * rows
        self._t = self._t * keep + seconds
        self._nt = self._nt * keep + rows * seconds
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n * mean_n
        # One size only: nothing is known of the slope. Hope that more rows are free, and learn from trying.
        slope = (self._nt / self._weight - mean_n * mean_t) / variance if variance > 0.01 else 0.0
        self.per_row = min(max(slope, 0.0), mean_t / mean_n)
        self.fixed = mean_t - self.per_row * mean_n

    def expect(self, rows: float) -> float:
        return self.fixed + self.per_row * rows


class _Group:
    """Waiting requests that fit together, by order of service; and how fast they come."""

    __slots__ = ("_due", "_due_is_known", "gap", "last_arrival", "levels", "order", "requests", "rows")

    def __init__(self) -> None:
        self._due = FOREVER
        self._due_is_known = True
        self.levels: dict[int, deque[Request]] = {}
        self.order: list[int] = []
        self.rows = 0
        self.requests = 0
        self.gap = FOREVER
        self.last_arrival = -FOREVER

    def append(self, request: Request) -> None:
        line = self.levels.get(request.level)
        if line is None:
            line = self.levels[request.level] = deque()
            self.order = sorted(self.levels)
        line.append(request)
        self.rows += request.rows
        self.requests += 1
        if request.deadline < FOREVER and (due := _due(request)) < self._due:
            self._due = due

    def forget(self, rows: int, requests: int) -> None:
        """So many left the group."""
        self.rows -= rows
        self.requests -= requests
        self._due_is_known = self._due == FOREVER
        if not self.requests:
            self._due, self._due_is_known = FOREVER, True

    def due(self) -> float:
        """When it has to be taken at the latest, or one of its deadlines passes. Looks at every request after some
        left: for groups that are less than a batch."""
        if not self._due_is_known:
            self._due = min(_due(request) for line in self.levels.values() for request in line)
            self._due_is_known = True
        return self._due

    def head(self) -> Request:
        for level in self.order:
            if self.levels[level]:
                return self.levels[level][0]
        raise IndexError("the group is empty")

    def oldest(self) -> float:
        return min(line[0].arrival for line in self.levels.values() if line)


class RequestQueue:
    """The waiting requests. `count` of them, in all groups."""

    def __init__(self) -> None:
        self.count = 0
        self.times = ServiceTimes()
        self._groups: dict[Key, _Group] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._ties = itertools.count()

    def add(self, request: Request, now: float) -> None:
        request.arrival = now
        request.level = request.priority << 1
        group = self._groups.get(request.key)
        if group is None:
            if len(self._groups) >= GROUPS_KEPT:
                self._groups = {key: kept for key, kept in self._groups.items() if kept.requests}
            group = self._groups[request.key] = _Group()
        group.append(request)
        gap = now - group.last_arrival
        group.last_arrival = now
        if group.gap == FOREVER:
            group.gap = gap
        else:  # a pause counts little: were the estimate too small, patience would end the wait soon
            usual = group.gap
            longest = 8 * usual if usual > WAKE_SECONDS else 8 * WAKE_SECONDS
            group.gap = usual + GAP_WEIGHT * ((gap if gap < longest else longest) - usual)
        self.count += 1
        if request.deadline < FOREVER:
            self._note_deadline(request)

    def remove(self, request: Request) -> bool:
        """Take a request out unserved (its caller went away). False if it is not waiting."""
        if request.status != QUEUED:
            return False
        group = self._groups[request.key]
        group.levels[request.level].remove(request)
        group.forget(request.rows, 1)
        self.count -= 1
        return True

    def remove_all(self, larger_than: int = 0) -> list[Request]:
        """Take out every request with more rows than that."""
        found = [
            request
            for group in self._groups.values()
            for line in group.levels.values()
            for request in line
            if request.rows > larger_than
        ]
        for request in found:
            self.remove(request)
        return found

    def next_deadline(self) -> float:
        return self._deadlines[0][0] if self._deadlines else FOREVER

    def count_of(self, priority: int) -> int:
        """Requests of this priority that wait."""
        levels = (priority << 1, priority << 1 | 1)
        return sum(len(line) for group in self._groups.values() for at in levels if (line := group.levels.get(at)))

    def expire(self, now: float, delays: Callable[[int], bool] = lambda priority: False) -> list[Request]:
        """Take out the requests whose deadline has passed; those of a priority that `delays` go behind the others of
        theirs instead."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not self.remove(request):
                continue
            if delays(request.priority):
                request.level |= 1
                request.deadline = FOREVER
                self._groups[request.key].append(request)
                self.count += 1
            else:
                expired.append(request)
        return expired

    def take(self, now: float, policy: BatchPolicy, others_idle: bool = False) -> tuple[Batch | None, float]:
        """The batch for an instance that is free now, or None and the time at which to look again."""
        best: tuple[int, float, _Group] | None = None
        look_again = FOREVER
        for group in self._groups.values():
            if not group.requests:
                continue
            when = self._ready_at(group, now, policy, others_idle)
            if when > now:
                look_again = min(look_again, when)
                continue
            head = group.head()
            if best is None or (head.level, head.arrival) < best[:2]:
                best = head.level, head.arrival, group
        if best is None:
            return None, look_again
        return self._form(best[2], now, policy), now

    def ready_at(self, key: Key, now: float, policy: BatchPolicy, others_idle: bool = False) -> float:
        """When the group of this key is ready, as far as is known now."""
        return self._ready_at(self._groups[key], now, policy, others_idle)

    # --- deciding --------------------------------------------------------------------------------

    def _ready_at(self, group: _Group, now: float, policy: BatchPolicy, others_idle: bool) -> float:
        wait = policy.max_wait_ms * 1e-3
        if wait == 0 or group.rows >= policy.max_batch_size:
            return now
        if policy.preferred_batch_sizes:
            if _preferred_prefix(group, policy):
                return now
        elif policy.wait == "when-it-pays":
            if not self._one_more_pays(group, others_idle):
                return now
            patience = max(PATIENCE * group.gap, WAKE_SECONDS)
            return min(group.oldest() + wait, group.last_arrival + patience, group.due())
        return min(group.oldest() + wait, group.due())

    def _one_more_pays(self, group: _Group, others_idle: bool) -> bool:
        """Is the sum of latencies smaller when the batch waits for the next arrival than when it goes now?

        Going now, the next request finds this instance busy for the rest of the run (unless another is idle);
        waiting, all of this batch wait the gap and run with one more.
        """
        times, requests, rows = self.times, group.requests, group.rows
        if not times.known or group.gap == FOREVER:
            return False
        gap = group.gap + WAKE_SECONDS
        one = rows / requests
        alone = times.expect(rows)
        together = times.expect(rows + one)
        blocked = 0.0 if others_idle else max(alone - gap, 0.0)
        return requests * (gap + together) + together < requests * alone + blocked + times.expect(one)

    def _form(self, group: _Group, now: float, policy: BatchPolicy) -> Batch:
        limit = policy.max_batch_size
        if policy.preferred_batch_sizes:
            overdue = now >= group.oldest() + policy.max_wait_ms * 1e-3
            limit = (0 if overdue and group.rows < limit else _preferred_prefix(group, policy)) or limit
        taken: list[Request] = []
        rows = 0
        for level in group.order:
            line = group.levels[level]
            while line and rows + line[0].rows <= limit:
                request = line.popleft()
                request.status = TAKEN
                taken.append(request)
                rows += request.rows
            if line:
                break
        group.forget(rows, len(taken))
        self.count -= len(taken)
        return Batch(taken, rows, now, self.count)

    def _note_deadline(self, request: Request) -> None:
        heapq.heappush(self._deadlines, (request.deadline, next(self._ties), request))
        if len(self._deadlines) > 2 * self.count + 1000:  # forget those that were served long before their deadline
            self._deadlines = [entry for entry in self._deadlines if entry[2].status == QUEUED]
            heapq.heapify(self._deadlines)


def _due(request: Request) -> float:
    """When a request that an instance is free for waits for company no longer: a little before its deadline. That is
    for its time in the queue, not for its answer, so what the run will take does not count."""
    return request.deadline - min(DEADLINE_SECONDS, max(request.deadline - request.arrival, 0.0) / 2)


def _preferred_prefix(group: _Group, policy: BatchPolicy) -> int:
    """The largest preferred size that the first requests of the group add up to; 0: none."""
    best = rows = 0
    for level in group.order:
        for request in group.levels[level]:
            rows += request.rows
            if rows > policy.max_batch_size:
                return best
            if rows in policy.preferred_batch_sizes:
                best = rows
    return best
