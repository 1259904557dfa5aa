"""Writes a plan into a graph: integer weights and biases, Quantize/Dequantize pairs, ReLUs taken over.

What comes out is standard ONNX in Q/DQ form (opset 13 or later), which ONNX Runtime, OpenVINO and TensorRT read.
Weights are per output channel where the kernels allow it; a bias is 32 bits with the product of the two scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from .calibration import Range
from .integers import TINY, Scale, activation_scale, along, dequantize_weights, quantize_weights
from .onnx_graph import Graph, attribute
from .placement import Anchor, Plan

BIAS_LIMIT = float(1 << 30)
"""Largest 32-bit bias we write: half the range is left for the sum it is added to."""


@dataclasses.dataclass(frozen=True)
class Flavour:
    """The number formats to write (from the target and the technique's parameters)."""

    symmetric: bool = False
    seven_bit: bool = False
    per_channel: bool = True
    float_bias: bool = False
    """Leave biases in float, as TensorRT wants them."""
    clip_search: bool = False
    """Choose weight scales by least squared error instead of by the extremes."""
    weight_bits: int | None = None
    """Fewer bits for weights than the target's 7 or 8; they are stored as bytes all the same."""


@dataclasses.dataclass
class Written:
    """The quantized graph and what was written into it."""

    model: onnx.ModelProto
    scales: dict[str, Scale]
    weights: dict[str, np.ndarray]
    """Anchor name → what its integer weights stand for."""
    quantized_elements: int


def write_quantized(
    prepared: onnx.ModelProto,
    plan: Plan,
    ranges: Mapping[str, Range],
    flavour: Flavour,
    bias_shift: Mapping[str, np.ndarray] | None = None,
    trained_scales: Mapping[str, np.ndarray] | None = None,
) -> Written:
    """A new graph from the prepared one. `ranges` must have every name of `plan.values`.

    `bias_shift`: anchor name → what to add to its bias, one number per output channel.
    `trained_scales`: anchor name → the scales its weights were trained with, one per channel or a scalar.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    graph = Graph(model)
    graph.require_opset("", 13)
    nodes = {node.name: node for node in graph.proto.node}
    scales = _scales(plan, ranges, flavour)
    new_nodes: list[onnx.NodeProto] = []
    written = Written(model, scales, {}, 0)
    sharing: dict[tuple[str, int | None], list[Anchor]] = {}
    for anchor in plan.anchors.values():
        sharing.setdefault((anchor.weight, anchor.axis), []).append(anchor)
    shared: dict[tuple[str, int | None], tuple[str, np.ndarray, np.ndarray]] = {}
    counted: set[str] = set()
    for anchor in plan.anchors.values():
        node = nodes[anchor.name]
        key = (anchor.weight, anchor.axis)
        if key not in shared:
            given = (trained_scales or {}).get(anchor.name)
            shared[key] = _write_weights(graph, sharing[key], scales, flavour, new_nodes, given)
            written.quantized_elements += 0 if anchor.weight in counted else shared[key][1].size
            counted.add(anchor.weight)
        dequantized, values, weight_scales = shared[key]
        written.weights[anchor.name] = values
        node.input[1] = dequantized
        shift = (bias_shift or {}).get(anchor.name)
        _write_bias(graph, node, anchor, scales[anchor.activation], weight_scales, shift, flavour, new_nodes)
    for name in sorted(plan.absorbed):
        _take_over(graph, nodes[name])
    graph.reindex()
    for value in sorted(plan.integer_values | plan.quantized_inputs):
        _write_pair(graph, plan, value, scales[plan.same_scale.get(value, value)], new_nodes)
    graph.proto.node.extend(new_nodes)
    graph.reindex()
    _write_numbers(graph, plan, nodes)
    graph.sort()
    return written


def within_bounds(plan: Plan, name: str, found: Range) -> Range:
    """The range of a value, cut where a ReLU or Clip that was taken over clamps."""
    if name in plan.fixed:
        return Range(*plan.fixed[name])
    if name in plan.upper_bound:
        return Range(0.0, min(found.high, plan.upper_bound[name]))
    if name in plan.absorbed_outputs:
        return Range(0.0, found.high)
    return found


def _scales(plan: Plan, ranges: Mapping[str, Range], flavour: Flavour) -> dict[str, Scale]:
    scales: dict[str, Scale] = {}
    for name in plan.values:
        scales[name] = activation_scale(within_bounds(plan, name, ranges[name]), flavour.symmetric)
    for name, source in plan.same_scale.items():
        scales[name] = scales[source]
    return scales


def _write_weights(
    graph: Graph,
    anchors: Sequence[Anchor],
    activations: Mapping[str, Scale],
    flavour: Flavour,
    new_nodes: list[onnx.NodeProto],
    given: np.ndarray | None,
) -> tuple[str, np.ndarray, np.ndarray]:
    """(name of the dequantized weight, its values, its scales), for all anchors that share it."""
    anchor = anchors[0]
    weights = graph.constant(anchor.weight)
    assert weights is not None
    axis = anchor.axis if flavour.per_channel else None
    integers, scales = quantize_weights(
        weights, axis, flavour.seven_bit, flavour.clip_search, flavour.weight_bits, given
    )
    enough = scales
    for one in () if flavour.float_bias else anchors:
        bias = graph.constant(one.bias) if one.bias else None
        if bias is not None:
            # a channel of near-zero weights would need a bias beyond 32 bits: give it a larger scale
            needed = np.abs(bias.reshape(-1)) / (float(activations[one.activation].scale) * BIAS_LIMIT)
            least = np.maximum(needed.max() if axis is None else needed, TINY)
            enough = np.maximum(enough, least).astype(np.float32)
    if (enough > scales).any():
        scales = enough
        integers = np.rint(weights / along(scales, axis, weights.ndim)).astype(np.int8)
    name = graph.add_constant(f"{anchor.weight}_quantized", integers)
    scale = graph.add_constant(f"{anchor.weight}_scale", scales)
    zero = graph.add_constant(f"{anchor.weight}_zero_point", np.zeros(scales.shape, dtype=np.int8))
    output = graph.unique(f"{anchor.weight}_dequantized")
    new_nodes.append(_dequantize(graph, [name, scale, zero], output, axis))
    return output, dequantize_weights(integers, scales, axis), scales


def _write_bias(
    graph: Graph,
    node: onnx.NodeProto,
    anchor: Anchor,
    activation: Scale,
    weight_scales: np.ndarray,
    shift: np.ndarray | None,
    flavour: Flavour,
    new_nodes: list[onnx.NodeProto],
) -> None:
    if anchor.op_type == "MatMul":
        return
    bias = graph.constant(anchor.bias) if anchor.bias else None
    if bias is None and shift is None:
        return
    if bias is None:
        assert shift is not None
        bias = np.zeros(shift.shape, dtype=np.float32)
    values = bias.reshape(-1) + (0 if shift is None else shift.astype(np.float32))
    if flavour.float_bias:
        name = graph.add_constant(f"{anchor.name}_bias", values.astype(np.float32))
    else:
        scales = (np.float32(activation.scale) * weight_scales).astype(np.float32)
        integers = np.clip(np.rint(values / scales), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
        base = anchor.bias or f"{anchor.name}_bias"
        quantized = graph.add_constant(f"{base}_quantized", integers)
        scale = graph.add_constant(f"{base}_scale", scales)
        zero = graph.add_constant(f"{base}_zero_point", np.zeros(scales.shape, dtype=np.int32))
        name = graph.unique(f"{base}_dequantized")
        new_nodes.append(_dequantize(graph, [quantized, scale, zero], name, 0 if scales.ndim else None))
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)


def _keep_in_float(
    graph: Graph,
    plan: Plan,
    quantized: str,
    dequantized: str,
    scale: Scale,
    readers: list[onnx.NodeProto],
    new_nodes: list[onnx.NodeProto],
) -> None:
    """Let float convolutions and Gemms read through a Dequantize with one scale for each channel.

    ONNX Runtime (`WeightBiasQuantization`, 1.32) gives any such node that reads a Dequantize with a single scale
    8-bit weights of its own, per tensor and full range: nodes left in float for their accuracy would lose it.
    """
    kept: dict[int, list[onnx.NodeProto]] = {}
    for node in readers:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.name not in plan.anchors:
            weights = graph.constant(node.input[1])
            if weights is None or node.input[0] != dequantized:
                continue
            if node.op_type == "Gemm":
                channels = weights.shape[1 if attribute(node, "transB", 0) else 0]
            else:
                groups = attribute(node, "group", 1)
                channels = weights.shape[1] * groups if node.op_type == "Conv" else weights.shape[0]
            kept.setdefault(channels, []).append(node)
    for channels, nodes in kept.items():
        inputs = [
            quantized,
            graph.add_constant(f"{dequantized}_scales", np.full(channels, scale.scale, dtype=np.float32)),
            graph.add_constant(f"{dequantized}_zero_points", np.full(channels, scale.zero)),
        ]
        output = graph.unique(f"{dequantized}_by_channel")
        new_nodes.append(_dequantize(graph, inputs, output, 1))
        graph.replace_reads(dequantized, output, nodes)


def _write_numbers(graph: Graph, plan: Plan, nodes: Mapping[str, onnx.NodeProto]) -> None:
    """Constants of one number become integers; a HardSigmoid becomes an Add whose quantized result clamps. Reindexes.

    αx + β: the Add reads x through a Dequantize with α times its scale, so the factor costs nothing.
    """
    for name in plan.carriers:
        node = nodes[name]
        if node.op_type == "HardSigmoid":
            pair = graph.producers[node.input[0]]
            scale = graph.constant(pair.input[1])
            assert scale is not None
            alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
            scaled = graph.add_constant(f"{name}_input_scale", (scale * np.float32(alpha)).astype(np.float32))
            output = graph.unique(f"{name}_scaled")
            graph.proto.node.append(_dequantize(graph, [pair.input[0], scaled, pair.input[2]], output, None))
            addend = _integer_number(graph, f"{name}_addend", beta)
            node.CopyFrom(helper.make_node("Add", [output, addend], list(node.output), node.name))
        else:
            for index, read in enumerate(node.input):
                if read in plan.numbers:
                    node.input[index] = _integer_number(graph, f"{name}_number", float(graph.scalar(read) or 0.0))
    graph.reindex()
    graph.drop_dead()


def _integer_number(graph: Graph, base: str, number: float) -> str:
    """A number as a byte with a scale: exact, because 255 times its 255th part is the number itself."""
    scale = graph.add_constant(f"{base}_scale", np.array(max(abs(number) / 255, float(TINY)), dtype=np.float32))
    level, zero = (255, 0) if number >= 0 else (0, 255)
    value = graph.add_constant(f"{base}_quantized", np.array(level, dtype=np.uint8))
    zero_point = graph.add_constant(f"{base}_zero_point", np.array(zero, dtype=np.uint8))
    output = graph.unique(f"{base}_dequantized")
    graph.proto.node.append(_dequantize(graph, [value, scale, zero_point], output, None))
    return output


def _dequantize(graph: Graph, inputs: list[str], output: str, axis: int | None) -> onnx.NodeProto:
    node = helper.make_node("DequantizeLinear", inputs, [output], graph.unique(f"{output}/DequantizeLinear"))
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node


def _take_over(graph: Graph, activation: onnx.NodeProto) -> None:
    """Remove a ReLU or Clip: the node before it gives its value."""
    before = graph.producers[activation.input[0]]
    index = list(before.output).index(activation.input[0])
    before.output[index] = activation.output[0]
    graph.proto.node.remove(activation)


def _write_pair(graph: Graph, plan: Plan, value: str, scale: Scale, new_nodes: list[onnx.NodeProto]) -> None:
    """Quantize a value and dequantize it again; choose who reads which."""
    scale_name = graph.add_constant(f"{value}_scale", np.array(scale.scale, dtype=np.float32))
    zero_name = graph.add_constant(f"{value}_zero_point", scale.zero)
    quantized = graph.unique(f"{value}_quantized")
    readers = graph.readers.get(value, [])
    source = value
    if value in plan.integer_values:
        # nobody may read the float value itself, or the runtime could not fuse the node that makes it
        if value in graph.outputs:
            source = graph.unique(f"{value}_float")
            maker = graph.producers[value]
            maker.output[list(maker.output).index(value)] = source
            dequantized = value
        else:
            dequantized = graph.unique(f"{value}_dequantized")
            graph.replace_reads(value, dequantized, readers)
        _keep_in_float(graph, plan, quantized, dequantized, scale, readers, new_nodes)
    else:
        dequantized = graph.unique(f"{value}_dequantized")
        chosen = [
            reader
            for reader in readers
            if reader.name in plan.carriers
            or (reader.name in plan.anchors and plan.anchors[reader.name].activation == value)
        ]
        graph.replace_reads(value, dequantized, chosen)
    new_nodes.append(
        helper.make_node(
            "QuantizeLinear", [source, scale_name, zero_name], [quantized], graph.unique(f"{value}/QuantizeLinear")
        )
    )
    new_nodes.append(
        helper.make_node(
            "DequantizeLinear",
            [quantized, scale_name, zero_name],
            [dequantized],
            graph.unique(f"{value}/DequantizeLinear"),
        )
    )
