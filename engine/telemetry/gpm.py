"""What a Hopper or later GPU says about how well it is used: occupancy, tensor cores, memory bandwidth.

"Utilisation" only says that some kernel ran. NVML's GPU performance monitoring (GPM) compares two samples of
the hardware's counters; here each reading is the window since the reading before it.
"""

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

SHORTEST_SECONDS = 0.1
"""NVIDIA's documentation asks for at least this much between two samples."""

LONGEST_SECONDS = 5.0
"""After a longer gap (nobody looked, the machine slept) the window is begun anew: its mean would say nothing."""

SM_OCCUPANCY, ANY_TENSOR, DRAM_BANDWIDTH = 3, 5, 10
"""NVML's numbers of the metrics, all in percent."""


@dataclass(frozen=True, slots=True)
class GpmFigures:
    """Fractions of 1 over the last window; None where the driver would not say."""

    sm_occupancy: float | None
    tensor_activity: float | None
    memory_bandwidth: float | None


class GpmWindow:
    """The counters of one GPU. Raises the binding's NVMLError; "not supported" (3) where there is no GPM."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._samples: list[Any] = []
        self._taken: float | None = None
        self._figures: GpmFigures | None = None
        if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        try:
            self._samples = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
        except nvml.NVMLError:
            self.close()
            raise

    def read(self, now: float) -> GpmFigures | None:
        """Means since the last reading (`now`: monotonic seconds). None until there are two samples."""
        nvml = self._nvml
        age = None if self._taken is None else now - self._taken
        if age is not None and age < SHORTEST_SECONDS:
            return self._figures
        before, after = self._samples
        nvml.nvmlGpmSampleGet(self._handle, after)
        self._samples = [after, before]
        self._taken = now
        self._figures = self._compare(before, after) if age is not None and age <= LONGEST_SECONDS else None
        return self._figures

    def close(self) -> None:
        for sample in self._samples:
            with suppress(self._nvml.NVMLError):  # the driver may have gone first
                self._nvml.nvmlGpmSampleFree(sample)
        self._samples = []

    def _compare(self, before: Any, after: Any) -> GpmFigures:
        nvml = self._nvml
        request = nvml.c_nvmlGpmMetricsGet_t()
        request.version = nvml.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2 = before, after
        wanted = (SM_OCCUPANCY, ANY_TENSOR, DRAM_BANDWIDTH)
        request.numMetrics = len(wanted)
        for place, metric in enumerate(wanted):
            request.metrics[place].metricId = metric
        nvml.nvmlGpmMetricsGet(request)
        return GpmFigures(*(_fraction(request.metrics[place]) for place in range(len(wanted))))


def _fraction(metric: Any) -> float | None:
    value = ctypes.c_double(metric.value).value
    if metric.nvmlReturn != 0 or not 0 <= value <= 1000:  # also refuses NaN, which idle counters give
        return None
    return min(value / 100, 1.0)
