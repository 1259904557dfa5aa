"""Counts the multiply-adds of one call, for modules and for ONNX graphs, and names a module's kinds of operation.

One multiply-add (MAC) is one product added to a sum, in matrix products and convolutions; what is linear in the
activations (additions, activations, normalisation) is left out, as is usual. A count that cannot be known (an
unknown number of loop iterations, an operator of another domain) is None, never a guess.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import GraphProto, NodeProto
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Shapes = dict[str, tuple[int, ...]]
"""Tensor name → its sizes; tensors of unknown size are missing."""

WITH_WEIGHTS = {
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "Gemm", "QGemm", "FusedGemm", "MatMul",
    "MatMulInteger", "QLinearMatMul", "FusedMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
    "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM", "Attention", "QAttention", "MultiHeadAttention", "Einsum",
}  # fmt: skip
"""Kinds of node that do multiply-adds."""

GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}

ATEN_TO_ONNX = {
    "convolution": "Conv", "mm": "MatMul", "addmm": "Gemm", "bmm": "MatMul", "baddbmm": "MatMul", "linear": "Gemm",
    "embedding": "Gather", "native_layer_norm": "LayerNormalization", "native_batch_norm": "BatchNormalization",
    "_native_batch_norm_legit_no_training": "BatchNormalization", "native_group_norm": "GroupNormalization",
    "relu": "Relu", "relu_": "Relu", "gelu": "Gelu", "silu": "Swish", "silu_": "Swish", "sigmoid": "Sigmoid",
    "tanh": "Tanh", "_softmax": "Softmax", "_log_softmax": "LogSoftmax", "hardtanh": "Clip", "hardtanh_": "Clip",
    "add": "Add", "add_": "Add",
    "mul": "Mul", "div": "Div", "cat": "Concat", "mean": "ReduceMean", "max_pool2d_with_indices": "MaxPool",
    "avg_pool2d": "AveragePool", "_adaptive_avg_pool2d": "GlobalAveragePool", "hardswish": "HardSwish",
    "_scaled_dot_product_flash_attention_for_cpu": "Attention", "_scaled_dot_product_attention_math": "Attention",
    "_scaled_dot_product_flash_attention": "Attention", "_scaled_dot_product_efficient_attention": "Attention",
}  # fmt: skip
"""What PyTorch dispatches → the ONNX operator an exporter would write for it."""

RECURRENT = {torch.nn.LSTM: "LSTM", torch.nn.GRU: "GRU", torch.nn.RNN: "RNN"}


def count_macs(module: torch.nn.Module, call: Callable[[], Any]) -> int | None:
    """Multiply-adds of `call()`, which makes one forward call of `module` without gradients.

    Fused paths are taken apart while counting (recurrent layers into their matrix products, the encoder's fast
    path into attention), so that PyTorch's own FLOP counter sees them. None if the call fails under it.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # switching oneDNN off warns about Intel GPUs
            with (
                torch.backends.mkldnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
                FlopCounterMode(display=False) as counter,
            ):
                call()
    except NotImplementedError:
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(counter.get_total_flops()) // 2


def module_operators(module: torch.nn.Module, call: Callable[[], Any]) -> tuple[str, ...]:
    """ONNX names of the kinds of operation that `call()` runs, sorted; recurrent layers from the module tree."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            word = ATEN_TO_ONNX.get(function.overloadpacket.__name__)
            if word == "Conv" and len(args) > 6 and args[6]:
                word = "ConvTranspose"
            if word:
                seen.add(word)
            return function(*args, **(kwargs or {}))

    seen: set[str] = {RECURRENT[type(m)] for m in module.modules() if type(m) in RECURRENT}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Recorder():
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return tuple(sorted(seen))


def count_graph_macs(model: onnx.ModelProto, shapes: Shapes) -> int | None:
    """Multiply-adds of one call of an ONNX graph, given the shapes of its tensors (see `graph_shapes`)."""
    return _graph_macs(model.graph, shapes)


def graph_shapes(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> Shapes:
    """Shapes of the tensors of a graph for these inputs, as far as ONNX's shape inference finds them.

    The weights are needed only by shape: `model` may have been loaded without its external data.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in inputs:
            del value.type.tensor_type.shape.dim[:]
            for size in inputs[value.name].shape:
                value.type.tensor_type.shape.dim.add().dim_value = size
    for output in fixed.graph.output:  # declared names of axes would otherwise stand in the way of the sizes found
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    with contextlib.suppress(Exception):  # what it cannot infer stays unknown
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    return {name: shape for graph in _graphs(fixed.graph) for name, shape in _known_shapes(graph)}


