"""Where Quantize/Dequantize pairs go: the plan of a statically quantized graph.

An integer kernel of ONNX Runtime is found only where every value around a node is quantized, so a pair in the
wrong place costs time and brings nothing. Three kinds of node follow from that:

- *anchors* hold weights (Conv, Gemm, MatMul): their inputs are quantized wherever these come from. A convolution
  also has to write integers; a matrix product may write float, which is more exact.
- *carriers* (Add, pooling, Reshape, …) work on integers only if all they read is integers already.
- everything else stays in float.

An Add or a Mul with one number counts as a carrier: the number becomes an integer too. So does HardSigmoid: its
factor goes into the scale it reads with, its addend is such a number, and the range of an unsigned result from 0 to
1 clamps it. With the Mul behind it, that is HardSwish in integers.

A ReLU or a Clip behind an anchor or an Add disappears: the range of an unsigned activation that starts at zero
and ends at the clip clamps in the same way, and ONNX Runtime does not drop a Clip itself.
On GPUs (symmetric targets) pairs stand only before anchors and on the short cut of a residual Add, because
TensorRT fuses whatever lies between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx

from .dynamic_quantization import NO_KERNEL
from .onnx_graph import Graph, attribute, subgraphs_of
from .unfusing import why_left

FLOAT = onnx.TensorProto.FLOAT

SAME_SCALE = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity"}
"""Carriers that only move or choose numbers: what comes out has the scale of what goes in."""

OWN_SCALE = {"Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat", "Sigmoid", "LeakyRelu", "HardSigmoid"}
"""Carriers that compute: what comes out has its own range."""

ANCHORS = {"Conv", "Gemm", "MatMul"}


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A node with weights that is computed in integers."""

    name: str
    op_type: str
    activation: str
    weight: str
    axis: int | None
    """Output channels' axis of the weight; None: one scale for all."""
    bias: str | None
    output: str
    """Its own output, or that of the ReLU or Clip behind it which it takes over."""


