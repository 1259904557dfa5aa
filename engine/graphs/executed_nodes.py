"""Which nodes of a file each executed operator stands for: ONNX Runtime's fusions, undone.

ONNX Runtime renames what it fuses (`conv_token_3`, `relu_nchwc`) and renames values where it changes their layout.
A value that kept its name, or the name a fused node was given, says what the operator computes; everything on the way
back from there to values that other operators compute belongs to it.
"""

from __future__ import annotations

import re

import onnx

from .onnx_graph import Graph

LAYOUT = {"ReorderInput", "ReorderOutput", "Transpose", "Cast"}
"""Operators that ONNX Runtime puts in between; alone they stand for no node."""


def nodes_behind(source: Graph, executed: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    """Executed operator → names of the source's nodes it stands for, in the source's order.

    Nodes that vanish without a trace (constants computed beforehand) belong to the operator that reads them.
    """
    order = {node.name: index for index, node in enumerate(source.proto.node)}
    computed = {node.name: _values_of(source, node, order) for node in executed.node}
    boundary = {value for values in computed.values() for value in values}
    behind: dict[str, tuple[str, ...]] = {}
    for node in executed.node:
        found: set[str] = set()
        waiting = list(computed[node.name])
        while waiting:
            maker = source.producers.get(waiting.pop())
            if maker is None or maker.name in found:
                continue
            found.add(maker.name)
            waiting += [value for value in maker.input if value and value not in boundary]
        behind[node.name] = tuple(sorted(found, key=lambda name: order[name]))
    return _give_back(source, executed, behind)


def _values_of(source: Graph, node: onnx.NodeProto, order: dict[str, int]) -> list[str]:
    """Values of the source that the executed node computes."""
    values = [name for name in node.output if name in source.producers]
    if values:
        return values
    name = re.sub(r"(_token_\d+|/duplicated)+$", "", node.name)
    value = name.removesuffix("_nchwc")
    if value != name and value in source.producers:
        return [value]
    if name not in order:
        return []
    maker = source.proto.node[order[name]]
    values = list(maker.output)
    # an integer kernel writes what the Quantize behind its node writes
    reader = source.only_reader(values[0]) if values else None
    while reader is not None and node.op_type.startswith(("QLinear", "QGemm")):
        values += list(reader.output)
        reader = None if reader.op_type == "QuantizeLinear" else source.only_reader(reader.output[0])
    return values


def _give_back(
    source: Graph, executed: onnx.GraphProto, behind: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """A layout change that seems to compute an Add or a ReLU only hands on what the kernel before it computed."""
    makers = {value: node for node in executed.node for value in node.output}
    kinds = {node.name: node.op_type for node in source.proto.node}
    for node in executed.node:
        own = behind[node.name]
        if node.op_type in LAYOUT and own and not any(kinds[name] == node.op_type for name in own):
            before = makers.get(node.input[0])
            if before is not None:
                behind[before.name] = (*behind[before.name], *own)
                behind[node.name] = ()
    return behind
