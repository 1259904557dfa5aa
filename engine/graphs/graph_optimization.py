"""Ways to fuse a float graph, tried side by side: what each fuses, whether it answers the same, how fast it is.

No single optimiser knows every exporter's patterns: on one graph ONNX Runtime's transformer optimiser fuses no
attention at all where onnxscript's rules fuse every one; on another it is the other way round. So all are tried,
checked on real inputs, and timed against the source in turns. "attention" and "folding" are our own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from .attention_fusion import fuse_attention
from .fingerprint import fingerprint
from .onnx_graph import Graph, all_nodes, attribute, load_graph
from .preparation import name_nodes, prepare, with_shapes
from .sessions import rewritten
from .sharing import share_weights
from .timing import Batch
from .touches import RIVAL, Touched, touchable
from .verification import compare_outputs, cpu_session, first_line, run_graph

FUSED = (
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "SkipLayerNormalization", "LayerNormalization",
    "EmbedLayerNormalization", "BiasGelu", "Gelu", "FastGelu", "RotaryEmbedding", "FusedConv", "FusedMatMul",
    "FusedGemm", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "QuickGelu", "GroupNorm",
)  # fmt: skip
"""Operators that stand for what used to be several."""

TRANSFORMERS = "onnxruntime.transformers"

AS_IT_IS = "as it is"
"""The source itself, in case the rewrites that serve speed alone (see `touches`) make it the fastest."""

ARCHITECTURE_SECONDS = 60.0
"""After this no further architecture of that optimiser is tried."""

TOLERANCE = 2e-3
"""Largest accepted difference, as a share of the largest output; and share of whole numbers that may be others."""


@dataclasses.dataclass
class Candidate:
    """One optimiser's graph, or why there is none."""

    name: str
    model: onnx.ModelProto | None = None
    failure: str | None = None
    fused: dict[str, int] = dataclasses.field(default_factory=dict)
    """Operators of `FUSED` that it has and the source has not, with their number."""
    nodes: int = 0
    ratio: float | None = None
    """How many times faster than the source, the geometric mean over batch sizes."""
    touched: Touched | None = None
    """What was done to it afterwards for speed alone."""

    @property
    def is_source(self) -> bool:
        """Nothing was done to it."""
        return self.name == AS_IT_IS and not (self.touched is not None and self.touched.counts)

    def touch(self, done: Touched) -> None:
        """Take over the graph that some rewrites made of this one."""
        self.touched, self.model, self.nodes = done, done.model, sum(_kinds(done.model).values())
        if "residuals" in done.counts:
            self.fused.pop("SkipLayerNormalization", None)
        if self.ratio is not None:
            self.ratio *= done.gain

    def sentence(self) -> str:
        """What it gave, for the log and the record."""
        if self.failure:
            return f"{self.name}: {self.failure}"
        speed = f", {self.ratio:.2f}×" if self.ratio is not None else ""
        return f"{self.name}: {self.nodes} nodes, {self.what()}{speed}"

    def what(self) -> str:
        """What was done to the graph."""
        fused = ", ".join(f"{count} {kind}" for kind, count in self.fused.items())
        parts = [f"fused {fused}" if fused else "no fusion"]
        if self.touched is not None and self.touched.sentence:
            parts.append(self.touched.sentence)
        return ", ".join(parts)


def candidates(path: Path, only: str = "") -> Iterator[Candidate]:
    """Each optimiser's version of the graph at `path`, one at a time; they take seconds. `only`: that one's alone."""
    source = load_graph(path)
    before, parent = _kinds(source), fingerprint(source)
    for name, make in _optimisers(path, source, only):
        if only and name != only:
            continue
        made = Candidate(name)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                model = make()
        except Exception as error:  # each of these tools raises whatever it likes on a graph it does not know
            made.failure = f"failed with {type(error).__name__}: {first_line(error)}"
            yield made
            continue
        name_nodes(model)
        share_weights(model)
        after = _kinds(model)
        made.model, made.nodes = model, sum(after.values())
        made.fused = {kind: after[kind] - before[kind] for kind in FUSED if after[kind] > before[kind]}
        if name != AS_IT_IS and after == before and fingerprint(model) == parent:
            made.failure, made.model = "changed nothing", None
        yield made


