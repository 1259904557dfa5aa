"""Static quantization from beginning to end: place, calibrate, correct biases, write, look at what really fused.

After writing, ONNX Runtime's own fused graph is read back: a node that it still computes in float would pay for
its Quantize/Dequantize pairs and gain nothing, so such nodes are taken out and the graph is written again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import onnx

from .calibration import Batch, Calibrator, Method, Range
from .dynamic_quantization import quantize_rest
from .onnx_graph import Graph, element_count, float_weights
from .placement import Plan, place
from .static_quantization import Flavour, Written, write_quantized
from .verification import executed_graph, unfused

ROUNDS = 4
"""How often nodes that did not fuse are taken out before we accept what is left."""

Watch = Callable[[float, str], None]
"""Called with the share that is done (0…1) and what is being done; may raise to cancel."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that shapes the result."""

    calibration: Method = "min-max"
    percentile: float = 99.99
    per_channel: bool = True
    seven_bit: bool = False
    symmetric: bool = False
    float_bias: bool = False
    bias_correction: bool = True
    dynamic_rest: bool = False
    """Quantize LSTM layers and embeddings too, which have no static kernel: their ranges are found while running."""
    exclude: tuple[str, ...] = ()
    threads: int = 0

    @property
    def flavour(self) -> Flavour:
        return Flavour(self.symmetric, self.seven_bit, self.per_channel, self.float_bias)


@dataclasses.dataclass
class Result:
    """A quantized graph and what was done to whom."""

    model: onnx.ModelProto
    touched: list[str]
    left: dict[str, str]
    absorbed: int
    share: float
    """Share of the model's floating-point numbers that are now 8-bit integers."""


def quantize_statically(
    prepared: onnx.ModelProto,
    batches: Callable[[], Iterable[Batch]],
    settings: Settings,
    watch: Watch = lambda share, what: None,
) -> Result:
    """Quantize a prepared graph. A result without `touched` nodes means that there was nothing to quantize."""
    graph = Graph(prepared)
    calibrator = Calibrator(prepared, batches, settings.threads)
    excluded, reasons = set(settings.exclude), dict.fromkeys(settings.exclude, "kept in float on request")
    ranges: dict[str, Range] = {}
    means: dict[str, np.ndarray] = {}
    total = element_count(float_weights(prepared.graph))
    for round_ in range(ROUNDS):
        plan = place(graph, excluded, settings.symmetric)
        plan.left.update({name: reason for name, reason in reasons.items() if name in plan.left})
        if not plan.anchors:
            return Result(prepared, [], plan.left, 0, 0.0)  # quantize-dynamic does the rest better alone
        missing = [name for name in plan.values if name not in ranges]
        if missing:
            ranges |= calibrator.ranges(
                missing, settings.calibration, settings.percentile, lambda share: watch(0.6 * share, "calibrating")
            )
            _drop_unseen(plan, ranges, excluded, reasons)
        if settings.bias_correction and not means:
            names = sorted({anchor.activation for anchor in plan.anchors.values() if anchor.op_type != "MatMul"})
            means = calibrator.means(names, lambda share: watch(0.6 + 0.2 * share, "correcting biases"))
        if any(name in excluded for name in plan.anchors):
            continue
        watch(0.8 + 0.05 * round_, "writing the graph")
        written = _write(prepared, graph, plan, ranges, means, settings)
        # the fused graph of a GPU provider cannot be seen on a machine without one
        stuck = [] if settings.symmetric else unfused(executed_graph(written.model), [*plan.anchors, *plan.carriers])
        if not stuck or round_ == ROUNDS - 1:
            break
        excluded |= set(stuck)
        reasons |= dict.fromkeys(stuck, "ONNX Runtime does not fuse it, so the pairs around it would only cost")
    plan.left.update({name: reason for name, reason in reasons.items() if name not in plan.anchors})
    touched = [node.name for node in prepared.graph.node if node.name in plan.anchors or node.name in plan.carriers]
    elements = written.quantized_elements
    if settings.dynamic_rest:
        rest = quantize_rest(written.model, settings.seven_bit, settings.per_channel, frozenset(settings.exclude))
        touched += rest.touched
        elements += rest.quantized_elements
        for name in rest.touched:
            plan.left.pop(name, None)
    return Result(written.model, touched, plan.left, len(plan.absorbed), elements / total if total else 0.0)


def _write(
    prepared: onnx.ModelProto,
    graph: Graph,
    plan: Plan,
    ranges: dict[str, Range],
    means: dict[str, np.ndarray],
    settings: Settings,
) -> Written:
    written = write_quantized(prepared, plan, ranges, settings.flavour)
    if not means:
        return written
    return write_quantized(prepared, plan, ranges, settings.flavour, bias_shifts(graph, plan, written, means))


def bias_shifts(graph: Graph, plan: Plan, written: Written, means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What to add to each bias so that rounding the weights leaves the mean output as it was.

    The mean error of channel o is Σ (w − w̃)[o] · E[x]: Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", ICCV 2019, with E[x] from calibration data. Padding is not accounted for.
    """
    shifts: dict[str, np.ndarray] = {}
    for name, anchor in plan.anchors.items():
        mean, weights = means.get(anchor.activation), graph.constant(anchor.weight)
        if anchor.op_type == "MatMul" or mean is None or weights is None:
            continue
        error = weights.astype(np.float64) - written.weights[name]
        if anchor.op_type == "Gemm":
            matrix = error if anchor.axis == 0 else error.T
            if matrix.shape[1] == mean.size:
                shifts[name] = matrix @ mean
            continue
        per_input = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)  # (out, in of its group)
        groups = mean.size // per_input.shape[1]
        if groups * per_input.shape[1] != mean.size or per_input.shape[0] % groups:
            continue
        by_group = mean.reshape(groups, 1, -1)
        shifts[name] = (per_input.reshape(groups, -1, per_input.shape[1]) * by_group).sum(axis=2).reshape(-1)
    return shifts


def _drop_unseen(plan: Plan, ranges: dict[str, Range], excluded: set[str], reasons: dict[str, str]) -> None:
    """Anchors whose input or output never had a finite value on the calibration data stay in float."""
    for anchor in plan.anchors.values():
        values = [anchor.activation, *([anchor.output] if anchor.output in plan.integer_values else [])]
        if any(plan.same_scale.get(value, value) not in ranges for value in values):
            excluded.add(anchor.name)
            reasons[anchor.name] = "it saw no finite value on the calibration data"
