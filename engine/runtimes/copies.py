"""Copies of one variant side by side, called the way a dynamic batcher calls a model: named arrays, rows on axis 0.

`n` copies share out the threads (at least one each), as Triton's instance groups and OpenVINO's streams do; on a GPU
they share the GPU. Only the copies of the newest number stay loaded, those that fit the new number among them: one that
was replaced is freed when the batcher lets go of it, after the batch that it may still be running.
A model whose samples do not lie along axis 0, or that takes an input whole, is turned to fit here: `rows_first` and
the functions `runs` returns agree about it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..models import Arrays, Model
from ..models.model import batch_axis
from . import RUNTIMES, Runner, load

if TYPE_CHECKING:
    from ..context import LoadedVariant

Run = Callable[[Arrays], Arrays]

FIXED_SHAPES = ("openvino",)
"""Runtimes that compile for every shape anew: batches are filled up to the next power of two there, or to the largest
batch where that is less."""

WARM_UP_CALLS = 3
"""Calls of each copy at one row and at the largest batch (or at every shape that is compiled), before it is used."""

MOST_WARM_SHAPES = 24
"""Shapes that are compiled beforehand: each is the whole model once more in memory, and takes seconds to make."""

Shape = tuple[tuple[str, tuple[int, ...]], ...]


class Copy:
    """One loaded copy, called as a function. It holds nothing but its runner: whoever lets go of it last frees it."""

    def __init__(self, runner: Runner, threads: int, run: Run, exact: Run) -> None:
        self.runner, self.threads = runner, threads
        self.exact = exact
        """The same without filling up."""
        self.warm: set[Shape] = set()
        self._run = run

    def __call__(self, inputs: Arrays) -> Arrays:
        return self._run(inputs)


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
        self.largest: int | None = None
        """Rows of the largest batch, once it was warmed up: filling up goes no further."""
        self.cold_shapes = 0
        """Shapes of the requests that were too many to compile beforehand."""
        self._copies: list[Copy] = []
        self._lock = threading.Lock()

    def runs(self, count: int) -> Sequence[Run]:
        """`count` functions, each a copy of its own; other copies are let go. Raises RuntimeUnavailable when the
        variant cannot be loaded, and keeps those there were."""
        with self._lock:
            # Copies on a GPU are alike whatever their number; on the CPU each has its share of the threads.
            each = max(1, self.threads // count) if self.device == "cpu" else self.threads
            copies = [copy for copy in self._copies if copy.threads == each][:count]
            while len(copies) < count:
                copies.append(self._load(each))
            self._copies = copies
            return list(copies)

    def held(self) -> Sequence[Run]:
        """The copies that are loaded now, for `hold`."""
        return list(self._copies)

    def hold(self, copies: Sequence[Run]) -> None:
        """Go back to these: what came after them could not be used."""
        with self._lock:
            self._copies = [copy for copy in copies if isinstance(copy, Copy)]

    @property
    def loaded(self) -> bool:
        return bool(self._copies)

    def first(self) -> Runner:
        """Any loaded copy, for its device and versions; `runs` must have been called."""
        return self._copies[0].runner

    def warm_up(self, count: int, request: Arrays, max_rows: int, pool: Sequence[Arrays] = ()) -> None:
        """Call every copy at one request and at the largest batch, so that no request pays for first-call work; where
        shapes are compiled, at every size that batches are filled up to, for all shapes in the `pool` of requests, the
        most frequent first (at most `MOST_WARM_SHAPES`)."""
        self.runs(count)
        batches = self._warm_ups(request, max_rows, pool)
        for copy in self._copies:
            if hasattr(copy.runner, "shapes_kept"):
                copy.runner.shapes_kept = max(copy.runner.shapes_kept, len(copy.warm | {*map(_shape, batches)}))
            for inputs in batches:
                if _shape(inputs) not in copy.warm:
                    for _ in range(WARM_UP_CALLS):
                        copy.exact(inputs)
                    copy.warm.add(_shape(inputs))
        self.largest = max_rows
        if self._on_torch_threads:  # the batcher calls them in threads of its own
            from .pytorch import end_openmp_threads

            end_openmp_threads()

    def _warm_ups(self, request: Arrays, max_rows: int, pool: Sequence[Arrays]) -> list[Arrays]:
        """The batches that `warm_up` calls a copy with."""
        rows = _rows(request)
        if not self.fills_up:
            return [request, _repeated(request, max(1, max_rows // rows))]
        kinds = {_shape(inputs): inputs for inputs in reversed(pool)}
        often = Counter(map(_shape, pool)).most_common()
        requests = [kinds[shape] for shape, _ in often] or [request]
        sizes = [1 << power for power in range(max_rows.bit_length()) if 1 << power < max_rows] + [max_rows]
        batches = [_repeated(inputs, size) for inputs in requests for size in sizes]
        self.cold_shapes = max(len(batches) - MOST_WARM_SHAPES, 0)
        return batches[:MOST_WARM_SHAPES]

    @property
    def _on_torch_threads(self) -> bool:
        """PyTorch computes on the CPU, under autocast or not."""
        return RUNTIMES[self.runtime][0] == "pytorch" and self.device == "cpu"

    @property
    def fills_up(self) -> bool:
        """Batches are filled up to few sizes, for each is compiled."""
        return self.runtime in FIXED_SHAPES and self.model.fixed_batch is None

    def rows_first(self, inputs: Arrays) -> Arrays:
        """The model's inputs as a request: inputs taken whole left out, the axis of samples in front."""
        return {
            name: np.ascontiguousarray(np.moveaxis(array, self._input_axes[name], 0))
            for name, array in inputs.items()
            if name not in self._constants
        }

    def close(self) -> None:
        copies, self._copies = self._copies, []
        for copy in copies:
            copy.runner.close()

    def _load(self, threads: int) -> Copy:
        runner = load(self.variant, self.runtime, self.device, threads)
        exact = self._turned(runner)
        if self._on_torch_threads:
            exact = _with_torch_threads(exact, threads)
        return Copy(runner, threads, self._filling(exact) if self.fills_up else exact, exact)

    def _filling(self, exact: Run) -> Run:
        """With the last row repeated until their number is a power of two, or the largest batch's."""

        def run(inputs: Arrays) -> Arrays:
            rows = _rows(inputs)
            wanted = 1 << (rows - 1).bit_length()
            if self.largest is not None and rows <= self.largest:
                wanted = min(wanted, self.largest)
            if wanted == rows:
                return exact(inputs)
            outputs = exact({name: _filled(array, wanted - rows) for name, array in inputs.items()})
            return {name: array[:rows] for name, array in outputs.items()}

        return run

    def _turned(self, runner: Runner) -> Run:
        plain = not self._constants and not any(self._input_axes.values()) and not any(self._output_axes.values())
        if plain and None not in self._output_axes.values():
            return runner.run

        def run(inputs: Arrays) -> Arrays:
            rows = _rows(inputs)
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


def _rows(inputs: Arrays) -> int:
    return int(next(iter(inputs.values())).shape[0])


def _shape(inputs: Arrays) -> Shape:
    return tuple((name, array.shape) for name, array in inputs.items())


def _repeated(inputs: Arrays, times: int) -> Arrays:
    return {name: np.repeat(array, times, axis=0) for name, array in inputs.items()}


def _filled(array: np.ndarray, more: int) -> np.ndarray:
    """The last row `more` times again."""
    return np.concatenate([array, np.repeat(array[-1:], more, axis=0)])
