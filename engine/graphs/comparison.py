"""How far two sets of outputs are apart, added up batch by batch, so that memory does not grow with their number.

Floats are measured against each other. Other outputs (class numbers, masks, tokens) are equal or not, place by place:
a graph that ends in an ArgMax is judged by the share of its answers that changed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np

AT_A_TIME = 1 << 22
"""Numbers turned to float64 at once."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far outputs are from their reference. Over all outputs: the worst of each.

    Where no output is a float, cosine and ratio are those of one-hot vectors in the place of whole numbers.
    """

    maximum: float
    """Largest absolute difference of floats."""
    relative: float
    """Largest absolute difference over the largest absolute value of that output; of floats."""
    cosine: float
    """Cosine of the angle between the two, over everything in an output."""
    sqnr_db: float
    """Signal to quantization noise ratio, decibels."""
    left_out: tuple[str, ...] = ()
    """Outputs that were not compared, because how long they are depends on the data."""
    cut: tuple[str, ...] = ()
    """Outputs of that kind of which only the part that both have was compared, for want of others."""
    changed: float = 0.0
    """Share of the whole numbers of an output that are others."""
    whole: int = 0
    """How many whole numbers that share is of; 0 where all outputs are floats."""
    only_whole: bool = False
    """No output is a float."""

    @property
    def note(self) -> str:
        """What the figures do not cover, as a sentence, or ""."""
        if self.left_out:
            return f"Not compared, because their length depends on the data: {', '.join(self.left_out)}."
        if self.cut:
            return f"Compared as far as both reach, because their length depends on the data: {', '.join(self.cut)}."
        return ""

    @property
    def figures(self) -> dict[str, float | str]:
        """For a variant's record."""
        found: dict[str, float | str] = {"cosine": round(self.cosine, 6), "sqnr_db": round(min(self.sqnr_db, 200.0), 2)}
        found |= {"whole_numbers_changed": round(self.changed, 6)} if self.whole else {}
        return found | ({"not_compared": self.note} if self.note else {})

    def beyond(self, tolerance: float, one_may_change: bool = False) -> str:
        """How they differ by more than a share of the largest output, or in more than that share of whole numbers.

        A predicate ("differ by …"), or "". `one_may_change`: accept one whole number in any case, which says nothing
        about a smaller share.
        """
        accepted = f"(accepted: {tolerance:.2%})"
        if self.relative > tolerance:
            return f"differ by up to {self.maximum:.3g}, which is {self.relative:.2%} of the largest output {accepted}"
        if self.changed > max(tolerance, 1 / self.whole if one_may_change and self.whole else 0.0):
            return f"differ in {self.changed:.2%} of the whole numbers of an output {accepted}"
        return ""


@dataclasses.dataclass
class _Sums:
    """Of one output over all batches."""

    count: int = 0
    peak: float = 0.0
    largest: float = 0.0
    power: float = 0.0
    given: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    changed: int | None = None
    """Whole numbers that differ; None for floats."""

    def add(self, wanted: np.ndarray, given: np.ndarray) -> str:
        """Why the two cannot be compared, or ""."""
        if given.shape != wanted.shape:
            return f"has shape {given.shape} and not {wanted.shape}"
        if wanted.dtype.kind not in "fV":
            self.changed = (self.changed or 0) + int((wanted != given).sum())
            self.count += wanted.size
            return ""
        first, second = wanted.ravel(), given.ravel()
        for start in range(0, first.size, AT_A_TIME):
            one, other = first[start : start + AT_A_TIME], second[start : start + AT_A_TIME]
            finite = np.isfinite(one)
            if not np.array_equal(finite, np.isfinite(other)):
                return "has values that are not finite"
            self.count += one.size
            if finite.any():
                self._add(one[finite].astype(np.float64), other[finite].astype(np.float64))
        return ""

    def _add(self, wanted: np.ndarray, given: np.ndarray) -> None:
        error = wanted - given
        self.peak = max(self.peak, float(np.abs(error).max()))
        self.largest = max(self.largest, float(np.abs(wanted).max()))
        self.power += float(wanted @ wanted)
        self.given += float(given @ given)
        self.product += float(wanted @ given)
        self.noise += float(error @ error)

    @property
    def cosine(self) -> float:
        norms = math.sqrt(self.power * self.given)
        return self.product / norms if norms else 1.0 if self.power == self.noise == 0 else 0.0

    @property
    def sqnr_db(self) -> float:
        if not self.noise:
            return float("inf")
        return 10 * math.log10(self.power / self.noise) if self.power else float("-inf")

    @property
    def share_changed(self) -> float:
        return (self.changed or 0) / self.count

    @property
    def whole_sqnr_db(self) -> float:
        """Of one-hot vectors; where no number changed, as if half a one had: a smaller share cannot be seen."""
        return -10 * math.log10(2 * max(self.changed or 0, 0.5) / self.count)