@dataclasses.dataclass
class Plan:
    """What becomes integer, what stays in float and why."""

    anchors: dict[str, Anchor] = dataclasses.field(default_factory=dict)
    carriers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Node name → the value it gives (behind an absorbed ReLU)."""
    integer_values: set[str] = dataclasses.field(default_factory=set)
    """Values that exist only as integers: their float readers read the dequantized value."""
    quantized_inputs: set[str] = dataclasses.field(default_factory=set)
    """Float values of which anchors read a quantized copy."""
    same_scale: dict[str, str] = dataclasses.field(default_factory=dict)
    """Value → the value whose scale it shares."""
    absorbed: dict[str, str] = dataclasses.field(default_factory=dict)
    """ReLU or Clip → the node that takes it over."""
    absorbed_outputs: set[str] = dataclasses.field(default_factory=set)
    """Values that come out of an absorbed ReLU or Clip: their range starts at zero."""
    upper_bound: dict[str, float] = dataclasses.field(default_factory=dict)
    """Value → the Clip's upper end, above which its range must not reach."""
    fixed: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Value → the range it has by what it is, whatever was seen."""
    numbers: set[str] = dataclasses.field(default_factory=set)
    """Constants of one number that a carrier reads, to be written as integers."""
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    """Node name → reason, for nodes with weights and for carriers on the border."""

    @property
    def values(self) -> list[str]:
        """Every value that needs a range of its own."""
        return sorted((self.integer_values | self.quantized_inputs) - set(self.same_scale))


def place(graph: Graph, excluded: Collection[str] = (), symmetric: bool = False) -> Plan:
    """The plan for a prepared graph. `excluded`: names of nodes that stay in float."""
    plan = Plan()
    for node in graph.proto.node:
        if node.op_type in ANCHORS:
            found = _anchor(graph, node)
            if isinstance(found, str):
                plan.left[node.name] = found
            elif node.name in excluded:
                plan.left[node.name] = "kept in float on request"
            else:
                plan.anchors[node.name] = found
        elif any(True for _ in subgraphs_of(node)):
            plan.left[node.name] = f"the graphs inside {node.op_type} are not quantized"
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            static = f"{node.op_type} has no statically quantized kernel: use quantize-dynamic"
            plan.left[node.name] = NO_KERNEL.get(node.op_type, static)
        elif node.op_type == "ConvTranspose":
            plan.left[node.name] = "ConvTranspose has no integer kernel on a CPU"
        elif fused := why_left(graph, node):
            plan.left[node.name] = fused
    if symmetric:
        _place_for_gpu(graph, plan, excluded)
    else:
        _place_for_cpu(graph, plan, excluded)
    return plan


def _anchor(graph: Graph, node: onnx.NodeProto) -> Anchor | str:
    """The node as an anchor, or why it cannot be one."""
    weight = graph.constant(node.input[1])
    if weight is None:
        return (
            "both operands are activations, where Quantize/Dequantize costs more than it brings"
            if node.op_type == "MatMul" and graph.constant(node.input[0]) is None
            else "its second operand is computed in the graph"
        )
    if graph.element_type(node.input[1]) not in (FLOAT, None) or weight.dtype != np.float32:
        return "its weights are not FP32"
    if weight.size and not np.isfinite(weight).all():
        return "its weights hold values that are not finite"
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    offset = graph.constant(bias) if bias else None
    axis: int | None = 0
    if node.op_type == "MatMul":
        if weight.ndim < 2:
            return "its weights are a vector"
        axis = 1 if weight.ndim == 2 else None
    elif node.op_type == "Gemm":
        if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1 or attribute(node, "transA", 0):
            return "it scales or transposes its input, which the integer kernel cannot"
        axis = 0 if attribute(node, "transB", 0) else 1
    if bias is not None:
        if offset is None:
            return "its bias is computed in the graph"
        if offset.size != weight.shape[axis or 0]:
            return "its bias has one value for several channels"
    return Anchor(node.name, node.op_type, node.input[0], node.input[1], axis, bias, node.output[0])


def _place_for_cpu(graph: Graph, plan: Plan, excluded: Collection[str]) -> None:
    for node in graph.proto.node:
        anchor = plan.anchors.get(node.name)
        if anchor is not None:
            if anchor.activation not in plan.integer_values:
                plan.quantized_inputs.add(anchor.activation)
            writes = anchor.op_type == "Conv" or _feeds_only_anchors(graph, plan, _behind(graph, anchor.output))
            if writes:
                output = _absorb(graph, plan, node)
                plan.anchors[node.name] = dataclasses.replace(anchor, output=output)
                plan.integer_values.add(output)
        elif node.op_type in SAME_SCALE | OWN_SCALE:
            data = list(node.input) if node.op_type in ("Add", "Mul", "Concat") else [node.input[0]]
            numbers = _numbers(graph, node) if node.op_type in ("Add", "Mul") else []
            if len(numbers) < len(data):
                data = [name for name in data if name not in numbers]
            known = [name in plan.integer_values for name in data]
            if not all(known) or (len(node.output) > 1 and any(node.output[1:])):
                if any(known) and node.op_type in ("Add", "Mul", "Concat"):
                    plan.left[node.name] = "only a part of what it reads is quantized"
                continue
            if node.name in excluded:
                plan.left[node.name] = "kept in float on request"
                continue
            if node.op_type in SAME_SCALE:
                output = node.output[0]
                plan.same_scale[output] = plan.same_scale.get(data[0], data[0])
            else:
                output = _absorb(graph, plan, node) if node.op_type in ("Add", "Mul") else node.output[0]
            if node.op_type == "HardSigmoid":
                plan.fixed[output] = (0.0, 1.0)
            plan.numbers.update(name for name in numbers if name not in data)
            plan.carriers[node.name] = output
            plan.integer_values.add(output)
    _drop_idle_carriers(graph, plan)


def _numbers(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """The inputs that are constants of one finite number, which a byte and a scale represent exactly."""
    values = {name: graph.scalar(name) for name in node.input}
    return [name for name, value in values.items() if value is not None and np.isfinite(value)]


def _behind(graph: Graph, output: str) -> str:
    """What comes out of the ReLU or Clip that alone reads a value, else the value."""
    reader = graph.only_reader(output)
    if reader is not None and (reader.op_type == "Relu" or _clip_bound(graph, reader) is not None):
        return reader.output[0]
    return output


def _absorb(graph: Graph, plan: Plan, node: onnx.NodeProto) -> str:
    """Take over a ReLU or Clip behind the node; gives the value that then comes out."""
    output = _behind(graph, node.output[0])
    if output != node.output[0]:
        activation = graph.producers[output]
        plan.absorbed[activation.name] = node.name
        plan.absorbed_outputs.add(output)
        bound = _clip_bound(graph, activation)
        if bound is not None:
            plan.upper_bound[output] = bound
    return output


def _clip_bound(graph: Graph, node: onnx.NodeProto) -> float | None:
    """The upper end of a Clip that starts at zero (ReLU6 and the like), else None."""
    if node.op_type != "Clip" or len(node.input) < 3:
        return None
    low, high = graph.scalar(node.input[1]), graph.scalar(node.input[2])
    return high if low == 0 and high is not None and high > 0 else None


def _feeds_only_anchors(graph: Graph, plan: Plan, value: str) -> bool:
    readers = graph.readers.get(value, [])
    return (
        bool(readers)
        and value not in graph.outputs
        and all(reader.name in plan.anchors and reader.input[0] == value for reader in readers)
    )


def _drop_idle_carriers(graph: Graph, plan: Plan) -> None:
    """Moving nodes whose result is read in float only: the pair around them would bring nothing."""
    for node in reversed(graph.proto.node):
        if node.name not in plan.carriers or node.op_type not in SAME_SCALE:
            continue
        value = plan.carriers[node.name]
        useful = any(
            (reader.name in plan.anchors and reader.input[0] == value) or reader.name in plan.carriers
            for reader in graph.readers.get(value, [])
        )
        if not useful:
            del plan.carriers[node.name]
            plan.integer_values.discard(value)
            plan.same_scale.pop(value, None)


def _place_for_gpu(graph: Graph, plan: Plan, excluded: Collection[str]) -> None:
    for anchor in plan.anchors.values():
        plan.quantized_inputs.add(anchor.activation)
    convolutions = {anchor.output for anchor in plan.anchors.values() if anchor.op_type == "Conv"}
    for node in graph.proto.node:
        if node.op_type == "Add" and len(node.input) == 2:
            first, second = node.input
            short_cut = second if first in convolutions and graph.only_reader(first) is not None else first
            other = first if short_cut == second else second
            if other in convolutions and graph.only_reader(other) is not None and graph.constant(short_cut) is None:
                if node.name in excluded:
                    plan.left[node.name] = "kept in float on request"
                    continue
                plan.carriers[node.name] = node.output[0]
                plan.quantized_inputs.add(short_cut)
