"""How a dynamic batcher may batch, and the ways it can turn a request away.

Light (no numpy): whoever only sends, stores or draws a policy imports this. The words are those of Triton's
`ModelDynamicBatching` (model_config.proto), so that a measured policy can be written into its configuration.
"""

from typing import Literal

from msgspec import Struct


class QueuePolicy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the requests of one priority wait: Triton's `ModelQueuePolicy`. Raises ValueError when it makes no sense."""

    default_timeout_ms: float | None = None
    timeout_action: Literal["reject", "delay"] = "reject"
    allow_timeout_override: bool = True
    max_queue_size: int | None = None
    """Requests of this priority that may wait; None: no limit but the one for all together."""

    def __post_init__(self) -> None:
        _demand_timeout(self.default_timeout_ms)
        _demand(
            self.max_queue_size is None or self.max_queue_size >= 1,
            f"max_queue_size must be at least 1 or None, not {self.max_queue_size}",
        )


class BatchPolicy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a batch is sent and what may wait for it. Raises ValueError with a sentence when it makes no sense."""

    max_batch_size: int = 32
    """Rows of the largest batch; never exceeded."""
    max_wait_ms: float = 10.0
    """How long the oldest request may wait for company while an instance of the model is idle, or until shortly before
    the first time limit of those that wait. While all are busy a batch grows anyway, whatever stands here."""
    wait: Literal["when-it-pays", "always"] = "when-it-pays"
    """"when-it-pays": a batch for an idle instance waits only while the arrivals and run times seen so far say that
    one more request brings more than the waiting costs. "always": it waits `max_wait_ms`, as Triton does."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """Sizes that are sent as soon as they are reached. Only for models tuned to them (TensorRT profiles)."""
    instances: int = 1
    """Batches that run at the same time."""
    max_queue_size: int = 4096
    """Requests that may wait; one more is turned away with `QueueFull`."""
    priority_levels: int = 1
    """1 is served first, strictly."""
    default_priority: int = 1
    default_timeout_ms: float | None = None
    """How long a request may wait in the queue; None: for ever."""
    timeout_action: Literal["reject", "delay"] = "reject"
    """"reject": it fails with `DeadlineExceeded`. "delay": it goes behind those of its priority still in time."""
    allow_timeout_override: bool = True
    """A request may bring its own time limit, where that is shorter than the default."""
    priority_queue_policies: dict[int, QueuePolicy] = {}
    """Priority → how its requests wait; one without an entry goes by the fields above. The words are those of Triton's
    `priority_queue_policy`; `max_queue_size` above bounds all priorities together."""
    isolate_failures: bool = True
    """A batch that fails is run again by halves, so that only the request that is to blame fails."""

    def of_priority(self, priority: int) -> "QueuePolicy | BatchPolicy":
        """What holds the time limits of a priority."""
        return self.priority_queue_policies.get(priority, self)

    def __post_init__(self) -> None:
        _demand(self.max_batch_size >= 1, f"max_batch_size must be at least 1, not {self.max_batch_size}")
        _demand(0 <= self.max_wait_ms < 1e9, f"max_wait_ms must be between 0 and 1e9, not {self.max_wait_ms}")
        _demand(self.instances >= 1, f"instances must be at least 1, not {self.instances}")
        _demand(self.max_queue_size >= 1, f"max_queue_size must be at least 1, not {self.max_queue_size}")
        _demand(self.priority_levels >= 1, f"priority_levels must be at least 1, not {self.priority_levels}")
        _demand(
            1 <= self.default_priority <= self.priority_levels,
            f"default_priority must be between 1 and priority_levels ({self.priority_levels})",
        )
        _demand_timeout(self.default_timeout_ms)
        for priority in self.priority_queue_policies:
            _demand(
                1 <= priority <= self.priority_levels,
                f"priority_queue_policies must be for priorities 1 to {self.priority_levels}, not {priority}",
            )
        for size in self.preferred_batch_sizes:
            _demand(
                1 <= size <= self.max_batch_size,
                f"preferred batch size {size} must be between 1 and max_batch_size ({self.max_batch_size})",
            )


def _demand_timeout(limit_ms: float | None) -> None:
    _demand(limit_ms is None or limit_ms > 0, "default_timeout_ms must be above 0 or None")


def _demand(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


class Rejected(Exception):
    """The request was not run. The subclass says why."""


class QueueFull(Rejected):
    """As many requests as allowed wait already: try again later (HTTP 503)."""


class DeadlineExceeded(Rejected):
    """It waited longer than its time limit (HTTP 504)."""


class RequestTooLarge(Rejected, ValueError):
    """It has more rows than the largest batch (HTTP 413)."""


class BatcherClosed(Rejected):
    """The batcher was shut down before the request ran."""
