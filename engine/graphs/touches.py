"""Rewrites that only serve speed: tried one after the other on a graph that is otherwise done, kept where they pay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx

from .masks import DOUBT, raise_masks
from .residuals import separate_residuals
from .timing import WORTH, time_in_turns
from .verification import first_line

RIVAL = 0.8
"""So near to the fastest another way of attention is touched up too: what slows both down may slow one down more."""

Rewrite = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, int]]
"""Gives (a copy, how many places were rewritten)."""


@dataclasses.dataclass(frozen=True)
class Touch:
    """One such rewrite."""

    parameter: str
    """Of the techniques that use it."""
    value: str
    """Of the parameter where the rewrite is done; "kept" where not."""
    told: str
    """What was done to so many places."""
    rewrite: Rewrite
    doubt: Rewrite | None = None
    """A stronger form, which must answer right too."""


TOUCHES = (
    Touch("residuals", "separate", "residual additions apart from their normalisations", separate_residuals),
    Touch("masks", "raised", "attention masks raised above underflow", raise_masks, lambda m: raise_masks(m, DOUBT)),
)


@dataclasses.dataclass(frozen=True)
class Touched:
    """A graph after the rewrites that paid."""

    model: onnx.ModelProto
    counts: Mapping[str, int]
    """Parameter → places rewritten, for each rewrite that is in it."""
    gain: float = 1.0
    """How many times faster the graph became by all of them."""

    @property
    def sentence(self) -> str:
        """What was done; "" for nothing."""
        return ", ".join(f"{self.counts[t.parameter]} {t.told}" for t in TOUCHES if t.parameter in self.counts)


def touched(model: onnx.ModelProto, parameters: Collection[str]) -> Touched:
    """The graph with the rewrites of these parameters, whether they pay or not."""
    counts: dict[str, int] = {}
    for touch in TOUCHES:
        if touch.parameter in parameters:
            model, count = touch.rewrite(model)
            if count:
                counts[touch.parameter] = count
    return Touched(model, counts)


def touchable(model: onnx.ModelProto) -> bool:
    """Whether there is a place for any of them."""
    return any(touch.rewrite(model)[1] for touch in TOUCHES)


def touch_up(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    threads: int,
    seconds: float,
    right: Callable[[onnx.ModelProto], bool],
    tell: Callable[[str], None] = lambda text: None,
) -> Touched:
    """The graph with each rewrite that makes it faster by `WORTH` and leaves its answers right.

    `seconds`: spent on each graph and feed, about. `right`: judges a graph's answers. `tell` hears what each gave.
    """
    counts: dict[str, int] = {}
    gain = 1.0
    for touch in TOUCHES:
        changed, count = touch.rewrite(model)
        if not count:
            continue
        try:
            if not right(changed) or (touch.doubt is not None and not right(touch.doubt(model)[0])):
                tell(f"{count} {touch.told}: the answers change, so it is not done")
                continue
            ratio = time_in_turns([model, changed], feeds, threads, seconds=seconds)[1]
        except Exception as error:  # ONNX Runtime has a class for each status, below no class of its own
            tell(f"{count} {touch.told}: not done, {first_line(error)}")
            continue
        tell(f"{count} {touch.told}: {ratio:.2f}× of that{'' if ratio >= WORTH else ', not worth it'}")
        if ratio >= WORTH:
            model, gain, counts[touch.parameter] = changed, gain * ratio, count
    return Touched(model, counts, gain)
