"""Who may run beside whom: one job a device, and a measurement alone on the whole machine.

Pure: given what runs and what waits, in order, says what may start now. A measurement at the head of the queue is
not overtaken, else a stream of small jobs would keep it waiting for ever.
"""

from msgspec import Struct


class Claim(Struct, frozen=True):
    """What a job needs."""

    job: str
    title: str
    device: str
    """"cpu", "cuda:0", …"""
    exclusive: bool
    """No other job beside it, on any device: it measures time."""


def startable(running: list[Claim], waiting: list[Claim]) -> tuple[list[Claim], dict[str, str]]:
    """The waiting jobs that may start now, and for each of the others what it waits for, in words."""
    started: list[Claim] = []
    blocked: dict[str, str] = {}
    ahead: list[Claim] = []
    for claim in waiting:
        obstacle = next((other for other in (*running, *started, *ahead) if _conflict(claim, other)), None)
        if obstacle is None:
            started.append(claim)
        else:
            blocked[claim.job] = f"{obstacle.title}"
            ahead.append(claim)
    return started, blocked


def _conflict(one: Claim, other: Claim) -> bool:
    return one.exclusive or other.exclusive or one.device == other.device
