"""FP16 and BF16: the same graph with 16-bit numbers inside, and its inputs and outputs as they were.

Each node computes in 16 bits unless its operator has no such type (the operator's own schema says so, input by
input), it holds a subgraph, or it was named as sensitive. Casts stand only where the two worlds meet; weights are
stored in the type their readers want.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from .onnx_graph import Graph, subgraphs_of
from .operator_types import element_types, signature

Precision = Literal["fp16", "bf16"]

ELEMENT = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
TYPE_NAME = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

LARGEST = {"fp16": 3.0e4, "bf16": 1e38}
"""Beyond this a value is too near the end of the type's range: the node that makes or reads it stays in float."""

SENSITIVE = (
    "Gelu", "Mul", "Softmax", "LayerNormalization", "InstanceNormalization", "Pow", "Exp", "Log", "Erf", "ReduceSum",
    "ReduceMean", "ReduceL2", "SkipLayerNormalization", "CumSum", "Sqrt", "Reciprocal", "Div",
)  # fmt: skip
"""Left in float when the whole graph in 16 bits does not pass the output check."""

QUANTIZING = {"QuantizeLinear", "DequantizeLinear"}


@dataclasses.dataclass
class Converted:
    """The new graph and who computes in what."""

    model: onnx.ModelProto
    touched: list[str]
    left: dict[str, str]
    casts: int


def convert(model: onnx.ModelProto, precision: Precision, kept: Collection[str] = ()) -> Converted:
    """A copy of the model (with inferred types) in this precision; nodes named in `kept` stay in FP32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    result = Converted(copy, [], {}, 0)
    low: set[str] = set()
    types = element_types(graph)
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    nodes = list(graph.proto.node)
    for node in nodes:
        reason = _why_float(graph, node, precision, kept, floats)
        if reason == "" and not any(name in types for name in node.output):
            reason = f"the type of what {node.op_type} gives is not known"
        if reason is None:
            result.touched.append(node.name)
            wide = _wide_outputs(graph, node, precision)
            low.update(name for index, name in enumerate(node.output) if name in floats and index not in wide)
        elif reason:
            result.left[node.name] = reason
    casts: dict[tuple[str, bool], str] = {}
    new: list[onnx.NodeProto] = []
    touched = set(result.touched)
    for node in nodes:
        allowed = _low_inputs(graph, node, precision) if node.name in touched else set()
        for index, name in enumerate(node.input):
            if not name or name not in floats or node.op_type in ("Shape", "Size"):
                continue
            wanted = index in allowed
            if wanted != (name in low):
                node.input[index] = _as(graph, name, wanted, precision, casts, new)
        for inner in subgraphs_of(node):
            _feed_subgraph(graph, inner, low, precision, casts, new)
    result.casts = len(new)
    for value in graph.proto.output:
        if value.name in low:
            inside = graph.unique(f"{value.name}_{precision}")
            maker = graph.producers[value.name]
            maker.output[list(maker.output).index(value.name)] = inside
            for node in [*nodes, *new]:
                for index, name in enumerate(node.input):
                    if name == value.name:
                        node.input[index] = inside
            new.append(helper.make_node("Cast", [inside], [value.name], graph.unique(f"{value.name}/Cast"), to=1))
    graph.proto.node.extend(new)
    del graph.proto.value_info[:]
    graph.reindex()
    graph.drop_dead()
    graph.sort()
    return result


def rounded(model: onnx.ModelProto, touched: Collection[str], precision: Precision) -> onnx.ModelProto:
    """The model in FP32 with each constant that the touched nodes read and each value they make rounded to 16 bits.

    Gives the answers of a converted graph (sums are kept in FP32, as on a GPU) on a machine without its kernels.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    floats, names = float_values(graph), set(touched)
    kinds, constants = (ELEMENT[precision], TensorProto.FLOAT), dict[str, str]()
    nodes = list(graph.proto.node)
    for node in nodes:
        if node.name not in names:
            continue
        for index, name in enumerate(node.input):
            value = graph.constant(name) if name in floats else None
            if value is not None:
                if name not in constants:
                    low = value.astype(NUMPY[precision]).astype(np.float32)
                    constants[name] = graph.add_constant(f"{name}_rounded", low)
                node.input[index] = constants[name]
        for position, name in enumerate(node.output):
            if name not in floats:
                continue
            exact, low_name = graph.unique(f"{name}_exact"), graph.unique(f"{name}_low")
            node.output[position] = exact
            for source, target, kind in ((exact, low_name, kinds[0]), (low_name, name, kinds[1])):
                graph.proto.node.append(
                    helper.make_node("Cast", [source], [target], graph.unique(f"{target}/round"), to=kind)
                )
    del graph.proto.value_info[:]
    graph.reindex()
    graph.sort()
    return copy


