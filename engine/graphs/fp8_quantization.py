"""FP8 (E4M3: 4 bits of exponent, 3 of fraction, up to ±448) around products and convolutions, for TensorRT.

Standard ONNX of opset 19: every activation that a chosen node reads goes through one QuantizeLinear/DequantizeLinear
pair with a scale for the whole of it; weights are stored as FP8 behind a DequantizeLinear, with a scale for each output
channel or for all. TensorRT takes the pairs into its FP8 kernels; between them the graph computes in its float type.
Biases, sums and everything else stay as they are. FP8 has no zero point and is symmetric by its nature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .calibration import Range
from .onnx_graph import Graph, attribute, element_count, float_weights, subgraphs_of

OPSET = 19
"""QuantizeLinear knows FP8, and scales in FP16, from here on."""

FILE_IR = 9
"""Version of the file format that knows FP8."""

LARGEST = 448.0
"""Largest number of E4M3 (without infinities: the "FN" kind)."""

MULTIPLE = 16
"""Channels the FP8 units take at once; layers of other widths have no FP8 kernel."""

TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A node that will compute in FP8."""

    node: str
    activations: tuple[int, ...]
    """Indices of the inputs that are quantized while running."""
    weight: str | None = None
    axis: int | None = None
    """The output channels' axis of the weights."""


@dataclasses.dataclass
class Plan:
    """The chosen nodes, and the others with weights or products and why not."""

    model: onnx.ModelProto
    anchors: list[Anchor] = dataclasses.field(default_factory=list)
    left: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> list[str]:
        """Activations whose ranges must be known."""
        nodes = {node.name: node for node in self.model.graph.node}
        names = (nodes[one.node].input[index] for one in self.anchors for index in one.activations)
        return list(dict.fromkeys(names))


@dataclasses.dataclass
class Written:
    """The new graph, and how many of its numbers are FP8 now."""

    model: onnx.ModelProto
    quantized_elements: int
    total_elements: int

    @property
    def share(self) -> float:
        return self.quantized_elements / self.total_elements if self.total_elements else 0.0


def plan_fp8(prepared: onnx.ModelProto, attention: bool, excluded: frozenset[str]) -> Plan:
    """Choose the nodes. `attention`: products of two activations too."""
    graph = Graph(prepared)
    plan = Plan(prepared)
    for node in graph.proto.node:
        found: Anchor | str = ""
        if node.op_type in ("MatMul", "Gemm"):
            found = _product(graph, node, attention)
        elif node.op_type == "Conv":
            found = _convolution(graph, node)
        elif node.op_type in ("LSTM", "GRU", "RNN", "ConvTranspose"):
            found = f"TensorRT has no FP8 {node.op_type}"
        elif any(True for _ in subgraphs_of(node)):
            found = f"the graphs inside {node.op_type} are not quantized"
        if found and node.name in excluded:
            plan.left[node.name] = "kept in float on request"
        elif isinstance(found, Anchor):
            plan.anchors.append(found)
        elif found:
            plan.left[node.name] = found
    return plan


def write_fp8(plan: Plan, ranges: Mapping[str, Range], per_channel: bool) -> Written:
    """A new graph with the pairs. `ranges` must have every name of `plan.values`."""
    model = onnx.ModelProto()
    model.CopyFrom(plan.model)
    graph = Graph(model)
    written = Written(model, 0, element_count(float_weights(model.graph)))
    nodes = {node.name: node for node in graph.proto.node}
    pairs: dict[str, str] = {}
    weights: dict[tuple[str, int | None], str] = {}
    new: list[onnx.NodeProto] = []
    for one in plan.anchors:
        node = nodes[one.node]
        for index in one.activations:
            name = node.input[index]
            if name not in pairs:
                pairs[name] = _pair(graph, name, ranges[name], new)
            node.input[index] = pairs[name]
        if one.weight is not None:
            key = (one.weight, one.axis if per_channel else None)
            if key not in weights:
                weights[key] = _weights(graph, one.weight, key[1], new)
                written.quantized_elements += element_count([graph.initializers[one.weight]])
            node.input[1] = weights[key]
    graph.proto.node.extend(new)
    model.ir_version = max(model.ir_version, FILE_IR)
    graph.reindex()
    graph.sort()
    return written


