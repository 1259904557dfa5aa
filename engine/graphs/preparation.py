"""What every quantization starts from: a clean float graph that gives the source's answers.

ONNX Runtime's own "basic" optimisations do the work (they give standard ONNX): BatchNorm folded into
convolutions, constants folded, identities dropped. Two rewrites are added that its quantized kernels want, and
shapes that are computed although they are known become constants.
Element types and shapes are inferred, so that passes can ask for them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from onnx import helper

from .affine_folding import fold_affine
from .onnx_graph import Graph, all_nodes, attribute, is_large, without_weights
from .sessions import rewritten
from .shape_folding import fold_shapes
from .unfusing import unfuse

KEPT_APART = ["MatMulAddFusion", "ConstantSharing"]
"""Optimisers left out. The first makes Gemm with reshapes around it of a MatMul with more than two axes; the
second lets unrelated nodes share a constant, which then cannot be quantized for each."""


LEAST_OPSET = 13
"""Quantize and Dequantize know channels from here on."""


class OpsetTooOld(Exception):
    """The graph's operators are older than quantization needs; the text says why they could not be raised."""


def prepare(
    path: Path,
    for_static: bool = False,
    least_opset: int = LEAST_OPSET,
    keep_transposes: bool = False,
    fold: bool = False,
) -> onnx.ModelProto:
    """The graph at `path`, cleaned. `for_static` also turns means over all of an image into GlobalAveragePool.

    `keep_transposes`: leave them where the exporter put them, which is where `fuse_attention` looks for them.
    `fold`: take factors and addends into the weights around them, and hard activations apart (`affine_folding`).
    Raises OpsetTooOld for graphs of before 2020 that cannot be brought up to date.
    """
    unwanted = [*KEPT_APART, "TransposeOptimizer"] if keep_transposes else KEPT_APART
    model = rewritten(path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC, unwanted)
    if for_static:
        _means_to_pooling(model)
    model = raise_opset(model, least_opset)
    name_nodes(model)
    unfuse(model)
    model = with_shapes(model)
    fold_shapes(model)
    if fold:
        fold_affine(model)
        name_nodes(model)
    used = {node.domain for node in all_nodes(model.graph)} | {"", "ai.onnx"}
    kept = [entry for entry in model.opset_import if entry.domain in used]  # ONNX Runtime lists all it knows
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return with_shapes(model)


def raise_opset(model: onnx.ModelProto, least: int = LEAST_OPSET) -> onnx.ModelProto:
    """The model with at least this version of the standard operators. Raises OpsetTooOld where onnx cannot convert."""
    version = Graph(model).opset()
    if version >= least:
        return model
    try:
        return onnx.version_converter.convert_version(model, least)
    except Exception as error:  # the converter raises bare RuntimeErrors, and others for foreign operators
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise OpsetTooOld(
            f"its operators are of version {version}, quantized weights per channel need {least}, and raising it "
            f"failed: {line}"
        ) from None


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred types and shapes; as it is where inference cannot read it."""
    large = is_large(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(without_weights(model)[0] if large else model)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        # an operator of a foreign domain, or a graph that is wrong: the passes cope with unknown shapes
        return model
    if not large:
        return inferred
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    del shaped.graph.value_info[:], shaped.graph.output[:]
    shaped.graph.value_info.extend(inferred.graph.value_info)
    shaped.graph.output.extend(inferred.graph.output)
    return shaped


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node without a name one, and make names unique: they are how results are told."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in seen:
            name += "_"
        node.name = name
        seen.add(name)


def _means_to_pooling(model: onnx.ModelProto) -> None:
    """ReduceMean over both axes of a picture → GlobalAveragePool (and Flatten), which has an integer kernel."""
    graph = Graph(model)
    for node in list(graph.proto.node):
        if node.op_type != "ReduceMean":
            continue
        axes = attribute(node, "axes")
        if axes is None and len(node.input) > 1:
            constant = graph.constant(node.input[1])
            axes = None if constant is None else constant.tolist()
        shape = _rank_four(graph, node.input[0])
        if not shape or axes is None or sorted(axis % 4 for axis in np.ravel(axes).tolist()) != [2, 3]:
            continue
        value, mean = node.input[0], node.output[0]
        pooled = mean if attribute(node, "keepdims", 1) else graph.unique(f"{mean}_pooled")
        if pooled != mean:
            flat = helper.make_node("Flatten", [pooled], [mean], graph.unique(f"{node.name}/Flatten"), axis=1)
            graph.proto.node.append(flat)
        node.CopyFrom(helper.make_node("GlobalAveragePool", [value], [pooled], node.name))
    graph.reindex()
    graph.sort()


def _rank_four(graph: Graph, name: str) -> bool:
    """A value that is sure to be (batch, channels, height, width)."""
    shape = graph.shape(name)
    if shape is not None:
        return len(shape) == 4
    node = graph.producers.get(name)
    while node is not None and node.op_type in ("Relu", "Clip", "Add", "LeakyRelu", "HardSwish", "Sigmoid", "Mul"):
        node = graph.producers.get(node.input[0])
    if node is None or node.op_type != "Conv":
        return False
    weight = graph.constant(node.input[1])
    return weight is not None and weight.ndim == 4
