"""Integer weights, and activations that get their scale while the model runs: no calibration data needed.

Matrix products become DynamicQuantizeLinear → MatMulInteger → scale, which ONNX Runtime fuses into one kernel;
LSTM becomes ONNX Runtime's DynamicQuantizeLSTM; the rows of an embedding are stored as bytes with one scale each.
Convolutions are never touched: ConvInteger is several times slower than a float convolution. Recurrent layers of
other kinds and the graphs inside If, Loop and Scan stay as they are, and are named.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper

from .attention_products import take_out_product
from .integer_attention import KEPT, projection
from .integers import quantize_weights
from .onnx_graph import Graph, attribute, element_count, float_weights, subgraphs_of
from .unfusing import why_left

SMALLEST_EMBEDDING = 1 << 12
"""Numbers in a table below which storing bytes brings nothing."""

NO_KERNEL = {
    "GRU": "ONNX Runtime has no quantized GRU, PyTorch has: quantize-dynamic with format = pytorch, from the module",
    "RNN": "no runtime has a quantized RNN: use an LSTM, or a GRU with format = pytorch",
}
"""Recurrent layers that stay in float → why, and what to do."""

WHOLE_GRAPHS = {"If", "Loop", "Scan"}


@dataclasses.dataclass
class Result:
    """The new graph, what was changed in it and what was not."""

    model: onnx.ModelProto
    touched: list[str] = dataclasses.field(default_factory=list)
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    """Node name → reason."""
    quantized_elements: int = 0
    total_elements: int = 0

    @property
    def share(self) -> float:
        """Share of the model's floating-point numbers that are now 8-bit integers."""
        return self.quantized_elements / self.total_elements if self.total_elements else 0.0


