"""An ONNX graph that can be asked and edited: who makes a value, who reads it, which values are constant.

A thin index over `onnx.ModelProto`, enough for the passes of this package. The index is rebuilt by `reindex()`;
edits made through the methods keep it right, edits made on `graph.node` directly must call `reindex()`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

EXTERNAL_DATA_BYTES = 1 << 30
"""Above this the weights go to a file beside the graph: one protobuf message may hold at most 2 GiB."""

LEAST_EXTERNAL_BYTES = 1 << 10
"""Smaller constants stay in the graph, where shape inference can read them."""

ALIGNMENT = 1 << 12
"""Constants begin at multiples of this in a file of weights, so that it can be mapped into memory."""

FLOAT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
"""Element types that count as weights in float."""


class Graph:
    """The main graph of a model, indexed. Nodes of subgraphs (If, Loop, Scan) are only counted as readers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.proto = model.graph
        self.reindex()

    def reindex(self) -> None:
        """Look at everything again."""
        self.initializers = {tensor.name: tensor for tensor in self.proto.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._arrays: dict[str, np.ndarray] = {}
        self._constants: dict[str, onnx.TensorProto] = {}
        for node in self.proto.node:
            for name in node.output:
                if name:
                    self.producers[name] = node
            for name in reads(node):
                self.readers[name].append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self.outputs = {value.name for value in self.proto.output}
        self.inputs = {value.name for value in self.proto.input} - set(self.initializers)
        self._names = {
            *self.producers, *self.initializers, *self.inputs, *(node.name for node in self.proto.node)
        }  # fmt: skip
        self.value_info = {
            value.name: value for value in (*self.proto.value_info, *self.proto.input, *self.proto.output)
        }

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer or Constant node, or None for anything computed."""
        if name not in self._arrays:
            tensor = self.initializers.get(name) or self._constants.get(name)
            if tensor is None:
                return None
            self._arrays[name] = numpy_helper.to_array(tensor)
        return self._arrays[name]

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element."""
        value = self.constant(name) if name else None
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def element_type(self, name: str) -> int | None:
        """ONNX element type of a value, where shape inference knows it."""
        if name in self.initializers:
            return self.initializers[name].data_type
        value = self.value_info.get(name)
        return value.type.tensor_type.elem_type if value is not None and value.type.HasField("tensor_type") else None

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """Shape of a value, where shape inference knows it: sizes, names of open axes, None for unknown ones."""
        array = self.constant(name)
        if array is not None:
            return array.shape
        value = self.value_info.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(
            axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or None)
            for axis in value.type.tensor_type.shape.dim
        )

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a value which is no output of the graph, else None."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def unique(self, name: str) -> str:
        """`name`, or `name_2`, … if that is taken; then it is taken."""
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate

    def add_constant(self, name: str, array: np.ndarray) -> str:
        """Add an initializer; gives its (unique) name."""
        name = self.unique(name)
        tensor = numpy_helper.from_array(np.array(array, order="C"), name)  # a scale of shape (1,) is not fused
        self.proto.initializer.append(tensor)
        self.initializers[name] = self.proto.initializer[-1]
        return name

    def replace_reads(self, old: str, new: str, nodes: Iterable[onnx.NodeProto] | None = None) -> None:
        """Let these nodes (default: all readers) read `new` instead of `old`."""
        for node in list(self.readers.get(old, [])) if nodes is None else nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def drop_dead(self) -> None:
        """Remove nodes whose results nobody reads. Reindexes."""
        while True:
            dead = [
                node
                for node in self.proto.node
                if not any(self.readers.get(name) or name in self.outputs for name in node.output)
            ]
            if not dead:
                return
            for node in dead:
                self.proto.node.remove(node)
            self.reindex()

    def sort(self) -> None:
        """Order nodes so that each comes after what it reads; drop constants that nothing reads. Reindexes."""
        ready = {*self.inputs, *(tensor.name for tensor in self.proto.initializer), ""}
        made = {name for node in self.proto.node for name in node.output}
        waiting = list(self.proto.node)
        ordered: list[onnx.NodeProto] = []
        while waiting:
            later = []
            for node in waiting:
                if all(name in ready or name not in made for name in reads(node)):
                    ordered.append(node)
                    ready.update(node.output)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                raise ValueError(f"the graph has a cycle through {later[0].name or later[0].op_type}")
            waiting = later
        used = {name for node in ordered for name in reads(node)} | {value.name for value in self.proto.output}
        kept = [tensor for tensor in self.proto.initializer if tensor.name in used]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self.proto.node[:]
        self.proto.node.extend(copies)
        if len(kept) != len(self.proto.initializer):
            tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
            del self.proto.initializer[:]
            self.proto.initializer.extend(tensors)
            listed = [value for value in self.proto.input if value.name not in self.initializers or value.name in used]
            if len(listed) != len(self.proto.input):
                values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in listed]
                del self.proto.input[:]
                self.proto.input.extend(values)
        self.reindex()

    def opset(self, domain: str = "") -> int:
        """Version of an operator set, 0 if the model does not use it."""
        names = (domain, domain or "ai.onnx")
        return next((entry.version for entry in self.model.opset_import if entry.domain in names), 0)

    def require_opset(self, domain: str, version: int) -> None:
        """Make the model use at least this version of an operator set (only safe for additions)."""
        for entry in self.model.opset_import:
            if entry.domain == domain:
                entry.version = max(entry.version, version)
                return
        self.model.opset_import.append(helper.make_opsetid(domain, version))


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute as a Python value, or the default."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside an If, Loop or Scan."""
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.GRAPH:
            yield entry.g
        elif entry.type == onnx.AttributeProto.GRAPHS:
            yield from entry.graphs


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those in subgraphs included."""
    for node in graph.node:
        yield node
        for inner in subgraphs_of(node):
            yield from all_nodes(inner)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, what its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for graph in subgraphs_of(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        for inner in graph.node:
            yield from (name for name in reads(inner) if name not in own)
        yield from (value.name for value in graph.output if value.name not in own)


def float_weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor of floating-point numbers, those in Constant nodes and subgraphs included."""
    yield from (tensor for tensor in graph.initializer if tensor.data_type in FLOAT_TYPES)
    for node in graph.node:
        if node.op_type == "Constant":
            for entry in node.attribute:
                if entry.name == "value" and entry.t.data_type in FLOAT_TYPES:
                    yield entry.t
        for inner in subgraphs_of(node):
            yield from float_weights(inner)


