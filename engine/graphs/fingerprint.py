"""What a graph computes, as one text: equal for two graphs that differ in nothing but names and the order of nodes.

A technique must never give a variant that is its parent under other names; this says whether it did. Each value is
known by what computes it from the inputs (a Merkle tree), each constant by its numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx
from onnx import numpy_helper

STANDARD = {"", "ai.onnx"}


def fingerprint(model: onnx.ModelProto) -> str:
    """A hash of the operators, their attributes, the constants and how they hang together."""
    return _graph(model.graph, {value.name: f"input {value.name}" for value in model.graph.input})


def _graph(graph: onnx.GraphProto, outside: Mapping[str, str]) -> str:
    """A hash of a graph; what it takes from outside is known by `outside`."""
    values = dict(outside)
    for tensor in graph.initializer:
        values[tensor.name] = _tensor(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            values[node.output[0]] = _tensor(node.attribute[0].t)
            continue
        domain = "" if node.domain in STANDARD else node.domain
        parts = [domain, node.op_type, *(values.get(name, name) for name in node.input)]
        made = _hash(*parts, *sorted(_attribute(entry, values) for entry in node.attribute))
        values |= {name: f"{made} {index}" for index, name in enumerate(node.output) if name}
    return _hash(*(values.get(value.name, value.name) for value in graph.output))


def _attribute(entry: onnx.AttributeProto, values: Mapping[str, str]) -> str:
    graphs = [entry.g] if entry.type == onnx.AttributeProto.GRAPH else list(entry.graphs)
    if graphs:
        inner = []
        for graph in graphs:
            own = {value.name: f"inner input {index}" for index, value in enumerate(graph.input)}
            inner.append(_graph(graph, {**values, **own}))
        return _hash(entry.name, *inner)
    if entry.type == onnx.AttributeProto.TENSOR:
        return _hash(entry.name, _tensor(entry.t))
    bare = onnx.AttributeProto()
    bare.CopyFrom(entry)
    bare.doc_string = ""
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _tensor(tensor: onnx.TensorProto) -> str:
    content = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    digest = hashlib.sha256(content)
    digest.update(f"{tensor.data_type} {list(tensor.dims)}".encode())
    return digest.hexdigest()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
