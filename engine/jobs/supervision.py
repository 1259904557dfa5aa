"""Stay beside a worker until it is gone: hand on what it says, stop it when the user cancels, tell how it ended.

The promise behind "cancelled": SIGTERM to the whole process group at once, SIGKILL `GRACE_SECONDS` later, so that
within two seconds nothing of the job runs, whatever native code it was in.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..protocol import Finished, GaveUp, WorkerMessage
from .workers import Exit, Garbled, Worker

GRACE_SECONDS = 1.2
"""Between SIGTERM and SIGKILL of a cancelled job; the promise is two seconds in all."""

LEAVE_SECONDS = 5.0
"""How long a worker may take to end after its last message."""

LOG_LOOK_SECONDS = 0.25
"""How often a running job's log is looked at for new lines."""

T = TypeVar("T")

Last = Finished | GaveUp | Garbled | None
"""A worker's last message; None if it ended without one."""


async def accompany(
    worker: Worker, cancel: asyncio.Event, take: Callable[[WorkerMessage], None], look_at_log: Callable[[bool], None]
) -> tuple[Last, Exit]:
    """Listen to a worker until it is gone: its last message, if any, and how it ended.

    `take` gets every message before the last one; `look_at_log` is called now and then, with True at the end.
    """
    listening = asyncio.create_task(_listen(worker, take))
    stopping = asyncio.create_task(_stop_when(cancel, worker))
    following = asyncio.create_task(_repeat(look_at_log))
    gone = asyncio.create_task(worker.wait())
    try:
        await asyncio.wait({listening, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            patience = 0 if isinstance(listening.result(), Garbled) else LEAVE_SECONDS
            await asyncio.wait({gone}, timeout=patience)
            worker.signal(signal.SIGKILL)
        ended = await gone
        # What it sent before it died is still in the socket.
        await asyncio.wait({listening}, timeout=1.0)
        return listening.result() if listening.done() else None, ended
    finally:
        for task in (listening, stopping, following, gone):
            task.cancel()
        look_at_log(True)
        worker.close()


async def unless(cancel: asyncio.Event, action: Awaitable[T]) -> T | None:
    """The action's result; None once `cancel` is set, with the action cancelled. Raises what the action raises."""
    doing = asyncio.ensure_future(action)
    waiting = asyncio.create_task(cancel.wait())
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if doing.done():
        return doing.result()
    doing.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await doing
    return None


async def _listen(worker: Worker, take: Callable[[WorkerMessage], None]) -> Last:
    while True:
        try:
            message = await worker.receive()
        except Garbled as error:
            return error
        if message is None or isinstance(message, Finished | GaveUp):
            return message
        take(message)


async def _stop_when(cancel: asyncio.Event, worker: Worker) -> None:
    await cancel.wait()
    worker.signal(signal.SIGTERM)
    await asyncio.sleep(GRACE_SECONDS)
    worker.signal(signal.SIGKILL)


async def _repeat(look: Callable[[bool], None]) -> None:
    while True:
        await asyncio.sleep(LOG_LOOK_SECONDS)
        look(False)
