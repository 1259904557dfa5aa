"""Nodes that a graph means to be computed in integers and that a runtime computes in float, with the reason.

Meant so: a product whose data come out of a Dequantize, or any other node that only reads Dequantizes and is only read
by Quantizes. Whether the runtime agrees is looked up in what it executed, never guessed from the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from ..protocol import OperatorTime, Unfused
from .onnx_graph import Graph

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Nodes with an integer kernel that reads integers and need not write them."""

INTEGER_NODES = {"MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"}
"""Nodes that are integers by definition, as dynamic quantization writes them."""

MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity", "MaxPool", "Gather", "Split"}
"""Nodes that are as fast in float: a pair around them is not worth a word."""

INTEGERS = {"int8", "int4"}


def unfused_nodes(graph: Graph, operators: Collection[OperatorTime], runtime: str) -> tuple[Unfused, ...]:
    """Every such node, the slowest first. `operators`: what the runtime executed, with `nodes` filled in."""
    executing = {name: one for one in operators for name in one.nodes}
    found = []
    for node in graph.proto.node:
        running = executing.get(node.name)
        if running is None or running.precision in INTEGERS or not _is_meant_for_integers(graph, node):
            continue
        found.append(
            Unfused(
                node=node.name,
                type=node.op_type,
                reason=_reason(graph, node, runtime),
                time_ms=running.time_ms,
                pairs=_idle_pairs(graph, node, executing),
            )
        )
    return tuple(sorted(found, key=lambda one: -(one.time_ms or 0.0)))


def _is_meant_for_integers(graph: Graph, node: onnx.NodeProto) -> bool:
    data = [name for name in node.input if name and graph.constant(name) is None]
    if node.op_type in INTEGER_NODES:
        return True
    if node.op_type in PRODUCTS:
        return bool(data) and _made_by(graph, node.input[0], "DequantizeLinear")
    if node.op_type in MOVES or node.op_type in ("QuantizeLinear", "DequantizeLinear") or not data:
        return False
    readers = [reader for name in node.output for reader in graph.readers.get(name, [])]
    return (
        all(_made_by(graph, name, "DequantizeLinear") for name in data)
        and bool(readers)
        and all(reader.op_type == "QuantizeLinear" for reader in readers)
    )


def _made_by(graph: Graph, value: str, kind: str) -> bool:
    maker = graph.producers.get(value)
    return maker is not None and maker.op_type == kind


def _reason(graph: Graph, node: onnx.NodeProto, runtime: str) -> str:
    """Why the runtime keeps it in float, in words that follow "because"."""
    if node.op_type in INTEGER_NODES:
        return f"{runtime} has no integer kernel for {node.op_type} and computes it in float"
    if node.op_type in PRODUCTS and len(node.input) > 1:
        weight = node.input[1]
        if graph.constant(weight) is not None:
            return "its weights are not quantized"
    output = node.output[0]
    readers = graph.readers.get(output, [])
    after = [reader.op_type for reader in readers]
    if output in graph.outputs:
        after.append("the graph's output")
    if "QuantizeLinear" in after and len(set(after)) > 1:
        others = ", ".join(sorted(set(after) - {"QuantizeLinear"}))
        return f"its result is quantized for one reader and read in float by another ({others})"
    if readers and "QuantizeLinear" not in after:
        between = readers[0]
        behind = [reader.op_type for reader in graph.readers.get(between.output[0], [])]
        if "QuantizeLinear" in behind and len(readers) == 1:
            return f"{between.op_type} stands between it and its QuantizeLinear, and {runtime} does not drop it"
        if node.op_type not in ("MatMul", "Gemm"):
            return f"its result is not quantized: {', '.join(sorted(set(after)))} reads it in float"
    types = _operands(graph, node)
    return f"{runtime} has no integer kernel for it with {types} operands" if types else f"{runtime} does not fuse it"


def _operands(graph: Graph, node: onnx.NodeProto) -> str:
    """ "int8×int8", where the zero points tell."""
    kinds = []
    for name in node.input[:2]:
        maker = graph.producers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        zero = graph.constant(maker.input[2]) if len(maker.input) > 2 else None
        kinds.append(str(zero.dtype) if zero is not None else "uint8")
    return "×".join(kinds)


def _idle_pairs(graph: Graph, node: onnx.NodeProto, executing: Mapping[str, OperatorTime]) -> tuple[str, ...]:
    """Names of the Quantize and Dequantize nodes right around it that the runtime really executes."""
    around = [graph.producers[name] for name in node.input if name in graph.producers]
    readers = [reader for name in node.output for reader in graph.readers.get(name, [])]
    around += readers + [
        behind for reader in readers for name in reader.output for behind in graph.readers.get(name, [])
    ]
    return tuple(
        dict.fromkeys(
            one.name
            for one in around
            if one.op_type in ("QuantizeLinear", "DequantizeLinear")
            and one.name in executing
            and executing[one.name].precision == "conversion"
        )
    )
