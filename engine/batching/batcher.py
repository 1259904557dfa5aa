"""Dynamic batching: requests that come one by one run together, as large as the moment allows.

    policy = BatchPolicy(max_batch_size=32, max_wait_ms=2.0)
    async with DynamicBatcher(run, policy) as batcher:
        outputs = await batcher.predict({"input": rows})

`run` takes {name: (N, …)} and returns {name: (N, …)}, numpy arrays, the first axis the batch; it is called in a
thread of its own, never on the event loop. Usable on its own in any asyncio service: nothing here knows of
sessions or jobs.

What a caller may rely on:
- Every call ends exactly once: with its own rows, with the model's exception, or with a subclass of `Rejected`.
- A batch never has more than `max_batch_size` rows, and only inputs of one shape and dtype.
- A failure or a caller that gives up touches nobody else. A batch that failed is run again by halves until the
  request that is to blame is alone.
- While every instance is busy the next batch grows; an idle one waits only as the policy says.

How it works, from the inside out: `queue` decides which requests go next and when, `executor` holds
the threads that take batches and run them, `arrays` joins and splits, `statistics` counts, and this
file is the door for asyncio.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from .arrays import Arrays, Run, describe
from .executor import BatchExecutor, clock
from .policy import (
    BatcherClosed,
    BatchPolicy,
    DeadlineExceeded,
    QueueFull,
    QueuePolicy,
    Rejected,
    RequestTooLarge,
)
from .queue import COMPLETED, FOREVER, Request
from .statistics import BatchStatistics, Totals

__all__ = [
    "BatchPolicy",
    "BatchStatistics",
    "BatcherClosed",
    "DeadlineExceeded",
    "DynamicBatcher",
    "QueueFull",
    "QueuePolicy",
    "Rejected",
    "RequestTooLarge",
    "Totals",
]


class DynamicBatcher:
    """Batches the calls of one event loop.

    `run` is one model that all instances share (it must then bear calls from several threads), or a sequence of
    copies, one for each instance. Without `async with`: `start()` in the loop, later `await close()`.
    """

    def __init__(self, run: Run | Sequence[Run], policy: BatchPolicy | None = None) -> None:
        self._run = run
        self._first_policy = policy or BatchPolicy()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._executor: BatchExecutor | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = FOREVER

    # --- calling ---------------------------------------------------------------------------------

    async def predict(self, inputs: Arrays, *, priority: int | None = None, timeout_ms: float | None = None) -> Arrays:
        """The model's outputs for these rows, {name: (n, …)} with 1 ≤ n ≤ max_batch_size.

        The inputs must not be changed before the call ends; the outputs are the caller's. Raises what the model
        raises, a subclass of `Rejected` if it was not run, ValueError or TypeError for inputs that make no
        sense. `timeout_ms` shortens the policy's limit where the policy allows it, and never lengthens it (as in
        Triton). Cancelling the call takes the request out of the queue.
        """
        executor, loop = self._executor, self._loop
        if executor is None or loop is None:
            raise RuntimeError("the batcher was not started: use it in `async with`, or call start()")
        rows, key = describe(inputs)
        policy = executor.policy
        if priority is None:
            priority = policy.default_priority
        elif not 1 <= priority <= policy.priority_levels:
            raise ValueError(f"priority must be between 1 and {policy.priority_levels}, not {priority}")
        own = policy.of_priority(priority)
        limit = own.default_timeout_ms
        if timeout_ms is not None:
            if timeout_ms <= 0:
                raise ValueError(f"timeout_ms must be above 0, not {timeout_ms}")
            if own.allow_timeout_override and (limit is None or timeout_ms < limit):
                limit = timeout_ms
        deadline = FOREVER if limit is None else clock() + limit * 1e-3
        future: asyncio.Future[Arrays] = loop.create_future()
        request = Request(inputs, rows, key, priority, deadline, future)
        executor.submit(request)
        if deadline < self._expiry_at:
            self._watch_deadline(deadline)
        try:
            return await future
        except asyncio.CancelledError:
            executor.withdraw(request)
            raise
        finally:
            del future  # it holds the exception, whose traceback holds this frame

    # --- control ---------------------------------------------------------------------------------

    @property
    def policy(self) -> BatchPolicy:
        return self._executor.policy if self._executor else self._first_policy

    def set_policy(self, policy: BatchPolicy) -> None:
        """Change how batches are formed; holds from the next batch on."""
        if self._executor is None:
            self._first_policy = policy
        else:
            self._executor.set_policy(policy)

    def pause(self) -> None:
        """Run no more batches until `resume`; calls are queued on."""
        self._started().pause()

    def resume(self) -> None:
        self._started().resume()

    @property
    def depth(self) -> int:
        """Requests that wait now."""
        return self._executor.depth if self._executor else 0

    @property
    def statistics(self) -> BatchStatistics:
        return self._started().statistics

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, in the running event loop."""
        if self._executor is not None:
            raise RuntimeError("the batcher was started already")
        self._loop = asyncio.get_running_loop()
        self._executor = BatchExecutor(self._run, self._first_policy, self._deliver)

    async def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Accept no more calls and resolve all there are.

        What waits is run first, or with `drain=False` fails with `BatcherClosed`. A model still running after
        `timeout` seconds is left behind in its thread and its callers get `BatcherClosed`.
        """
        executor, loop = self._executor, self._loop
        if executor is None or loop is None:
            return
        executor.close(drain)
        await loop.run_in_executor(None, executor.join, timeout)
        await asyncio.sleep(0)  # the last results were handed to the loop just before
        if self._expiry is not None:
            self._expiry.cancel()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(drain=kind is None)

    # --- helpers -----------------------------------------------------------------------------------

    def _started(self) -> BatchExecutor:
        if self._executor is None:
            raise RuntimeError("the batcher was not started: use it in `async with`, or call start()")
        return self._executor

    def _deliver(self, requests: list[Request]) -> None:
        """From an instance's thread, or from the loop's own."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed, and all who waited with it
            self._loop.call_soon_threadsafe(_resolve, requests)

    def _watch_deadline(self, deadline: float) -> None:
        """Wake at the earliest deadline, for instances may be busy for longer."""
        assert self._loop is not None
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry_at = deadline
        self._expiry = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._expiry, self._expiry_at = None, FOREVER
        following = self._started().expire()
        if following < FOREVER:
            self._watch_deadline(following)


def _resolve(requests: list[Request]) -> None:
    for request in requests:
        future = request.future
        if future.done():
            pass  # its caller went away while it ran
        elif request.status == COMPLETED:
            future.set_result(request.outputs)
        else:
            future.set_exception(request.error)
        request.error = request.future = None  # no cycle from an exception through its traceback to the request
