"""What of a graph can be put into 4 bits: matrices of products, rows of embeddings. The rest is named with its reason.

"matmul-nbits" is the form with ONNX Runtime's own operators, "qdq" the standard one (see int4_quantization).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from .attention_products import take_out_product
from .onnx_graph import Graph, attribute, element_count, float_weights, subgraphs_of

Form = Literal["matmul-nbits", "qdq"]

SMALLEST = 1 << 12
"""Numbers in a matrix or table below which 4 bits bring nothing that can be seen."""

LEAST_BLOCK = 16
"""Shortest block that the kernels take."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product with constant weights, as (inner, outputs)."""

    node: str
    activation: str
    weight: str
    transposed: bool
    factor: float
    bias: str | None


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding: rows taken by index."""

    node: str
    weight: str


@dataclasses.dataclass
class Plan:
    """What can be put into 4 bits in a graph, and what cannot and why."""

    model: onnx.ModelProto
    products: list[Product] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    total_elements: int = 0

    @property
    def planned_elements(self) -> int:
        """Numbers that will be in 4 bits, weights that several nodes share once."""
        graph = Graph(self.model)
        names = {one.weight for one in self.products} | {table.weight for table in self.tables}
        arrays = [graph.constant(name) for name in names]
        return sum(array.size for array in arrays if array is not None)


def plan_int4(prepared: onnx.ModelProto, form: Form, embeddings: bool, excluded: frozenset[str]) -> Plan:
    """Look at every node. The plan's graph has its fused attentions taken apart."""
    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    graph = Graph(model)
    plan = Plan(model, total_elements=element_count(float_weights(model.graph)))
    for node in list(graph.proto.node):
        if node.name in excluded:
            if node.op_type in ("MatMul", "Gemm", "Gather", "Attention"):
                plan.left[node.name] = "kept in float on request"
            continue
        found: Product | Table | str = ""
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul"):
            found = _product(graph, node)
        elif node.op_type == "Attention" and node.domain == "com.microsoft":
            found = _attention(graph, node)
        elif node.op_type == "Gather" and embeddings:
            found = _table(graph, node, form)
        else:
            found = _why_left(node)
        if isinstance(found, Product):
            plan.products.append(found)
        elif isinstance(found, Table):
            plan.tables.append(found)
        elif found:
            plan.left[node.name] = found
    graph.reindex()
    graph.sort()
    return plan


def _product(graph: Graph, node: onnx.NodeProto) -> Product | str:
    weights = graph.constant(node.input[1])
    if weights is None:
        constant = graph.constant(node.input[0]) is not None
        return "its constant is the first operand, which no 4-bit kernel takes" if constant else ""
    if weights.dtype != np.float32:
        return f"its weights are {weights.dtype}: start from the variant with FP32 weights"
    if weights.ndim != 2:
        return f"its weights have {weights.ndim} axes, 4-bit kernels take matrices"
    if attribute(node, "transA", 0) or attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        return "it transposes its input"
    if why := _too_small(weights.size, weights.shape[1] if attribute(node, "transB", 0) else weights.shape[0]):
        return why
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else None
    if bias and not _plain_bias(graph, node, bias):
        return "it scales its bias, or its bias is no vector of constants"
    turned = bool(attribute(node, "transB", 0))
    return Product(node.name, node.input[0], node.input[1], turned, float(attribute(node, "alpha", 1.0)), bias)


def _plain_bias(graph: Graph, node: onnx.NodeProto, bias: str) -> bool:
    value = graph.constant(bias)
    return value is not None and value.ndim == 1 and attribute(node, "beta", 1.0) == 1


def _attention(graph: Graph, node: onnx.NodeProto) -> Product | str:
    weights = graph.constant(node.input[1])
    if weights is not None and weights.dtype != np.float32:
        return f"its weights are {weights.dtype}: start from the variant with FP32 weights"
    found = take_out_product(graph, node)
    if isinstance(found, str):
        return found
    product, bias = found
    if bias:
        sum_, product.output[0] = product.output[0], graph.unique(f"{product.output[0]}_product")
        name = graph.unique(f"{product.name}/bias")
        graph.proto.node.append(helper.make_node("Add", [product.output[0], bias], [sum_], name))
    return Product(product.name, product.input[0], product.input[1], False, 1.0, None)


def _table(graph: Graph, node: onnx.NodeProto, form: Form) -> Table | str:
    values = graph.constant(node.input[0])
    if values is None or values.ndim != 2 or values.dtype != np.float32 or attribute(node, "axis", 0) != 0:
        return ""
    if values.size < SMALLEST or values.shape[1] < LEAST_BLOCK:
        return "" if values.size < SMALLEST else f"its rows of {values.shape[1]} numbers are shorter than a block"
    if form == "qdq":
        return "standard ONNX cannot take rows of a 4-bit table: the whole of it would be dequantized in every call"
    return Table(node.name, node.input[0])


def _too_small(elements: int, inner: int) -> str:
    if inner < LEAST_BLOCK:
        return f"{inner} weights per output are fewer than the shortest block ({LEAST_BLOCK})"
    return f"only {elements} weights: too few to gain by" if elements < SMALLEST else ""


def _why_left(node: onnx.NodeProto) -> str:
    if node.op_type in ("Conv", "ConvTranspose"):
        return "there is no 4-bit convolution"
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return f"there is no 4-bit {node.op_type}"
    if node.op_type == "EmbedLayerNormalization":
        return "its tables are fused with a normalisation: quantize before optimize-graph to reach them"
    if any(True for _ in subgraphs_of(node)):
        return f"the graphs inside {node.op_type} are not quantized"
    return ""
