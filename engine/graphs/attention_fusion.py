"""Attention as one node, for graphs in which other optimisers do not see it or pay for it elsewhere.

Matches what `scaled_dot_product_attention` becomes in an export: softmax(s·q·kᵀ [+ bias])·v with heads split off by
Reshape and Transpose, also where q, k and v come out of one product (`qkv`), as in most vision transformers. The
result is `com.microsoft.MultiHeadAttention` fed by the products themselves, so these stay quantizable.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import helper

from .onnx_graph import Graph, attribute


@dataclasses.dataclass(frozen=True)
class _Heads:
    """A value of shape (batch, heads, tokens, width per head), and where it comes from before heads were split off."""

    source: str
    """(batch, tokens, heads × width), or `parts` times that along the last axis."""
    heads: int
    part: int | None = None
    """Which of three equal parts of the source; None: all of it."""


def fuse_attention(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """(a new model, how many attentions were fused). With 0 it is equal to the one given."""
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    graph = Graph(fused)
    count = 0
    splits: dict[str, list[str]] = {}
    biases: dict[tuple[object, ...], str] = {}
    for softmax in [node for node in graph.proto.node if node.op_type == "Softmax"]:
        found = _match(graph, softmax)
        if found is not None:
            _write(graph, softmax, *found, splits, biases)
            count += 1
    if count:
        graph.require_opset("com.microsoft", 1)
        graph.reindex()
        graph.drop_dead()
        graph.sort()
    return fused, count


def _match(graph: Graph, softmax: onnx.NodeProto) -> tuple[list[_Heads], float, str | None, onnx.NodeProto] | None:
    """(q, k, v, scale, additive bias, the Reshape that puts heads together again) around a softmax."""
    if attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    scores, bias, factor = graph.producers.get(softmax.input[0]), None, 1.0
    if scores is not None and scores.op_type == "Add":
        first, second = scores.input
        product, bias = (first, second) if _is_product(graph, first) else (second, first)
        shape = graph.shape(bias)
        if shape is None or not 2 <= len(shape) <= 4 or graph.element_type(bias) not in (onnx.TensorProto.FLOAT, None):
            return None
        scores = graph.producers.get(product)
    if scores is not None and scores.op_type in ("Mul", "Div"):
        value = graph.scalar(scores.input[1])
        if value is None:
            return None
        factor = value if scores.op_type == "Mul" else 1 / value
        scores = graph.producers.get(scores.input[0])
    if scores is None or scores.op_type != "MatMul":
        return None
    (left, left_factor), (right, right_factor) = (_unscaled(graph, name) for name in scores.input)
    keys, key_factor = _unscaled(graph, _untransposed(graph, right) or right)
    shares = _guarded(graph, softmax.output[0]) or softmax.output[0]
    weighted = graph.only_reader(shares)
    if weighted is None or weighted.op_type != "MatMul" or weighted.input[0] != shares:
        return None
    together = graph.only_reader(_seen_again(graph, weighted.output[0]))
    if together is None or together.op_type != "Transpose" or attribute(together, "perm") != [0, 2, 1, 3]:
        return None
    reshape = graph.only_reader(together.output[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    key_heads = _heads(graph, keys) if keys != right else _turned_heads(graph, right)
    sides = [_heads(graph, left), key_heads, _heads(graph, weighted.input[1])]
    heads = [side for side in sides if side is not None]
    if len(heads) != 3 or len({side.heads for side in heads}) != 1:
        return None
    return heads, factor * left_factor * right_factor * key_factor, bias, reshape


def _seen_again(graph: Graph, name: str) -> str:
    """The value behind a Reshape that leaves its shape as it is (as exports of windows have them), else the same."""
    node = graph.only_reader(name)
    if node is None or node.op_type != "Reshape" or node.input[0] != name:
        return name
    before, after = graph.shape(name), graph.shape(node.output[0])
    if before is None or after is None or len(before) != len(after) or before[1:] != after[1:]:
        return name
    return node.output[0] if all(isinstance(size, int) for size in before[1:]) else name


def _guarded(graph: Graph, shares: str) -> str | None:
    """The value behind a softmax in which zeros stand where every key was masked and the result is no number."""
    readers = {reader.op_type: reader for reader in graph.readers.get(shares, [])}
    if set(readers) != {"IsNaN", "Where"} or len(graph.readers[shares]) != 2 or shares in graph.outputs:
        return None
    check, choice = readers["IsNaN"], readers["Where"]
    if list(choice.input) != [check.output[0], choice.input[1], shares] or graph.scalar(choice.input[1]) != 0:
        return None
    return choice.output[0] if graph.only_reader(check.output[0]) is not None else None


def _is_product(graph: Graph, name: str) -> bool:
    """A value that is a matrix product, perhaps times one number: the scores, where a mask may be a Mul too."""
    node = graph.producers.get(_unscaled(graph, name)[0])
    return node is not None and node.op_type == "MatMul"


def _unscaled(graph: Graph, name: str) -> tuple[str, float]:
    """The value before a multiplication with one number, and that number."""
    node = graph.producers.get(name)
    if node is not None and node.op_type in ("Mul", "Div"):
        factor = graph.scalar(node.input[1])
        if factor:
            return node.input[0], factor if node.op_type == "Mul" else 1 / factor
    return name, 1.0


def _untransposed(graph: Graph, name: str) -> str | None:
    """The keys before their last two axes were swapped: by a Transpose, or by one between two Reshapes."""
    node = graph.producers.get(name)
    if node is None:
        return None
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return node.input[0] if perm == [0, 1, 3, 2] else None
    if node.op_type == "Reshape":
        inner = graph.producers.get(node.input[0])
        if inner is not None and inner.op_type == "Transpose" and attribute(inner, "perm") == [0, 2, 1]:
            outer = graph.producers.get(inner.input[0])
            if outer is not None and outer.op_type == "Reshape":
                return outer.input[0]
    return None


def _turned_heads(graph: Graph, name: str) -> _Heads | None:
    """Keys whose heads were split off and whose last two axes were swapped by one and the same Transpose."""
    node = graph.producers.get(name)
    if node is None or node.op_type != "Transpose" or attribute(node, "perm") != [0, 2, 3, 1]:
        return None
    found = _split_off(graph, node.input[0], 4)
    return _Heads(found[0], found[1]) if found else None


def _heads(graph: Graph, name: str) -> _Heads | None:
    """Where a (batch, heads, tokens, width) value comes from."""
    node = graph.producers.get(name)
    if node is None:
        return None
    if node.op_type == "Transpose" and attribute(node, "perm") == [0, 2, 1, 3]:
        found = _split_off(graph, node.input[0], 4)
        return _Heads(found[0], found[1]) if found else None
    taken = _taken(graph, node, name)
    if taken is None:
        return None
    stacked, part = taken
    node = graph.producers.get(stacked)
    if node is None or node.op_type != "Transpose" or attribute(node, "perm") != [2, 0, 3, 1, 4]:
        return None
    found = _split_off(graph, node.input[0], 5)
    return _Heads(found[0], found[1], part) if found and found[2] == 3 else None


def _taken(graph: Graph, node: onnx.NodeProto, name: str) -> tuple[str, int] | None:
    """(the stack, which of it) when a value is one of a stack along axis 0."""
    if node.op_type == "Gather" and attribute(node, "axis", 0) == 0:
        index = graph.scalar(node.input[1])
        return (node.input[0], int(index)) if index is not None and graph.shape(node.input[1]) == () else None
    if node.op_type != "Squeeze":
        return None
    inner = graph.producers.get(node.input[0])
    if inner is None:
        return None
    if inner.op_type == "Split" and attribute(inner, "axis", 0) == 0:
        return inner.input[0], list(inner.output).index(node.input[0])
    if inner.op_type == "Slice" and len(inner.input) >= 4:
        start, end, axis = (graph.scalar(inner.input[index]) for index in (1, 2, 3))
        if start is not None and end == start + 1 and axis == 0:
            return inner.input[0], int(start)
    return None


def _split_off(graph: Graph, name: str, axes: int) -> tuple[str, int, int] | None:
    """(source, heads, parts) of a Reshape (batch, tokens, width) → (batch, tokens, [parts,] heads, width per head)."""
    node = graph.producers.get(name)
    if node is None or node.op_type != "Reshape":
        return None
    shape = graph.constant(node.input[1])
    sizes = shape.tolist() if shape is not None else list(graph.shape(name) or ())
    source = graph.shape(node.input[0])
    if len(sizes) != axes or source is None or len(source) != 3:
        return None
    heads, parts, width = sizes[-2], sizes[2] if axes == 5 else 1, sizes[-1]
    if not (isinstance(heads, int) and isinstance(parts, int) and isinstance(width, int)):
        return None
    if min(heads, parts, width) <= 0 or source[2] != heads * parts * width:
        return None
    return node.input[0], heads, parts


def _write(
    graph: Graph,
    softmax: onnx.NodeProto,
    sides: list[_Heads],
    scale: float,
    bias: str | None,
    reshape: onnx.NodeProto,
    splits: dict[str, list[str]],
    biases: dict[tuple[object, ...], str],
) -> None:
    inputs = []
    for side in sides:
        if side.part is None:
            inputs.append(side.source)
            continue
        if side.source not in splits:
            parts = [graph.unique(f"{side.source}_{letter}") for letter in "qkv"]
            third = graph.shape(side.source)[2] // 3  # type: ignore[index, operator]
            sizes = graph.add_constant(f"{side.source}_sizes", np.array([third] * 3, dtype=np.int64))
            name = graph.unique(f"{side.source}/Split")
            graph.proto.node.append(helper.make_node("Split", [side.source, sizes], parts, name, axis=-1))
            splits[side.source] = parts
        inputs.append(splits[side.source][side.part])
    if bias is not None:
        inputs += ["", "", _full_bias(graph, bias, sides[0].source, sides[1].source, biases)]
    node = helper.make_node(
        "MultiHeadAttention",
        inputs,
        [reshape.output[0]],
        graph.unique(f"{softmax.name.rpartition('/')[0] or softmax.name}/MultiHeadAttention"),
        domain="com.microsoft",
        num_heads=sides[0].heads,
        scale=scale,
    )
    graph.proto.node.remove(reshape)
    graph.proto.node.append(node)


def _full_bias(graph: Graph, bias: str, query: str, key: str, biases: dict[tuple[object, ...], str]) -> str:
    """The bias with an axis for every query and every key: the kernel broadcasts only over samples and heads.

    A padding mask has one row for all queries, (batch, 1, 1, keys): it is repeated.
    """
    shape, lengths = graph.shape(bias), [(graph.shape(name) or (None,) * 3)[1] for name in (query, key)]
    if shape is not None and len(shape) == 4 and None not in lengths and list(shape[2:]) == lengths:
        return bias
    known = (bias, *((length or name) for length, name in zip(lengths, (query, key), strict=True)))
    if known not in biases:
        one = graph.add_constant(f"{bias}_one", np.array([1], dtype=np.int64))
        sizes = [one, one]
        for name in (query, key):
            shape_of, size = graph.unique(f"{name}_shape"), graph.unique(f"{name}_length")
            graph.proto.node.append(helper.make_node("Shape", [name], [shape_of], graph.unique(f"{shape_of}/Shape")))
            taken = helper.make_node("Gather", [shape_of, one], [size], graph.unique(f"{size}/Gather"), axis=0)
            graph.proto.node.append(taken)
            sizes.append(size)
        whole, full = graph.unique(f"{bias}_full_shape"), graph.unique(f"{bias}_full")
        graph.proto.node.append(helper.make_node("Concat", sizes, [whole], graph.unique(f"{whole}/Concat"), axis=0))
        graph.proto.node.append(helper.make_node("Expand", [bias, whole], [full], graph.unique(f"{full}/Expand")))
        biases[known] = full
    return biases[known]
