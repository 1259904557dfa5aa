"""Sends the requests of a load test and keeps the times of every single one.

An open loop follows a schedule made beforehand: the generator sleeps until the next absolute due time, sends all
that is due by then, and never waits for an answer, so a slow model can not slow the load down (no coordinated
omission). Its own lag (scheduled to sent) is recorded with each request and is part of its latency.

Times are seconds since the start of the run. `run` blocks its thread; the other methods may be called from any
thread meanwhile and show within one batch or 50 ms.
"""

import ctypes
import gc
import sys
import threading
import time
from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ...batching.arrays import Arrays, describe
from ...batching.executor import clock
from ...batching.policy import BatcherClosed, Rejected
from ...batching.queue import CLOSED, COMPLETED, FOREVER, REJECTED, Key, Request
from ...protocol.load import MOST_REQUESTS, too_many
from .arrivals import Schedule
from .record import DROPPED, LiveFigures, Mark, Record, look_at
from .request import Load
from .target import Dropped, Target

Drawable = tuple[Arrays, int, Key]
"""Inputs of one request, their rows, and what they can share a batch with."""

LONGEST_SLEEP = 0.05
"""Seconds after which the generator looks for commands whatever is due."""

CROWD, BREATH = 16, 0.0004
"""Where so many arrivals fall into this many seconds (40,000/s), the generator sleeps that long and sends all that
came due: waking for each costs more processor time than sending it and starves the model's threads (17 µs of CPU a
request against 6 at 50,000/s). The lag is recorded as always."""

UNFELT, LONGEST_BREATH, PACE_SECONDS = 0.02, 0.005, 0.1
"""Behind a backlog the generator sends together what comes due within this share of the time a request will wait there
(or of the limit for p99), at most so many seconds, with the backlog's pace measured over so many. No answer comes
later for it, and the model's threads are interrupted so much less: each wake-up stops one of them, and the others
wait for that one (14 % of the throughput at 2,500 requests/s on two cores)."""

BACK_OFF = 0.001
"""Seconds a closed loop waits after a rejection instead of asking again at once."""

DRAWN_AT_ONCE = 8192
"""Inputs are drawn for so many requests at a time: half a millisecond, which is too short to show as lag."""

POOL_BYTES = 256 * 1024 * 1024
"""Inputs that requests are drawn from: fewer of them where they are large, or where several make one request."""

LONGEST_WAITS = 2
"""An offline load gives its model up after so many times the longest wait for an answer so far without another one."""

ERRORS_KEPT = 5
"""Different error sentences that are remembered."""

SWITCH_SECONDS = 0.0005
"""How long another thread may keep the interpreter from the generator during a run; Python's 5 ms would be its lag."""


