"""Samples to calibrate on, without those that hold NaN or infinity: one such sample can spoil what all others tell.

Infinity is a number like others in an input that is a mask: "mask" is in its name, or all else in it is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .datasets import rebatched, rows_of
from .model import Arrays, Model, ModelError, batch_axis
from .onnx_inputs import MASK


class NotFinite(ModelError):
    """Most samples to calibrate on hold NaN or infinity."""


def finite_calibration(model: Model, size: int, limit: int, tell: Callable[[str], None]) -> list[Arrays]:
    """Batches of `size` of the first `limit` calibration samples; what was left out is told.

    Raises NotFinite where that is most of them, and ModelError where there is no data at all.
    """
    axes = {spec.name: batch_axis(spec) for spec in model.inputs}
    batches = list(model.calibration_batches(batch_size=size, limit=limit))
    bad = {name: [_bad_rows(name, batch[name], axis) for batch in batches] for name, axis in axes.items()}
    found = {name: sum(int(rows.sum()) for rows in rows_of_batches) for name, rows_of_batches in bad.items()}
    inputs = [repr(name) for name, count in found.items() if count]
    if not inputs:
        return batches
    kept = [~np.logical_or.reduce(np.broadcast_arrays(*parts)) for parts in zip(*bad.values(), strict=True)]
    total, left = sum(rows.size for rows in kept), sum(int(rows.sum()) for rows in kept)
    which = f"input{'s' if len(inputs) > 1 else ''} {', '.join(inputs)}"
    sentence = f"{total - left} of {total} calibration samples hold NaN or infinity ({which})"
    if 2 * left < total:
        raise NotFinite(f"{sentence}: mend the data, or leave them out.")
    tell(f"{sentence}: they are left out.")
    chosen = ((rows_of(batch, axes, np.flatnonzero(rows)), None) for batch, rows in zip(batches, kept, strict=True))
    return [inputs for inputs, _ in rebatched(chosen, size, axes, None, whole_only=model.fixed_batch is not None)]


def finite_rows(name: str, array: np.ndarray, axis: int | None) -> np.ndarray:
    """Which samples of an input hold no NaN and, but for masks, no infinity: bool (n,). `axis` None: of one sample."""
    return ~_bad_rows(name, array, axis)


def _bad_rows(name: str, array: np.ndarray, axis: int | None) -> np.ndarray:
    if array.dtype.kind not in "fc":
        return np.zeros(1 if axis is None else array.shape[axis], bool)
    finite = np.isfinite(array)
    if not finite.all() and (MASK.search(name) or not array[finite].any()):
        finite = ~np.isnan(array)
    if axis is None:
        return np.array([not finite.all()])
    return ~np.moveaxis(finite, axis, 0).reshape(array.shape[axis], -1).all(axis=1)
