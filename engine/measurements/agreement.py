"""How far a variant's outputs moved from the baseline's, without labels: changed answers, cosine, SQNR.

An *answer* is the class with the largest score along the class axis (axis 1 of (n, C) and (n, C, H, W), the last of
(n, T, C)), or an integer output itself. Outputs that are one number a sample have no class: their answer changed
when the number moved by more than `MOVED` of its spread over the samples. All of it says how much changed, never
whether for the worse.
"""

from dataclasses import dataclass, field

import numpy as np

from ..models import Arrays
from .statistics import Interval, mean_interval, wilson_interval

MOVED = 0.05
"""Share of the baseline's standard deviation over the samples."""

HIGHEST_SQNR_DB = 200.0
"""Reported for outputs that are equal bit by bit, where the ratio has no bound."""


@dataclass
class Agreement:
    """Sums over all batches seen."""

    shares_changed: list[np.ndarray] = field(default_factory=list)
    base_numbers: list[np.ndarray] = field(default_factory=list)
    numbers: list[np.ndarray] = field(default_factory=list)
    cosines: list[np.ndarray] = field(default_factory=list)
    signal: float = 0.0
    noise: float = 0.0

    def add(self, base: Arrays, mine: Arrays) -> None:
        """One batch of outputs of both; samples on axis 0."""
        floats = [name for name in base if name in mine and base[name].dtype.kind == "f" and base[name].ndim >= 1]
        if floats and len({len(base[name]) for name in floats}) == 1:
            reference, moved = _flat(base, floats), _flat(mine, floats)
            if reference.shape == moved.shape:
                lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(moved, axis=1)
                dots = (reference * moved).sum(axis=1)
                self.cosines.append(np.where(lengths > 0, dots / np.maximum(lengths, 1e-30), 1.0))
                self.signal += float((reference**2).sum())
                self.noise += float(((reference - moved) ** 2).sum())
        self._add_answers(base, mine)

    def _add_answers(self, base: Arrays, mine: Arrays) -> None:
        for name, array in base.items():
            if name not in mine:
                continue
            before, after = answers(array), answers(mine[name])
            if before is not None and after is not None and before.shape == after.shape:
                self.shares_changed.append((before != after).reshape(len(before), -1).mean(axis=1, dtype=np.float64))
                return
        for name, array in base.items():
            if name in mine and array.dtype.kind == "f" and array.ndim >= 1 and array.shape == mine[name].shape:
                self.base_numbers.append(array.reshape(len(array), -1).astype(np.float64))
                self.numbers.append(mine[name].reshape(len(array), -1).astype(np.float64))
                return

    def changed(self) -> Interval:
        """Share of samples whose answer changed, with its interval: all of it (1) when no output can be compared."""
        if self.shares_changed:
            shares = np.concatenate(self.shares_changed)
        elif self.numbers:
            base, mine = np.concatenate(self.base_numbers), np.concatenate(self.numbers)
            spread = base.std(axis=0, keepdims=True)
            gap = np.abs(base - mine)
            shares = (~(gap <= np.maximum(MOVED * spread, 1e-6 * np.abs(base)))).any(axis=1).astype(np.float64)
        else:
            return Interval(1.0, 1.0, 1.0)
        if ((shares == 0) | (shares == 1)).all():
            return wilson_interval(int(shares.sum()), len(shares))
        return mean_interval(shares)

    @property
    def cosine(self) -> float | None:
        """Mean over the samples of the cosine between both outputs; None when there was nothing to compare."""
        return float(np.concatenate(self.cosines).mean()) if self.cosines else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization-noise ratio over everything, decibels."""
        if not self.cosines or self.signal == 0 or not np.isfinite(self.noise):
            return None
        if self.noise == 0:
            return HIGHEST_SQNR_DB
        return min(HIGHEST_SQNR_DB, float(10 * np.log10(self.signal / self.noise)))


def answers(output: np.ndarray) -> np.ndarray | None:
    """The answers in an output, or None when it has no class axis or no samples. A score that is no number gives -1."""
    if output.dtype.kind in "iub":
        return output if output.ndim else None
    if output.dtype.kind != "f" or output.ndim < 2:
        return None
    axis = output.ndim - 1 if output.ndim == 3 else 1
    if output.shape[axis] < 2:
        return None
    return np.where(np.isnan(output).any(axis=axis), -1, output.argmax(axis=axis))


def all_finite(outputs: Arrays) -> bool:
    """Whether every float in these outputs is a finite number."""
    return all(np.isfinite(array).all() for array in outputs.values() if array.dtype.kind == "f")


def _flat(outputs: Arrays, names: list[str]) -> np.ndarray:
    """All outputs of a sample in one row, float64."""
    return np.concatenate([outputs[name].reshape(len(outputs[name]), -1).astype(np.float64) for name in names], axis=1)
