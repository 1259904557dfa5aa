"""Reads an `.onnx` file that may be hostile: nothing it says is believed before it is checked.

Refused, each with its reason: files over the size limits, external data outside the model's own folder or reached
through links, weights whose bytes do not match their shape, operators that only a custom library provides
(loading one runs native code), functions that call each other in a circle. Never is a library loaded because a
file names it.
"""

import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from .model import ModelError

MAX_FILE_BYTES = 2**31 - 1
"""The protobuf limit: larger models keep their weights in external data."""

MAX_NODES = 200_000
"""Far above any network in use; a parser bomb has more."""

MAX_DEPTH = 16
"""Of graphs inside graphs (If, Loop, Scan)."""

MAX_ELEMENTS = 2**40
"""Of one tensor, constant or not."""

KNOWN_DOMAINS = {
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.preview.training",
    "com.microsoft",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
}
"""Operators of these are built into onnx or ONNX Runtime."""


def read_graph(path: Path) -> ModelProto:
    """The graph without its external data, after every check of this module. Raises ModelError."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ModelError(
            f"{path.name} is {size / 2**30:.1f} GiB; an .onnx file cannot be over 2 GiB (use external data)."
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ModelError(f"{path.name} is not an ONNX file: it cannot be parsed (or is nested without end).") from None
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{path.name} is not an ONNX file: there is no graph in it.")
    _check_size(model, path)
    _check_operators(model, path)
    for tensor in all_tensors(model):
        _check_tensor(tensor, path)
    return model


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph and every graph inside a node, outermost first. Raises ModelError beyond `MAX_DEPTH`."""
    stack = [(model.graph, 0)]
    while stack:
        graph, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ModelError(f"The model nests graphs in graphs more than {MAX_DEPTH} deep.")
        yield graph
        for node in graph.node:
            stack.extend((inner, depth + 1) for inner in _inner_graphs(node))


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant of the model: initializers, and tensors in attributes, also of functions."""
    for graph in all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attribute_tensors(graph.node)
    for function in model.functions:
        yield from _attribute_tensors(function.node)


def external_files(model: ModelProto) -> tuple[str, ...]:
    """The distinct external data files it names, in order of first use."""
    names: dict[str, None] = {}
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            names.setdefault(_external(tensor)["location"])
    return tuple(names)


def contained(folder: Path, location: str) -> Path:
    """The file `location` names inside `folder`. Raises ModelError for everything that leads out of it."""
    parts = Path(location.replace("\\", "/"))
    if not location or parts.is_absolute() or ".." in parts.parts or ":" in location or "\0" in location:
        raise ModelError(f"The model wants weights from {location!r}, outside its own folder: refused.")
    path = folder
    for part in parts.parts:
        path = path / part
        if path.is_symlink():
            raise ModelError(
                f"The model's weights {location!r} are reached through a symbolic link: copy the model with its data "
                "into a folder of its own (cp -rL) and open it there."
            )
    if not path.is_file():
        raise ModelError(
            f"The model's weights {location!r} are missing: they belong beside the .onnx file, in {folder}."
        )
    state = os.stat(path, follow_symlinks=False)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
        raise ModelError(
            f"The model's weights {location!r} are a hard link or no ordinary file: copy the model with its data into "
            "a folder of its own and open it there."
        )
    return path


def _check_size(model: ModelProto, path: Path) -> None:
    nodes = sum(len(graph.node) for graph in all_graphs(model)) + sum(len(f.node) for f in model.functions)
    if nodes > MAX_NODES:
        raise ModelError(f"{path.name} has {nodes:,} nodes, over the limit of {MAX_NODES:,}.")
    if nodes == 0:
        raise ModelError(f"{path.name} has no node in its graph: there is nothing to run.")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
        if math.prod(max(1, size) for size in sizes) > MAX_ELEMENTS:
            raise ModelError(f"{path.name} declares {value.name!r} with the shape {sizes}, which no machine can hold.")


def _check_operators(model: ModelProto, path: Path) -> None:
    functions = {(function.domain, function.name): function for function in model.functions}
    nodes = [node for graph in all_graphs(model) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    for node in nodes:
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in functions:
            raise ModelError(
                f"{path.name} uses {node.op_type} of {node.domain!r}, an operator that only a custom library provides; "
                "Trimtab loads no libraries for a model."
            )
    calls = {
        key: {(node.domain, node.op_type) for node in function.node} & functions.keys()
        for key, function in functions.items()
    }
    settled: set[tuple[str, str]] = set()
    while ready := [key for key, used in calls.items() if key not in settled and used <= settled]:
        settled.update(ready)
    if len(settled) < len(calls):
        raise ModelError(f"{path.name} has functions that call each other in a circle.")


def _check_tensor(tensor: TensorProto, path: Path) -> None:
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > MAX_ELEMENTS:
        raise ModelError(f"{path.name} has a constant {tensor.name!r} with the impossible shape {list(tensor.dims)}.")
    if tensor.data_type == TensorProto.STRING:
        return
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        raise ModelError(f"{path.name} has a constant {tensor.name!r} of an unknown type.") from None
    packed = tensor.data_type in SUB_BYTE
    needed = math.prod(tensor.dims) * (1 if packed else width)
    if tensor.data_location == TensorProto.EXTERNAL:
        where = _external(tensor)
        file = contained(path.parent, where["location"])
        try:
            offset, length = int(where.get("offset", 0)), int(where.get("length", file.stat().st_size))
        except ValueError:
            raise ModelError(f"{path.name}: the place of {tensor.name!r} in its external data is no number.") from None
        if offset < 0 or length < 0 or offset + min(length, needed // 4 if packed else needed) > file.stat().st_size:
            raise ModelError(
                f"{path.name}: {tensor.name!r} lies outside its data file {where['location']!r} (is it complete?)."
            )
        if not packed and "length" in where and length != needed:
            raise ModelError(
                f"{path.name}: {tensor.name!r} has {length} bytes of external data; its shape needs {needed}."
            )
    elif tensor.HasField("raw_data") and not packed and len(tensor.raw_data) != needed:
        raise ModelError(f"{path.name}: {tensor.name!r} has {len(tensor.raw_data)} bytes; its shape needs {needed}.")


SUB_BYTE = {
    getattr(TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(TensorProto, name)
}
"""Types of which a byte holds several values."""


def _external(tensor: TensorProto) -> dict[str, str]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    entries.setdefault("location", "")
    return entries


def _inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _attribute_tensors(nodes: "Iterable[NodeProto]") -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