def float_values(graph: Graph) -> set[str]:
    """Names of all values of type FP32."""
    return {name for name, kind in element_types(graph).items() if kind == TensorProto.FLOAT}


def _why_float(
    graph: Graph, node: onnx.NodeProto, precision: Precision, kept: Collection[str], floats: set[str]
) -> str | None:
    """Why a node stays in FP32: None if it does not, "" where it has nothing to do with floats."""
    if not any(name in floats for name in node.output) and node.op_type != "QuantizeLinear":
        return ""
    if any(True for _ in subgraphs_of(node)):
        return f"the graphs inside {node.op_type} are not converted"
    if node.op_type in ("Constant", "ConstantOfShape", "Cast", "CastLike", "RandomNormal", "RandomUniform", "EyeLike"):
        return ""
    if node.name in kept:
        return "kept in FP32 so that the answers hold"
    if not _low_inputs(graph, node, precision) and any(name in floats for name in node.input):
        return f"{node.op_type} has no {precision.upper()} form"
    if not any(name in floats for name in node.input):
        return ""
    for name in node.input:
        value = graph.constant(name) if name in floats else None
        if value is not None and value.size and np.abs(value[np.isfinite(value)]).max(initial=0) > LARGEST[precision]:
            return "a constant of it is too large for 16 bits"
    return None


def _low_inputs(graph: Graph, node: onnx.NodeProto, precision: Precision) -> set[int]:
    """Indices of inputs that may be 16 bits wide, by the operator's schema."""
    known = signature(graph, node)
    if known is None:
        return set()
    admits = {variable for variable, allowed in known.allowed.items() if TYPE_NAME[precision] in allowed}
    if known.outputs and known.output(0) not in admits and node.op_type not in QUANTIZING:
        return set()
    return {index for index in range(len(node.input)) if known.input(index) in admits}


def _wide_outputs(graph: Graph, node: onnx.NodeProto, precision: Precision) -> set[int]:
    """Indices of outputs that stay in FP32 although the node computes in 16 bits (means of a normalisation)."""
    known = signature(graph, node)
    if known is None or node.op_type in QUANTIZING:
        return set()
    variables = [known.output(index) for index in range(len(node.output))]
    return {
        index
        for index, variable in enumerate(variables)
        if TYPE_NAME[precision] not in known.allowed.get(variable, {variable})
    }


def _as(
    graph: Graph,
    name: str,
    low: bool,
    precision: Precision,
    casts: dict[tuple[str, bool], str],
    new: list[onnx.NodeProto],
) -> str:
    """The value in the other type: a converted constant, or behind a Cast that all readers share."""
    if (name, low) not in casts:
        constant = graph.constant(name)
        if constant is not None and low:
            casts[name, low] = graph.add_constant(f"{name}_{precision}", constant.astype(NUMPY[precision]))
        else:
            output = graph.unique(f"{name}_{precision if low else 'fp32'}")
            kind = ELEMENT[precision] if low else TensorProto.FLOAT
            new.append(helper.make_node("Cast", [name], [output], graph.unique(f"{output}/Cast"), to=kind))
            casts[name, low] = output
    return casts[name, low]


def _feed_subgraph(
    graph: Graph,
    inner: onnx.GraphProto,
    low: set[str],
    precision: Precision,
    casts: dict[tuple[str, bool], str],
    new: list[onnx.NodeProto],
) -> None:
    """What a subgraph takes from outside it must find in FP32."""
    for node in inner.node:
        for index, name in enumerate(node.input):
            if name in low:
                node.input[index] = _as(graph, name, False, precision, casts, new)
        for deeper in subgraphs_of(node):
            _feed_subgraph(graph, deeper, low, precision, casts, new)
