"""A pickled module (`.pt`, `.pth`), a TorchScript archive or an exported program (`.pt2`).

Opening any of them can run code from the file, so it happens only after the user said that they trust it
(`ModelSource.trusted`). A file of weights alone is recognised without running anything, and told so.
Examples and test data come from an `.npz` (`data`), whose arrays are called as the forward's parameters.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..protocol import ModelSource, TensorSpec
from ..protocol.records import MODEL_MODULE
from .datasets import Batch, NpzData, read_npz, rebatched, rows_of, split
from .importing import in_one_line, put_folder_first
from .model import Arrays, ModelError, file_sha256
from .scoring import top_1
from .tensors import InputStructure
from .torch_model import TorchModel, evaluating

if TYPE_CHECKING:
    from ..context import LoadedVariant


class PickleModel(TorchModel):
    """Made by `open_model` for a source of kind "pickle"."""

    def __init__(self, source: ModelSource) -> None:
        super().__init__(source)
        _refuse_weights_alone(self.path)
        if not source.trusted:
            raise ModelError(
                f"{self.path.name} is a pickle: opening it runs code from the file with your rights. If you trust "
                "where it comes from, say so with --trust (or in the dashboard's dialog); else ask for an .onnx file."
            )
        if source.data is None:
            raise ModelError(
                f"{self.path.name} says nothing about its inputs: give an .npz of samples with --data (one array per "
                "parameter of its forward, samples on axis 0)."
            )
        put_folder_first(self.path)
        names = InputStructure(torch.zeros(1), self._fresh()).names
        arrays = _arrays_of(Path(source.data))
        if len(arrays) == 1:
            arrays = {names[0]: next(iter(arrays.values()))}
        specs = tuple(
            TensorSpec(name=name, dtype=str(array.dtype), shape=("batch", *array.shape[1:]))
            for name, array in arrays.items()
        )
        one = {name: array[:1] for name, array in arrays.items()}
        two = {name: array[[0, min(1, len(array) - 1)]] for name, array in arrays.items()}
        single = len(arrays) == 1
        self.settle_shapes(*(_tensors(value, single) for value in (one, two)))
        self.data = (
            NpzData(Path(source.data), specs, self.axes)
            if not single
            else _renamed(Path(source.data), specs, self.axes)
        )
        self.calibration = None
        if source.calibration_data is not None:
            path = Path(source.calibration_data)
            self.calibration = _renamed(path, specs, self.axes) if single else NpzData(path, specs, self.axes)

    @property
    def offers(self) -> tuple[str, ...]:
        return ("test_data",) if self.calibration is None else ("calibration_data", "test_data")

    @property
    def labelled(self) -> bool:
        return self.data.labels is not None

    @property
    def has_calibration_data(self) -> bool:
        return True

    def build(self) -> Any:
        return _read(self.path)

    def _baseline_module(self, variant: LoadedVariant) -> torch.nn.Module:
        """From the session's own copy, so that the user may move theirs; its hash is checked first."""
        record = next(file for file in variant.record.files if not file.path.endswith(".safetensors"))
        path = variant.directory / record.path
        if file_sha256(path) != record.sha256:
            raise ModelError(f"{path.name} is not the file that was stored (its SHA-256 differs): it is not opened.")
        return evaluating(_read(path).cpu())

    def example(self, batch_size: int, seed: int = 0) -> Arrays:
        rows = np.random.default_rng(seed).integers(self.data.count, size=batch_size)
        return rows_of(self.data.inputs, self.axes, rows)

    def test_batches(self, batch_size: int = 64, limit: int | None = None) -> Iterator[Batch]:
        batches = self.data.batches()
        if self.calibration is None:
            batches = split(batches, self.axes, calibration=False)
        return rebatched(batches, batch_size, self.axes, limit)

    def calibration_batches(self, batch_size: int = 64, limit: int | None = None) -> Iterator[Arrays]:
        if self.calibration is not None:
            batches = self.calibration.batches()
        else:
            batches = split(self.data.batches(), self.axes, calibration=True)
        return (inputs for inputs, _ in rebatched(batches, batch_size, self.axes, limit))

    def score(self, outputs: Arrays, labels: np.ndarray) -> np.ndarray:
        return top_1(outputs, labels)


def _refuse_weights_alone(path: Path) -> None:
    """Raises ModelError when the file is a state_dict. Reads with PyTorch's restricted unpickler: no code runs."""
    if _is_torchscript(path):  # torch.load would hand it to torch.jit.load, whatever weights_only says
        return
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception:
        return  # not readable without running code: the question of trust comes next
    if isinstance(content, dict):
        raise ModelError(
            f"{path.name} holds weights alone, not the network they belong to: write a Python model file whose "
            "load_model() builds the network and loads this file."
        )


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        if _is_torchscript(path):
            return torch.jit.load(path, map_location="cpu")
        return torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(MODEL_MODULE):
            raise ModelError(
                f"{path.name} was exported from a Python model file: open the load.py beside it instead."
            ) from error
        raise ModelError(
            f"{path.name} needs the module {error.name!r}: put its source beside the file, or install it."
        ) from error
    except AttributeError as error:
        raise ModelError(
            f"{path.name} refers to a class that is not found ({in_one_line(error)}): classes of a script's __main__ "
            "cannot be loaded elsewhere; write a Python model file instead."
        ) from error
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, OSError, KeyError) as error:
        raise ModelError(f"{path.name} cannot be read: {in_one_line(error)}") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _arrays_of(path: Path) -> Arrays:
    arrays = {name: array for name, array in read_npz(path).items() if name != "labels"}
    empty = next((name for name, array in arrays.items() if array.ndim == 0 or len(array) == 0), None)
    if not arrays or empty is not None:
        raise ModelError(f"{path.name} holds no samples{'' if empty is None else f' in {empty}'}.")
    return arrays


def _renamed(path: Path, specs: tuple[TensorSpec, ...], axes: Any) -> NpzData:
    """Data whose single array may have any name."""
    found = next(iter(_arrays_of(path)))
    spec = specs[0]
    data = NpzData(path, (TensorSpec(name=found, dtype=spec.dtype, shape=spec.shape),), {found: axes[spec.name]})
    data.inputs = {spec.name: data.inputs.pop(found)}
    data.axes = axes
    return data


def _tensors(inputs: Arrays, single: bool) -> Any:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    return next(iter(tensors.values())) if single else tensors
