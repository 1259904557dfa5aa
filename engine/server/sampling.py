"""Take telemetry only as often as someone needs it: a client that watches, or a job whose history it belongs to.

With neither, this sleeps without a timer and costs nothing. Sampling itself runs in a thread, because a sick GPU
driver can block for seconds; the event loop never does.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..client.folding import TELEMETRY_SECONDS
from ..protocol import TelemetrySample

if TYPE_CHECKING:
    from ..telemetry import Telemetry

JOB_HZ = 2.0
"""Samples a second while a job runs: its history is kept with the session."""


class Sampler:
    """Calls `deliver(sample)` at the rate that `wanted_hz()` asks for; looks again when `wake` is called."""

    def __init__(
        self,
        telemetry: "Telemetry",
        wanted_hz: Callable[[], float],
        running_job: Callable[[], str | None],
        deliver: Callable[[TelemetrySample], None],
    ) -> None:
        self._telemetry = telemetry
        self._wanted_hz = wanted_hz
        self._running_job = running_job
        self._deliver = deliver
        self._news = asyncio.Event()
        self.recent: deque[TelemetrySample] = deque()
        """The last two minutes, for snapshots."""

    def wake(self) -> None:
        """Someone came or went: what is wanted may have changed."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        due = time.monotonic()
        while True:
            rate = self._wanted_hz()
            if rate <= 0:
                self._news.clear()
                await self._news.wait()
                due = time.monotonic()
                continue
            if (early := due - time.monotonic()) > 0:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(early):
                        await self._news.wait()
                    # Someone wants them more often now.
                    due = min(due, time.monotonic() + 1 / max(rate, self._wanted_hz()))
                    continue
            self.keep(await asyncio.to_thread(self._telemetry.sample, self._running_job()))
            self._deliver(self.recent[-1])
            # On a fixed grid, but never catching up after a blocked driver.
            due = max(due + 1 / rate, time.monotonic())

    def keep(self, sample: TelemetrySample) -> None:
        """Remember a sample for two minutes."""
        self.recent.append(sample)
        while self.recent and self.recent[0].time < sample.time - TELEMETRY_SECONDS:
            self.recent.popleft()
