"""Runtimes: what executes a variant. One small interface, one file each.

A runtime is loaded in a worker for one variant on one device and then called with named numpy arrays:

    runner = load(variant, runtime="onnxruntime", device="cpu", threads=2)
    outputs = runner.run({"input": array})        # {name: array}, batch on axis 0

It reports its true device and providers. A session that was asked for a GPU and fell back to the CPU is an
error, never a slower figure.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from ..context import LoadedVariant

RUNTIMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pytorch": ("pytorch", ("pytorch",)),
    "torch-compile": ("torch_compile", ("pytorch",)),
    "pytorch-float16": ("pytorch", ("pytorch",)),
    "pytorch-bfloat16": ("pytorch", ("pytorch",)),
    "onnxruntime": ("onnxruntime", ("onnx",)),
    "openvino": ("openvino", ("onnx",)),
}
"""Name → (module of this package, formats it runs). The first that runs a format is its natural runtime."""

OPTIONS = {"pytorch-float16": {"precision": "float16"}, "pytorch-bfloat16": {"precision": "bfloat16"}}
"""Runtimes that are another one with an option → what its `load` gets for it. Wherever figures are compared they are
runtimes of their own: a figure in another precision is another figure."""

NEEDS_PACKAGE = {"openvino": "openvino"}
"""Runtimes that are extras → the package to look for; the extra has the runtime's name."""


CPP_COMPILERS = ("g++", "clang++", "c++")
"""Any of these (or $CXX) is what torch.compile calls."""


class RuntimeUnavailable(Exception):
    """The runtime cannot run here; the text is the user's sentence."""


class Runner(Protocol):
    """A variant, loaded and ready to be called."""

    runtime: str
    device: str
    """Where it really runs ("cpu", "cuda:0")."""
    providers: tuple[str, ...]
    threads: int | None

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward call. `inputs`: one array per model input, batch on axis 0. Blocks until the result is there."""
        ...

    def bind(self, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
        """A function that makes this one call again and again, for timing: inputs already lie on the runner's device,
        outputs stay there, and it returns when the result is complete. What it returns is of no use to a caller."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Package → version of what executes the variant, for `Conditions.versions`."""
        ...

    def settle(self) -> None:
        """Called when another arm of a comparison is about to run: stop threads that spin after a run."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def runtimes_for(format: str) -> tuple[str, ...]:
    """Names of the runtimes that can run this format, the natural one first."""
    return tuple(name for name, (_, formats) in RUNTIMES.items() if format in formats)


def why_not_installed(runtime: str) -> str | None:
    """The sentence with what to install, or None when the runtime's package (or compiler) is there."""
    if runtime == "torch-compile" and not any(map(shutil.which, [os.environ.get("CXX", ""), *CPP_COMPILERS])):
        return "torch-compile needs a C++ compiler, and there is none here: install g++ or clang++."
    package = NEEDS_PACKAGE.get(runtime)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"{runtime} is not installed: pip install trimtab[{runtime}]"


def load(variant: LoadedVariant, runtime: str, device: str = "cpu", threads: int | None = None) -> Runner:
    """Load a variant under a runtime.

    Raises RuntimeUnavailable with a sentence when the runtime is unknown, not installed, cannot run the variant's
    format, or fell back to another device than the one asked for.
    """
    if runtime not in RUNTIMES:
        raise RuntimeUnavailable(f"There is no runtime {runtime!r}. Known: {', '.join(RUNTIMES)}.")
    if reason := why_not_installed(runtime):
        raise RuntimeUnavailable(reason)
    module_name, formats = RUNTIMES[runtime]
    if variant.record.format not in formats:
        raise RuntimeUnavailable(f"{runtime} cannot run {variant.record.name}, which is {variant.record.format}.")
    module = importlib.import_module(f".{module_name}", __package__)
    return module.load(variant, device=device, threads=threads, **OPTIONS.get(runtime, {}))
