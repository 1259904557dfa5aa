"""Data as the engine wants it: named numpy batches of a chosen size, calibration and test samples kept apart.

It comes from a user's iterable of torch batches (`normalised`) or from an `.npz` (`NpzData`), and passes through
`split` and `rebatched`. Nothing here shuffles: the order is the data's own.

Where the same data must serve for testing and calibrating, one sample in `CALIBRATION_SHARE` is set aside, chosen
by a hash of its contents: so it is the same one in every worker, even if the user's loader shuffles, and a sample
that appears twice is never on both sides.
"""

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ..protocol import TensorSpec
from .importing import in_one_line
from .model import Arrays, ModelError
from .tensors import InputStructure, to_array

Batch = tuple[Arrays, np.ndarray | None]
"""Named inputs of some samples, and their labels (None: unlabelled)."""

Axes = dict[str, int | None]
"""Input name → the axis along which its samples lie; None: the same array goes into every call."""

CALIBRATION_SHARE = 8
"""One sample in so many is calibration data, when there is no other."""

LABEL_KEYS = ("labels", "label", "targets", "target")
"""Where a dictionary batch keeps its labels."""


def opened(offer: Any) -> Iterable[Any]:
    """What the model file calls train_data, test_data, …: a function that makes an iterable, or the iterable."""
    return offer() if callable(offer) and not isinstance(offer, torch.utils.data.DataLoader) else offer


def normalised(
    items: Iterable[Any], structure: InputStructure, ranks: dict[str, int], axes: Axes, what: str
) -> Iterator[Batch]:
    """A user's batches as named arrays.

    An item may be the inputs alone, (inputs, labels), (x1, x2, …, labels), or a dictionary with a key "labels";
    a single sample without its batch axis counts as a batch of one. `ranks`: number of axes of each input.
    Raises ModelError naming the batch that does not fit; `what` is the function it came from.
    """
    for position, item in enumerate(items):
        try:
            value, labels = _separated(item, structure)
            inputs = structure.arrays(value)
            inputs, alone = _with_batch_axis(inputs, ranks, axes)
            count = _count(inputs, axes)
            yield inputs, None if labels is None else labels_array([labels] if alone else labels, count)
        except ModelError as error:
            raise ModelError(f"Batch {position} of {what} does not fit: {error}") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"Batch {position} of {what} cannot be read: {in_one_line(error)}") from error


def labels_array(labels: Any, count: int) -> np.ndarray:
    """Labels of any kind as an array with one entry a sample; what numpy has no type for becomes objects.

    Raises ModelError when their number is not `count`.
    """
    if isinstance(labels, torch.Tensor):
        array = to_array(labels)
    elif isinstance(labels, np.ndarray):
        array = labels
    elif isinstance(labels, Mapping):
        rows = {key: list(value) for key, value in labels.items()}
        array = _objects([{key: value[i] for key, value in rows.items()} for i in range(count)])
    elif isinstance(labels, list | tuple):
        plain = [to_array(label) if isinstance(label, torch.Tensor) else label for label in labels]
        if any(isinstance(label, Mapping | set) for label in plain):
            array = _objects(list(labels))
        else:
            try:
                array = np.asarray(plain)
            except ValueError:  # ragged
                array = _objects(list(labels))
    else:
        array = np.asarray([labels])
    if array.ndim == 0:
        array = array[None]
    if len(array) != count:
        raise ModelError(f"it has {count} samples but {len(array)} labels.")
    return array


def rebatched(
    batches: Iterable[Batch], size: int, axes: Axes, limit: int | None, whole_only: bool = False
) -> Iterator[Batch]:
    """The same samples in batches of `size`; `whole_only` drops a last, smaller one. At most `limit` samples."""
    waiting: Batch | None = None
    left = limit
    for batch in batches:
        if left is not None:
            batch = _rows(batch, axes, slice(0, left))
            left -= _count(batch[0], axes)
        waiting = batch if waiting is None else _joined(waiting, batch, axes)
        total, start = _count(waiting[0], axes), 0
        while total - start >= size:
            yield _rows(waiting, axes, slice(start, start + size))
            start += size
        waiting = _rows(waiting, axes, slice(start, total)) if start < total else None
        if left is not None and left <= 0:
            break
    if waiting is not None and _count(waiting[0], axes) and not whole_only:
        yield waiting


def split(batches: Iterable[Batch], axes: Axes, calibration: bool) -> Iterator[Batch]:
    """Only the calibration samples, or only the others; both calls together give every sample once."""
    for batch in batches:
        rows = np.flatnonzero(calibration_rows(batch[0], axes) == calibration)
        if len(rows):
            yield _rows(batch, axes, rows)


def calibration_rows(inputs: Arrays, axes: Axes) -> np.ndarray:
    """Which samples are set aside for calibration: bool (n,)."""
    digests = [hashlib.blake2b(digest_size=8) for _ in range(_count(inputs, axes))]
    for name in sorted(inputs):
        axis = axes[name]
        if axis is not None:
            for row, digest in zip(np.moveaxis(inputs[name], axis, 0), digests, strict=True):
                digest.update(np.ascontiguousarray(row).data if row.size else b"")
    return np.array([int.from_bytes(digest.digest()) % CALIBRATION_SHARE == 0 for digest in digests], bool)


