"""ONNX Runtime's fused Attention holds the weights of q, k and v: takes their product out, so that it can be quantized.

Afterwards the product is a MatMul like any other, and MultiHeadAttention does the rest with the same options.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .onnx_graph import Graph, attribute

KEPT = ("num_heads", "scale", "unidirectional", "mask_filter_value")
"""Attributes that MultiHeadAttention takes over."""


def take_out_product(graph: Graph, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str | None] | str:
    """Replace an Attention by its product, a Split and a MultiHeadAttention of the same name.

    Gives the product and the name of the bias, which the new nodes do not add (the caller must), or why it cannot be
    taken out.
    """
    weights = graph.constant(node.input[1])
    inputs = [*node.input, *[""] * (7 - len(node.input))]
    if weights is None:
        return "its weights are computed in the graph"
    widths = attribute(node, "qkv_hidden_sizes") or [weights.shape[1] // 3] * 3
    if inputs[4] or len(node.output) > 1 or widths[0] != widths[1] or attribute(node, "do_rotary", 0):
        return "it keeps a cache or turns its input, which needs the fused float kernel"
    unique = graph.unique
    packed, parts = unique(f"{node.output[0]}_qkv"), [unique(f"{node.output[0]}_{part}") for part in "qkv"]
    product = helper.make_node("MatMul", [node.input[0], node.input[1]], [packed], unique(f"{node.name}/qkv"))
    sizes = graph.add_constant(f"{node.name}_sizes", np.array(widths, dtype=np.int64))
    core = helper.make_node(
        "MultiHeadAttention",
        [*parts, "", inputs[3], inputs[5]],
        list(node.output),
        node.name,
        domain="com.microsoft",
    )
    core.attribute.extend(entry for entry in node.attribute if entry.name in KEPT)
    split = helper.make_node("Split", [packed, sizes], parts, unique(f"{node.name}/Split"), axis=-1)
    for new in (product, split, core):
        new.metadata_props.extend(node.metadata_props)
    graph.proto.node.remove(node)
    graph.proto.node.extend([product, split, core])
    # the list holds copies of what was put in: find the product where it now is
    (placed,) = (item for item in graph.proto.node if item.name == product.name)
    return placed, inputs[2] or None
