"""Every NVIDIA GPU of this machine, read through NVML, without ever raising at the caller.

A GPU box is a place where things go wrong while one looks: a board falls off the bus, an upgrade replaces
the library under a running driver, a container loses its devices, half the fields are not supported or not
permitted. So each figure is asked for on its own: what the driver will not say is None, a lost GPU keeps its
place with the reason as its `status` while the others go on, and everything is opened again after
`REOPEN_SECONDS`, then less and less often, until it answers.

Units are those of `protocol.GpuSample`. GPUs keep the index they had when first seen (matched by UUID), so that
a chart never continues with another board's figures. Not thread-safe; calls may block for milliseconds.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..protocol import Gpu, GpuSample
from .gpm import GpmWindow

REOPEN_SECONDS = 5.0
"""How long to wait before the library is opened again after it, or a GPU, was lost."""

REOPEN_SECONDS_AT_MOST = 60.0
"""The wait doubles up to this: starting NVML on a box of eight GPUs may take seconds of a measurement's time."""

SLOW_SECONDS = 5.0
"""Age up to which the process list and the memory clock are kept: the driver takes milliseconds for them."""

ASK_AGAIN_SECONDS = 60.0
"""A figure that failed for a reason that may pass (no permission, a time-out) is left alone for this long."""

NO_GPU = "no NVIDIA GPU"
"""The calm answer of a machine without one."""

STATUS = {
    1: "the NVIDIA driver was reset",
    4: "no permission to read the GPU",
    9: "the NVIDIA driver is not loaded",
    12: NO_GPU,
    15: "GPU is lost (it fell off the bus: see the kernel log, reboot if it stays away)",
    16: "GPU needs a reset (nvidia-smi --gpu-reset)",
    17: "the operating system blocks access to the GPU",
    18: "NVIDIA driver and library versions differ: reboot the machine",
    28: "GPU is lost (it fell off the bus: see the kernel log, reboot if it stays away)",
    999: "the driver gives no access to the GPU (in a container: restart it)",
}
"""NVML return codes that concern a whole GPU or the library, in words."""

NEVER = {3, 13, 25, 26}
"""Not supported, no such function in this driver, version of a struct unknown, removed: not asked again."""

LOST = {1, 9, 15, 16, 18, 28}
"""After one of these nothing more is to be had from the GPU until the library has been opened again."""

THROTTLE_REASONS = (
    (0x004, "power cap"),
    (0x008, "hardware slowdown"),
    (0x010, "sync boost"),
    (0x020, "software thermal slowdown"),
    (0x040, "hardware thermal slowdown"),
    (0x080, "power brake"),
    (0x100, "display clock setting"),
    (0x200, "board limit"),
    (0x400, "reliability"),
)
"""What holds the clocks down. Idle (1) and clocks the user set (2) are no throttling."""

Query = Callable[[Any], Any]
"""Takes NVML's handle of a GPU."""


