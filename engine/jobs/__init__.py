"""The queue of jobs, device leases, and the supervision of workers."""

from .queue import JobRequest, Jobs

__all__ = ["JobRequest", "Jobs"]
