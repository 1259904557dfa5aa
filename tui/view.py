"""What the main screen needs beside the engine's snapshot: the moment, the connection, and the user's choices.

A pane is a function of these two values: `show(snapshot, view)` is the only way in. So a live screen, a screen after
re-attaching, a test and a screenshot are one path.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from engine.protocol import Hardware, Job, Latency, Processor, Running, SessionOptions, Snapshot

from .curves import Curves

SORTS = ("tree", "speed", "size", "drop")
"""Orders of the variants; "tree" is by descent, the others are flat."""

STALE_SECONDS = 3.0
"""A telemetry sample older than this is shown with its age: the figures are not live any more."""

NOTHING = Snapshot(
    seq=0,
    session="",
    hardware=Hardware(
        hostname="", processor=Processor(name="", features=(), physical_cores=0, logical_cores=0, memory_bytes=0)
    ),
    options=SessionOptions(),
)
"""What is drawn before the engine's first word."""


@dataclasses.dataclass(frozen=True)
class View:
    """The moment and the choices. `now` is seconds since the epoch, so tests and screenshots can fix it."""

    now: float
    link: Literal["connecting", "connected", "lost"] = "connecting"
    link_since: float = 0.0
    link_reason: str = ""
    """Why there is no connection, in the client's words."""
    batch_size: int | None = None
    """The batch size whose latencies are compared; None until there is one."""
    sort: str = "tree"
    filter: str = ""
    session: str = ""
    curves: Mapping[str, Curves] = dataclasses.field(default_factory=dict)
    """What training jobs reported, by job; those that nobody looked at are not there."""


def batch_sizes(snapshot: Snapshot) -> tuple[int, ...]:
    """Every batch size that is asked for or was measured, ascending."""
    measured = {one.batch_size for one in snapshot.measurements if hasattr(one, "batch_size")}
    return tuple(sorted(measured | set(snapshot.options.batch_sizes)))


def default_batch_size(snapshot: Snapshot) -> int | None:
    """Eight where it was measured, else the largest that was; before anything was, of those that are asked for."""
    timed = {one.batch_size for one in snapshot.measurements if isinstance(one, Latency)}
    offered = sorted(timed) or batch_sizes(snapshot)
    return 8 if 8 in offered else offered[-1] if offered else None


def running_jobs(snapshot: Snapshot) -> list[Job]:
    """Jobs that a worker is on."""
    return [job for job in snapshot.jobs if isinstance(job.state, Running)]


def unfinished_jobs(snapshot: Snapshot) -> list[Job]:
    """Jobs that run or wait."""
    return [job for job in snapshot.jobs if not job.is_done]


def share_done(job: Job) -> float | None:
    """How far a running job is, 0 to 1; None when it cannot say."""
    state = job.state
    if not isinstance(state, Running) or not state.total:
        return None
    return min(max(state.done / state.total, 0.0), 1.0)


def seconds_left(job: Job, now: float) -> float | None:
    """Time left at the pace so far; None while that would be a guess."""
    share = share_done(job)
    if share is None or not isinstance(job.state, Running):
        return None
    elapsed = now - job.state.started
    if share < 0.02 or elapsed < 1.0:
        return None
    return elapsed * (1 - share) / share
