"""The threads that run the batches: one for each instance of the model.

A free instance takes its batch straight from the queue, so between two runs lies no trip through an event loop,
and a batch keeps growing until the very moment it is taken. Joining the inputs and splitting the outputs happen
in these threads as well. Whoever submits gets every request back exactly once through `deliver`: from the thread
that ran it, or from the thread in which it was turned away.

`run` gets {name: (N, …)} and returns {name: (N, …)} in fresh arrays: callers receive views of them.
"""

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from .arrays import Run, join, split
from .policy import BatcherClosed, BatchPolicy, DeadlineExceeded, QueueFull, RequestTooLarge
from .queue import CANCELLED, CLOSED, COMPLETED, EXPIRED, FAILED, FOREVER, REJECTED, Batch, Request
from .queue import RequestQueue as Queue
from .statistics import BatchStatistics

Deliver = Callable[[list[Request]], None]
"""Takes requests that have ended. Must be quick and must not raise."""

clock = time.monotonic
"""The batcher's clock, the same as asyncio's on Linux."""


class BatchExecutor:
    """Queue, threads and statistics. May be used from any thread."""

    def __init__(self, run: Run | Sequence[Run], policy: BatchPolicy, deliver: Deliver) -> None:
        self._copies = None if callable(run) else list(run)
        self._run = run if callable(run) else self._copies[0]  # type: ignore[index]
        self._deliver = deliver
        self._lock = threading.Lock()
        self._queue = Queue()
        self._sleepers: list[_Instance] = []
        self._instances: list[_Instance] = []
        self._paused = False
        self._closing = False
        self._broken: str | None = None
        self.policy = policy
        self.statistics = BatchStatistics(policy.max_batch_size, clock)
        self._check_instances(policy)
        self._start_instances()

    # --- for those who submit --------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue it. Raises `QueueFull`, `RequestTooLarge` or `BatcherClosed`; then it is not delivered."""
        with self._lock:
            policy = self.policy
            now = clock()
            refusal: Exception | None = None
            if self._closing:
                refusal = BatcherClosed(self._broken or "the batcher is shut down")
            elif request.rows > policy.max_batch_size:
                refusal = RequestTooLarge(
                    f"the request has {request.rows} rows, the largest batch is {policy.max_batch_size}"
                )
            elif self._queue.count >= policy.max_queue_size:
                refusal = QueueFull(f"{policy.max_queue_size} requests wait already")
            elif policy.priority_queue_policies:
                refusal = self._full(request.priority)
            if refusal is not None:
                request.status = REJECTED
                self.statistics.left(now, REJECTED, accepted=False)
                raise refusal
            self._queue.add(request, now)
            self.statistics.entered(now)
            if self._sleepers and not self._paused:
                self._wake_for(request, now)

    def withdraw(self, request: Request) -> None:
        """Its caller went away. A request that waits is not run; one that runs is delivered as usual."""
        with self._lock:
            if self._queue.remove(request):
                request.status = CANCELLED
                request.inputs = None
                self.statistics.left(clock(), CANCELLED)

    def expire(self) -> float:
        """Deliver the requests whose time is up, also while all instances are busy. Returns the next deadline."""
        with self._lock:
            expired = self._expire(clock())
            following = self._queue.next_deadline()
        self.hand_back(expired)
        return following

    # --- control ---------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Requests that wait now."""
        return self._queue.count

    @property
    def paused(self) -> bool:
        return self._paused

    def set_policy(self, policy: BatchPolicy, copies: Sequence[Run] | None = None) -> None:
        """From the next batch on. Waiting requests that no longer fit are delivered with `RequestTooLarge`.

        `copies`: other copies of the model for the instances; a batch that runs ends on the old one, and then nothing
        here holds that any more.
        """
        with self._lock:
            if copies is not None:
                self._copies = list(copies)
                self._run = self._copies[0]
            self._check_instances(policy)
            for instance in self._instances:
                if copies is not None and instance.number < policy.instances:
                    instance.run = copies[instance.number]
            self.statistics.make_room(policy.max_batch_size)
            self.policy = policy
            now = clock()
            misfits = self._queue.remove_all(larger_than=policy.max_batch_size)
            for request in misfits:
                reason = f"the request has {request.rows} rows, the largest batch is now {policy.max_batch_size}"
                self._end(request, REJECTED, RequestTooLarge(reason), now)
            self._start_instances()
            self._wake_all()
        self.hand_back(misfits)

    def add_copy(self, run: Run) -> None:
        """One more model for a policy with more instances; only where copies were given to begin with."""
        if self._copies is None:
            raise ValueError("the batcher was given one model that all instances share")
        self._copies.append(run)

    def pause(self) -> None:
        """Run nothing more; requests are queued on."""
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._wake_all()

    def close(self, drain: bool, reason: str = "the batcher was shut down") -> None:
        """Accept nothing more. What waits is run first (`drain`) or delivered with `BatcherClosed`."""
        with self._lock:
            self._closing = True
            self._paused = False
            waiting = [] if drain else self._close_queue(reason)
            self._wake_all()
        self.hand_back(waiting)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the threads to end after `close`. False if one still runs; its requests are delivered now."""
        deadline = None if timeout is None else clock() + timeout
        threads = list(self._instances)
        for instance in threads:
            instance.thread.join(None if deadline is None else max(0.0, deadline - clock()))
        hung = [instance for instance in threads if instance.thread.is_alive()]
        if hung:
            with self._lock:
                abandoned = self._close_queue("the batcher was shut down") + [
                    request for instance in hung for request in instance.abandon()
                ]
                for request in abandoned:
                    if request.status != CLOSED:
                        reason = BatcherClosed("the batcher was shut down while the model ran")
                        self._end(request, CLOSED, reason, clock())
            self.hand_back(abandoned)
        return not hung

    # --- for the instances (all but `finish` under the lock) --------------------------------------

    def next_batch(self, instance: "_Instance") -> Batch | None:
        """Wait for this instance's next batch; None: the instance is to end.

        What it has finished is delivered before it waits or ends; else it is still to be handed back.
        """
        batch: Batch | None = None
        with self._lock:
            while True:
                if instance.number >= self.policy.instances and not self._closing:
                    self._instances.remove(instance)
                    break
                now = clock()
                instance.ended += self._expire(now)
                look_again = FOREVER
                if not self._paused:
                    batch, look_again = self._queue.take(now, self._policy_now(), len(self._sleepers) > 0)
                if batch is not None:
                    batch.instance = instance.number
                    instance.running = batch.requests
                    if self._queue.count and self._sleepers:
                        self._wake(self._sleepers[-1])
                    return batch
                if self._closing:
                    break
                if instance.ended:  # deliver before sleeping
                    self._lock.release()
                    instance.hand_back()
                    self._lock.acquire()
                    continue
                self._sleep(instance, min(look_again, self._queue.next_deadline()), now)
        instance.hand_back()
        return None

    def finish(self, instance: "_Instance", runs: list[Batch], queue_seconds: list[float]) -> None:
        """Record the runs that a batch took; its requests are the instance's to hand back."""
        now = clock()
        with self._lock:
            if not instance.abandoned:
                for batch, waited in zip(runs, queue_seconds):
                    self.statistics.ran(batch, waited)
                    if batch.requests[0].status == COMPLETED:
                        self._queue.times.record(batch.rows, batch.finished - batch.taken)
                statuses = [request.status for request in instance.running]
                for status in set(statuses):
                    self.statistics.left(now, status, statuses.count(status))
                self.statistics.held(instance.held_seconds)
                instance.held_seconds = 0.0
                instance.finished, instance.finished_at = len(instance.running), now
                instance.ended += instance.running
            instance.running = []

    def break_down(self, reason: str) -> None:
        """The model ended its thread (SystemExit, KeyboardInterrupt): accept nothing more, and say so."""
        self._broken = reason
        self.close(drain=False, reason=reason)

    # --- helpers -----------------------------------------------------------------------------------

    def _policy_now(self) -> BatchPolicy:
        """While closing nothing waits for company."""
        return msgspec.structs.replace(self.policy, max_wait_ms=0.0) if self._closing else self.policy

    def _expire(self, now: float) -> list[Request]:
        if self._queue.next_deadline() > now:
            return []
        expired = self._queue.expire(now, self._delays)
        for request in expired:
            waited = (now - request.arrival) * 1e3
            self._end(request, EXPIRED, DeadlineExceeded(f"it waited {waited:.0f} ms, longer than its limit"), now)
        return expired

    def _delays(self, priority: int) -> bool:
        return self.policy.of_priority(priority).timeout_action == "delay"

    def _full(self, priority: int) -> QueueFull | None:
        """Why one more request of this priority may not wait."""
        own = self.policy.priority_queue_policies.get(priority)
        if own is None or own.max_queue_size is None or self._queue.count_of(priority) < own.max_queue_size:
            return None
        return QueueFull(f"{own.max_queue_size} requests of priority {priority} wait already")

    def _close_queue(self, reason: str) -> list[Request]:
        waiting = self._queue.remove_all()
        now = clock()
        for request in waiting:
            self._end(request, CLOSED, BatcherClosed(reason), now)
        return waiting

    def _end(self, request: Request, status: int, error: Exception, now: float) -> None:
        request.status, request.error, request.inputs = status, error, None
        self.statistics.left(now, status)

    def hand_back(self, requests: list[Request]) -> None:
        """Deliver requests that have ended. Never under the lock."""
        if requests:
            self._deliver(requests)

    def _wake_for(self, request: Request, now: float) -> None:
        """Wake an instance if the new request makes a batch due before the moment somebody wakes up anyway."""
        soonest = min(self._sleepers, key=lambda sleeper: sleeper.until)
        when = self._queue.ready_at(request.key, now, self.policy, len(self._sleepers) > 1)
        if min(when, request.deadline) < soonest.until:
            self._wake(soonest)

    def _wake(self, instance: "_Instance") -> None:
        self._sleepers.remove(instance)
        instance.token.release()

    def _wake_all(self) -> None:
        while self._sleepers:
            self._wake(self._sleepers[-1])

    def _sleep(self, instance: "_Instance", until: float, now: float) -> None:
        """Give up the lock until woken or until that time.

        Only `_wake` removes another from the sleepers, and only with a token for it: so a wake-up that comes as
        the time runs out is neither lost nor left over.
        """
        instance.until = until
        self._sleepers.append(instance)
        self._lock.release()
        try:
            woken = instance.token.acquire(timeout=-1 if until == FOREVER else min(max(until - now, 0.0), 3600.0))
        finally:
            self._lock.acquire()
        if instance in self._sleepers:
            self._sleepers.remove(instance)
        elif not woken:
            instance.token.acquire()

    def _check_instances(self, policy: BatchPolicy) -> None:
        if self._copies is not None and policy.instances > len(self._copies):
            raise ValueError(f"{policy.instances} instances asked for, {len(self._copies)} copies of the model given")

    def _start_instances(self) -> None:
        running = {instance.number for instance in self._instances}
        for number in range(self.policy.instances):
            if number not in running:
                instance = _Instance(self, number, self._copies[number] if self._copies else self._run)
                self._instances.append(instance)
                instance.thread.start()


