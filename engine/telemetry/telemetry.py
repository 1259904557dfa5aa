"""The machine while it works: CPU, memory and every NVIDIA GPU, as `protocol.TelemetrySample`.

`sample()` never raises because of the hardware, never waits for an interval to pass, and costs about a tenth of
a millisecond plus the driver's own time (tests/benchmarks/bench_telemetry.py measures it). A sick driver can
block a call for seconds, so an event loop calls it in a thread; one call runs at a time.

The CPU figures are those of the whole machine, also inside a container. Memory is what this process may use:
where a control group sets a limit below the machine's memory, total is the limit and used is the group's usage
without the file cache that the kernel takes back first.
"""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ..hardware import read_processor
from ..protocol import Hardware, TelemetrySample
from .nvml import GpuReader

SHORTEST_CPU_SECONDS = 0.09
"""The kernel counts CPU time in ticks of 10 ms: below this a share of it is mostly rounding."""


def read_hardware() -> Hardware:
    """What this machine is: processor, GPUs, driver. Takes up to a second when the NVIDIA driver must wake up."""
    reader = GpuReader()
    gpus = reader.describe()
    status = reader.status or f"{len(gpus)} NVIDIA GPU{'s' if len(gpus) > 1 else ''}"
    driver = reader.driver
    reader.close()
    return Hardware(
        hostname=socket.gethostname(), processor=read_processor(), gpus=gpus, driver=driver, gpu_status=status
    )


class Telemetry:
    """Samples the machine. May be called from any thread."""

    detailed: bool = True
    """Also read occupancy, tensor cores and memory bandwidth (Hopper and later); shares counters with DCGM."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gpus = GpuReader(clock)
        self._cores = _CoreTimes(clock)
        self._group = find_memory_group(Path("/"))
        self._lock = threading.Lock()

    def sample(self, job: str | None = None) -> TelemetrySample:
        """The machine now; CPU figures are means since the sample before (None in the first)."""
        with self._lock:
            cores = self._cores.read()
            used, total = self._memory()
            return TelemetrySample(
                time=time.time(),
                cpu=sum(cores) / len(cores) if cores else None,
                cores=cores,
                memory_used_bytes=used,
                memory_total_bytes=total,
                gpus=self._gpus.read(self.detailed),
                job=job,
            )

    def close(self) -> None:
        """Give the GPU library back."""
        with self._lock:
            self._gpus.close()

    def _memory(self) -> tuple[int | None, int | None]:
        try:
            machine = psutil.virtual_memory()
        except (OSError, RuntimeError):
            return None, None
        limited = self._group.read() if self._group else None
        if limited is not None and limited[1] < machine.total:
            return limited
        return machine.total - machine.available, machine.total


class _CoreTimes:
    """Busy share of each core since the last reading.

    Not `psutil.cpu_percent`: that keeps its last reading per thread, and we are called from several.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = self._counters()
        self._last_time = clock()
        self._shares: tuple[float, ...] = ()

    def read(self) -> tuple[float, ...]:
        now = self._clock()
        if now - self._last_time < SHORTEST_CPU_SECONDS:
            return self._shares
        before, self._last, self._last_time = self._last, self._counters(), now
        if len(before) != len(self._last):  # a core came or went: nothing to compare with
            self._shares = ()
        else:
            self._shares = tuple(_busy_share(a, b) for a, b in zip(before, self._last))
        return self._shares

    @staticmethod
    def _counters() -> list[tuple[float, float]]:
        """(busy, all) seconds of each core. Guests' time is within user time already."""
        try:
            times = psutil.cpu_times(percpu=True)
        except (OSError, RuntimeError):
            return []
        counters = []
        for core in times:
            everything = sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0)
            counters.append((everything - core.idle - getattr(core, "iowait", 0.0), everything))
        return counters


def _busy_share(before: tuple[float, float], after: tuple[float, float]) -> float:
    passed = after[1] - before[1]
    if passed <= 0:
        return 0.0
    return min(1.0, max(0.0, (after[0] - before[0]) / passed))


class MemoryGroup:
    """The control group that limits this process's memory."""

    def __init__(self, directory: Path, limit_file: str, usage_file: str, cache_key: str) -> None:
        self.directory = directory
        self._limit = directory / limit_file
        self._usage = directory / usage_file
        self._statistics = directory / "memory.stat"
        self._cache_key = cache_key

    def read(self) -> tuple[int, int] | None:
        """(used, limit) in bytes, or None where there is no limit."""
        limit = _number(self._limit)
        usage = _number(self._usage)
        if limit is None or usage is None:
            return None
        return max(0, usage - self._reclaimable()), limit

    def _reclaimable(self) -> int:
        try:
            for line in self._statistics.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == self._cache_key:
                    return int(value)
        except (OSError, ValueError):
            pass
        return 0


def find_memory_group(root: Path) -> MemoryGroup | None:
    """The tightest memory limit above this process (control groups version 2, else 1), or None without any.

    `root` is the machine's root directory. A container may see its own group mounted at the top, where the
    path the kernel names does not exist: then the top is looked at.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    best: tuple[int, MemoryGroup] | None = None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top = root / "sys/fs/cgroup"
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        here = top / path.strip("/")
        for directory in (here, *here.parents):
            if directory != top and top not in directory.parents:
                break
            limit = _number(directory / names[0])
            if limit is not None and (best is None or limit < best[0]):
                best = limit, MemoryGroup(directory, *names)
    return best[1] if best else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
