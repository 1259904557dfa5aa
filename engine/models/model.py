"""What the user brought: one `Model`, whatever kind of file it is.

`open_model` reads a Python model file, an `.onnx` graph or (trusted) a pickled module, checks that one forward
call works, and hands out everything the rest of the worker asks of it: inputs, data, labels, the module.
This runs the user's code, so it lives in workers only.

What a reader may rely on:
- Inputs and outputs are named; arrays are numpy, one sample per index of the axis called "batch" in the
  `TensorSpec` (axis 0 unless the graph says otherwise; an input without that axis goes whole into every call).
- The names are those of the exported ONNX graph too.
- Test data never contains a calibration sample (`models/datasets.py` says how they are kept apart).
- Anything wrong with the file is a `ModelError`: one sentence that says where and what to do.
"""

from __future__ import annotations

import abc
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..protocol import LayerInfo, ModelInfo, ModelSource, TensorSpec, VariantDraft

if TYPE_CHECKING:
    import torch

    from ..context import LoadedVariant

Arrays = dict[str, np.ndarray]
"""Named inputs or outputs of one call."""

BATCH = "batch"
"""How a `TensorSpec` calls the axis along which samples lie."""


class ModelError(Exception):
    """The model file, or its data, cannot be used as it is; the text is the user's sentence."""


class Model(abc.ABC):
    """A model file that was opened and works. Made by `open_model`."""

    own_runtime: str
    """The runtime the baseline is always timed in: "pytorch", or "onnxruntime" for an `.onnx`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metric: Callable[[Any, Any], float] | None = None
    """`metric(all_outputs, all_labels) -> float`, higher is better: for what is no mean over samples (mAP, F1)."""
    fixed_batch: int | None = None
    """The only batch size the model takes, when its graph has no open batch axis."""
    synthetic_data: bool = False
    """There is no data: test batches are made-up inputs, good for agreement and timing only."""
    notes: tuple[str, ...] = ()
    """Sentences about the model that the user should know (a fixed batch, an output left out)."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.path = Path(source.path)
        self.name = self.path.stem

    # --- what it offers

    @property
    @abc.abstractmethod
    def offers(self) -> tuple[str, ...]:
        """Names of the contract's optional functions that exist, or what of them the data files stand for."""

    @property
    @abc.abstractmethod
    def labelled(self) -> bool:
        """The test data carries labels, so accuracy is accuracy and not agreement."""

    @property
    @abc.abstractmethod
    def layers(self) -> tuple[LayerInfo, ...]: ...

    @property
    @abc.abstractmethod
    def operators(self) -> tuple[str, ...]:
        """ONNX names of the kinds of operation in it, sorted."""

    @property
    @abc.abstractmethod
    def has_calibration_data(self) -> bool: ...

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.outputs)

    def info(self) -> ModelInfo:
        """Everything about it that clients and reports show. Looks at the first test batch for labels."""
        return ModelInfo(
            name=self.name,
            source=self.source,
            inputs=self.inputs,
            outputs=self.outputs,
            offers=self.offers,
            labelled=self.labelled,
            layers=self.layers,
            operators=self.operators,
            notes=self.notes,
        )

    # --- data

    @abc.abstractmethod
    def example(self, batch_size: int, seed: int = 0) -> Arrays:
        """Inputs of one call; the same seed gives the same arrays. Real data where there is some.

        Raises ModelError for a batch size the model cannot take.
        """

    @abc.abstractmethod
    def test_batches(
        self, batch_size: int = 64, limit: int | None = None
    ) -> Iterator[tuple[Arrays, np.ndarray | None]]:
        """(inputs, labels) in the data's own order, at most `limit` samples; labels are None where there are none.

        All batches have `batch_size` samples but the last (a model with a fixed batch: only whole batches of it).
        """

    @abc.abstractmethod
    def calibration_batches(self, batch_size: int = 64, limit: int | None = None) -> Iterator[Arrays]:
        """Inputs to calibrate on, never test data. Raises ModelError when there are none."""

    def train_data(self) -> Iterable[Any]:
        """The user's iterable of (inputs, labels) torch batches. Raises ModelError when there is none."""
        raise ModelError(f"{self.path.name} has no training data: add train_data() to a Python model file.")

    @abc.abstractmethod
    def score(self, outputs: Arrays, labels: np.ndarray) -> np.ndarray:
        """Correctness of each sample, float64 (n,): 1 right, 0 wrong, or a share between."""

    def metric_value(self, outputs: Arrays, labels: np.ndarray) -> float:
        """`metric` of all outputs and labels. Raises ModelError where the model file has none."""
        raise ModelError(f"{self.path.name} has no metric().")

    # --- the module (PyTorch kinds only)

    def module(self) -> torch.nn.Module:
        """A new module of the baseline in eval mode on the CPU. Raises ModelError for an ONNX file."""
        raise ModelError(f"{self.path.name} is an ONNX file: there is no PyTorch module to work on.")

    def load_module(self, variant: LoadedVariant) -> torch.nn.Module:
        """A new module of a PyTorch variant, eval mode, CPU. Raises ValueError for a variant of another format."""
        raise ValueError(f"{variant.record.name} is {variant.record.format}, not a PyTorch module")

    def call(self, module: torch.nn.Module, inputs: Arrays) -> Arrays:
        """One forward call of a module, named arrays in and out, on the device the module is on."""
        raise ModelError(f"{self.path.name} is an ONNX file: there is no PyTorch module to call.")

    def torch_args(self, inputs: Arrays) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Named arrays as the (args, kwargs) of the module's forward: tensors on the CPU."""
        raise ModelError(f"{self.path.name} is an ONNX file: there is no PyTorch module to call.")

    # --- files

    @abc.abstractmethod
    def write_baseline(self, directory: Path) -> VariantDraft:
        """Write the baseline variant's files into `directory` (created if needed).

        The draft's file names are relative to `directory`. Raises ModelError when they cannot be written whole.
        """


def open_model(source: ModelSource) -> Model:
    """Open a model file and prove with one forward call that it works.

    Raises ModelError. Runs the user's code for kind "python", and for "pickle" only when `source.trusted`.
    """
    path = Path(source.path)
    if not path.is_file():
        raise ModelError(f"There is no model file {path}.")
    if source.sha256 and file_sha256(path) != source.sha256:
        raise ModelError(
            f"{path.name} is not the file this session was made with (its SHA-256 differs): "
            "put the old one back, or open the new one in a session of its own."
        )
    if source.kind == "python":
        from .python_file import PythonModel

        return PythonModel(source)
    if source.kind == "onnx":
        from .onnx_file import OnnxModel

        return OnnxModel(source)
    from .pickle_file import PickleModel

    return PickleModel(source)


@functools.lru_cache(maxsize=64)
def _sha256_of_state(path: str, size: int, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex. Hashed again only when its size or time of change differ."""
    state = path.stat()
    return _sha256_of_state(str(path), state.st_size, state.st_mtime_ns)


def batch_axis(spec: TensorSpec) -> int | None:
    """The axis of `spec` along which samples lie; None when the tensor goes whole into every call."""
    return spec.shape.index(BATCH) if BATCH in spec.shape else None


def samples_in(inputs: Arrays, specs: tuple[TensorSpec, ...], fixed_batch: int | None = None) -> int:
    """How many samples a call with these inputs processes."""
    for spec in specs:
        axis = batch_axis(spec)
        if axis is not None:
            return inputs[spec.name].shape[axis]
    return fixed_batch or 1
