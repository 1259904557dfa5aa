"""Weights as 4-bit numbers in blocks: how they are chosen (three methods) and how they are packed into bytes.

A block is some neighbours along the inner axis of one output: weight ≈ (code − zero) · scale, with codes 0…15. Scales
are positive float32. Symmetric blocks have the zero at 8, and then the code −8…7 is what INT4 stores.

- `rounded`: round to nearest between the extremes of a block, as ONNX Runtime's default does.
- `least_error`: the scale (and zero) with the least squared error of a block, found among narrower ranges and refined
  by least squares; no data needed. (Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient
  Inference", 2019, search the range likewise.)
- `compensated`: GPTQ (Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
  Pre-trained Transformers", ICLR 2023): inner index by inner index, the error made so far is put right in the weights
  not yet rounded, by the second moments of the layer's inputs. Groups keep their place, so no index table is needed.

ONNX Runtime's own versions (1.32, `HQQWeightOnlyQuantConfig`, `GPTQWeightOnlyQuantConfig`) were measured and not taken.
HQQ moves nothing but the zeros, to float numbers, for which the CPU kernel takes 4.05 ms where integer ones take 0.06
(768 × 3072, one row); with its zeros rounded it is no better than rounding to nearest (mean squared error of normal
weights in blocks of 64: 0.00829 both, `least_error` 0.00759; 0.0506, 0.0506 and 0.0476 with heavy tails) and takes 21 s
where `least_error` takes 1.2. Its GPTQ rounds the compensated weights once more, with other scales.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

LEVELS = 15
"""Highest code."""

MIDDLE = 8
"""The zero of a symmetric block."""

NARROWER = np.linspace(1.0, 0.6, 17, dtype=np.float32)
"""Ranges tried by `least_error`, as shares of the extremes."""

REFINEMENTS = 3
"""Rounds of least squares after the best range: codes, then scale, then zero."""

DAMPING = 0.01
"""Share of the mean second moment that is added to each, so that the inverse exists (as in the paper)."""

FEW_VECTORS = 0.3
"""More of it where few inputs were seen, times inner / vectors: what hangs together in them by chance is not to be
trusted. With a third as many vectors as inner indices 0.01 alone is worse than no compensation (17.2 dB against 19.6
on unseen inputs, this 19.8); with 30 times as many it costs 0.1 dB."""

LAZY = 128
"""Inner indices whose corrections are applied to the rest in one product (as in the paper)."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A matrix of (inner, outputs) weights in 4 bits. The last block may be shorter."""

    codes: np.ndarray
    """uint8 (inner, outputs), 0…15."""
    scales: np.ndarray
    """float32 (blocks, outputs)."""
    zeros: np.ndarray
    """uint8 (blocks, outputs), 8 everywhere when symmetric."""
    block: int
    symmetric: bool

    def values(self) -> np.ndarray:
        """What they stand for, float32 (inner, outputs)."""
        spread = np.repeat(np.arange(len(self.scales)), self.block)[: len(self.codes)]
        return (self.codes.astype(np.float32) - self.zeros[spread]) * self.scales[spread]

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(codes uint8 (outputs, blocks, block / 2), scales (outputs, blocks), zeros or None) for MatMulNBits.

        The lower half of a byte comes first; a short last block is filled with zeros of the matrix.
        """
        blocks, outputs = self.scales.shape
        full = np.repeat(self.zeros, self.block, axis=0)
        full[: len(self.codes)] = self.codes
        codes = full.T.reshape(outputs, blocks, self.block)
        zeros = None if self.symmetric else _pairs(self.zeros.T)
        return _pairs(codes), np.ascontiguousarray(self.scales.T), zeros

    def typed(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(codes, zeros or None) in ONNX's own types: INT4 without zeros when symmetric, else UINT4 and UINT4."""
        if self.symmetric:
            return (self.codes.astype(np.int8) - MIDDLE).astype(ml_dtypes.int4), None
        return self.codes.astype(ml_dtypes.uint4), self.zeros.astype(ml_dtypes.uint4)


