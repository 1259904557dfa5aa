"""Which element types an operator takes and gives, from its schema; and the types of values that inference leaves open.

onnx infers nothing behind an operator of a foreign domain, so one fused node would hide everything after it. ONNX
Runtime knows the schemas of its own operators, and a type variable that an output shares with an input has its type.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import onnx
import onnxruntime.capi.onnxruntime_pybind11_state as onnxruntime_state
from onnx import TensorProto, helper

from .onnx_graph import Graph, attribute

ELEMENTS = {
    f"tensor({name})": kind
    for name, kind in (
        ("float", TensorProto.FLOAT), ("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16),
        ("double", TensorProto.DOUBLE), ("int64", TensorProto.INT64), ("int32", TensorProto.INT32),
        ("bool", TensorProto.BOOL), ("uint8", TensorProto.UINT8), ("int8", TensorProto.INT8),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Signature:
    """Type variables (or types) of an operator's inputs and outputs; the last of each stands for any that follow."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: Mapping[str, frozenset[str]]
    """Type variable → the types it may be."""

    def input(self, index: int) -> str:
        return self.inputs[min(index, len(self.inputs) - 1)] if self.inputs else ""

    def output(self, index: int) -> str:
        return self.outputs[min(index, len(self.outputs) - 1)] if self.outputs else ""


def signature(graph: Graph, node: onnx.NodeProto) -> Signature | None:
    """The node's signature, None for an operator that neither onnx nor ONNX Runtime knows."""
    try:
        found = onnx.defs.get_schema(node.op_type, graph.opset(node.domain), node.domain)
    except onnx.defs.SchemaError:
        return _onnxruntimes().get((node.domain, node.op_type))
    return Signature(
        tuple(formal.type_str for formal in found.inputs),
        tuple(formal.type_str for formal in found.outputs),
        {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in found.type_constraints},
    )


@functools.cache
def _onnxruntimes() -> dict[tuple[str, str], Signature]:
    """Operators that only ONNX Runtime has."""
    return {
        (found.domain, found.name): Signature(
            tuple(formal.typeStr for formal in found.inputs),
            tuple(formal.typeStr for formal in found.outputs),
            {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in found.type_constraints},
        )
        for found in onnxruntime_state.get_all_operator_schema()
    }


def element_types(graph: Graph) -> dict[str, int]:
    """Value → element type, for every value of which it can be told; nodes must come after what they read."""
    known = {name: tensor.data_type for name, tensor in graph.initializers.items()}
    for name in graph.value_info:
        kind = graph.element_type(name)
        if kind:
            known[name] = kind
    for node in graph.proto.node:
        missing = [index for index, name in enumerate(node.output) if name and name not in known]
        if not missing:
            continue
        if node.op_type == "Constant":
            value = graph.constant(node.output[0])
            if value is not None:
                known[node.output[0]] = helper.np_dtype_to_tensor_dtype(value.dtype)
            continue
        if node.op_type == "Cast":
            known[node.output[0]] = attribute(node, "to")
            continue
        found = signature(graph, node)
        if found is None:
            continue
        bound = {
            found.input(index): known[name] for index, name in enumerate(node.input) if name in known and found.inputs
        }
        for index in missing:
            variable = found.output(index)
            only = found.allowed.get(variable, frozenset({variable}))
            kind = bound.get(variable) or (ELEMENTS.get(next(iter(only))) if len(only) == 1 else None)
            if kind:
                known[node.output[index]] = kind
    return known
