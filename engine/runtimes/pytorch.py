"""PyTorch eager: the module as its author wrote it, on the CPU or one CUDA device; or under autocast in 16 bits.

Under autocast (runtimes "pytorch-float16" and "pytorch-bfloat16") PyTorch rounds what products and convolutions read
and keeps the rest in FP32; what comes out is turned back into FP32. It is for GPUs. A CPU is allowed BF16, which is
faster only where it has a matrix unit for it, and a note says where not; FP16 is refused there.

Runs under inference mode with `threads` intra-op threads (a setting of the whole process: of two runners in one
worker the last one loaded decides, which is why both arms of a comparison get the same number).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..hardware import read_processor
from ..models.tensors import with_tensors
from . import RuntimeUnavailable
from .settling import wait_until_quiet

if TYPE_CHECKING:
    from ..context import LoadedVariant


Precision = Literal["float16", "bfloat16"]

HALVES = (torch.float16, torch.bfloat16)


class PyTorchRunner:
    """A module on its device. See `Runner`."""

    runtime = "pytorch"
    providers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self, variant: LoadedVariant, device: str, threads: int | None, precision: Precision | None = None
    ) -> None:
        self.model = variant.model
        self.module = variant.module().to(device)
        if precision is not None:
            self.runtime = f"pytorch-{precision}"
            _autocast(self.module, device, getattr(torch, precision))
            self.notes = _about(precision, device)
        self.device = device
        self.threads = threads if threads is not None else torch.get_num_threads()

    @property
    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)} | ({"cuda": torch.version.cuda} if torch.version.cuda else {})

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return self.model.call(self.module, inputs)

    def bind(self, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
        """On a GPU the returned function ends when the kernels have: a synchronisation is part of the time."""
        args, kwargs = self.model.torch_args(inputs)
        args, kwargs = _moved(args, self.device), _moved(kwargs, self.device)
        module, on_gpu = self.module, self.device != "cpu"

        def call() -> object:
            with torch.inference_mode():
                output = module(*args, **kwargs)
            if on_gpu:
                torch.cuda.synchronize(self.device)
            return output

        return call

    def device_ms(self, inputs: dict[str, np.ndarray], calls: int = 20) -> float | None:
        """Milliseconds a call takes on the GPU when calls are queued back to back, by CUDA events; None on the CPU.

        What a single call takes longer than this is launching and synchronising.
        """
        if self.device == "cpu":
            return None
        args, kwargs = self.model.torch_args(inputs)
        args, kwargs = _moved(args, self.device), _moved(kwargs, self.device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.inference_mode(), torch.cuda.device(self.device):
            self.module(*args, **kwargs)
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                self.module(*args, **kwargs)
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / calls

    def settle(self) -> None:
        """Wait until OpenMP's threads have stopped spinning.

        With libgomp's default they spin 5 ms after a convolution; with GOMP_SPINCOUNT=10000 0.05 ms, at the same
        speed. (OMP_WAIT_POLICY=PASSIVE stops it too, but makes the convolutions twice as slow: torch 2.13, two cores.)
        """
        if self.device == "cpu":
            wait_until_quiet()

    def close(self) -> None:
        del self.module
        if self.device != "cpu":
            torch.cuda.empty_cache()


def load(
    variant: LoadedVariant, device: str = "cpu", threads: int | None = None, precision: Precision | None = None
) -> PyTorchRunner:
    """Load a PyTorch variant. `precision`: what autocast computes in; None: no autocast.

    Raises RuntimeUnavailable when the device is not there, or has nothing that computes in this precision.
    """
    check_device(variant, device)
    if precision == "float16" and device == "cpu":
        raise RuntimeUnavailable(
            f"PyTorch's FP16 is for GPUs: on a CPU it is slower than FP32. Run {variant.record.name} under "
            "pytorch-bfloat16, or on a GPU."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return PyTorchRunner(variant, device, threads, precision)


def end_openmp_threads() -> None:
    """End the OpenMP threads that the calling thread started; its next parallel region starts them anew.

    libgomp keeps helpers for every thread that ever ran a parallel region. Where these together are more than the
    cores it makes all of them sleep after each region instead of spinning a moment, idle ones counted too: a model
    called in another thread than the one that warmed it up got 75 % of the throughput (torch 2.13, two cores).
    """
    for library in _openmp():
        library.omp_pause_resource_all(1)  # omp_pause_soft


@functools.cache
def _openmp() -> tuple[ctypes.CDLL, ...]:
    """libgomp as this process has it loaded (the wheel of PyTorch brings its own); none on other systems."""
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    paths = dict.fromkeys(line[line.index("/") :] for line in mapped if "/" in line and "libgomp" in line)
    libraries = [ctypes.CDLL(path) for path in paths if Path(path).exists()]
    return tuple(library for library in libraries if hasattr(library, "omp_pause_resource_all"))


def _autocast(module: torch.nn.Module, device: str, kind: torch.dtype) -> None:
    """Let every call of the module run under autocast and give FP32, in place: its layers keep their names."""
    forward = module.forward

    @functools.wraps(forward)
    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(torch.device(device).type, dtype=kind):
            output = forward(*args, **kwargs)
        return with_tensors(output, lambda one: one.float() if one.dtype in HALVES else one)

    module.forward = cast


def _about(precision: Precision, device: str) -> tuple[str, ...]:
    """The truth about 16 bits on a CPU."""
    if device != "cpu" or "amx-bf16" in read_processor().features:
        return ()
    return (f"This CPU has no matrix unit for {precision}: autocast converts back and forth and is slower than FP32.",)


def check_device(variant: LoadedVariant, device: str) -> None:
    """Raises RuntimeUnavailable when PyTorch does not see the device."""
    if device != "cpu":
        if not torch.cuda.is_available():
            raise RuntimeUnavailable(f"PyTorch sees no CUDA device, so {variant.record.name} cannot run on {device}.")
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise RuntimeUnavailable(f"There is no {device}: PyTorch sees {torch.cuda.device_count()} CUDA device(s).")


def _moved(value: Any, device: str) -> Any:
    """The tensors of a structure of arguments on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(inner, device) for inner in value)
    return value