def element_count(tensors: Iterable[onnx.TensorProto]) -> int:
    """How many numbers these tensors hold together."""
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in tensors)


def load_graph(path: Path) -> onnx.ModelProto:
    """A model with its external data."""
    return onnx.load(path)


def save_graph(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write a model and leave it as it is; gives the files it takes, the one to load first."""
    if not is_large(model):
        onnx.save(model, path)
        return [path]
    data = path.with_suffix(".onnx.data")
    light, heavy = without_weights(model)
    if is_large(light):  # the weights are in subgraphs: onnx finds them everywhere, and empties what it writes
        light.CopyFrom(model)
        onnx.save(light, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)
        return [path, *([data] if data.exists() else [])]
    with data.open("wb") as file:
        for tensor, stub in heavy:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            entries = {"location": data.name, "offset": str(file.tell())}
            content = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
            entries["length"] = str(file.write(content))
            for key, value in entries.items():
                stub.external_data.add(key=key, value=value)
    onnx.save(light, path)
    return [path, data]


def is_large(model: onnx.ModelProto) -> bool:
    """Too large for one protobuf message, or nearly. Reckoned from shapes: measuring a message means writing it."""
    return sum(_bytes_of(tensor) for tensor in _tensors(model.graph)) > EXTERNAL_DATA_BYTES


def holds_float16(model: onnx.ModelProto) -> bool:
    """It has a constant in FP16, be it in a subgraph."""
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in _tensors(model.graph))


def without_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[onnx.TensorProto, onnx.TensorProto]]]:
    """(a copy in which the main graph's larger constants have no content, each of these with what stands for it)."""
    light, heavy = onnx.ModelProto(), []
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if isinstance(value, (int, str)):
            setattr(light, field.name, value)
        else:
            getattr(light, field.name).extend(value)
    for field, value in model.graph.ListFields():
        if field.name == "initializer":
            continue
        if isinstance(value, str):
            setattr(light.graph, field.name, value)
        else:
            getattr(light.graph, field.name).extend(value)
    for tensor in model.graph.initializer:
        stub = light.graph.initializer.add()
        # texts cannot lie in a file of weights
        if tensor.data_type == onnx.TensorProto.STRING or _bytes_of(tensor) < LEAST_EXTERNAL_BYTES:
            stub.CopyFrom(tensor)
            continue
        stub.name, stub.data_type, stub.data_location = tensor.name, tensor.data_type, onnx.TensorProto.EXTERNAL
        stub.dims.extend(tensor.dims)
        heavy.append((tensor, stub))
    return light, heavy


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor of whatever type, those in Constant nodes and subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        yield from (entry.t for entry in node.attribute if entry.type == onnx.AttributeProto.TENSOR)
        for inner in subgraphs_of(node):
            yield from _tensors(inner)


def _bytes_of(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return int(np.prod(tensor.dims, dtype=np.int64)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def is_portable(model: onnx.ModelProto) -> bool:
    """No node that only ONNX Runtime knows."""
    return all(node.domain in ("", "ai.onnx", "ai.onnx.ml") for node in all_nodes(model.graph))