class LoadGenerator:
    """One run of one load. `pool`: inputs to draw requests from, {name: (n, …)} each, in seeded random order."""

    def __init__(self, target: Target, pool: Sequence[Arrays], load: Load) -> None:
        if not pool:
            raise ValueError("a load test needs inputs to send")
        self.load = load
        self.marks: list[Mark] = []
        self.errors: list[str] = []
        self._target = target
        self._random = np.random.Generator(np.random.PCG64([load.seed, 1]))
        self._pool = _stack([(inputs, *describe(inputs)) for inputs in pool], load.samples_per_request, self._random)
        self._rows = max(rows for _, rows, _ in self._pool)
        self._schedule = self._make_schedule()
        planned = len(self._schedule.times) if self._schedule else 65_536
        self.record = Record.empty(max(planned, 1))
        self._order = np.zeros(len(self.record.sent), np.int64)
        """Numbers of the settled requests, in the order they were."""
        self._drawn: list[int] = []
        self._priorities: list[int] = []
        self._first_drawn = 0
        self._settled = 0
        self._looked = (0, 0, 0.0)
        self._pace = (0, 0.0, 0.0)
        """Requests settled at a moment, that moment, and requests settled a second before it."""
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._concurrency = load.concurrency
        self._new_rate: float | None = None
        self._paused = False
        self._stopped = False
        self._start = 0.0
        self.sending_ended = 0.0
        """When the last request had been sent (seconds since the start)."""

    # --- control -----------------------------------------------------------------------------------

    def set_rate(self, rate: float) -> None:
        """Requests a second from now on."""
        if self._schedule is None:
            if self.load.arrivals == "offline":
                raise ValueError("an offline load has no rate")
            raise ValueError("a closed loop has no rate: change its concurrency")
        if not 0 < rate < 1e9:
            raise ValueError(f"a rate must be above 0, not {rate}")
        if why := too_many(rate, max(self.load.seconds - self._now(), 0.0) if self._start else self.load.seconds):
            raise ValueError(why)
        self._new_rate = rate
        self.mark(f"rate {rate:g}/s")

    def set_concurrency(self, callers: int) -> None:
        if self._schedule is not None:
            raise ValueError("an open loop has no concurrency: change its rate")
        if self.load.arrivals == "offline":
            raise ValueError("an offline load has no concurrency")
        if callers < 1:
            raise ValueError(f"concurrency must be at least 1, not {callers}")
        self._concurrency = callers
        self.mark(f"concurrency {callers}")
        self._changed.set()

    def pause(self) -> None:
        """Send nothing; the rest of the schedule is put off."""
        self._paused = True
        self.mark("paused")

    def resume(self) -> None:
        self._paused = False
        self.mark("resumed")

    def stop(self) -> None:
        """Send no more; what is under way is still awaited, as at the end of every run."""
        self._stopped = True
        self._changed.set()

    def mark(self, text: str) -> None:
        """Note a change (a new policy, too) for the charts."""
        self.marks.append(Mark(self._now() if self._start else 0.0, text))

    @property
    def inputs(self) -> list[Arrays]:
        """Those that requests are drawn from, as they are sent."""
        return [inputs for inputs, _, _ in self._pool]

    @property
    def started(self) -> bool:
        """Requests are being sent, or were."""
        return bool(self._start)

    @property
    def outstanding(self) -> int:
        """Requests sent and not answered."""
        return self.record.count - self._settled

    def look(self) -> LiveFigures:
        """What happened since the last look (one caller)."""
        with self._lock:
            settled, sent, now = self._settled, self.record.count, self._now()
            past_settled, past_sent, past = self._looked
            self._looked = settled, sent, now
            numbers = self._order[past_settled:settled]
            return look_at(self.record, numbers, sent - past_sent, sent - settled, past, now)

    # --- the run -----------------------------------------------------------------------------------

    def run(self) -> Record:
        """Send the whole load, wait for the answers (at most `drain_seconds`; an offline load as long as they come),
        close the target."""
        self._target.open(self._deliver)
        gc.collect()
        gc.freeze()  # what is alive now need not be looked through again and again while times are taken
        patience = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        _set_timer_slack(1)
        try:
            times = self._follow(self._schedule) if self._schedule is not None else array("d")
            self._draw()
            self._start = clock()  # all that takes time was done before
            if self._schedule is not None:
                self._send_scheduled(self._schedule, times)
            else:
                self._send_on_answer()
            self.sending_ended = self._now()
            self._drain()
        finally:
            self._target.close()
            _set_timer_slack(0)
            sys.setswitchinterval(patience)
            gc.unfreeze()
        return self.record

    def _send_scheduled(self, schedule: Schedule, times: Sequence[float]) -> None:
        number, limit = 0, self.load.requests or FOREVER
        record = self.record
        while number < limit and not self._stopped:
            now = self._now()
            if self._paused:
                self._wait_out_pause(schedule, number)
                times = self._follow(schedule)
                continue
            if self._new_rate is not None:
                rate, self._new_rate = self._new_rate, None
                schedule.change_rate(max(now, times[number - 1] if number else 0.0), rate)
                times = self._follow(schedule)
                continue
            # After the last arrival the time that was asked for goes on: rates are over all of it.
            due = times[number] if number < len(times) else self.load.seconds
            if now < due:
                crowded = number + CROWD < len(times) and times[number + CROWD] - due < BREATH
                breath = max(BREATH if crowded else 0.0, self._unfelt(now))
                time.sleep(min(max(due - now, breath), LONGEST_SLEEP))
                continue
            if number == len(times):
                break
            self._send(record, number, now)
            number += 1

    def _drain(self) -> None:
        """Wait for what is under way. An offline load has always several batches of it, so a slow model is given up
        only when no answer came for longer than answers take; how long that was stands in the load then."""
        offline, patience = self.load.arrivals == "offline", self.load.drain_seconds
        settled, since = self._settled, self.sending_ended
        while self.outstanding:
            now = self._now()
            if offline and self._settled != settled:
                settled, since = self._settled, now
            waited = now - since
            if waited >= patience and not (offline and waited < LONGEST_WAITS * self._longest_wait()):
                break
            self._changed.wait(LONGEST_SLEEP)
            self._changed.clear()
        if self.outstanding and offline:
            self.load = msgspec.structs.replace(self.load, drain_seconds=round(self._now() - self.sending_ended, 1))

    def _longest_wait(self) -> float:
        """Seconds of the request that waited longest for its answer, of those that have it."""
        used, record = slice(0, self.record.count), self.record
        done = record.status[used] == COMPLETED
        return float((record.finished[used] - record.sent[used])[done].max(initial=0.0))

    def _unfelt(self, now: float) -> float:
        """Seconds that nobody will notice, as so many requests wait; 0 without a backlog."""
        settled, since, pace = self._pace
        if now - since > PACE_SECONDS:
            pace = (self._settled - settled) / (now - since)
            self._pace = self._settled, now, pace
        waiting = self.outstanding
        if not pace or waiting < self._target.natural_concurrency(self._rows):
            return 0.0
        felt = waiting / pace
        if self.load.slo_p99_ms is not None:
            felt = min(felt, self.load.slo_p99_ms * 1e-3)
        return min(UNFELT * felt, LONGEST_BREATH)

    def _send_on_answer(self) -> None:
        record, number, limit = self.record, 0, min(self.load.requests or MOST_REQUESTS, MOST_REQUESTS)
        offline = self.load.arrivals == "offline"
        while (now := self._now()) < self.load.seconds and number < limit and not self._stopped:
            callers = self._target.natural_concurrency(self._rows) if offline else self._concurrency
            if self._paused:
                callers = 0
            if self.outstanding >= callers:
                self._changed.wait(min(LONGEST_SLEEP, self.load.seconds - now))
                self._changed.clear()
                continue
            if number == len(record.sent):
                with self._lock:
                    self._make_room(min(2 * number, MOST_REQUESTS))
            record.scheduled[number] = now
            if not self._send(record, number, now):
                time.sleep(BACK_OFF)
            number += 1
        if number == MOST_REQUESTS:
            self.mark(f"ended after {number:,} requests, the most whose times are kept")

    def _send(self, record: Record, number: int, now: float) -> bool:
        """False if it was turned away, or had no room."""
        if number - self._first_drawn >= len(self._drawn):
            self._draw(number)
        inputs, rows, key = self._pool[self._drawn[number - self._first_drawn]]
        load = self.load
        priority = load.priority if load.priority_levels == 1 else self._priorities[number - self._first_drawn]
        deadline = FOREVER if load.timeout_ms is None else self._start + now + load.timeout_ms * 1e-3
        record.sent[number] = now
        record.rows[number] = rows
        record.count = number + 1
        try:
            self._target.send(Request(inputs, rows, key, priority, deadline, None, number))
        except (Rejected, Dropped) as error:
            ended = isinstance(error, BatcherClosed)  # the model ended its thread: nobody will answer any more
            with self._lock:
                record.status[number] = CLOSED if ended else DROPPED if isinstance(error, Dropped) else REJECTED
                record.finished[number] = self._now()
                self._order[self._settled] = number
                self._settled += 1
            return False
        return True

    def _draw(self, first: int = 0) -> None:
        """For the requests from number `first` on; those before are forgotten, or a long run would hold millions."""
        self._first_drawn = first
        self._drawn = self._random.integers(len(self._pool), size=DRAWN_AT_ONCE).tolist()
        self._priorities = priorities(self.load, first, first + DRAWN_AT_ONCE).tolist()

    def _wait_out_pause(self, schedule: Schedule, sent: int) -> None:
        began = self._now()
        while self._paused and not self._stopped:
            time.sleep(LONGEST_SLEEP / 5)
        schedule.shift(sent, self._now() - began)

    def _follow(self, schedule: Schedule) -> Sequence[float]:
        """The schedule as it is now, laid down in the record. An `array`: it is read one by one, and a list of floats
        takes four times as much."""
        times = schedule.times
        with self._lock:
            if len(times) > len(self.record.sent):
                self._make_room(len(times))
            self.record.scheduled[: len(times)] = times
        return array("d", times.tobytes())

    def _make_room(self, capacity: int) -> None:
        self._order = np.concatenate([self._order, np.zeros(capacity - len(self._order), np.int64)])
        self.record.grow(capacity)

    def _make_schedule(self) -> Schedule | None:
        load = self.load
        if not load.open_loop:
            return None
        kind = load.arrivals
        assert kind != "closed"
        assert kind != "offline"
        return Schedule(
            kind, load.planned_rate, load.seconds, load.seed, load.burst_size, load.trace, once=load.trace_once
        )

    def _now(self) -> float:
        return clock() - self._start

    def _deliver(self, requests: list[Request]) -> None:
        """Requests come back, mostly a whole batch at once."""
        now, record, start = self._now(), self.record, self._start
        with self._lock:
            while requests:
                batch = requests[0].batch
                same = [request for request in requests if request.batch is batch]
                requests = [] if len(same) == len(requests) else [r for r in requests if r.batch is not batch]
                numbers = np.array([request.tag for request in same])
                record.finished[numbers] = now
                record.status[numbers] = [request.status for request in same]
                if batch is not None:
                    record.taken[numbers] = batch.taken - start
                    record.started[numbers] = batch.started - start
                    record.computed[numbers] = batch.finished - start
                    record.batch_rows[numbers] = batch.rows
                self._order[self._settled : self._settled + len(same)] = numbers
                self._settled += len(same)
                for request in same:
                    if request.error is not None:
                        self._note(request.error)
                        request.error = None
        self._changed.set()

    def _note(self, error: BaseException) -> None:
        sentence = f"{type(error).__name__}: {error}"
        if len(self.errors) < ERRORS_KEPT and sentence not in self.errors:
            self.errors.append(sentence)


