"""Who may run beside whom: one job a device, and a measurement alone on the whole machine.

Pure: given what runs and what waits, in order, says what may start now. A measurement at the head of the queue is
not overtaken, else a stream of small jobs would keep it waiting for ever.

A server has no end of its own. It holds its device like any job, but servers bear each other, and a load test that is
sent to a server by its address bears servers, since one of them may be what it measures. Such a test also passes
those who wait for a server to end.
"""

from msgspec import Struct

from ..devices import overlap
from ..protocol import (
    ExplainVariant,
    Job,
    MeasureAccuracy,
    MeasureLatency,
    MeasureProfile,
    Serve,
    Task,
    TestLoad,
)

TIMED = (MeasureLatency, MeasureAccuracy, MeasureProfile, ExplainVariant, TestLoad)
"""Tasks whose job runs alone."""


class Claim(Struct, frozen=True):
    """What a job needs."""

    job: str
    title: str
    device: str
    """"cpu", "cuda:0", …: see `engine/devices.py`."""
    exclusive: bool
    """No other job beside it, on any device: it measures time."""
    serves: bool = False
    """It goes on until somebody ends it."""
    bears_servers: bool = False
    """Servers may run beside it."""


def claim_of(job: Job, task: Task, exclusive: bool | None = None) -> Claim:
    """What a job needs. `exclusive` None: as its task needs it."""
    serves = isinstance(task, Serve)
    return Claim(
        job=job.id,
        title=job.title,
        device=job.device,
        exclusive=isinstance(task, TIMED) if exclusive is None else exclusive,
        serves=serves,
        bears_servers=serves or (isinstance(task, TestLoad) and task.settings.url is not None),
    )


def startable(running: list[Claim], waiting: list[Claim]) -> tuple[list[Claim], dict[str, str]]:
    """The waiting jobs that may start now, and for each of the others what it waits for, in words."""
    started: list[Claim] = []
    blocked: dict[str, str] = {}
    ahead: list[Claim] = []
    held_by_server: list[Claim] = []
    for claim in waiting:
        before = ahead if claim.bears_servers else ahead + held_by_server
        obstacle = next((other for other in (*running, *started, *before) if _conflict(claim, other)), None)
        if obstacle is None:
            started.append(claim)
        else:
            blocked[claim.job] = f"{obstacle.title}"
            (held_by_server if obstacle.serves else ahead).append(claim)
    return started, blocked


def _conflict(one: Claim, other: Claim) -> bool:
    if (one.serves and other.bears_servers) or (other.serves and one.bears_servers):
        return False
    return one.exclusive or other.exclusive or overlap(one.device, other.device)