def rounded(matrix: np.ndarray, block: int, symmetric: bool) -> Blocks:
    """Round to nearest. `matrix`: float32 (inner, outputs)."""
    cut = _cut(matrix, block)
    scales, zeros = _grid(cut, symmetric)
    return _blocks(matrix, _codes(cut, scales, zeros), scales, zeros, block, symmetric)


def least_error(matrix: np.ndarray, block: int, symmetric: bool, importance: np.ndarray | None = None) -> Blocks:
    """The scale and zero of least squared error. `importance`: weight of each inner index, float (inner,)."""
    cut = _cut(matrix, block)
    weight = None if importance is None else _cut(importance.astype(np.float32)[:, None], block)
    scales, zeros = _least(cut, symmetric, weight)
    return _blocks(matrix, _codes(cut, scales, zeros), scales, zeros, block, symmetric)


def compensated(matrix: np.ndarray, moments: np.ndarray, vectors: int, block: int, symmetric: bool) -> Blocks:
    """GPTQ. `moments`: Σ x xᵀ over so many input vectors of the layer, (inner, inner).

    Raises ValueError when the moments are not finite.
    """
    inner, outputs = matrix.shape
    factor = _inverse_factor(moments, DAMPING + FEW_VECTORS * inner / max(vectors, 1))
    weights = matrix.astype(np.float32).copy()
    codes = np.zeros((inner, outputs), dtype=np.uint8)
    count = -(-inner // block)
    scales, zeros = np.zeros((count, outputs), dtype=np.float32), np.zeros((count, outputs), dtype=np.uint8)
    importance = np.diag(moments).astype(np.float32)
    step = max(block, LAZY)
    for start in range(0, inner, step):
        end = min(start + step, inner)
        errors = np.zeros((end - start, outputs), dtype=np.float32)
        for index in range(start, end):
            if index % block == 0:
                group = slice(index, min(index + block, inner))
                part = weights[group][None]
                at = index // block
                scale, zero = _least(part, symmetric, importance[group][None, :, None])
                scales[at], zeros[at] = scale[0, 0], zero[0, 0]
            row, at = weights[index], index // block
            codes[index] = np.clip(np.rint(row / scales[at]) + zeros[at], 0, LEVELS)
            value = (codes[index].astype(np.float32) - zeros[at]) * scales[at]
            error = (row - value) / factor[index, index]
            weights[index + 1 : end] -= factor[index, index + 1 : end, None] * error
            errors[index - start] = error
        weights[end:] -= factor[start:end, end:].T @ errors
    return Blocks(codes, scales, zeros, block, symmetric)


def output_error(matrix: np.ndarray, blocks: Blocks, moments: np.ndarray) -> float:
    """Squared error of the layer's outputs over their power, on the inputs that the moments were summed over."""
    wrong = blocks.values() - matrix
    power = float(np.einsum("io,ij,jo->", matrix, moments, matrix, optimize=True))
    return float(np.einsum("io,ij,jo->", wrong, moments, wrong, optimize=True)) / power if power else 0.0


def _inverse_factor(moments: np.ndarray, damping: float) -> np.ndarray:
    """Upper Cholesky factor of the inverse of the damped moments."""
    damped = moments.astype(np.float64).copy()
    if not np.isfinite(damped).all():
        raise ValueError("the layer's inputs are not finite")
    diagonal = np.diag(damped)
    mean = float(diagonal.mean()) or 1.0
    damped[np.diag_indices_from(damped)] = np.where(diagonal == 0, mean, diagonal) + damping * mean
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32))


def _cut(matrix: np.ndarray, block: int) -> np.ndarray:
    """(blocks, block, outputs); a short last block is filled with its own last row, which changes no extreme."""
    short = -len(matrix) % block
    padded = np.concatenate([matrix, np.repeat(matrix[-1:], short, axis=0)]) if short else matrix
    return padded.reshape(-1, block, matrix.shape[1])


