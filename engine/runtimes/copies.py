"""Copies of one variant side by side, called the way a dynamic batcher calls a model: named arrays, rows on axis 0.

`n` copies share out the threads (at least one each), as Triton's instance groups and OpenVINO's streams do; on a GPU
they share the GPU. Sets of copies stay loaded until `close`, so that the number can go up and down while they run.
A model whose samples do not lie along axis 0, or that takes an input whole, is turned to fit here: `rows_first` and
the functions `runs` returns agree about it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..models import Arrays, Model
from ..models.model import batch_axis
from . import Runner, load

if TYPE_CHECKING:
    from ..context import LoadedVariant

Run = Callable[[Arrays], Arrays]

FIXED_SHAPES = ("openvino",)
"""Runtimes that compile for every shape anew: batches are filled up to the next power of two there."""

WARM_UP_CALLS = 3
"""Calls of each copy at one row and at the largest batch, before it is used."""


class ModelCopies:
    """Loads copies as they are asked for. `runs` may be called from any thread, one at a time."""

    def __init__(self, model: Model, variant: LoadedVariant, runtime: str, device: str, threads: int) -> None:
        self.model, self.variant, self.runtime, self.device, self.threads = model, variant, runtime, device, threads
        self._constants = {
            spec.name: array
            for spec in model.inputs
            if batch_axis(spec) is None and model.fixed_batch is None
            for array in [model.example(1)[spec.name]]
        }
        self._input_axes = {spec.name: batch_axis(spec) or 0 for spec in model.inputs}
        self._output_axes = {spec.name: batch_axis(spec) for spec in model.outputs}
        self._sets: dict[int, list[Runner]] = {}
        self._lock = threading.Lock()

    def runs(self, count: int) -> list[Run]:
        """`count` functions, each a copy of its own. Raises RuntimeUnavailable when the variant cannot be loaded."""
        with self._lock:
            if count not in self._sets:
                each = max(1, self.threads // count)
                runners: list[Runner] = []
                try:
                    for _ in range(count):
                        runners.append(load(self.variant, self.runtime, self.device, each))
                except BaseException:
                    for runner in runners:
                        runner.close()
                    raise
                self._sets[count] = runners
            return [self._adapted(runner, max(1, self.threads // count)) for runner in self._sets[count]]

    def first(self) -> Runner:
        """Any loaded copy, for its device and versions; `runs` must have been called."""
        return next(iter(self._sets.values()))[0]

    def warm_up(self, count: int, request: Arrays, max_rows: int) -> None:
        """Call every copy at one request and at the largest batch, so that no request pays for first-call work."""
        for run in self.runs(count):
            rows = next(iter(request.values())).shape[0]
            largest = {name: np.repeat(array, max(1, max_rows // rows), axis=0) for name, array in request.items()}
            for inputs in (request, largest):
                for _ in range(WARM_UP_CALLS):
                    run(inputs)

    def rows_first(self, inputs: Arrays) -> Arrays:
        """The model's inputs as a request: inputs taken whole left out, the axis of samples in front."""
        return {
            name: np.ascontiguousarray(np.moveaxis(array, self._input_axes[name], 0))
            for name, array in inputs.items()
            if name not in self._constants
        }

    def close(self) -> None:
        for runners in self._sets.values():
            for runner in runners:
                runner.close()
        self._sets.clear()

    def _adapted(self, runner: Runner, threads: int) -> Run:
        if self.runtime == "pytorch" and self.device == "cpu":
            return _with_torch_threads(self._turned(runner), threads)
        return self._turned(runner)

    def _turned(self, runner: Runner) -> Run:
        plain = not self._constants and not any(self._input_axes.values()) and not any(self._output_axes.values())
        padded = self.runtime in FIXED_SHAPES and self.model.fixed_batch is None
        if plain and not padded and None not in self._output_axes.values():
            return runner.run

        def run(inputs: Arrays) -> Arrays:
            rows = next(iter(inputs.values())).shape[0]
            if padded:
                inputs = {name: _filled(array, rows) for name, array in inputs.items()}
            turned = {name: np.moveaxis(array, 0, self._input_axes[name]) for name, array in inputs.items()}
            outputs = runner.run(turned | self._constants)
            return {name: self._rows_of(name, array, rows) for name, array in outputs.items()}

        return run

    def _rows_of(self, name: str, array: np.ndarray, rows: int) -> np.ndarray:
        axis = self._output_axes.get(name, 0)
        if axis is None:  # one answer for the whole batch: every row gets it
            return array[:rows] if self.model.fixed_batch else np.broadcast_to(array, (rows, *array.shape))
        return np.moveaxis(array, axis, 0)[:rows]


def _with_torch_threads(run: Run, threads: int) -> Run:
    """PyTorch keeps the number of its threads with each calling thread, and copies share one process."""
    import torch

    def call(inputs: Arrays) -> Arrays:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return run(inputs)

    return call


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The last row repeated until their number is a power of two."""
    wanted = 1 << (rows - 1).bit_length()
    if wanted == rows:
        return array
    return np.concatenate([array, np.repeat(array[-1:], wanted - rows, axis=0)])
