"""Numbers as integers: scales, zero points, and weights quantized per channel.

Weights are signed and symmetric (zero point 0), per output channel, in 8 bits (−127…127) or, for processors that
add products in 16 bits, 7 bits (−63…63). Activations are unsigned with a zero point, or signed and symmetric.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .calibration import Range

TINY = np.float32(1e-12)
"""Smallest scale. A range of zero width has no scale of its own."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How a real number becomes an integer: round(x / scale) + zero_point."""

    scale: np.float32
    zero_point: int
    signed: bool

    @property
    def zero(self) -> np.ndarray:
        return np.array(self.zero_point, dtype=np.int8 if self.signed else np.uint8)


def activation_scale(found: Range, symmetric: bool) -> Scale:
    """The scale for an activation. Zero is always represented exactly: padding and ReLU need it."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if symmetric:
        return Scale(max(np.float32(max(-low, high) / 127), TINY), 0, True)
    scale = max(np.float32((high - low) / 255), TINY)
    return Scale(scale, int(np.clip(round(-low / float(scale)), 0, 255)), False)


def weight_limit(seven_bit: bool, bits: int | None = None) -> int:
    """Largest integer a weight may be. `bits`: fewer than the target's 7 or 8, still stored as bytes."""
    return (1 << (min(bits or 8, 7 if seven_bit else 8) - 1)) - 1


def quantize_weights(
    weights: np.ndarray,
    axis: int | None,
    seven_bit: bool,
    clip_search: bool = False,
    bits: int | None = None,
    given: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(int8 weights of the same shape, float32 scales: one per index of `axis`, or a scalar for None).

    `clip_search` looks for the scale with the least squared error per channel instead of covering the extremes;
    `given` are scales that are known already, of the shape that would be returned.
    """
    limit = weight_limit(seven_bit, bits)
    if given is not None:
        integers = np.clip(np.rint(weights / along(given, axis, weights.ndim)), -limit, limit)
        return integers.astype(np.int8), given.astype(np.float32)
    moved = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    moved = moved.astype(np.float32)
    scales = np.maximum(np.abs(moved).max(axis=1), TINY * limit) / limit
    if clip_search:
        scales = _least_error(moved, scales, limit)
    scales = scales.astype(np.float32)
    scales = scales.reshape(()) if axis is None else scales
    integers = np.clip(np.rint(weights / along(scales, axis, weights.ndim)), -limit, limit).astype(np.int8)
    return integers, scales


def dequantize_weights(integers: np.ndarray, scales: np.ndarray, axis: int | None) -> np.ndarray:
    """What quantized weights stand for."""
    return integers.astype(np.float32) * along(scales, axis, integers.ndim)


def along(scales: np.ndarray, axis: int | None, axes: int) -> np.ndarray:
    """Scales shaped so that they broadcast over weights with this many axes."""
    return scales if axis is None else scales.reshape([-1 if index == axis else 1 for index in range(axes)])


def _least_error(rows: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    best, found = np.full(len(rows), np.inf), scales.copy()
    for factor in np.linspace(1.0, 0.7, 13):
        tried = (scales * factor)[:, None]
        error = ((np.clip(np.rint(rows / tried), -limit, limit) * tried - rows) ** 2).sum(axis=1)
        better = error < best
        best, found = np.where(better, error, best), np.where(better, scales * factor, found)
    return found