class Comparison:
    """Adds up the differences of pairs of outputs.

    Outputs in `varying` may differ in shape: then they are left out, or, if none else is there to compare, cut to the
    part that both have. Places where the reference is not finite (a mask of −inf) must be the same in both, and are
    left out.
    """

    def __init__(self, varying: Collection[str] = ()) -> None:
        self._varying = varying
        self._sums: dict[str, _Sums] = {}
        self._differing: set[str] = set()
        self._failures: dict[str, str] = {}

    def add(self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """One batch of both."""
        for name, wanted in reference.items():
            given = outputs[name]
            if name in self._varying and wanted.shape != given.shape:
                self._differing.add(name)
                wanted, given = _common(wanted, given)
            failure = self._sums.setdefault(name, _Sums()).add(wanted, given)
            if failure:
                self._failures.setdefault(name, failure)

    def difference(self) -> Difference:
        """Over all batches added. Raises ValueError when shapes differ, a number is finite on one side only, or
        nothing can be compared.
        """
        compared = [name for name in self._sums if name not in self._differing]
        left_out = tuple(name for name in self._sums if name in self._differing)
        cut: tuple[str, ...] = ()
        if not compared:
            compared, left_out, cut = list(left_out), (), left_out
        for name in compared:
            if name in self._failures:
                raise ValueError(f"output {name} {self._failures[name]}")
        found = [self._sums[name] for name in compared if self._sums[name].count]
        if not found and cut:
            raise ValueError(
                f"there is nothing to compare: how long {', '.join(cut)} is depends on the data, and the two graphs "
                "have no part of it in common (end the graph before it selects results, as NonMaxSuppression does)"
            )
        if not self._sums:
            raise ValueError("there is nothing to compare: no inputs were given")
        if not found:
            raise ValueError(
                "there is nothing to compare: every output is empty for these inputs (give an example input for which "
                "the model finds something)"
            )
        floats = [sums for sums in found if sums.changed is None]
        whole = [sums for sums in found if sums.changed is not None]
        worst = max(whole, key=lambda sums: sums.share_changed, default=None)
        return Difference(
            maximum=max((sums.peak for sums in floats), default=0.0),
            relative=max((sums.peak / max(sums.largest, 1e-30) for sums in floats), default=0.0),
            cosine=min((sums.cosine for sums in floats), default=1.0 - worst.share_changed if worst else 1.0),
            sqnr_db=min(sums.sqnr_db for sums in floats) if floats else min(sums.whole_sqnr_db for sums in whole),
            left_out=left_out,
            cut=cut,
            changed=worst.share_changed if worst else 0.0,
            whole=worst.count if worst else 0,
            only_whole=not floats,
        )


def _common(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two arrays that both have; nothing of arrays with different numbers of axes."""
    if first.ndim != second.ndim:
        return first.reshape(-1)[:0], second.reshape(-1)[:0]
    part = tuple(slice(min(sizes)) for sizes in zip(first.shape, second.shape, strict=True))
    return first[part], second[part]
