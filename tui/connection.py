"""The dashboard's side of the engine: attach after the first paint, follow events, attach again when it is lost.

`snapshot` is always something to draw; `link` says whether it is live. While the engine is away the last snapshot
stays on the screen with its age, and a new attempt is made at growing intervals. An event that changes what the user
decides by (a result, a job's end) asks for a paint at once, everything else waits for the next tick.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.protocol import (
    METRIC_POINTS,
    Command,
    EngineStopping,
    JobChanged,
    JobLogged,
    LoadHistory,
    LoadTicked,
    MetricHistory,
    MetricRecorded,
    ReadLoad,
    ReadMetrics,
    Result,
    Running,
    Snapshot,
    TelemetrySampled,
)

from .curves import Curves
from .loads import LoadCourse
from .view import NOTHING

if TYPE_CHECKING:
    from engine.client import EngineClient

Connect = Callable[[Path, bool], Awaitable[Any]]
"""Gives a connected client, and starts the engine for it if the flag says so; a test passes its own."""

TELEMETRY_HZ = 2.0
"""What the charts ask for; also the rate of the dashboard's tick."""

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to attach again; the last one repeats."""


class NotConnected(Exception):
    """A command was given while there is no engine to give it to."""


class Connection:
    """One engine, followed for as long as the dashboard lives."""

    def __init__(
        self,
        session_directory: Path,
        changed: Callable[[bool], None],
        clock: Callable[[], float],
        connect: Connect | None = None,
    ) -> None:
        self.session_directory = session_directory
        self.snapshot: Snapshot = NOTHING
        self.link: Literal["connecting", "connected", "lost"] = "connecting"
        self.since = clock()
        self.reason = ""
        self.log_news: dict[str, int] = {}
        """By job, how often it was said that its log has grown."""
        self.curves: dict[str, Curves] = {}
        """What training jobs reported; `read_curves` fills in what was reported before anybody looked."""
        self.loads: dict[str, LoadCourse] = {}
        """What load tests reported, likewise by `read_load`."""
        self.stopped = False
        """Somebody stopped the engine on purpose."""
        self._wake = asyncio.Event()
        self._client: EngineClient | None = None
        self._changed = changed
        self._clock = clock
        self._connect = connect or _attach

    async def follow(self, on_attached: Callable[[], Awaitable[None]]) -> None:
        """Attach and follow, for ever. `on_attached` runs after the first attachment.

        An engine that crashed is started again; one that was stopped on purpose only when the user asks (`restart`).
        """
        from engine.client import EngineError

        attempt = 0
        greeted = False
        while True:
            try:
                self._client = await self._connect(self.session_directory, not self.stopped)
                attempt, self.stopped = 0, False
                self._set("connected", "")
                self._take(self._client.state)
                if not greeted:
                    greeted = True
                    await on_attached()
                await self._read(self._client)
                self._set("lost", self.reason or "The connection to the engine ended.")
            except (EngineError, OSError) as error:
                if not self.stopped:
                    self._set("lost", str(error))
            pause = PAUSES[min(attempt, len(PAUSES) - 1)]
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            attempt += 1

    def restart(self) -> None:
        """Start the engine again now."""
        self.stopped = False
        self._wake.set()

    async def request(self, command: Command) -> Result:
        """Send a command. Raises EngineError or NotConnected, both with a sentence."""
        if self._client is None or self.link != "connected":
            raise NotConnected("The engine is not connected; nothing was sent. Try again in a moment.")
        return await self._client.request(command)

    async def read_curves(self, job: str) -> None:
        """Read the whole history of a job's curves; afterwards events keep it whole. Raises as `request` does."""
        curves = self.curves.setdefault(job, Curves())
        offset = 0
        curves.complete = True  # whatever happens meanwhile, and makes it incomplete again, is read the next time
        while True:
            try:
                reply = await self.request(ReadMetrics(request=0, job=job, offset=offset))
            except BaseException:
                curves.complete = False
                raise
            if not isinstance(reply, MetricHistory):
                return
            curves.extend(reply.points)
            offset += len(reply.points)
            if len(reply.points) < METRIC_POINTS:
                return

    async def read_load(self, job: str) -> None:
        """Read what a load test was asked to do and every tick so far. Raises as `request` does."""
        course = self.loads.setdefault(job, LoadCourse())
        course.complete = True  # as above
        try:
            reply = await self.request(ReadLoad(request=0, job=job))
        except BaseException:
            course.complete = False
            raise
        if isinstance(reply, LoadHistory):
            course.settings = reply.settings or course.settings
            course.replace(reply.ticks)

    async def close(self) -> None:
        """Leave the engine to itself."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                await self._client.aclose()

    async def _read(self, client: "EngineClient") -> None:
        async for event in client.events():
            before = self.snapshot
            if isinstance(event, JobLogged):
                self.log_news[event.job] = self.log_news.get(event.job, 0) + 1
            self._follow_curves(event)
            if isinstance(event, EngineStopping):
                self.stopped = True
                self.reason = event.reason
            self.snapshot = client.state
            self._changed(_is_urgent(event, before))

    def _follow_curves(self, event: object) -> None:
        """Take in a point; doubt what we have where points may have been dropped on the way (they are, first)."""
        if isinstance(event, MetricRecorded):
            self.curves.setdefault(event.job, Curves()).add(event.name, event.step, event.value)
        elif isinstance(event, LoadTicked):
            self.loads.setdefault(event.job, LoadCourse()).add(event.tick)
        elif isinstance(event, JobLogged) and event.job in self.loads:
            self.loads[event.job].hear(event.lines)
        elif isinstance(event, Snapshot):
            held: list[Curves | LoadCourse] = [*self.curves.values(), *self.loads.values()]
            for known in held:
                known.complete = False
        elif isinstance(event, JobChanged) and event.job.is_done:
            for ended in (self.curves.get(event.job.id), self.loads.get(event.job.id)):
                if ended is not None:
                    ended.complete = False

    def _take(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._follow_curves(snapshot)
        self._changed(True)

    def _set(self, link: Literal["connected", "lost"], reason: str) -> None:
        if link != self.link:
            self.since = self._clock()
        self.link, self.reason = link, reason
        self._changed(True)


def _is_urgent(event: object, before: Snapshot) -> bool:
    """Whether an event is worth a paint of its own. Progress of a running job, samples and log lines are not."""
    if isinstance(event, TelemetrySampled | JobLogged | MetricRecorded | LoadTicked):
        return False
    if isinstance(event, JobChanged) and isinstance(event.job.state, Running):
        return not any(job.id == event.job.id and isinstance(job.state, Running) for job in before.jobs)
    return True


async def _attach(session_directory: Path, start: bool) -> Any:
    """The real engine."""
    from engine.client import connect

    return await connect(session_directory, start=start, client="dashboard", telemetry_hz=TELEMETRY_HZ)
