"""Shapes that a graph computes although they are known: folded away, with proof.

Exporters write `Shape → Slice → Mul → Concat → Reshape` where a Reshape to `[0, -1]` says the same, and initial states
of recurrent layers as zeros expanded to the batch, which is what these layers take when they get none. Each such
node costs a microsecond or two: next to nothing in a large model, a tenth of the time of a small quantized one.

Sizes are followed as numbers or as names of open axes, so what is folded holds for every input, not only for one
that was seen. A Reshape is folded when each entry of its target is a number, the size of the same axis of its
input, or the only one left over.
"""

from __future__ import annotations

import numpy as np
import onnx

from .onnx_graph import Graph, attribute

LONGEST = 64
"""Integer vectors with more entries are no shapes."""

ROUNDS = 4
"""Each round may let shape inference see further."""

Size = int | str
"""A number, or the name of something unknown; equal names are equal sizes."""


def fold_shapes(model: onnx.ModelProto) -> int:
    """Fold computed shapes in place; gives how many nodes got a constant or lost a state that is all zeros."""
    folded = 0
    for _ in range(ROUNDS):
        graph = Graph(model)
        changed = sum(_fold_node(graph, node) for node in graph.proto.node)
        if not changed:
            break
        folded += changed
        graph.reindex()
        graph.drop_dead()
        graph.sort()
        inferred = _infer(model)
        if inferred is None:
            break
        del model.graph.value_info[:]
        model.graph.value_info.extend(inferred.graph.value_info)
    return folded


def _infer(model: onnx.ModelProto) -> onnx.ModelProto | None:
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return None  # over 2 GiB, or a foreign operator: what was folded so far stands


def _fold_node(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type in ("LSTM", "GRU", "RNN"):
        found = False
        for index in (5, 6):
            if len(node.input) > index and node.input[index] and _is_zero(graph, node.input[index]):
                node.input[index] = ""
                found = True
        return found
    if node.op_type != "Reshape" or graph.constant(node.input[1]) is not None or attribute(node, "allowzero", 0):
        return False
    target, shape = _sizes(graph, node.input[1], 0), graph.shape(node.input[0])
    if target is None or shape is None:
        return False
    entries = [_entry(size, shape, axis) for axis, size in enumerate(target)]
    if entries.count(-1) > 1:
        return False
    node.input[1] = graph.add_constant(f"{node.output[0]}_shape", np.array(entries, dtype=np.int64))
    return True


def _entry(size: Size, shape: tuple[int | str | None, ...], axis: int) -> int:
    """What a constant target has to say for this axis: a number, 0 for "as before", −1 for the rest."""
    if isinstance(size, int) and size != 0:
        return size
    return 0 if axis < len(shape) and (size == 0 or shape[axis] == size) else -1


def _sizes(graph: Graph, name: str, depth: int) -> list[Size] | None:
    """An integer vector (or scalar, as one entry) with unknown entries by name; None for anything else."""
    constant = graph.constant(name)
    if constant is not None:
        flat = constant.reshape(-1)
        return [int(value) for value in flat] if flat.dtype.kind == "i" and flat.size <= LONGEST else None
    node = graph.producers.get(name)
    if node is None or depth > LONGEST:
        return None
    if node.op_type == "Shape":
        shape = graph.shape(node.input[0])
        if shape is None:
            return None
        named: list[Size] = [f"{node.input[0]}[{axis}]" if size is None else size for axis, size in enumerate(shape)]
        return named[slice(attribute(node, "start", 0), attribute(node, "end", len(shape)))]
    if node.op_type == "Concat":
        parts = [_sizes(graph, part, depth + 1) for part in node.input]
        return None if any(part is None for part in parts) else [size for part in parts for size in part or []]
    data = _sizes(graph, node.input[0], depth + 1) if node.input else None
    if data is None:
        return None
    if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return data
    if node.op_type == "Reshape":
        return data if (graph.shape(name) or ((),))[1:] == () else None
    if node.op_type == "Gather":
        indices = graph.constant(node.input[1])
        if indices is None or any(not -len(data) <= index < len(data) for index in indices.reshape(-1)):
            return None
        return [data[int(index)] for index in indices.reshape(-1)]
    if node.op_type == "Slice":
        return _sliced(graph, node, data)
    if node.op_type in ("Mul", "Add", "Sub", "Div"):
        other = _sizes(graph, node.input[1], depth + 1)
        if other is None or (len(data) != len(other) and 1 not in (len(data), len(other))):
            return None
        count = max(len(data), len(other))
        pairs = zip(data * count if len(data) == 1 else data, other * count if len(other) == 1 else other, strict=False)
        return [_computed(node.op_type, first, second) for first, second in pairs]
    return None


def _sliced(graph: Graph, node: onnx.NodeProto, data: list[Size]) -> list[Size] | None:
    if not 3 <= len(node.input) <= 5:
        return None
    bounds = [graph.constant(name) for name in node.input[1:] if name]
    if any(bound is None or bound.size != 1 for bound in bounds):
        return None
    first, last, *rest = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
    return data[first : last : rest[1] if len(rest) > 1 else 1]


def _computed(kind: str, first: Size, second: Size) -> Size:
    if isinstance(first, int) and isinstance(second, int):
        if kind == "Div":
            return int(first / second) if second else f"{first}/0"
        return {"Mul": first * second, "Add": first + second, "Sub": first - second}[kind]
    if (kind in ("Mul", "Div") and second == 1) or (kind in ("Add", "Sub") and second == 0):
        return first
    if (kind == "Mul" and first == 1) or (kind == "Add" and first == 0):
        return second
    return f"({first} {kind} {second})"


def _is_zero(graph: Graph, name: str, depth: int = 0) -> bool:
    """A value that is zero wherever it is read, however it is stretched and cut."""
    constant = graph.constant(name)
    if constant is not None:
        return not constant.any()
    node = graph.producers.get(name)
    if node is None or depth > LONGEST:
        return False
    if node.op_type == "ConstantOfShape":
        value = attribute(node, "value")
        return value is None or not onnx.numpy_helper.to_array(value).any()
    if node.op_type == "Concat":
        return all(_is_zero(graph, part, depth + 1) for part in node.input)
    moves = ("Expand", "Slice", "Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Gather", "Tile")
    return node.op_type in moves and _is_zero(graph, node.input[0], depth + 1)
