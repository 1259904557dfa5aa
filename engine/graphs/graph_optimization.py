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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from .attention_fusion import fuse_attention
from .onnx_graph import Graph, all_nodes, load_graph
from .preparation import name_nodes, prepare, with_shapes
from .sessions import rewritten
from .verification import compare_outputs, cpu_session, first_line, run_graph

FUSED = (
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "SkipLayerNormalization", "LayerNormalization",
    "EmbedLayerNormalization", "BiasGelu", "Gelu", "FastGelu", "RotaryEmbedding", "FusedConv", "FusedMatMul",
    "FusedGemm", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "QuickGelu", "GroupNorm",
)  # fmt: skip
"""Operators that stand for what used to be several."""

TOLERANCE = 2e-3
"""Largest accepted difference, as a share of the largest output."""

Batch = Mapping[str, np.ndarray]


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

    def sentence(self) -> str:
        """What it gave, for the log and the record."""
        if self.failure:
            return f"{self.name}: {self.failure}"
        fused = ", ".join(f"{count} {kind}" for kind, count in self.fused.items()) or "no fusion"
        speed = f", {self.ratio:.2f}×" if self.ratio is not None else ""
        return f"{self.name}: {self.nodes} nodes, {fused}{speed}"


def candidates(path: Path) -> Iterator[Candidate]:
    """Each optimiser's version of the graph at `path`, one at a time; they take seconds."""
    source = load_graph(path)
    before = _kinds(source)
    for name, make in _optimisers(path, source):
        made = Candidate(name)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                model = make()
        except Exception as error:  # each of these tools raises whatever it likes on a graph it does not know
            made.failure = f"failed with {type(error).__name__}: {first_line(error)}"
            yield made
            continue
        name_nodes(model)
        after = _kinds(model)
        made.model, made.nodes = model, sum(after.values())
        made.fused = {kind: after[kind] - before[kind] for kind in FUSED if after[kind] > before[kind]}
        if after == before:
            made.failure, made.model = "changed nothing", None
        yield made


def verify(
    candidate: Candidate, reference: Sequence[Batch], batches: Sequence[Batch], varying: Collection[str] = ()
) -> None:
    """Drop a candidate whose answers differ from the reference. `varying`: see `compare_outputs`."""
    assert candidate.model is not None
    try:
        found = compare_outputs(reference, run_graph(candidate.model, batches), varying)
    except Exception as error:  # a graph ONNX Runtime cannot run raises classes of its own
        candidate.failure, candidate.model = f"cannot run: {first_line(error)}", None
        return
    if found.relative > TOLERANCE:
        candidate.failure = f"answers differ by {found.relative:.2%} of the largest output"
        candidate.model = None


def time_in_turns(
    models: Sequence[onnx.ModelProto | Path],
    feeds: Sequence[Batch],
    threads: int,
    watch: Callable[[float], None] = lambda share: None,
    seconds: float = 1.5,
) -> list[float]:
    """Speed of each graph relative to the first, one after the other in turns so that drift hits all alike.

    The geometric mean over `feeds` of the ratio of medians. `seconds` is roughly spent on each graph and feed.
    """
    sessions = [cpu_session(model, threads) for model in models]
    ratios = np.zeros(len(models))
    for index, feed in enumerate(feeds):
        inputs = [{value.name: feed[value.name] for value in session.get_inputs()} for session in sessions]
        for session, given in zip(sessions, inputs, strict=True):
            session.run(None, given)
        began = time.perf_counter()
        sessions[0].run(None, inputs[0])
        rounds = int(np.clip(seconds / max(time.perf_counter() - began, 1e-6), 7, 200))
        times = np.empty((rounds, len(models)))
        for turn in range(rounds):
            watch((index + turn / rounds) / len(feeds))
            order = range(len(models)) if turn % 2 == 0 else range(len(models) - 1, -1, -1)
            for which in order:
                began = time.perf_counter()
                sessions[which].run(None, inputs[which])
                times[turn, which] = time.perf_counter() - began
        medians = np.median(times, axis=0)
        ratios += np.log(medians[0] / medians) / len(feeds)
    return [float(ratio) for ratio in np.exp(ratios)]


def _optimisers(path: Path, source: onnx.ModelProto) -> Iterator[tuple[str, Callable[[], onnx.ModelProto]]]:
    kinds = _kinds(source)
    yield "onnxruntime", lambda: _by_onnxruntime(path)
    yield "folding", lambda: prepare(path, fold=True)
    if kinds["MatMul"] or kinds["Gemm"]:
        yield "onnxscript", lambda: _by_onnxscript(source)
    if kinds["Softmax"]:
        yield "attention", lambda: _by_attention(path, source)
    if kinds["Softmax"] and importlib.util.find_spec("onnxruntime.transformers"):
        for kind in ("vit",) if kinds["Conv"] else ("bert", "gpt2"):
            yield f"onnxruntime.transformers {kind}", lambda kind=kind: _by_transformers(path, source, kind)  # type: ignore[misc]
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


def _by_transformers(path: Path, source: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    from onnxruntime.transformers import optimizer

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
        shape = graph.shape(node.input[0])
        if node.op_type == "Softmax" and shape and len(shape) == 4 and isinstance(shape[1], int):
            heads = heads or shape[1]
        if node.op_type == "LayerNormalization":
            scale = graph.constant(node.input[1])
            width = width or (scale.size if scale is not None else 0)
    return heads, width


def _kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(model.graph))
