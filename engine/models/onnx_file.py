"""An `.onnx` file: checked, its inputs understood, run once at batch 1 (and 2), then described.

The graph is read by `onnx_safety` before ONNX Runtime sees it. Data comes from `.npz` files: one array per graph
input, samples along the batch axis, plus "labels" in the test file if there are any. Without data, inputs are made
up (`onnx_inputs`): enough for latency and for agreement, and said so in `notes`.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ..complexity import file_macs
from ..graphs.sessions import Crashes, crashing_optimisers
from ..protocol import LayerInfo, ModelSource, TensorSpec, VariantDraft
from .datasets import Axes, Batch, NpzData, rebatched, rows_of, split
from .finite import finite_rows
from .importing import in_one_line
from .model import BATCH, Arrays, Model, ModelError, batch_axis
from .onnx_inputs import fixed_batch_of, input_specs, made_up, tensor_inputs, value_bounds
from .onnx_safety import all_graphs, all_tensors, contained, external_files, read_graph
from .scoring import top_1

GRAPH = "model.onnx"
"""The baseline's deployed file; external data keeps the names the graph gives it."""

SYNTHETIC_SAMPLES = 512
"""How many made-up samples stand in for test data. 381 without a change prove less than 1 % changed."""


class OnnxModel(Model):
    """Made by `open_model` for a source of kind "onnx"."""

    own_runtime = "onnxruntime"

    def __init__(self, source: ModelSource) -> None:
        super().__init__(source)
        graph = read_graph(self.path)
        try:
            self.inputs = input_specs(tensor_inputs(graph), source.shapes)
        except ModelError as error:
            raise ModelError(f"{self.path.name}: {error}") from None
        self.bounds = value_bounds(graph)
        self.fixed_batch = fixed_batch_of(self.inputs)
        session = self._session()
        self.data: NpzData | None = None
        self._run_and_describe(session)
        calibration = None if source.calibration_data is None else self._npz(source.calibration_data)
        self.calibration: NpzData | None = calibration
        self.synthetic_data = self.data is None
        if self.synthetic_data:
            self.notes += (
                'There is no data: accuracy is agreement on made-up inputs. Give samples as data = "test.npz".',
            )

    # --- opening

    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            unwanted = crashing_optimisers(self.path)
            return onnxruntime.InferenceSession(
                self.path, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(unwanted)
            )
        except Crashes as crash:
            raise ModelError(f"{self.path.name} cannot be used: {crash}.") from None
        except UnicodeDecodeError as error:  # from its own message, which quotes the file
            raise ModelError(
                f"ONNX Runtime cannot load {self.path.name}: a name in it is no text, so the file is probably damaged. "
                "Copy or export it again."
            ) from error
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot load {self.path.name}: {in_one_line(error)}") from error

    def _run_and_describe(self, session: onnxruntime.InferenceSession) -> None:
        """One call at batch 1 and one at 2 give the outputs; a graph that fails at 2 takes batches of 1 only."""
        self._read_data()
        size = self.fixed_batch or 1
        one = self._call(session, size)
        two = one
        if self.fixed_batch is None:
            try:
                two = self._call(session, 2)
            except ModelError as error:
                self.inputs = tuple(_closed(spec) for spec in self.inputs)
                self.fixed_batch = 1
                self.notes += (f"The graph declares an open batch axis but takes one sample only. {error}",)
                self._read_data()
        elif self.fixed_batch:
            self.notes += (f"The graph has no open batch axis: it is measured at batch {self.fixed_batch} only.",)
        left_out = [output.name for output in session.get_outputs() if output.name not in one]
        if left_out:
            self.notes += (f"Not compared, because they are no tensors of numbers: {', '.join(left_out)}.",)
        if not one:
            raise ModelError(f"{self.path.name} has no output that is a tensor of numbers.")
        self.outputs = tuple(
            TensorSpec(name=name, dtype=str(array.dtype), shape=_axes(array.shape, two[name].shape))
            for name, array in one.items()
        )

    def _read_data(self) -> None:
        self.data = None if self.source.data is None else self._npz(self.source.data)

    def _npz(self, path: str) -> NpzData:
        return NpzData(Path(path), self.inputs, self.axes)

    def _call(self, session: onnxruntime.InferenceSession, batch_size: int) -> Arrays:
        inputs = self.example(batch_size)
        try:
            values = session.run(None, inputs)
        except Exception as error:
            what = "the first samples of its data" if self.data is not None else "made-up inputs"
            hint = (
                "" if self.data is not None else ' If it needs particular values, give real ones as data = "test.npz".'
            )
            raise ModelError(
                f"{self.path.name} fails at batch {batch_size} on {what} ({_shapes(inputs)}): {_cause(error)}.{hint}"
            ) from error
        names = [output.name for output in session.get_outputs()]
        return {
            name: value
            for name, value in zip(names, values, strict=True)
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        }

    # --- what it offers

    @property
    def axes(self) -> Axes:
        """The sample axis of each input; a graph with a fixed batch has it on axis 0 of inputs that are that long."""
        if self.fixed_batch is None:
            return {spec.name: batch_axis(spec) for spec in self.inputs}
        return {spec.name: 0 if spec.shape and spec.shape[0] == self.fixed_batch else None for spec in self.inputs}

    @property
    def offers(self) -> tuple[str, ...]:
        return tuple(
            n for n, data in (("calibration_data", self.calibration), ("test_data", self.data)) if data is not None
        )

    @property
    def labelled(self) -> bool:
        return self.data is not None and self.data.labels is not None

    @property
    def has_calibration_data(self) -> bool:
        return self.calibration is not None or self.data is not None

    @property
    def graph(self) -> onnx.ModelProto:
        """The graph without external data, read anew: the caller may change it."""
        return onnx.load(self.path, load_external_data=False)

    @functools.cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        graph = self.graph.graph
        sizes = {tensor.name: int(np.prod(tensor.dims, dtype=np.int64)) for tensor in graph.initializer}
        return tuple(
            LayerInfo(
                name=node.name or f"{node.op_type}_{position}",
                type=node.op_type,
                parameter_count=sum(sizes.get(name, 0) for name in node.input),
            )
            for position, node in enumerate(graph.node)
        )

    @functools.cached_property
    def operators(self) -> tuple[str, ...]:
        return tuple(sorted({node.op_type for graph in all_graphs(self.graph) for node in graph.node}))

    # --- data

    def example(self, batch_size: int, seed: int = 0) -> Arrays:
        if self.fixed_batch is not None and batch_size != self.fixed_batch:
            raise ModelError(f"{self.path.name} takes batches of {self.fixed_batch} only, not of {batch_size}.")
        if self.data is None:
            return made_up(self.inputs, self.bounds, batch_size, seed)
        rows = np.random.default_rng(seed).integers(len(self._example_rows), size=batch_size)
        return rows_of(self.data.inputs, self.axes, self._example_rows[rows])

    @functools.cached_property
    def _example_rows(self) -> np.ndarray:
        """Samples of the data that can stand as examples: those without NaN, or all where each has some."""
        assert self.data is not None
        finite = np.ones(self.data.count, bool)
        for name, array in self.data.inputs.items():
            finite &= finite_rows(name, array, self.axes[name])
        return np.flatnonzero(finite) if finite.any() else np.arange(self.data.count)

    def test_batches(self, batch_size: int = 64, limit: int | None = None) -> Iterator[Batch]:
        size = self.fixed_batch or batch_size
        if self.data is None:
            count = min(limit or SYNTHETIC_SAMPLES, SYNTHETIC_SAMPLES)
            batches: Iterator[Batch] = ((self.example(size, seed), None) for seed in range(1, 1 + -(-count // size)))
            return rebatched(
                batches, size, self.axes, None if self._one_per_call else limit, self.fixed_batch is not None
            )
        batches = self.data.batches()
        if self.calibration is None:
            batches = split(batches, self.axes, calibration=False)
        return rebatched(batches, size, self.axes, limit, whole_only=self.fixed_batch is not None)

    def calibration_batches(self, batch_size: int = 64, limit: int | None = None) -> Iterator[Arrays]:
        size = self.fixed_batch or batch_size
        if self.calibration is not None:
            batches = self.calibration.batches()
        elif self.data is not None:
            batches = split(self.data.batches(), self.axes, calibration=True)
        else:
            raise ModelError(
                f'{self.path.name} has no data to calibrate on: give some as calibration_data = "calib.npz".'
            )
        whole = self.fixed_batch is not None
        return (inputs for inputs, _ in rebatched(batches, size, self.axes, limit, whole_only=whole))

    def score(self, outputs: Arrays, labels: np.ndarray) -> np.ndarray:
        return top_1(outputs, labels)

    @property
    def _one_per_call(self) -> bool:
        return all(axis is None for axis in self.axes.values())

    # --- files

    def write_baseline(self, directory: Path) -> VariantDraft:
        directory.mkdir(parents=True, exist_ok=True)
        graph, size = self.graph, self.fixed_batch or 1
        names = external_files(graph)
        if GRAPH in names:
            raise ModelError(
                f"{self.path.name} keeps weights in a file called {GRAPH}, the name of the stored graph: rename it."
            )
        shutil.copyfile(self.path, directory / GRAPH)
        for name in names:
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(contained(self.path.parent, name), target)
        return VariantDraft(
            label=None,
            format="onnx",
            files=(GRAPH, *names),
            deployed_files=(GRAPH, *names),
            parameter_count=parameter_count(graph),
            macs=file_macs(self.path, self.example(size), size),
            portable=all(node.domain != "com.microsoft" for node in graph.graph.node),
        )


def parameter_count(model: onnx.ModelProto) -> int:
    """Elements of all constants with at least one axis: weights, and the few shape constants beside them."""
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in all_tensors(model) if tensor.dims)


def _cause(error: Exception) -> str:
    """ONNX Runtime's message from the innermost node on: it wraps the cause once per subgraph."""
    text = " ".join(str(error).split())
    innermost = re.split(r"Non-zero status code returned while running ", text)[-1]
    return innermost[:300].rstrip(". ")


def _closed(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(
        name=spec.name, dtype=spec.dtype, shape=tuple(1 if axis == BATCH else axis for axis in spec.shape)
    )


def _axes(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int | str | None, ...]:
    if len(one) != len(two):
        return tuple(None for _ in one)
    return tuple(a if a == b else BATCH if (a, b) == (1, 2) else None for a, b in zip(one, two, strict=True))


def _shapes(inputs: Arrays) -> str:
    return ", ".join(f"{name} {array.dtype} {tuple(array.shape)}" for name, array in inputs.items())
