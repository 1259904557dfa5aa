"""Where a measurement ran: the `Conditions` that every figure carries."""

from __future__ import annotations

import os
import time

import psutil

from ..context import JobContext
from ..protocol import DISTURBED, Conditions
from ..runtimes import Runner

OTHERS_CORES = 0.25
"""From so many cores of other processes' work on, a measurement says that it was disturbed."""


class OtherWork:
    """How much processor time other processes used since this was made."""

    def __init__(self) -> None:
        self.start = self._now()

    def cores(self) -> float:
        """Cores busy with other processes' work, on average."""
        before, now = self.start, self._now()
        seconds = max(now[0] - before[0], 1e-3)
        return max(0.0, (now[1] - before[1]) - (now[2] - before[2])) / seconds

    def note(self) -> tuple[str, ...]:
        """A sentence if it was enough to disturb a measurement, in a tuple for `Conditions.notes`."""
        cores = self.cores()
        if cores < OTHERS_CORES:
            return ()
        return (f"{DISTURBED} other processes kept {cores:.1f} cores busy meanwhile.",)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: wall clock, all processors' busy time, this process's own."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = os.times()
        return time.monotonic(), busy, own.user + own.system


def conditions(job: JobContext, runner: Runner, notes: tuple[str, ...] = ()) -> Conditions:
    """The facts about a run on this runner."""
    return Conditions(
        runtime=runner.runtime,
        device=runner.device,
        processor=processor_name(job, runner.device),
        threads=runner.threads,
        providers=runner.providers,
        versions=runner.versions,
        notes=(*getattr(runner, "notes", ()), *notes),
    )


def processor_name(job: JobContext, device: str) -> str:
    """The processor's features ("avx2,vnni"), or the GPU's name."""
    if device == "cpu":
        return ",".join(job.spec.processor.features) or job.spec.processor.name
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
        name = pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError:
        return device
    return name if isinstance(name, str) else name.decode()
