"""The queue of jobs, device leases, and the supervision of workers."""

from .queue import Jobs
from .specifying import JobRequest

__all__ = ["JobRequest", "Jobs"]
