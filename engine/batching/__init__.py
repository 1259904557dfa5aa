"""Dynamic batching: `DynamicBatcher` and `BatchPolicy`, usable on their own in an asyncio service.

Light (no numpy, no asyncio) until `DynamicBatcher` is asked for: the engine and the client import the policy and the
ways to be turned away, and only workers and services batch.
"""

from typing import TYPE_CHECKING, Any

from .policy import BatcherClosed, BatchPolicy, DeadlineExceeded, QueueFull, QueuePolicy, Rejected, RequestTooLarge

if TYPE_CHECKING:
    from .batcher import DynamicBatcher

__all__ = [
    "BatchPolicy",
    "BatcherClosed",
    "DeadlineExceeded",
    "DynamicBatcher",
    "QueueFull",
    "QueuePolicy",
    "Rejected",
    "RequestTooLarge",
]


def __getattr__(name: str) -> Any:
    if name == "DynamicBatcher":
        from .batcher import DynamicBatcher

        globals()[name] = DynamicBatcher  # asked for once
        return DynamicBatcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
