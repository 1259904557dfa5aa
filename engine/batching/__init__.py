"""Dynamic batching: `DynamicBatcher` and `BatchPolicy`, usable on their own in an asyncio service."""

from .batcher import BatcherClosed, BatchPolicy, DeadlineExceeded, DynamicBatcher, QueueFull, RequestTooLarge

__all__ = ["BatchPolicy", "BatcherClosed", "DeadlineExceeded", "DynamicBatcher", "QueueFull", "RequestTooLarge"]