def quantize_dynamically(
    prepared: onnx.ModelProto,
    seven_bit: bool,
    per_channel: bool = True,
    embeddings: bool = True,
    excluded: frozenset[str] = frozenset(),
    integer_attention: bool = False,
) -> Result:
    """Quantize every matrix product, LSTM and embedding with constant weights, but the `excluded` nodes.

    `integer_attention`: turn fused attentions into ONNX Runtime's QAttention where it can stand for them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    graph = Graph(model)
    result = Result(model, total_elements=element_count(float_weights(model.graph)))
    pass_ = _Pass(graph, result, seven_bit, per_channel)
    if integer_attention:
        for node in list(graph.proto.node):
            if node.op_type in ("Attention", "MultiHeadAttention") and node.domain == "com.microsoft":
                result.touched += pass_.attention(node, excluded)
        graph.reindex()
        graph.drop_dead()
    for node in list(graph.proto.node):
        rewrite = {
            "MatMul": pass_.matrix_product,
            "Gemm": pass_.gemm,
            "LSTM": pass_.lstm,
            "Attention": pass_.packed_attention if node.domain == "com.microsoft" else None,
        }.get(node.op_type)
        if node.op_type == "Gather" and embeddings:
            rewrite = pass_.embedding
        if rewrite is None:
            reason = _why_left(node) or why_left(graph, node)
            if reason:
                result.left[node.name] = reason
        elif node.name in excluded:
            result.left[node.name] = "kept in float on request"
        else:
            reason = rewrite(node)
            if reason is None:
                result.touched.append(node.name)
            elif reason:
                result.left[node.name] = reason
    result.quantized_elements = sum(pass_.quantized.values())
    graph.reindex()
    graph.sort()
    return result


def _why_left(node: onnx.NodeProto) -> str | None:
    if node.op_type in ("Conv", "ConvTranspose"):
        return "a dynamically quantized convolution is slower than a float one"
    if node.op_type in ("GRU", "RNN"):
        return NO_KERNEL[node.op_type]
    if node.op_type in WHOLE_GRAPHS and any(True for _ in subgraphs_of(node)):
        return f"the graphs inside {node.op_type} are not quantized"
    return None


def quantize_rest(model: onnx.ModelProto, seven_bit: bool, per_channel: bool, excluded: frozenset[str]) -> Result:
    """Only what no static kernel exists for: LSTM layers and embeddings, in a graph that is quantized statically."""
    graph = Graph(model)
    result = Result(model)
    pass_ = _Pass(graph, result, seven_bit, per_channel)
    for node in list(graph.proto.node):
        rewrite = {"LSTM": pass_.lstm, "Gather": pass_.embedding}.get(node.op_type)
        if rewrite is not None and node.name not in excluded and rewrite(node) is None:
            result.touched.append(node.name)
    result.quantized_elements = sum(pass_.quantized.values())
    graph.reindex()
    graph.sort()
    return result


class _Pass:
    """Rewrites nodes one by one. Each rewrite gives None when done, else why not ("" for nothing worth saying)."""

    def __init__(self, graph: Graph, result: Result, seven_bit: bool, per_channel: bool) -> None:
        self.graph, self.result = graph, result
        self.seven_bit, self.per_channel = seven_bit, per_channel
        self.quantized: dict[str, int] = {}
        self._activations: dict[str, tuple[str, str, str]] = {}
        self._weights: dict[tuple[str, bool, float], tuple[str, str, str]] = {}

    def matrix_product(self, node: onnx.NodeProto) -> str | None:
        weights = self._float_constant(node.input[1])
        if weights is None:
            if self.graph.constant(node.input[0]) is not None:
                return "its constant is the first operand, which the integer kernel cannot take"
            return "both operands are activations"
        if weights.ndim < 2:
            return "its weights are a vector"
        self._product(node, node.input[0], node.input[1], False, 1.0, None)
        return None

    def gemm(self, node: onnx.NodeProto) -> str | None:
        if self._float_constant(node.input[1]) is None:
            return "its second operand is computed in the graph"
        if attribute(node, "transA", 0):
            return "it transposes its input"
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        beta = attribute(node, "beta", 1.0)
        if bias and beta != 1:
            constant = self.graph.constant(bias)
            if constant is None:
                return "it scales a bias that is computed in the graph"
            bias = self.graph.add_constant(f"{bias}_scaled", (constant * np.float32(beta)).astype(np.float32))
        transposed = bool(attribute(node, "transB", 0))
        self._product(node, node.input[0], node.input[1], transposed, attribute(node, "alpha", 1.0), bias)
        return None

    def lstm(self, node: onnx.NodeProto) -> str | None:
        if attribute(node, "layout", 0):
            return "its layout is batch-first, which the quantized kernel cannot take"
        matrices = [self._float_constant(name) for name in node.input[1:3]]
        if any(matrix is None for matrix in matrices):
            return "its weights are computed in the graph"
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        extra: list[str] = []
        for index, matrix in enumerate(matrices, start=1):
            assert matrix is not None
            turned = matrix.transpose(0, 2, 1)  # (directions, in, 4 × hidden), as the kernel reads it
            halves = [quantize_weights(part, 1 if self.per_channel else None, self.seven_bit) for part in turned]
            integers, scales = np.stack([half[0] for half in halves]), np.stack([half[1] for half in halves])
            base = node.input[index]
            inputs[index] = self.graph.add_constant(f"{base}_quantized", integers)
            extra.append(self.graph.add_constant(f"{base}_scale", scales))
            extra.append(self.graph.add_constant(f"{base}_zero_point", np.zeros(scales.shape, dtype=np.int8)))
            self.quantized[base] = matrix.size
        fused = helper.make_node(
            "DynamicQuantizeLSTM", [*inputs, *extra], list(node.output), node.name, domain="com.microsoft"
        )
        fused.attribute.extend(entry for entry in node.attribute if entry.name != "layout")
        self._replace(node, [fused])
        self.graph.require_opset("com.microsoft", 1)
        return None

    def attention(self, node: onnx.NodeProto, excluded: frozenset[str]) -> tuple[str, ...]:
        """Turn a fused attention into QAttention; gives the names of what is quantized by it, if anything is."""
        found = projection(self.graph, node)
        if found is None or {node.name, *found.nodes} & excluded:
            return ()
        integer_input, input_scale, input_zero = self._activation(found.value)
        integers, scales = quantize_weights(found.weights, 1 if self.per_channel else None, self.seven_bit)
        constant = self.graph.add_constant
        inputs = [
            integer_input,
            constant(f"{node.name}_weights", integers),
            constant(f"{node.name}_bias", found.bias),
            input_scale,
            constant(f"{node.name}_weights_scale", scales),
            found.mask,
            input_zero,
            constant(f"{node.name}_weights_zero_point", np.zeros(scales.shape, dtype=np.int8)),
        ]
        made = helper.make_node("QAttention", inputs, list(node.output), node.name, domain="com.microsoft")
        made.attribute.extend(entry for entry in node.attribute if entry.name in KEPT)
        self._replace(node, [made])
        self.graph.require_opset("com.microsoft", 1)
        for name in found.sources:
            constant_weights = self.graph.constant(name)
            self.quantized[name] = constant_weights.size if constant_weights is not None else 0
        return found.nodes

    def packed_attention(self, node: onnx.NodeProto) -> str | None:
        """ONNX Runtime's Attention holds the weights of q, k and v: take the product out, then quantize that."""
        if self._float_constant(node.input[1]) is None:
            return "its weights are computed in the graph"
        found = take_out_product(self.graph, node)
        if isinstance(found, str):
            return found
        product, bias = found
        self._product(product, product.input[0], product.input[1], False, 1.0, bias)
        return None

    def embedding(self, node: onnx.NodeProto) -> str | None:
        """Rows as bytes, each with its own scale: Gather bytes, Gather scales, multiply."""
        table = self._float_constant(node.input[0])
        if table is None or table.ndim != 2 or table.size < SMALLEST_EMBEDDING or attribute(node, "axis", 0) != 0:
            return ""
        base = node.input[0]
        tied = self._rows_of_a_product(base)
        if tied is not None:
            rows, scales = tied
        else:
            integers, scales = quantize_weights(table, 0, seven_bit=False)  # never multiplied with bytes: full range
            rows = self.graph.add_constant(f"{base}_quantized", integers)
            self.quantized[base] = table.size
        row_scales = self.graph.add_constant(f"{base}_row_scale", scales.reshape(-1, 1))
        name, indices = node.output[0], node.input[1]
        taken, scale, real = (self.graph.unique(f"{name}_{part}") for part in ("bytes", "scale", "real"))
        self._replace(
            node,
            [
                helper.make_node("Gather", [rows, indices], [taken], node.name),
                helper.make_node("Gather", [row_scales, indices], [scale], self.graph.unique(f"{node.name}/scale")),
                helper.make_node("Cast", [taken], [real], self.graph.unique(f"{node.name}/cast"), to=TensorProto.FLOAT),
                helper.make_node("Mul", [real, scale], [name], self.graph.unique(f"{node.name}/dequantize")),
            ],
        )
        return None

    def _rows_of_a_product(self, table: str) -> tuple[str, np.ndarray] | None:
        """(bytes, a scale for each row) of a table that a statically quantized product has too: stored once."""
        rows, scales = f"{table}_quantized", self.graph.constant(f"{table}_scale")
        stored, original = self.graph.constant(rows), self.graph.constant(table)
        if stored is None or scales is None or original is None or stored.dtype != np.int8:
            return None
        return (rows, scales) if stored.shape == original.shape and scales.shape == original.shape[:1] else None

    def _product(
        self, node: onnx.NodeProto, left: str, weights: str, transposed: bool, alpha: float, bias: str | None
    ) -> None:
        integer_input, input_scale, input_zero = self._activation(left)
        integers, scales, zero = self._weight(weights, transposed, alpha)
        unique, output = self.graph.unique, node.output[0]
        accumulated, real, scale = (unique(f"{output}_{part}") for part in ("integer", "real", "scale"))
        product = unique(f"{output}_product") if bias else output
        nodes = [
            helper.make_node("Mul", [input_scale, scales], [scale], unique(f"{node.name}/scale")),
            helper.make_node(
                "MatMulInteger",
                [integer_input, integers, input_zero, zero],
                [accumulated],
                unique(f"{node.name}/MatMulInteger"),
            ),
            helper.make_node("Cast", [accumulated], [real], unique(f"{node.name}/cast"), to=TensorProto.FLOAT),
            helper.make_node("Mul", [real, scale], [product], unique(f"{node.name}/dequantize")),
        ]
        if bias:
            nodes.append(helper.make_node("Add", [product, bias], [output], unique(f"{node.name}/bias")))
        self._replace(node, nodes)

    def _activation(self, name: str) -> tuple[str, str, str]:
        """One DynamicQuantizeLinear for all that read a value: (integers, scale, zero point)."""
        if name not in self._activations:
            values = tuple(self.graph.unique(f"{name}_{part}") for part in ("quantized", "scale", "zero_point"))
            node = helper.make_node("DynamicQuantizeLinear", [name], values, self.graph.unique(f"{name}/quantize"))
            self.graph.proto.node.append(node)
            self._activations[name] = values  # type: ignore[assignment]
        return self._activations[name]

    def _weight(self, name: str, transposed: bool, alpha: float) -> tuple[str, str, str]:
        key = (name, transposed, alpha)
        if key not in self._weights:
            weights = self._float_constant(name)
            assert weights is not None
            matrix = weights.T if transposed else weights
            axis = 1 if self.per_channel and matrix.ndim == 2 else None
            integers, scales = quantize_weights(matrix, axis, self.seven_bit)
            self.quantized[name] = weights.size
            self._weights[key] = (
                self.graph.add_constant(f"{name}_quantized", integers),
                self.graph.add_constant(f"{name}_scale", (scales * np.float32(alpha)).astype(np.float32)),
                self.graph.add_constant(f"{name}_zero_point", np.zeros(scales.shape, dtype=np.int8)),
            )
        return self._weights[key]

    def _float_constant(self, name: str) -> np.ndarray | None:
        value = self.graph.constant(name)
        return value if value is not None and value.dtype == np.float32 else None

    def _replace(self, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
        for node in new:
            node.metadata_props.extend(old.metadata_props)
        self.graph.proto.node.remove(old)
        self.graph.proto.node.extend(new)