class _Instance:
    """One thread with one model."""

    def __init__(self, executor: BatchExecutor, number: int, run: Run) -> None:
        self.number = number
        self.until = FOREVER
        self.token = threading.Lock()
        """Taken while there is no reason to wake up."""
        self.token.acquire()
        self.running: list[Request] = []
        self.ended: list[Request] = []
        """To be handed back: when the next batch is ready to run, or before this thread sleeps or ends."""
        self.finished, self.finished_at = 0, 0.0
        """How many of them ran, and when they ended."""
        self.held_seconds = 0.0
        """How long those then waited to be handed back, summed; not yet in the statistics."""
        self.abandoned = False
        self._executor = executor
        self.run = run
        # A daemon: a model that hangs must not keep the interpreter from ending.
        self.thread = threading.Thread(target=self._work, name=f"batch-instance-{number}", daemon=True)

    def abandon(self) -> list[Request]:
        self.abandoned = True
        requests, self.running = self.running, []
        return requests

    def hand_back(self) -> None:
        """Deliver what has ended.

        Whoever is woken by it wants the interpreter. So it is done at the last moment before the model is called,
        which gives the interpreter up: the model runs while the callers take their answers, not after.
        """
        ended, self.ended = self.ended, []
        if self.finished:
            self.held_seconds += self.finished * (clock() - self.finished_at)
            self.finished = 0
        self._executor.hand_back(ended)

    def _work(self) -> None:
        executor = self._executor
        while (batch := executor.next_batch(self)) is not None:
            runs: list[Batch] = []
            waited: list[float] = []
            fatal: BaseException | None = None
            try:
                self._attempt(batch, runs, waited)
            except BaseException as error:  # SystemExit and the like: the callers must hear of it all the same
                fatal = error
                for run in runs:
                    run.started = run.started or clock()
                    run.finished = run.finished or clock()
                for request in batch.requests:
                    if request.status not in (COMPLETED, FAILED):
                        _fail(request, RuntimeError(f"the model ended its thread with {type(error).__name__}"))
            executor.finish(self, runs, waited)
            for run in runs:
                run.requests = []  # else a cycle (each request knows its batch) keeps the arrays until a collection
            del batch
            if fatal is not None:
                self.hand_back()
                executor.break_down(f"the model ended its thread with {type(fatal).__name__}")
                return

    def _attempt(self, batch: Batch, runs: list[Batch], waited: list[float]) -> None:
        """Run a batch; one that fails again by halves, down to the single requests that are to blame."""
        requests = batch.requests
        runs.append(batch)
        waited.append(len(requests) * batch.taken - sum([request.arrival for request in requests]))
        try:
            try:
                inputs = join(requests)
            finally:
                self.hand_back()
            batch.started = clock()
            outputs = self.run(inputs)
            batch.finished = clock()
            split(outputs, requests, batch)
        except Exception as error:
            batch.started = batch.started or clock()
            batch.finished = batch.finished or clock()
            if len(requests) == 1 or not self._executor.policy.isolate_failures:
                for request in requests:
                    request.batch = batch
                    _fail(request, error)
                return
            middle = len(requests) // 2
            for half in (requests[:middle], requests[middle:]):
                rows = sum(request.rows for request in half)
                again = Batch(half, rows, clock(), batch.depth)
                again.instance = batch.instance
                self._attempt(again, runs, waited)


def _fail(request: Request, error: BaseException) -> None:
    if isinstance(error, StopIteration):  # a future does not take it
        error = RuntimeError(f"the model raised StopIteration({error})")
    request.status, request.error, request.inputs = FAILED, error, None