def _product(graph: Graph, node: onnx.NodeProto, attention: bool) -> Anchor | str:
    weights = graph.constant(node.input[1])
    if weights is None:
        if graph.constant(node.input[0]) is not None:
            return "its constant is the first operand"
        if node.op_type == "Gemm" or not attention:
            return "both operands are activations"
        if why := _odd_width((graph.shape(node.input[0]) or (None,))[-1], (graph.shape(node.input[1]) or (None,))[-1]):
            # the length of a sequence is often open or odd: TensorRT pads it, the width of a head it does not
            return why if isinstance((graph.shape(node.input[0]) or (None,))[-1], int) else ""
        return Anchor(node.name, (0, 1))
    if node.input[1] not in graph.initializers or weights.dtype != np.float32:
        return "" if weights.ndim < 2 else f"its weights are {weights.dtype}"
    if weights.ndim != 2:
        return f"its weights have {weights.ndim} axes"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "it transposes its input"
    axis = 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1
    return _odd_width(weights.shape[1 - axis], weights.shape[axis]) or Anchor(node.name, (0,), node.input[1], axis)


def _convolution(graph: Graph, node: onnx.NodeProto) -> Anchor | str:
    weights = graph.constant(node.input[1])
    if weights is None or node.input[1] not in graph.initializers:
        return "its weights are computed in the graph"
    if weights.dtype != np.float32 or weights.ndim != 4:
        return f"its weights are {weights.dtype} with {weights.ndim} axes"
    if attribute(node, "group", 1) != 1:
        return "TensorRT has no FP8 kernel for grouped convolutions"
    return _odd_width(weights.shape[1], weights.shape[0]) or Anchor(node.name, (0,), node.input[1], 0)


def _odd_width(*widths: int | str | None) -> str:
    odd = [width for width in widths if isinstance(width, int) and width % MULTIPLE]
    return f"a width of {odd[0]} is no multiple of {MULTIPLE}, which FP8 units need" if odd else ""


def _pair(graph: Graph, name: str, found: Range, new: list[onnx.NodeProto]) -> str:
    """Quantize and dequantize an activation; gives the name of what comes out."""
    scale = np.array(max(max(-found.low, found.high) / LARGEST, TINY), dtype=np.float32)
    scale_name, zero = graph.add_constant(f"{name}_fp8_scale", scale), _zero(graph, name, ())
    low, real = graph.unique(f"{name}_fp8"), graph.unique(f"{name}_fp8_real")
    new.append(helper.make_node("QuantizeLinear", [name, scale_name, zero], [low], graph.unique(f"{name}/quantize")))
    new.append(
        helper.make_node("DequantizeLinear", [low, scale_name, zero], [real], graph.unique(f"{name}/dequantize"))
    )
    return real


def _weights(graph: Graph, name: str, axis: int | None, new: list[onnx.NodeProto]) -> str:
    values = graph.constant(name)
    assert values is not None
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(values).max(axis=None if axis is None else others, keepdims=axis is not None)
    scales = np.maximum(largest / LARGEST, TINY).astype(np.float32)
    codes = np.clip(values / scales, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    scales = np.array(scales.reshape(() if axis is None else (-1,)))
    inputs = [
        graph.unique(f"{name}_fp8"),
        graph.add_constant(f"{name}_fp8_scale", scales),
        _zero(graph, name, scales.shape),
    ]
    graph.proto.initializer.append(numpy_helper.from_array(codes, inputs[0]))
    real = graph.unique(f"{name}_fp8_real")
    node = helper.make_node("DequantizeLinear", inputs, [real], graph.unique(f"{name}/dequantize"))
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    new.append(node)
    return real


def _zero(graph: Graph, name: str, shape: tuple[int, ...]) -> str:
    """FP8 has no zero point, but its type says which FP8 it is."""
    zero = graph.unique(f"{name}_fp8_zero")
    bytes_ = b"\0" * int(np.prod(shape, dtype=np.int64))
    graph.proto.initializer.append(helper.make_tensor(zero, TensorProto.FLOAT8E4M3FN, shape, bytes_, raw=True))
    return zero