class GpuReader:
    """Reads every GPU; opens NVML at the first use and again after a loss."""

    status: str
    """Why there are no GPUs to read, or "" when there are."""
    driver: str | None
    """The driver's version, once it answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.status = NO_GPU
        self.driver = None
        self._clock = clock
        self._nvml: ModuleType | None = None
        self._boards: list[_Board] = []
        self._open_at = float("-inf")
        self._wait = REOPEN_SECONDS

    def describe(self) -> tuple[Gpu, ...]:
        """Every GPU seen so far, also one that is lost by now."""
        self._open_if_due()
        return tuple(
            Gpu(
                index=board.index,
                uuid=board.uuid,
                name=board.name,
                memory_bytes=board.memory_bytes,
                power_limit_w=board.power_limit_w,
                compute_capability=board.compute_capability,
            )
            for board in self._boards
        )

    def read(self, detailed: bool = True) -> tuple[GpuSample, ...]:
        """One sample of each GPU in the order of `describe`.

        `detailed` asks Hopper and later for occupancy, tensor activity and memory bandwidth, which need the
        performance counters that a data-centre monitor (DCGM) may be using at the same time.
        """
        self._open_if_due()
        return tuple(self._sample(board, detailed) for board in self._boards)

    def close(self) -> None:
        """Give NVML back. A later `read` opens it again."""
        nvml, self._nvml = self._nvml, None
        self._open_at = float("-inf")
        for board in self._boards:
            board.forget()
        if nvml is not None:
            with suppress(nvml.NVMLError):  # the driver may have gone first
                nvml.nvmlShutdown()

    # --- opening ---------------------------------------------------------------------------------

    def _open_if_due(self) -> None:
        if self._clock() < self._open_at:
            return
        self.close()
        self.status = self._open()
        if self.status:
            for board in self._boards:
                board.status = self.status
        if self.status or any(board.handle is None for board in self._boards):
            self._open_at = self._clock() + self._wait
            self._wait = min(2 * self._wait, REOPEN_SECONDS_AT_MOST)
        else:
            self._open_at = float("inf")
            self._wait = REOPEN_SECONDS

    def _open(self) -> str:
        """Why there is nothing to read, or ""."""
        try:
            import pynvml  # 20 ms, so not at the module's top
        except ImportError:
            return "no GPU figures: the package nvidia-ml-py is not installed"
        if not hasattr(pynvml, "nvmlDeviceGetCount") or not hasattr(pynvml, "NVMLError"):
            return "no GPU figures: another package hides nvidia-ml-py (pip uninstall pynvml nvidia-ml-py3)"
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == 12 and Path("/proc/driver/nvidia/version").exists():
                return (
                    "an NVIDIA driver is loaded but its libnvidia-ml.so.1 is missing (in a container: use its runtime)"
                )
            return STATUS.get(error.value, f"NVML did not start (error {error.value})")
        self._nvml = pynvml
        for board in self._boards:
            board.status = ""
        try:
            self.driver = _text(pynvml.nvmlSystemGetDriverVersion())
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            return STATUS.get(error.value, f"NVML does not answer (error {error.value})")
        for nvml_index in range(count):
            self._find(nvml_index)
        for board in self._boards:
            if board.handle is None:
                board.status = board.status or STATUS[15]
        return "" if self._boards else NO_GPU

    def _find(self, nvml_index: int) -> None:
        """Give one of NVML's GPUs its place: the one with its UUID, else a new one at the end."""
        nvml = self._nvml
        assert nvml is not None
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(nvml_index)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        except nvml.NVMLError as error:
            reason = STATUS.get(error.value, f"GPU does not answer (error {error.value})")
            if nvml_index >= len(self._boards):
                self._boards.append(_Board(index=len(self._boards), nvml_index=nvml_index, status=reason))
            else:
                silent = [b for b in self._boards if b.nvml_index == nvml_index and b.handle is None]
                for board in silent:
                    board.status = reason
            return
        known = [b for b in self._boards if b.uuid == uuid]
        known = known or [b for b in self._boards if not b.uuid and b.nvml_index == nvml_index]
        if not known:
            known = [_Board(index=len(self._boards), nvml_index=nvml_index)]
            self._boards += known
        board = known[0]
        board.handle, board.uuid, board.nvml_index, board.status = handle, uuid, nvml_index, ""
        board.name = _text(self._ask(board, "name", nvml.nvmlDeviceGetName) or "NVIDIA GPU")
        memory = self._memory(board)
        board.memory_bytes = memory.total if memory else None
        limit = self._ask(board, "power limit", nvml.nvmlDeviceGetEnforcedPowerLimit)
        board.power_limit_w = limit / 1000 if limit is not None else None
        capability = self._ask(board, "compute capability", nvml.nvmlDeviceGetCudaComputeCapability)
        board.compute_capability = ".".join(map(str, capability)) if capability else None
        mig = self._ask(board, "MIG mode", lambda handle: nvml.nvmlDeviceGetMigMode(handle))
        board.partitioned = bool(mig and mig[0])

    # --- sampling --------------------------------------------------------------------------------

    def _sample(self, board: "_Board", detailed: bool) -> GpuSample:
        nvml = self._nvml
        if nvml is None or board.handle is None:
            return GpuSample(index=board.index, status=board.status)
        use = self._ask(board, "utilisation", nvml.nvmlDeviceGetUtilizationRates)
        memory = self._memory(board)
        power = self._ask(board, "power", nvml.nvmlDeviceGetPowerUsage)
        temperature = self._ask(board, "temperature", lambda h: nvml.nvmlDeviceGetTemperature(h, 0))
        sm_clock = self._ask(board, "sm clock", lambda h: nvml.nvmlDeviceGetClockInfo(h, 1))
        energy = self._ask(board, "energy", nvml.nvmlDeviceGetTotalEnergyConsumption)
        throttle = self._throttle(board)
        self._refresh_slow(board)
        if detailed and board.gpm is None:
            board.gpm = self._ask(board, "gpm", lambda h: GpmWindow(nvml, h))
        gpm = board.gpm
        dense = self._ask(board, "gpm figures", lambda h: gpm.read(self._clock())) if detailed and gpm else None
        if board.handle is None:
            return GpuSample(index=board.index, status=board.status)
        figures = (use, memory, power, temperature, sm_clock)
        if all(figure is None for figure in figures):
            status = board.status or "the driver gives no figures for this GPU"
        else:
            status = (
                "split into MIG instances: no utilisation of the whole" if board.partitioned and use is None else ""
            )
        return GpuSample(
            index=board.index,
            utilisation=use.gpu / 100 if use is not None else None,
            memory_used_bytes=memory.used if memory is not None else None,
            memory_total_bytes=memory.total if memory is not None else None,
            power_w=power / 1000 if power is not None else None,
            temperature_c=float(temperature) if temperature is not None else None,
            sm_clock_mhz=sm_clock,
            memory_clock_mhz=board.memory_clock_mhz,
            throttle=throttle,
            processes=board.processes,
            energy_j=energy / 1000 if energy is not None else None,
            sm_occupancy=dense.sm_occupancy if dense else None,
            tensor_activity=dense.tensor_activity if dense else None,
            memory_bandwidth=dense.memory_bandwidth if dense else None,
            status=status,
        )

    def _ask(self, board: "_Board", name: str, query: Query) -> Any:
        """One figure of one GPU, or None; an error decides when it is asked for again."""
        nvml, now = self._nvml, self._clock()
        if nvml is None or board.handle is None or board.not_before.get(name, now) > now:
            return None
        try:
            return query(board.handle)
        except nvml.NVMLError as error:
            code: int = error.value
        except (AttributeError, UnicodeDecodeError):
            code = 13  # this nvidia-ml-py is older than the function, or the driver wrote nonsense
        if code in LOST:
            board.forget()
            board.status = STATUS[code]
            self._open_at = min(self._open_at, now + self._wait)
        elif code in NEVER:
            board.not_before[name] = float("inf")
        else:
            board.not_before[name] = now + (REOPEN_SECONDS if code == 999 else ASK_AGAIN_SECONDS)
            board.status = STATUS.get(code, board.status)
        return None

    def _memory(self, board: "_Board") -> Any:
        """With `total` and `used` bytes. The newer call leaves out what the driver keeps for itself."""
        nvml = self._nvml
        assert nvml is not None
        newer = self._ask(board, "memory", lambda h: nvml.nvmlDeviceGetMemoryInfo(h, version=nvml.nvmlMemory_v2))
        return newer or self._ask(board, "memory, older call", nvml.nvmlDeviceGetMemoryInfo)

    def _throttle(self, board: "_Board") -> tuple[str, ...]:
        nvml = self._nvml
        assert nvml is not None
        bits = self._ask(board, "throttle", lambda h: nvml.nvmlDeviceGetCurrentClocksEventReasons(h))
        if bits is None:  # the name before driver 535
            bits = self._ask(board, "throttle, older", lambda h: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(h))
        return tuple(words for bit, words in THROTTLE_REASONS if bits and bits & bit)

    def _refresh_slow(self, board: "_Board") -> None:
        nvml, now = self._nvml, self._clock()
        assert nvml is not None
        if now - board.slow_read < SLOW_SECONDS:
            return
        board.slow_read = now
        board.memory_clock_mhz = self._ask(board, "memory clock", lambda h: nvml.nvmlDeviceGetClockInfo(h, 2))
        held: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics", "MPSCompute"):
            for process in self._processes(board, kind):
                if process.usedGpuMemory is not None or process.pid not in held:
                    held[process.pid] = process.usedGpuMemory
        board.processes = tuple(sorted(held.items(), key=lambda item: (-(item[1] or 0), item[0])))

    def _processes(self, board: "_Board", kind: str) -> Any:
        """Of one kind, each with `pid` and `usedGpuMemory`.

        By versioned name: the one without a version raises for every driver not of the binding's own age.
        """
        for version in ("v3", "v2"):
            name = f"nvmlDeviceGet{kind}RunningProcesses_{version}"
            found = self._ask(board, name, lambda h: getattr(self._nvml, name)(h))  # noqa: B023  called at once
            if found is not None:
                return found
        return ()


@dataclass(slots=True)
class _Board:
    """One GPU's place. `handle` is None while it is lost; what is known of it stays."""

    index: int
    nvml_index: int
    uuid: str = ""
    name: str = "NVIDIA GPU"
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    compute_capability: str | None = None
    partitioned: bool = False
    handle: Any = None
    status: str = ""
    not_before: dict[str, float] = field(default_factory=dict)
    slow_read: float = float("-inf")
    memory_clock_mhz: int | None = None
    processes: tuple[tuple[int, int | None], ...] = ()
    gpm: GpmWindow | None = None

    def forget(self) -> None:
        """Drop all that belonged to a handle that is gone."""
        if self.gpm is not None:
            self.gpm.close()
        self.handle, self.gpm = None, None
        self.not_before.clear()
        self.slow_read = float("-inf")
        self.memory_clock_mhz, self.processes = None, ()


def _text(value: str | bytes) -> str:
    """Old bindings hand out bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
