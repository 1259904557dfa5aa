"""Does a graph still give the right answers, and what does ONNX Runtime really make of it?

`compare_outputs` measures the distance between two sets of named outputs; `executed_graph` is the graph after all
of ONNX Runtime's fusions, the one that is timed in the end.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .onnx_graph import Graph, reads
from .sessions import open_session, rewritten

INTEGER_KERNELS = {
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger",
    "DynamicQuantizeLSTM", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QLinearAveragePool",
    "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "ConvInteger", "QAttention",
    "MatMulNBits",
}  # fmt: skip
"""Operators ONNX Runtime computes in integers, by the names they have after its fusions."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far outputs are from their reference. Over all outputs: the worst of each."""

    maximum: float
    """Largest absolute difference."""
    relative: float
    """Largest absolute difference over the largest absolute value of that output."""
    cosine: float
    """Cosine of the angle between the two, over everything in an output."""
    sqnr_db: float
    """Signal to quantization noise ratio, decibels."""
    left_out: tuple[str, ...] = ()
    """Outputs that were not compared, because how long they are depends on the data."""
    cut: tuple[str, ...] = ()
    """Outputs of that kind of which only the part that both have was compared, for want of others."""

    @property
    def note(self) -> str:
        """What the figures do not cover, as a sentence, or ""."""
        if self.left_out:
            return f"Not compared, because their length depends on the data: {', '.join(self.left_out)}."
        if self.cut:
            return f"Compared as far as both reach, because their length depends on the data: {', '.join(self.cut)}."
        return ""


SHAPED_BY_DATA = {
    "NonZero", "NonMaxSuppression", "Unique", "Compress", "Range", "If", "Loop", "SequenceConstruct", "SplitToSequence",
    "SequenceAt", "StringSplit",
}  # fmt: skip
"""Operators whose results may have another shape for other values in inputs of the same shape."""


def run_graph(
    model: onnx.ModelProto | Path, batches: Iterable[Mapping[str, np.ndarray]], threads: int = 0, optimize: bool = True
) -> list[dict[str, np.ndarray]]:
    """The outputs of each batch on ONNX Runtime's CPU provider."""
    session = cpu_session(model, threads, optimize)
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    return [
        dict(zip(names, session.run(names, {key: value for key, value in batch.items() if key in wanted}), strict=True))
        for batch in batches
    ]


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


def crashes_on_load(path: Path) -> bool:
    """ONNX Runtime dies while it loads the graph. Tried in a process of its own; takes about half a second.

    It happens: 1.32 on the CPU with some FP16 graphs (`FuseFp16InitializerToFp32NodeTransformer`).
    """
    code = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False).returncode < 0


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
    reference = run_graph(source, batches, threads)
    return compare_outputs(reference, run_graph(made, batches, threads, optimize), varying=varying_outputs(source))


def compare_outputs(
    reference: Iterable[Mapping[str, np.ndarray]],
    outputs: Iterable[Mapping[str, np.ndarray]],
    *,
    varying: Collection[str] = (),
) -> Difference:
    """Compare batch by batch, output by output (those with numbers that are not whole). Shapes must agree.

    Outputs in `varying` may differ in shape: then they are left out, or, if none else is there to compare, cut to the
    part that both have. Places where the reference is not finite (a mask of −inf) must be the same in both, and are
    left out. Raises ValueError when shapes differ, a number is finite on one side only, or nothing can be compared.
    """
    pairs = list(zip(reference, outputs, strict=True))
    floats = [name for name, value in pairs[0][0].items() if value.dtype.kind in "fV"] if pairs else []
    differing = [name for name in floats if name in varying and any(a[name].shape != b[name].shape for a, b in pairs)]
    compared = [name for name in floats if name not in differing]
    left_out: tuple[str, ...] = tuple(differing)
    cut: tuple[str, ...] = ()
    if differing and not compared:
        compared, left_out, cut = differing, (), tuple(differing)
        if all(_common(a[name], b[name])[0].size == 0 for a, b in pairs for name in cut):
            raise ValueError(
                f"there is nothing to compare: how long {', '.join(cut)} is depends on the data, and the two graphs "
                "have no part of it in common (end the graph before it selects results, as NonMaxSuppression does)"
            )
    worst = Difference(0.0, 0.0, 1.0, float("inf"), left_out, cut)
    signal: dict[str, list[np.ndarray]] = {}
    for expected, got in pairs:
        for name in compared:
            wanted, given = expected[name], got[name]
            if name in cut:
                wanted, given = _common(wanted, given)
            if given.shape != wanted.shape:
                raise ValueError(f"output {name} has shape {given.shape} and not {wanted.shape}")
            finite = np.isfinite(wanted)
            if not np.array_equal(finite, np.isfinite(given)):
                raise ValueError(f"output {name} has values that are not finite")
            signal.setdefault(name, []).append(
                np.stack([wanted[finite].astype(np.float64).ravel(), given[finite].astype(np.float64).ravel()])
            )
    for parts in signal.values():
        wanted, given = np.concatenate(parts, axis=1)
        if not wanted.size:
            continue
        error = wanted - given
        peak = float(np.abs(error).max())
        power, noise = float(wanted @ wanted), float(error @ error)
        norms = np.sqrt(power * float(given @ given))
        cosine = float(wanted @ given) / norms if norms else 1.0 if power == noise == 0 else 0.0
        sqnr = 10 * np.log10(power / noise) if noise and power else float("inf") if not noise else float("-inf")
        largest = max(float(np.abs(wanted).max()), 1e-30)
        worst = Difference(
            max(worst.maximum, peak),
            max(worst.relative, peak / largest),
            min(worst.cosine, float(cosine)),
            min(worst.sqnr_db, float(sqnr)),
            left_out,
            cut,
        )
    return worst


def _common(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two arrays that both have; nothing of arrays with different numbers of axes."""
    if first.ndim != second.ndim:
        return first.reshape(-1)[:0], second.reshape(-1)[:0]
    part = tuple(slice(min(sizes)) for sizes in zip(first.shape, second.shape, strict=True))
    return first[part], second[part]


def executed_graph(model: onnx.ModelProto | Path) -> onnx.GraphProto:
    """The graph as the CPU provider runs it: after every fusion that does not depend on memory layout."""
    return rewritten(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, weights=False).graph


def unfused(executed: onnx.GraphProto, planned: Iterable[str]) -> list[str]:
    """Of the planned nodes, those that ONNX Runtime still computes in float: the pairs around them cost time."""
    wanted = set(planned)
    floating = {node.name for node in executed.node if node.op_type in ("Conv", "FusedConv", "Gemm", "MatMul")}
    floating |= {node.name for node in executed.node if node.op_type in ("Add", "Mul", "GlobalAveragePool", "Concat")}
    return sorted(name for name in wanted if name in floating)
