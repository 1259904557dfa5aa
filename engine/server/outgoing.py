"""What one client has still to be sent. The engine never waits for a client.

Replies are never dropped. Events are kept in order; for a client that reads slowly
- of several changes of one running job only the newest stays,
- telemetry, log lines, metric points and ticks of a load test give way, the oldest first,
- and when the rest is too much, all events are dropped and a fresh snapshot is sent in their place.

What nobody waits for (progress, points of a curve, log lines, ticks) is held back for up to `BUNDLE_SECONDS` and goes
with whatever else is sent, at the latest with the next telemetry: a client is woken twice a second by a training, not
fifteen times. On a machine whose cores all train each time would stop the training.
"""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
from msgspec import Struct

from ..protocol import (
    EngineEvent,
    JobChanged,
    JobLogged,
    LoadTicked,
    MetricRecorded,
    Reply,
    Running,
    Snapshot,
    TelemetrySampled,
    encode_frame,
)

MAX_PASSING = 256
"""Waiting events that may be dropped: telemetry, log lines, metric points, ticks."""

MAX_EVENTS = 1024
"""Waiting events that may not; beyond it a snapshot replaces them."""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""The same in bytes, all events together."""

BUNDLE_SECONDS = 0.5
"""A client that asks for telemetry gets that as often."""

Passing = TelemetrySampled | JobLogged | MetricRecorded | LoadTicked
"""What a slow client can do without: each of these can be asked for later."""


class _Item(Struct):
    event: EngineEvent
    frame: bytes


class Outgoing:
    """The queue of one client. `snapshot` makes the state of this moment, for a client that fell behind."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._events: list[_Item] = []
        self._replies: list[bytes] = []
        self._passing = 0
        self._bytes = 0
        self._behind = False
        self._running: set[str] = set()
        """Jobs that this client knows to run: more of the same can wait."""
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        """Set while something waits that is to be sent at once."""
        self.emptied = asyncio.Event()
        """Set while nothing waits."""
        self.resyncs = 0
        """How often this client was sent a snapshot instead of what it missed."""

    def put_reply(self, reply: Reply) -> None:
        """Queue a reply; a result over the frame limit becomes an error that says so."""
        try:
            frame = encode_frame(reply)
        except ValueError as error:
            frame = encode_frame(Reply(request=reply.request, error=f"The result is too large to send: {error}."))
        self._replies.append(frame)
        self._hurry.set()
        self._announce()

    def put_event(self, event: EngineEvent, frame: bytes) -> None:
        """Queue an event, dropping what it makes worthless and what a slow client cannot have."""
        if self._behind:
            return
        self._drop_older(event)
        self._add(_Item(event, frame))
        if not self._can_wait(event):
            self._hurry.set()
        while self._passing > MAX_PASSING:
            self._remove(next(i for i, item in enumerate(self._events) if isinstance(item.event, Passing)))
        if len(self._events) - self._passing > MAX_EVENTS or self._bytes > MAX_EVENT_BYTES:
            self.resyncs += 1
            self.resync()
        self._announce()

    def resync(self) -> None:
        """Send a snapshot next, in place of every event that waits."""
        self._events.clear()
        self._passing = self._bytes = 0
        self._behind = True
        self._hurry.set()
        self._announce()

    @property
    def waiting(self) -> bool:
        """Something has not been taken yet."""
        return bool(self._events or self._replies or self._behind)

    async def take(self) -> bytes:
        """All that is to be sent now, as frames; waits while there is nothing. Replies come after older events."""
        while not self.waiting:
            self._news.clear()
            self.emptied.set()
            await self._news.wait()
        if not self._hurry.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), BUNDLE_SECONDS)
        self._hurry.clear()
        frames = [item.frame for item in self._events]
        if self._behind:
            frames = [snapshot_frame(self._snapshot())]
        # A reply may speak of something an event announces ("run accepted"): the event first.
        frames += self._replies
        self._events, self._replies = [], []
        self._passing = self._bytes = 0
        self._behind = False
        return b"".join(frames)

    def _can_wait(self, event: EngineEvent) -> bool:
        """Nobody waits for it; telemetry is what the rest is sent with."""
        if isinstance(event, JobChanged):
            known, runs = event.job.id in self._running, isinstance(event.job.state, Running)
            if runs:
                self._running.add(event.job.id)
            else:
                self._running.discard(event.job.id)
            return known and runs
        return isinstance(event, JobLogged | MetricRecorded | LoadTicked)

    def _announce(self) -> None:
        self.emptied.clear()
        self._news.set()

    def _drop_older(self, event: EngineEvent) -> None:
        """A newer state of a running job replaces the waiting one, and goes to the end so that order is kept."""
        if not isinstance(event, JobChanged):
            return
        for index in range(len(self._events) - 1, -1, -1):
            older = self._events[index].event
            if isinstance(older, JobChanged) and older.job.id == event.job.id:
                if isinstance(older.job.state, Running):
                    self._remove(index)
                return

    def _add(self, item: _Item) -> None:
        self._events.append(item)
        self._bytes += len(item.frame)
        self._passing += isinstance(item.event, Passing)

    def _remove(self, index: int) -> None:
        item = self._events.pop(index)
        self._bytes -= len(item.frame)
        self._passing -= isinstance(item.event, Passing)


def snapshot_frame(snapshot: Snapshot) -> bytes:
    """A snapshot as a frame; one over the limit leaves out telemetry, then the oldest jobs and runs."""
    for jobs, samples in ((None, None), (None, 0), (200, 0), (20, 0)):
        smaller = snapshot
        if samples is not None:
            smaller = msgspec.structs.replace(smaller, telemetry=())
        if jobs is not None:
            smaller = msgspec.structs.replace(smaller, jobs=smaller.jobs[-jobs:], runs=smaller.runs[-jobs:])
        try:
            return encode_frame(smaller)
        except ValueError:
            continue
    raise ValueError("the session's state does not fit into one message")