def answered(
    path: Path, batches: Iterable[Batch], seconds: float, least: int
) -> tuple[list[Batch], list[dict[str, np.ndarray]]]:
    """(batches, what the source answers): as many as it answers in so many seconds, at least some."""
    asked: list[Batch] = []
    answers: list[dict[str, np.ndarray]] = []
    session = cpu_session(path)
    names = [value.name for value in session.get_outputs()]
    wanted = [value.name for value in session.get_inputs()]
    began = time.monotonic()
    for batch in batches:
        if len(asked) >= least and time.monotonic() - began > seconds:
            break
        asked.append(batch)
        given = session.run(names, {name: batch[name] for name in wanted})
        answers.append(dict(zip(names, given, strict=True)))
    return asked, answers


def verify(
    candidate: Candidate, reference: Sequence[Batch], batches: Sequence[Batch], varying: Collection[str] = ()
) -> None:
    """Drop a candidate whose answers differ from the reference. `varying`: see `compare_outputs`."""
    assert candidate.model is not None
    candidate.failure = why_wrong(candidate.model, reference, batches, varying)
    if candidate.failure is not None:
        candidate.model = None


def why_wrong(
    model: onnx.ModelProto, reference: Sequence[Batch], batches: Sequence[Batch], varying: Collection[str] = ()
) -> str | None:
    """What is wrong with a graph's answers; None where they are those of the reference."""
    try:
        found = compare_outputs(reference, run_graph(model, batches), varying=varying)
    except Exception as error:  # a graph ONNX Runtime cannot run raises classes of its own
        return f"cannot run: {first_line(error)}"
    apart = found.beyond(TOLERANCE)
    return f"answers {apart}" if apart else None


def rivals(best: Candidate, timed: Sequence[Candidate]) -> list[Candidate]:
    """Candidates nearly as fast in which attention is one node where it is not in the best, or the other way round."""

    def fuses(one: Candidate) -> bool:
        return any("Attention" in kind for kind in one.fused)

    near = [one for one in timed if fuses(one) != fuses(best) and (one.ratio or 0.0) >= RIVAL * (best.ratio or 0.0)]
    return sorted(near, key=lambda candidate: -(candidate.ratio or 0.0))


def confirmed(
    timed: Sequence[Candidate], least: float, again: Callable[[onnx.ModelProto], float]
) -> tuple[Candidate | None, list[str]]:
    """(the fastest candidate that is at least so fast when it is timed again too, what was found of the others).

    The best of several noisy figures is too good: the lower of the two is taken over.
    """
    told: list[str] = []
    sure: list[Candidate] = []
    while True:
        best = max(timed, key=lambda candidate: candidate.ratio or 0.0, default=None)
        if best is None or best.model is None or (best.ratio or 0.0) < least:
            return None, told
        if best in sure:
            return best, told
        first, second = best.ratio or 0.0, again(best.model)
        best.ratio = min(first, second)
        sure.append(best)
        if second < least:
            told.append(f"{best.name} seemed {first:.2f}× as fast, and was {second:.2f}× when it was timed again")


def _optimisers(
    path: Path, source: onnx.ModelProto, only: str = ""
) -> Iterator[tuple[str, Callable[[], onnx.ModelProto]]]:
    kinds = _kinds(source)
    if touchable(source):
        yield AS_IT_IS, lambda: load_graph(path)
    yield "onnxruntime", lambda: _by_onnxruntime(path)
    yield "folding", lambda: prepare(path, fold=True)
    if kinds["MatMul"] or kinds["Gemm"]:
        yield "onnxscript", lambda: _by_onnxscript(source)
    if kinds["Softmax"]:
        yield "attention", lambda: _by_attention(path, source)
    if kinds["Softmax"] and importlib.util.find_spec("onnxruntime.transformers"):
        asked = only.removeprefix(f"{TRANSFORMERS} ") if only.startswith(TRANSFORMERS) else ""
        kind, best = (asked, None) if asked or only else _best_architecture(path, source)
        if kind:
            yield f"{TRANSFORMERS} {kind}", lambda: best or _by_transformers(path, source, kind)
    if importlib.util.find_spec("onnxslim"):
        yield "onnxslim", lambda: _by_onnxslim(path)


