"""Which flavour of dynamic quantization is the fastest here and still near enough: tried, checked, timed in turns.

What differs is how attention is computed (as the graph has it, fused in float, or in integers), whether a weight has
one scale per output channel or one in all, and the rewrites that serve speed alone (see `touches`). No choice wins
everywhere: one scale is 3 to 8 % faster in an LSTM and less exact, fused attention wins at batch 1 and may lose at
batch 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from .attention_fusion import fuse_attention
from .dynamic_quantization import Result, quantize_dynamically
from .fingerprint import fingerprint
from .preparation import prepare, with_shapes
from .sensitivity import Answers, Judge
from .timing import WORTH, time_in_turns
from .touches import RIVAL, Touched, touch_up, touched
from .verification import first_line, run_graph

AttentionKind = Literal["kept", "fused", "integer"]
"""As the graph has it; fused, in float; fused, with its product of q, k and v in integers."""

SECONDS = 0.8
"""Spent on each graph and batch size, about."""


@dataclasses.dataclass
class Attempt:
    """One flavour, how near its answers are and how fast it is (times the source)."""

    attention: AttentionKind
    per_channel: bool
    result: Result
    answers: Answers
    ratio: float = 0.0
    touched: Touched | None = None
    """What was done to it afterwards for speed alone."""

    def sentence(self) -> str:
        """For the log and the record."""
        scales = "a scale per channel" if self.per_channel else "one scale"
        speed = f"{self.ratio:.2f}×, " if self.ratio else ""
        touches = f", {self.touched.sentence}" if self.touched is not None else ""
        return f"attention {self.attention}, {scales}{touches}: {speed}cosine {self.answers.difference.cosine:.5f}"


@dataclasses.dataclass(frozen=True)
class Flavours:
    """What is the same in every flavour."""

    path: Path
    """The source."""
    seven_bit: bool
    embeddings: bool
    excluded: frozenset[str]

    def make(
        self,
        prepared: onnx.ModelProto,
        attention: AttentionKind,
        per_channel: bool,
        touches: Collection[str] = (),
    ) -> Result | None:
        """The graph quantized in one flavour; None where the source has no attention to do this with."""
        graph = prepared if attention == "kept" else self._fused(prepared)
        if graph is None:
            return None
        result = quantize_dynamically(
            graph, self.seven_bit, per_channel, self.embeddings, self.excluded, attention == "integer"
        )
        if attention == "integer" and not any(node.op_type == "QAttention" for node in result.model.graph.node):
            return None
        return dataclasses.replace(result, model=touched(result.model, touches).model)

    def _fused(self, prepared: onnx.ModelProto) -> onnx.ModelProto | None:
        """The graph with its attention as one node each."""
        kinds = {node.op_type for node in prepared.graph.node}
        if kinds & {"Attention", "MultiHeadAttention"}:
            return prepared
        if "Softmax" not in kinds:
            return None
        fused, count = fuse_attention(prepare(self.path, keep_transposes=True))
        return with_shapes(fused) if count else None


def fastest(
    flavours: Flavours,
    prepared: onnx.ModelProto,
    per_channel: bool,
    batches: Sequence[Mapping[str, np.ndarray]],
    feeds: Sequence[Mapping[str, np.ndarray]],
    limit: float,
    threads: int,
    watch: Callable[[float, str], None],
    tell: Callable[[str], None] = lambda text: None,
) -> list[Attempt]:
    """Every flavour that answers as the source does, the one to keep first; empty when nothing can be quantized or run.

    `batches`: inputs to compare answers on. `feeds`: inputs to time with. `limit`: largest share of changed answers.
    With `per_channel` False only graphs with one scale per weight are tried. If none is near enough, the nearest
    comes first. `tell` hears of flavours that are dropped because ONNX Runtime cannot make or run them.
    """
    attempts: list[Attempt] = []
    seen: set[str] = set()
    judge = Judge(prepared, batches, threads, tell)
    kinds: tuple[AttentionKind, ...] = ("kept", "fused", "integer")
    for attention in kinds:
        for scales in (True, False) if per_channel else (False,):
            watch(0.05 * len(attempts), f"attention {attention}, {'a scale per channel' if scales else 'one scale'}")
            try:
                result = flavours.make(prepared, attention, scales)
                if result is None or not result.touched or (text := fingerprint(result.model)) in seen:
                    continue
                seen.add(text)
                answers = judge.answers(result.model)
                if attention != "kept":
                    run_graph(result.model, feeds, threads)  # a fused kernel may refuse other shapes
            except Exception as error:  # ONNX Runtime has a class for each status, below no class of its own
                tell(f"attention {attention} is dropped: {first_line(error)}")
                continue
            attempts.append(Attempt(attention, scales, result, answers))
    near = [attempt for attempt in attempts if attempt.answers.within(limit)]
    if not near:
        return sorted(attempts, key=lambda attempt: -attempt.answers.difference.sqnr_db)[:1]
    if len(near) > 1:
        ratios = time_in_turns(
            [flavours.path, *(attempt.result.model for attempt in near)],
            feeds,
            threads,
            lambda share: watch(0.3 + 0.6 * share, f"timing {len(near)} graphs in turns"),
            SECONDS,
        )
        for attempt, ratio in zip(near, ratios[1:], strict=True):
            attempt.ratio = ratio
        near.sort(key=lambda attempt: -attempt.ratio * (WORTH if attempt.per_channel == per_channel else 1.0))
    watch(0.9, "the fastest with rewrites that serve speed alone")
    rivals = [one for one in near[1:] if one.attention != near[0].attention and one.ratio >= RIVAL * near[0].ratio]
    touched_up = [_touched_up(one, judge, feeds, threads, tell) for one in (near[0], *rivals[:1])]
    better = [one for one in touched_up if one is not None and one.ratio >= near[0].ratio]
    return [*sorted(better, key=lambda attempt: -attempt.ratio), *near]


def _touched_up(
    best: Attempt,
    judge: Judge,
    feeds: Sequence[Mapping[str, np.ndarray]],
    threads: int,
    tell: Callable[[str], None],
) -> Attempt | None:
    """The best graph with its residual additions apart and its masks raised, as far as that makes it faster."""
    found = touch_up(best.result.model, feeds, threads, SECONDS, judge.as_good_as(best.answers), tell)
    if not found.counts:
        return None
    result = dataclasses.replace(best.result, model=found.model)
    answers = judge.answers(found.model)
    return dataclasses.replace(best, result=result, answers=answers, ratio=best.ratio * found.gain, touched=found)
