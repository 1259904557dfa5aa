"""Biases that make up for the mean error of quantization, layer by layer.

`bias_shifts` reckons what the rounded weights of each layer do to the mean of its output: quick, and blind to what
the layers before it, the rounding of activations and the clamping of ranges do. `measured_shifts` looks instead: it
runs the quantized graph up to a layer, with all layers before corrected already, compares the mean with the float
graph's and corrects it, so that errors do not add up along the network. Several layers at once would each be corrected
for what was corrected before them: on one network that took the cosine from 0.983 to 0.958.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper

from .calibration import Calibrator
from .onnx_graph import Graph
from .placement import Plan
from .static_quantization import Written

Watch = Callable[[float], None]


def channels_second(graph: Graph) -> set[str]:
    """Values that convolutions read or write: their channels are axis 1."""
    nodes = [node for node in graph.proto.node if node.op_type == "Conv"]
    return {name for node in nodes for name in (node.input[0], node.output[0])}


def bias_shifts(graph: Graph, plan: Plan, written: Written, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What to add to each bias so that rounding the weights leaves the mean output as it was.

    The mean error of channel o is Σ (w − w̃)[o] · E[x]: Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", ICCV 2019, with E[x] from calibration data. Padding is not accounted for.
    """
    shifts: dict[str, np.ndarray] = {}
    for name, anchor in plan.anchors.items():
        mean, weights = means.get(anchor.activation), graph.constant(anchor.weight)
        if anchor.op_type == "MatMul" or mean is None or weights is None:
            continue
        error = weights.astype(np.float64) - written.weights[name]
        if anchor.op_type == "Gemm":
            matrix = error if anchor.axis == 0 else error.T
            if matrix.shape[1] == mean.size:
                shifts[name] = matrix @ mean
            continue
        per_input = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)  # (out, in of its group)
        groups = mean.size // per_input.shape[1]
        if groups * per_input.shape[1] != mean.size or per_input.shape[0] % groups:
            continue
        by_group = mean.reshape(groups, 1, -1)
        shifts[name] = (per_input.reshape(groups, -1, per_input.shape[1]) * by_group).sum(axis=2).reshape(-1)
    return shifts


def measured_shifts(
    graph: Graph,
    plan: Plan,
    write: Callable[[Mapping[str, np.ndarray]], onnx.ModelProto],
    float_means: Mapping[str, np.ndarray],
    observe: Callable[[onnx.ModelProto], Calibrator],
    watch: Watch = lambda share: None,
) -> dict[str, np.ndarray]:
    """What to add to each bias so that the mean output of each layer of the quantized graph is that of the float one.

    `write(shifts)` gives the quantized graph; `float_means`: anchor → mean of its own output by channel (before an
    activation behind it); `observe(graph)` watches a graph on the calibration data. The sequential correction of
    Nagel et al. (2019). Costs a pass over the data for each layer.
    """
    names = [node.name for node in graph.proto.node if node.name in plan.anchors and node.name in float_means]
    shifts: dict[str, np.ndarray] = {}
    for index, name in enumerate(names):
        watch(index / len(names))
        model, value = _up_to(write(shifts), name)
        convolution = plan.anchors[name].op_type == "Conv"
        mean = observe(model).means([value], channels_second=[value] if convolution else []).get(value)
        if mean is not None and mean.shape == float_means[name].shape:
            shifts[name] = float_means[name] - mean
    return shifts


def _up_to(model: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, str]:
    """The part of a graph that a node's output depends on, and that output."""
    value = next(node.output[0] for node in model.graph.node if node.name == name)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_empty_tensor_value_info(value))
    graph = Graph(part)
    graph.drop_dead()
    graph.sort()
    return part, value
