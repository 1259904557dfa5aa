"""Does a graph still give the right answers, and what does ONNX Runtime really make of it?

`compare_outputs` measures the distance between two sets of named outputs; `executed_graph` is the graph after all
of ONNX Runtime's fusions, the one that is timed in the end.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

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


def crashes_on_load(path: Path) -> bool:
    """ONNX Runtime dies while it loads the graph. Tried in a process of its own; takes about half a second.

    It happens: 1.32 on the CPU with some FP16 graphs (`FuseFp16InitializerToFp32NodeTransformer`).
    """
    code = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False).returncode < 0


def compare_outputs(
    reference: Iterable[Mapping[str, np.ndarray]], outputs: Iterable[Mapping[str, np.ndarray]]
) -> Difference:
    """Compare batch by batch, output by output (those with numbers that are not whole). Shapes must agree.

    Places where the reference is not finite (a mask of −inf) must be the same in both, and are left out.
    Raises ValueError when shapes differ or a number is finite on one side only.
    """
    worst = Difference(0.0, 0.0, 1.0, float("inf"))
    signal: dict[str, list[np.ndarray]] = {}
    for expected, got in zip(reference, outputs, strict=True):
        for name, wanted in expected.items():
            if wanted.dtype.kind not in "fV":
                continue
            given = got[name]
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
        )
    return worst


def executed_graph(model: onnx.ModelProto | Path) -> onnx.GraphProto:
    """The graph as the CPU provider runs it: after every fusion that does not depend on memory layout."""
    return rewritten(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, weights=False).graph


def unfused(executed: onnx.GraphProto, planned: Iterable[str]) -> list[str]:
    """Of the planned nodes, those that ONNX Runtime still computes in float: the pairs around them cost time."""
    wanted = set(planned)
    floating = {node.name for node in executed.node if node.op_type in ("Conv", "FusedConv", "Gemm", "MatMul")}
    floating |= {node.name for node in executed.node if node.op_type in ("Add", "Mul", "GlobalAveragePool", "Concat")}
    return sorted(name for name in wanted if name in floating)