def priorities(load: Load, first: int, end: int) -> npt.NDArray[np.int64]:
    """Those of the requests with numbers from `first` (a multiple of `DRAWN_AT_ONCE`) to below `end`."""
    if load.priority_levels == 1:
        return np.full(end - first, load.priority)
    parts = [
        np.random.Generator(np.random.PCG64([load.seed, 2, part])).integers(1, load.priority_levels + 1, DRAWN_AT_ONCE)
        for part in range(first // DRAWN_AT_ONCE, -(-end // DRAWN_AT_ONCE))
    ]
    return np.concatenate(parts)[: end - first]


def _stack(pool: list[Drawable], samples: int, random: np.random.Generator) -> list[Drawable]:
    """Requests of several samples: each entry of the pool with others of its shape. Of a pool that would take more
    than `POOL_BYTES` then so many entries drawn at random, so that its shapes stay mixed as they are."""
    if samples == 1:
        return pool
    size = samples * sum(array.nbytes for inputs, _, _ in pool for array in inputs.values())
    stacked: list[Drawable] = []
    kept = max(min(len(pool), len(pool) * POOL_BYTES // max(size, 1)), 1)
    for inputs, _, key in (pool[n] for n in np.sort(random.choice(len(pool), kept, replace=False))):
        alike = [other for other, _, other_key in pool if other_key == key]
        chosen = [inputs, *(alike[n] for n in random.integers(len(alike), size=samples - 1))]
        together = {name: np.concatenate([each[name] for each in chosen]) for name in inputs}
        stacked.append((together, *describe(together)))
    return stacked


def _set_timer_slack(nanoseconds: int) -> None:
    """How much later than asked Linux may end this thread's sleeps; 0: the default of 50 µs.

    With 1 ns a sleep of 0.5 ms ended 34 µs late instead of 87 µs in the median, measured on two shared cores.
    """
    if sys.platform == "linux":
        set_timer_slack = 29  # PR_SET_TIMERSLACK, linux/prctl.h
        ctypes.CDLL(None).prctl(set_timer_slack, nanoseconds, 0, 0, 0)