class NpzData:
    """An `.npz` with one array per graph input, and "labels" if there are any. Read once, without pickles."""

    def __init__(self, path: Path, inputs: tuple[TensorSpec, ...], axes: Axes) -> None:
        """Raises ModelError when the file is unreadable, lacks an input, or has wrong shapes or types."""
        self.path, self.axes = path, axes
        arrays = read_npz(path)
        self.labels = arrays.pop("labels", None)
        self.inputs: Arrays = {}
        for spec in inputs:
            if spec.name not in arrays:
                raise ModelError(
                    f"{path.name} has no array called {spec.name!r} (it has: {', '.join(sorted(arrays)) or 'none'}): "
                    "it must hold one array per input of the graph."
                )
            self.inputs[spec.name] = _fitting(arrays[spec.name], spec, axes[spec.name], path)
        counts = {name: array.shape[axes[name] or 0] for name, array in self.inputs.items() if axes[name] is not None}
        if len(set(counts.values())) > 1:
            raise ModelError(f"The arrays of {path.name} have different numbers of samples: {counts}.")
        self.count = next(iter(counts.values()), 1)
        if self.count == 0:
            raise ModelError(f"{path.name} holds no samples.")
        if self.labels is not None and (self.labels.ndim == 0 or len(self.labels) != self.count):
            have = 1 if self.labels.ndim == 0 else len(self.labels)
            raise ModelError(f"{path.name} has {self.count} samples but {have} labels.")

    def batches(self, size: int = 256) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield _rows((self.inputs, self.labels), self.axes, slice(start, start + size))


def rows_of(inputs: Arrays, axes: Axes, rows: slice | np.ndarray) -> Arrays:
    """Some samples of a batch; inputs without samples are passed on whole."""
    return _rows((inputs, None), axes, rows)[0]


def read_npz(path: Path) -> Arrays:
    """All arrays of an `.npz`. Raises ModelError for anything else, for pickles in it, or too much of it."""
    if not path.is_file():
        raise ModelError(f"There is no data file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > psutil.virtual_memory().total / 2:
            raise ModelError(
                f"{path.name} unpacks to {unpacked / 2**30:.0f} GiB, more than half of this machine's memory."
            )
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except zipfile.BadZipFile:
        raise ModelError(f"{path.name} is not an .npz file: write it with numpy.savez(path, x=…, labels=…).") from None
    except (ValueError, OSError, EOFError, KeyError) as error:
        reason = "it holds pickled objects, which are not read" if "allow_pickle" in str(error) else in_one_line(error)
        raise ModelError(f"{path.name} cannot be read: {reason}.") from None


def _fitting(array: np.ndarray, spec: TensorSpec, axis: int | None, path: Path) -> np.ndarray:
    wanted = np.dtype(spec.dtype)
    expected = tuple("n" if position == axis else size for position, size in enumerate(spec.shape))
    same = array.ndim == len(expected) and all(
        size in ("n", None) or isinstance(size, str) or size == have
        for size, have in zip(expected, array.shape, strict=True)
    )
    if not same:
        shape = ", ".join(str(size) for size in expected)
        raise ModelError(f"{spec.name} in {path.name} has the shape {array.shape}; the graph wants ({shape}).")
    if array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "same_kind") and not (
            array.dtype.kind in "iub" and wanted.kind in "iu"
        ):
            raise ModelError(f"{spec.name} in {path.name} is {array.dtype}; the graph wants {wanted}.")
        array = array.astype(wanted)
    return array


def _separated(item: Any, structure: InputStructure) -> tuple[Any, Any]:
    """An item of a user's iterable as (inputs, labels or None); which it is follows from the example's structure."""
    if isinstance(item, Mapping):
        key = next((key for key in LABEL_KEYS if key in item and key not in structure.names), None)
        return item, None if key is None else item[key]
    if not isinstance(item, tuple | list):
        return item, None
    count = len(structure.order)
    if structure.form == "sequence":
        if len(item) == 2 and isinstance(item[0], tuple | list):
            return item[0], item[1]
        if len(item) == count + 1:
            return item[:count], item[count]
        return item, None
    if len(item) == 2:
        return item[0], item[1]
    if len(item) == 1:
        return item[0], None
    raise ModelError(f"it has {len(item)} parts; it must be inputs, or (inputs, labels).")


def _with_batch_axis(inputs: Arrays, ranks: dict[str, int], axes: Axes) -> tuple[Arrays, bool]:
    """A single sample becomes a batch of one; True if it was one."""
    alone = all(array.ndim == ranks[name] - 1 for name, array in inputs.items() if axes[name] is not None)
    if not alone:
        wrong = next((n for n, array in inputs.items() if array.ndim != ranks[n]), None)
        if wrong is not None:
            raise ModelError(f"{wrong} has {inputs[wrong].ndim} axes, example_input() gave {ranks[wrong]}.")
        return inputs, False
    return {n: array if axes[n] is None else np.expand_dims(array, axes[n] or 0) for n, array in inputs.items()}, True


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for position, value in enumerate(values):
        array[position] = value
    return array


def _count(inputs: Arrays, axes: Axes) -> int:
    for name, axis in axes.items():
        if axis is not None and name in inputs:
            return inputs[name].shape[axis]
    return 1


def _rows(batch: Batch, axes: Axes, rows: slice | np.ndarray) -> Batch:
    inputs, labels = batch
    chosen = {}
    for name, array in inputs.items():
        axis = axes[name]
        chosen[name] = array if axis is None else array[(slice(None),) * axis + (rows,)]
    return chosen, None if labels is None else labels[rows]


def _joined(first: Batch, second: Batch, axes: Axes) -> Batch:
    inputs = {}
    for name, array in first[0].items():
        axis = axes[name]
        inputs[name] = array if axis is None else np.concatenate([array, second[0][name]], axis=axis)
    labels = None
    if first[1] is not None and second[1] is not None:
        labels = np.concatenate([first[1], second[1]])
    return inputs, labels
