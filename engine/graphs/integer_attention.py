"""Attention whose product of q, k and v is computed in integers: ONNX Runtime's QAttention.

It writes q, k and v where the rest of the attention wants them, so the Split and three transposes disappear with the
product: measured 5 to 15 % of a small vision transformer's time against a quantized product before a fused float
attention. Possible where q, k and v come from one input by products of equal width (in one matrix or in three,
with or without biases), without a cache and without a bias on the scores.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx

from .onnx_graph import Graph, attribute

KEPT = ("num_heads", "scale", "unidirectional", "mask_filter_value")
"""Attributes that QAttention takes over."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """What makes q, k and v: `value` times `weights` plus `bias`, side by side."""

    value: str
    """Name of the value that all three come from, (batch, tokens, width)."""
    weights: np.ndarray
    """(width, 3 × width of the attention), float32."""
    bias: np.ndarray
    """(3 × width of the attention,), float32."""
    sources: tuple[str, ...]
    """Names of the constants that held the weights."""
    nodes: tuple[str, ...]
    """Names of the products (or of the Attention itself) that are no longer needed."""
    mask: str
    """Name of the mask, or ""."""


def projection(graph: Graph, node: onnx.NodeProto) -> Projection | None:
    """The projection of an Attention or MultiHeadAttention, or None where QAttention cannot stand for it."""
    if node.op_type == "Attention":
        return _of_attention(graph, node)
    inputs = [*node.input, *[""] * (8 - len(node.input))]
    if any(inputs[3:8]) or len(node.output) > 1:
        return None
    parts = _packed(graph, inputs[:3]) or _apart(graph, inputs[:3])
    if parts is None:
        return None
    value, weights, bias, sources, nodes = parts
    if weights.shape[1] % 3 or graph.shape(value) is None or len(graph.shape(value) or ()) != 3:
        return None
    return Projection(value, weights, bias, sources, nodes, "")


_Parts = tuple[str, np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]


def _of_attention(graph: Graph, node: onnx.NodeProto) -> Projection | None:
    inputs = [*node.input, *[""] * (7 - len(node.input))]
    weights, bias = graph.constant(inputs[1]), graph.constant(inputs[2]) if inputs[2] else None
    if weights is None or weights.dtype != np.float32 or (inputs[2] and bias is None):
        return None
    sizes = attribute(node, "qkv_hidden_sizes")
    if any(inputs[4:7]) or len(node.output) > 1 or attribute(node, "do_rotary", 0) or (sizes and len(set(sizes)) > 1):
        return None
    if bias is None:
        bias = np.zeros(weights.shape[1], dtype=np.float32)
    return Projection(inputs[0], weights, bias, (inputs[1],), (node.name,), inputs[3])


def _packed(graph: Graph, names: list[str]) -> _Parts | None:
    """One product, split into three equal parts."""
    split = graph.producers.get(names[0])
    if split is None or split.op_type != "Split" or list(split.output) != names:
        return None
    if attribute(split, "axis", 0) not in (-1, 2) or any(graph.only_reader(name) is None for name in names):
        return None
    sizes = graph.constant(split.input[1]) if len(split.input) > 1 and split.input[1] else None
    if sizes is None or len(set(sizes.tolist())) != 1:
        return None
    return _product(graph, split.input[0])


def _apart(graph: Graph, names: list[str]) -> _Parts | None:
    """Three products of one value."""
    found = [_product(graph, name) for name in names]
    parts = [part for part in found if part is not None]
    if len(parts) != 3 or len({part[0] for part in parts}) != 1 or len({part[1].shape for part in parts}) != 1:
        return None
    return (
        parts[0][0],
        np.concatenate([part[1] for part in parts], axis=1),
        np.concatenate([part[2] for part in parts]),
        tuple(name for part in parts for name in part[3]),
        tuple(name for part in parts for name in part[4]),
    )


def _product(graph: Graph, name: str) -> _Parts | None:
    """A MatMul with constant weights that nothing else reads, with or without a bias behind it."""
    node, bias = graph.producers.get(name), None
    if node is None or graph.only_reader(name) is None:
        return None
    if node.op_type == "Add":
        known = [graph.constant(each) for each in node.input]
        bias = known[0] if known[1] is None else known[1]
        product = node.input[1 if known[1] is None else 0]
        if bias is None or graph.only_reader(product) is None:
            return None
        node = graph.producers.get(product)
    if node is None or node.op_type != "MatMul":
        return None
    weights = graph.constant(node.input[1])
    if weights is None or weights.ndim != 2 or weights.dtype != np.float32:
        return None
    if bias is None:
        bias = np.zeros(weights.shape[1], dtype=np.float32)
    if bias.size != weights.shape[1]:
        return None
    return node.input[0], weights, bias.reshape(-1).astype(np.float32), (node.input[1],), (node.name,)
