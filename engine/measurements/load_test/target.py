"""What a load is sent to: whatever takes requests without blocking and hands every accepted one back once."""

from collections.abc import Sequence
from typing import Protocol

from ...batching.arrays import Run
from ...batching.executor import BatchExecutor, Deliver
from ...batching.policy import BatchPolicy
from ...batching.queue import Request


class Dropped(Exception):
    """The sender itself had no room for the request: it says nothing about the service, and the run does not count."""


class Target(Protocol):
    """What a load is sent to."""

    def open(self, deliver: Deliver) -> None:
        """Be ready. `deliver` takes every accepted request back once, from any thread."""

    def send(self, request: Request) -> None:
        """Must not block. Raises `Rejected` for a request that is not accepted, `Dropped` where it never got so far."""

    def close(self) -> None:
        """Answer what can be answered at once, and end."""

    def natural_concurrency(self, rows: int) -> int:
        """How many requests of so many rows keep it busy all the time."""


class BatcherTarget:
    """A model behind the dynamic batcher, in this process."""

    executor: BatchExecutor

    def __init__(self, run: Run | Sequence[Run], policy: BatchPolicy) -> None:
        self._run = run
        self._policy = policy

    def open(self, deliver: Deliver) -> None:
        self.executor = BatchExecutor(self._run, self._policy, deliver)
        self._run = []  # copies that a knob replaces are freed: nothing else may hold them

    def send(self, request: Request) -> None:
        self.executor.submit(request)

    def close(self) -> None:
        self.executor.close(drain=False)
        self.executor.join(timeout=5.0)

    def natural_concurrency(self, rows: int) -> int:
        policy = self.executor.policy
        return min(-(-4 * policy.max_batch_size * policy.instances // rows), policy.max_queue_size)
