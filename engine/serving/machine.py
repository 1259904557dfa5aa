"""The machine's own metrics beside the model's, under Triton's names: GPUs from NVML, processor and memory.

Read when somebody asks for metrics and not in between. A sick driver can block for seconds, so call it in a thread.
"""

import threading

from ..protocol import Gpu, GpuSample
from ..telemetry import Telemetry, read_hardware
from .metrics import escaped, metric_lines

GPU_METRICS = (
    ("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)", "utilisation"),
    ("nv_gpu_memory_total_bytes", "gauge", "GPU total memory, in bytes", "memory_total_bytes"),
    ("nv_gpu_memory_used_bytes", "gauge", "GPU used memory, in bytes", "memory_used_bytes"),
    ("nv_gpu_power_usage", "gauge", "GPU power usage in watts", "power_w"),
    ("nv_energy_consumption", "counter", "GPU energy consumption in joules since the driver was loaded", "energy_j"),
)
"""Name, kind, what it is, the field of `GpuSample`. What the driver does not tell has no line."""


class MachineMetrics:
    """Opens the hardware at the first question."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._telemetry: Telemetry | None = None
        self._gpus: dict[int, Gpu] = {}

    def prometheus(self) -> str:
        """All metrics in Prometheus's text format; processor utilisation is the mean since the question before."""
        with self._lock:
            if self._telemetry is None:
                self._telemetry = Telemetry()
                self._telemetry.detailed = False  # the performance counters may be somebody else's
                self._gpus = {gpu.index: gpu for gpu in read_hardware().gpus}
            sample = self._telemetry.sample()
        lines: list[str] = []
        for name, kind, about, field in GPU_METRICS:
            values = [(self._label(gpu), getattr(gpu, field)) for gpu in sample.gpus]
            if known := [(label, float(value)) for label, value in values if value is not None]:
                lines += metric_lines(name, kind, about, known)
        limits = [
            (self._label(gpu), self._gpus[gpu.index].power_limit_w) for gpu in sample.gpus if gpu.index in self._gpus
        ]
        if known := [(label, value) for label, value in limits if value is not None]:
            lines += metric_lines("nv_gpu_power_limit", "gauge", "GPU power management limit in watts", known)
        for name, about, value in (
            ("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", sample.cpu),
            ("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", sample.memory_total_bytes),
            ("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", sample.memory_used_bytes),
        ):
            if value is not None:
                lines += metric_lines(name, "gauge", about, [("", float(value))])
        return "".join(f"{line}\n" for line in lines)

    def _label(self, sample: GpuSample) -> str:
        known = self._gpus.get(sample.index)
        return f'{{gpu_uuid="{escaped(known.uuid if known is not None else str(sample.index))}"}}'
