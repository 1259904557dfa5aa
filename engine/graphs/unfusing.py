"""Takes ONNX Runtime's fused convolutions and products apart again, so that they can be quantized.

A graph that went through its extended optimisations holds `FusedConv`, `FusedGemm` and `FusedMatMul`, which have no
integer kernels; ONNX Runtime fuses what is left of them by itself when it loads the graph. Attention and embeddings
that are fused are not taken apart: whoever leaves them says so with `why_left`.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .onnx_graph import Graph, attribute

ACTIVATIONS = {"Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
"""Activation of a fused node → names of its parameters, in their order."""

LEAST_WEIGHTS = 1 << 8
"""Fused nodes with fewer constants have nothing worth quantizing."""

NO_WEIGHTS = {
    "MultiHeadAttention", "GroupQueryAttention", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "BiasGelu", "FastGelu", "QuickGelu", "GroupNorm", "SkipGroupNorm", "RotaryEmbedding",
}  # fmt: skip
"""Fused nodes whose constants are only added or scale (relative positions, biases, normalisations), however large."""


def unfuse(model: onnx.ModelProto) -> None:
    """Replace what can be replaced, in place; names stay with the convolution or product."""
    graph = Graph(model)
    for node in list(graph.proto.node):
        if node.domain != "com.microsoft":
            continue
        if node.op_type == "FusedConv":
            _convolution(graph, node)
        elif node.op_type == "FusedGemm":
            _with_activation(graph, node, "Gemm", list(node.input))
        elif node.op_type == "FusedMatMul":
            _product(graph, node)
    graph.reindex()
    graph.sort()


def why_left(graph: Graph, node: onnx.NodeProto) -> str | None:
    """What to say of a fused node with weights that a pass does not know; None where there is nothing to say."""
    if node.domain != "com.microsoft" or node.op_type in NO_WEIGHTS:
        return None
    arrays = [graph.constant(name) for name in node.input if name]
    if not any(array is not None and array.dtype.kind == "f" and array.size >= LEAST_WEIGHTS for array in arrays):
        return None
    return f"its weights are fused into {node.op_type}: start from the variant before optimize-graph to reach them"


def _convolution(graph: Graph, node: onnx.NodeProto) -> None:
    inputs = [name for name in node.input[:3] if name]
    added = node.input[3] if len(node.input) > 3 and node.input[3] else None
    _with_activation(graph, node, "Conv", inputs, added)


def _with_activation(
    graph: Graph, node: onnx.NodeProto, kind: str, inputs: list[str], added: str | None = None
) -> None:
    """The plain node, then an addend, then the activation that was fused into it."""
    name, output = attribute(node, "activation", ""), node.output[0]
    if name and name not in ACTIVATIONS and name != "Clip":
        return
    parameters = attribute(node, "activation_params") or [
        attribute(node, f"activation_{part}") for part in ("alpha", "beta", "gamma")
    ]
    plain = graph.unique(f"{output}_plain") if name or added else output
    options = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    kept = {key: value for key, value in options.items() if not key.startswith("activation")}
    new = [helper.make_node(kind, inputs, [plain], node.name, **kept)]
    if added:
        total = graph.unique(f"{output}_sum") if name else output
        new.append(helper.make_node("Add", [plain, added], [total], graph.unique(f"{node.name}/Add")))
        plain = total
    if name == "Clip":
        ends = [
            graph.add_constant(f"{output}_{end}", np.array(value, np.float32)) for end, value in zip("ab", parameters)
        ]
        new.append(helper.make_node("Clip", [plain, *ends], [output], graph.unique(f"{node.name}/Clip")))
    elif name:
        given = {key: value for key, value in zip(ACTIVATIONS[name], parameters) if value is not None}
        new.append(helper.make_node(name, [plain], [output], graph.unique(f"{node.name}/{name}"), **given))
    _replace(graph, node, new)


def _product(graph: Graph, node: onnx.NodeProto) -> None:
    """With constant weights: the factor and the transposition go into them."""
    weights = graph.constant(node.input[1])
    if weights is None or weights.dtype != np.float32 or weights.ndim < 2:
        return
    if any(attribute(node, key, 0) for key in ("transA", "transBatchA", "transBatchB")):
        return
    turned = np.swapaxes(weights, -1, -2) if attribute(node, "transB", 0) else weights
    scaled = np.ascontiguousarray(turned * np.float32(attribute(node, "alpha", 1.0)))
    name = graph.add_constant(f"{node.input[1]}_unfused", scaled)
    _replace(graph, node, [helper.make_node("MatMul", [node.input[0], name], [node.output[0]], node.name)])


def _replace(graph: Graph, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    for node in new:
        node.metadata_props.extend(old.metadata_props)
    graph.proto.node.remove(old)
    graph.proto.node.extend(new)