def _grid(cut: np.ndarray, symmetric: bool, share: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero (blocks, 1, outputs) for this share of the extremes. Zero is always represented exactly."""
    if symmetric:
        scales = np.maximum(cut.max(axis=1, keepdims=True) / 7, cut.min(axis=1, keepdims=True) / -8) * share
        return _positive(scales), np.full(scales.shape, MIDDLE, dtype=np.uint8)
    low = np.minimum(cut.min(axis=1, keepdims=True), 0) * share
    high = np.maximum(cut.max(axis=1, keepdims=True), 0) * share
    scales = _positive((high - low) / LEVELS)
    return scales, np.clip(np.rint(-low / scales), 0, LEVELS).astype(np.uint8)


def _least(cut: np.ndarray, symmetric: bool, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    scales, zeros = _grid(cut, symmetric)
    best = _error(cut, scales, zeros, weight)
    tried = [_grid(cut, symmetric, share) for share in NARROWER[1:]]
    for _ in range(len(tried)):
        scales, zeros, best = _better(cut, weight, tried.pop(), scales, zeros, best)
    for _ in range(REFINEMENTS):
        scales, zeros, best = _better(cut, weight, _fitted(cut, scales, zeros, symmetric, weight), scales, zeros, best)
    return scales, zeros


def _better(
    cut: np.ndarray,
    weight: np.ndarray | None,
    candidate: tuple[np.ndarray, np.ndarray],
    scales: np.ndarray,
    zeros: np.ndarray,
    best: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Block by block, the candidate where its error is less."""
    error = _error(cut, *candidate, weight)
    less = error < best
    return np.where(less, candidate[0], scales), np.where(less, candidate[1], zeros), np.where(less, error, best)


def _fitted(
    cut: np.ndarray, scales: np.ndarray, zeros: np.ndarray, symmetric: bool, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """For the codes as they are, the scale of least squares; then the zero that fits it best."""
    codes = _codes(cut, scales, zeros)
    steps = codes - zeros.astype(np.float32)
    heavy = steps if weight is None else steps * weight
    power = (heavy * steps).sum(axis=1, keepdims=True)
    fitted = np.where(power > 0, (heavy * cut).sum(axis=1, keepdims=True) / np.maximum(power, 1e-30), scales)
    fitted = np.where(fitted > 0, fitted, scales).astype(np.float32)
    if symmetric:
        return fitted, zeros
    offset = codes - cut / fitted
    middle = offset.mean(axis=1, keepdims=True)
    if weight is not None:
        middle = (offset * weight).sum(axis=1, keepdims=True) / np.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
    return fitted, np.clip(np.rint(middle), 0, LEVELS).astype(np.uint8)


def _codes(cut: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(cut / scales) + zeros, 0, LEVELS)


def _error(cut: np.ndarray, scales: np.ndarray, zeros: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    squared = ((_codes(cut, scales, zeros) - zeros) * scales - cut) ** 2
    return (squared if weight is None else squared * weight).sum(axis=1, keepdims=True)


def _positive(scales: np.ndarray) -> np.ndarray:
    return np.maximum(scales, np.float32(1e-12)).astype(np.float32)


def _blocks(
    matrix: np.ndarray, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, block: int, symmetric: bool
) -> Blocks:
    flat = codes.reshape(-1, matrix.shape[1])[: len(matrix)].astype(np.uint8)
    return Blocks(flat, scales[:, 0], zeros[:, 0], block, symmetric)


def _pairs(codes: np.ndarray) -> np.ndarray:
    """Two codes of the last axis in a byte, the first in the lower half."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), dtype=np.uint8)], axis=-1)
    return np.ascontiguousarray(codes[..., ::2] | (codes[..., 1::2] << 4))