def probed_shapes(path: Path, inputs: dict[str, np.ndarray], names: tuple[str, ...]) -> Shapes:
    """Shapes that inference does not find, seen by running the unoptimised graph once with these tensors as outputs."""
    model = onnx.load(path, load_external_data=False)
    made = {name for node in model.graph.node for name in node.output}
    given = {value.name for value in model.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name in made]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(wanted, {value.name: inputs[value.name] for value in session.get_inputs()})
    except Exception:  # too large for one message, or a kind of tensor that cannot be an output: stays unknown
        return {}
    return {name: tuple(value.shape) for name, value in zip(wanted, values, strict=True) if hasattr(value, "shape")}


def missing_shapes(model: onnx.ModelProto, shapes: Shapes) -> tuple[str, ...]:
    """Tensors of the main graph whose unknown shape keeps the count from being known."""
    return tuple(
        name
        for node in model.graph.node
        if node.op_type in WITH_WEIGHTS
        for name in (*node.input[:2], node.output[0])
        if name and name not in shapes
    )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _known_shapes(graph: GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], tuple(attribute.t.dims)
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim):
            yield value.name, tuple(dim.dim_value for dim in kind.shape.dim)


def _graph_macs(graph: GraphProto, shapes: Shapes) -> int | None:
    total = 0
    for node in graph.node:
        branches = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
        if branches:
            counts = [_graph_macs(branch, shapes) for branch in branches.values()]
            if node.op_type != "If" and any(counts):
                return None  # how often a Loop or Scan runs is not written in the graph
            if any(count is None for count in counts):
                return None
            total += max(count or 0 for count in counts)
        elif node.op_type in WITH_WEIGHTS:
            count = _node_macs(node, shapes)
            if count is None:
                return None
            total += count
    return total


def _node_macs(node: NodeProto, shapes: Shapes) -> int | None:
    """Multiply-adds of one node; None where a shape it depends on is unknown."""
    kind = node.op_type
    weight_at = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}.get(kind, 1)
    first = shapes.get(node.input[0])
    second = shapes.get(node.input[weight_at]) if len(node.input) > weight_at else None
    out = shapes.get(node.output[0]) if node.output else None
    if first is None or second is None:
        return None
    if kind in ("Conv", "ConvInteger", "QLinearConv", "FusedConv"):
        return None if out is None else math.prod(out) * math.prod(second[1:])
    if kind == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if kind in ("Gemm", "QGemm", "FusedGemm"):
        inner = first[0] if _attribute(node, "transA", 0) else first[-1]
        return None if out is None else math.prod(out) * inner
    if kind == "MatMulNBits":
        return math.prod(first[:-1]) * _attribute(node, "K", 0) * _attribute(node, "N", 0)
    if kind in GATES:
        steps_and_batch = first[0] * first[1]
        hidden = _attribute(node, "hidden_size", 0)
        directions = 2 if _attribute(node, "direction", b"forward") == b"bidirectional" else 1
        return steps_and_batch * directions * GATES[kind] * hidden * (first[2] + hidden)
    if kind in ("Attention", "QAttention", "MultiHeadAttention"):
        return _attention_macs(node, first, second)
    if kind == "Einsum":
        return _einsum_macs(node, shapes)
    return None if out is None else math.prod(out) * first[-1]


def _attention_macs(node: NodeProto, first: tuple[int, ...], second: tuple[int, ...]) -> int | None:
    """com.microsoft Attention: projections of (N, T, D) by (D, 3H), then two products of T × T × H."""
    if node.domain != "com.microsoft" or len(first) != 3:
        return None
    samples, tokens, width = first
    if node.op_type == "MultiHeadAttention":
        return 2 * samples * tokens * second[1] * width if len(second) == 3 else None
    return samples * tokens * width * second[1] + 2 * samples * tokens * tokens * (second[1] // 3)


def _einsum_macs(node: NodeProto, shapes: Shapes) -> int | None:
    """The product of all index ranges; for two operands that is exact."""
    equation = _attribute(node, "equation", b"").decode().replace(" ", "").split("->")[0]
    if "." in equation:
        return None
    sizes: dict[str, int] = {}
    for term, name in zip(equation.split(","), node.input, strict=True):
        shape = shapes.get(name)
        if shape is None or len(shape) != len(term):
            return None
        sizes.update(zip(term, shape, strict=True))
    return math.prod(sizes.values())


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def file_macs(path: Path, inputs: dict[str, np.ndarray], samples: int = 1) -> int | None:
    """Multiply-adds per sample of an `.onnx` file for these inputs, which hold `samples` samples."""
    model = onnx.load(path, load_external_data=False)
    shapes = graph_shapes(model, inputs)
    missing = missing_shapes(model, shapes)
    if missing:
        shapes |= probed_shapes(path, inputs, missing)
    count = count_graph_macs(model, shapes)
    return None if count is None else count // samples