def _by_attention(path: Path, source: onnx.ModelProto) -> onnx.ModelProto:
    """Attention as one node, in a graph with nothing else changed, or else in a cleaned one."""
    fused, count = fuse_attention(with_shapes(source))
    return fused if count else fuse_attention(prepare(path, keep_transposes=True))[0]


def _by_onnxruntime(path: Path) -> onnx.ModelProto:
    return rewritten(path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)


def _by_onnxscript(source: onnx.ModelProto) -> onnx.ModelProto:
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(ir.from_proto(source))
    return ir.to_proto(model)


def _best_architecture(path: Path, source: onnx.ModelProto) -> tuple[str, onnx.ModelProto | None]:
    """(the architecture whose patterns fuse most, the graph they give); what cannot be known is tried.

    The first is given without a graph when all fail, so that its failure is told.
    """
    ends = time.monotonic() + ARCHITECTURE_SECONDS
    best: tuple[int, str, onnx.ModelProto | None] = (0, "", None)
    names = architectures(source)
    for name in names:
        if time.monotonic() > ends:
            break
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                model = _by_transformers(path, source, name)
        except Exception:  # whatever a pattern that does not fit may raise
            continue
        found = _kinds(model)
        score = sum(found[kind] * (10 if "Attention" in kind else 1) for kind in FUSED)
        if best[2] is None or score > best[0]:
            best = score, name, model
    return (best[1] or names[0], best[2])


def architectures(model: onnx.ModelProto) -> tuple[str, ...]:
    """Architectures of ONNX Runtime's transformer optimiser whose patterns may be in a graph, the likeliest first."""
    kinds = _kinds(model)
    norm = kinds["LayerNormalization"] or kinds["SkipLayerNormalization"] or kinds["ReduceMean"] > 1
    if kinds["Conv"]:
        likely = ["vit", "clip", "swin"]
        strides = {len(attribute(node, "strides", [])) for node in all_nodes(model.graph) if node.op_type == "Conv"}
        return (*likely, "conformer", "bart") if 1 in strides else tuple(likely)
    text = ["bert", "gpt2", "bart"]
    if kinds["Pow"] and not kinds["LayerNormalization"]:  # normalisation by the mean square alone
        text.append("t5")
    if kinds["Sigmoid"] and norm:  # GELU as a sigmoid
        text.append("clip")
    return tuple(text)


def _by_transformers(path: Path, source: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    from onnxruntime.transformers import optimizer

    if kind not in optimizer.MODEL_TYPES:
        raise ValueError(f"ONNX Runtime's transformer optimiser knows no {kind!r}")
    heads, hidden = heads_and_width(source)
    return optimizer.optimize_model(
        str(path), model_type=kind, num_heads=heads, hidden_size=hidden, opt_level=0, use_gpu=False
    ).model


def _by_onnxslim(path: Path) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(str(path))


def heads_and_width(model: onnx.ModelProto) -> tuple[int, int]:
    """Number of attention heads and hidden size, from shapes; 0 where they cannot be read."""
    graph = Graph(with_shapes(model))
    heads = width = 0
    for node in graph.proto.node:
        shape = graph.shape(node.input[0]) if node.input else None
        if node.op_type == "Softmax" and shape and len(shape) == 4 and isinstance(shape[1], int):
            heads = heads or shape[1]
        if node.op_type == "LayerNormalization":
            scale = graph.constant(node.input[1])
            width = width or (scale.size if scale is not None else 0)
    return heads, width


def _kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(model.graph))
