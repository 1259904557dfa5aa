"""Does a graph still give the right answers, and what does ONNX Runtime really make of it?

`compare_outputs` measures the distance between two sets of named outputs; `executed_graph` is the graph after all
of ONNX Runtime's fusions, the one that is timed in the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .comparison import Comparison, Difference
from .onnx_graph import Graph, reads
from .sessions import open_session, rewritten

INTEGER_KERNELS = {
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger",
    "DynamicQuantizeLSTM", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QLinearAveragePool",
    "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "ConvInteger", "QAttention",
    "MatMulNBits",
}  # fmt: skip
"""Operators ONNX Runtime computes in integers, by the names they have after its fusions."""

SHAPED_BY_DATA = {
    "NonZero", "NonMaxSuppression", "Unique", "Compress", "Range", "If", "Loop", "SequenceConstruct", "SplitToSequence",
    "SequenceAt", "StringSplit",
}  # fmt: skip
"""Operators whose results may have another shape for other values in inputs of the same shape."""


def run_graph(
    model: onnx.ModelProto | Path, batches: Iterable[Mapping[str, np.ndarray]], threads: int = 0, optimize: bool = True
) -> list[dict[str, np.ndarray]]:
    """The outputs of each batch on ONNX Runtime's CPU provider."""
    return list(outputs_of(model, batches, threads, optimize))


def outputs_of(
    model: onnx.ModelProto | Path, batches: Iterable[Mapping[str, np.ndarray]], threads: int = 0, optimize: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """The same one batch after the other, where all outputs together may be too large to be held."""
    session = cpu_session(model, threads, optimize)
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    for batch in batches:
        feed = {key: value for key, value in batch.items() if key in wanted}
        yield dict(zip(names, session.run(names, feed), strict=True))


def cpu_session(model: onnx.ModelProto | Path, threads: int = 0, optimize: bool = True) -> onnxruntime.InferenceSession:
    """A session on the CPU; threads do not spin, so that it leaves the cores to others between calls."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(model, options)


def first_line(error: Exception) -> str:
    """What an error of ONNX Runtime or another tool says, without the stack below it."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def varying_outputs(model: onnx.ModelProto | Path) -> frozenset[str]:
    """Outputs whose shape may depend on values and not only on the inputs' shapes (boxes that a detector found)."""
    graph = Graph(onnx.load(model, load_external_data=False) if isinstance(model, Path) else model)
    varying: set[str] = set()
    for node in graph.proto.node:  # in an order in which each comes after what it reads
        if node.op_type in SHAPED_BY_DATA or not varying.isdisjoint(reads(node)):
            varying.update(node.output)
    return frozenset(varying & graph.outputs)


def compare_graphs(
    source: onnx.ModelProto | Path,
    made: onnx.ModelProto | Path,
    batches: Sequence[Mapping[str, np.ndarray]],
    threads: int = 0,
    optimize: bool = True,
) -> Difference:
    """How far one graph's answers are from the source's; the source is always run optimised. Raises ValueError."""
    reference = outputs_of(source, batches, threads)
    return compare_outputs(reference, outputs_of(made, batches, threads, optimize), varying=varying_outputs(source))


def compare_outputs(
    reference: Iterable[Mapping[str, np.ndarray]],
    outputs: Iterable[Mapping[str, np.ndarray]],
    *,
    varying: Collection[str] = (),
) -> Difference:
    """Compare batch by batch, output by output; see `Comparison`. Raises ValueError where nothing can be compared."""
    comparison = Comparison(varying)
    for expected, got in zip(reference, outputs, strict=True):
        comparison.add(expected, got)
    return comparison.difference()


def executed_graph(model: onnx.ModelProto | Path) -> onnx.GraphProto:
    """The graph as the CPU provider runs it: after every fusion that does not depend on memory layout."""
    return rewritten(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, weights=False).graph


def unfused(executed: onnx.GraphProto, planned: Iterable[str]) -> list[str]:
    """Of the planned nodes, those that ONNX Runtime still computes in float: the pairs around them cost time."""
    wanted = set(planned)
    floating = {node.name for node in executed.node if node.op_type in ("Conv", "FusedConv", "Gemm", "MatMul")}
    floating |= {node.name for node in executed.node if node.op_type in ("Add", "Mul", "GlobalAveragePool", "Concat")}
    return sorted(name for name in wanted if name in floating)
