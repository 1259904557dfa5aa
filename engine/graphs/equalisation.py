"""Channels of one value brought to like size, without changing what the graph answers.

An activation has one scale for all its channels, so a channel with small numbers next to one with large ones loses
most of its bits. A factor per channel can be moved between the layer that writes the value and the layers that read
it: divide in one, multiply in the others. Between convolutions that is cross-layer equalisation (Nagel et al.,
ICCV 2019), behind a LayerNorm it is SmoothQuant (Xiao et al., ICML 2023); the factor is SmoothQuant's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx

from .onnx_graph import Graph, attribute

LEAST, MOST = 1e-2, 1e2
"""Factors are kept within these: a channel that was never seen alive must not blow up its weights."""

DIVIDED = "channels divided along axis"
"""What is noted at a node whose result `equalise` has changed, so that who compares values can tell."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """A value whose channels can be scaled: who writes it and who reads it."""

    value: str
    writers: tuple[str, ...]
    """Nodes whose constants are divided, by name: the layer, and an Add of its bias."""
    readers: tuple[str, ...]
    """Anchors whose weights are multiplied, by name."""


def passages(graph: Graph) -> list[Passage]:
    """Values between a layer that can be scaled by channel and anchors with constant weights, and nothing else."""
    found = []
    for value in {node.input[0] for node in graph.proto.node if node.op_type in ("Conv", "Gemm", "MatMul")}:
        readers = graph.readers.get(value, [])
        if value in graph.outputs or not all(_reads_by_channel(graph, reader, value) for reader in readers):
            continue
        writers = _writers(graph, value)
        if writers and len({node.name for node in (*writers, *readers)}) == len(writers) + len(readers):
            found.append(Passage(value, tuple(node.name for node in writers), tuple(reader.name for reader in readers)))
    return sorted(found, key=lambda passage: passage.value)


def equalise(
    model: onnx.ModelProto, peaks: Mapping[str, np.ndarray], alpha: float
) -> tuple[onnx.ModelProto, list[str]]:
    """(a new graph that gives the same answers, the values that were equalised).

    `peaks`: value → its largest absolute number by channel. `alpha` in 0…1: how much of a channel's size goes from
    the value into the weights; 0.5 shares it.
    """
    equal = onnx.ModelProto()
    equal.CopyFrom(model)
    graph = Graph(equal)
    nodes = {node.name: node for node in graph.proto.node}
    done = []
    for passage in passages(graph):
        peak = peaks.get(passage.value)
        readers = [nodes[name] for name in passage.readers]
        needed = [_weight_peaks(graph, reader) for reader in readers]
        if peak is None or any(need.shape != peak.shape for need in needed):
            continue
        factor = _factor(peak.astype(np.float64), np.max(needed, axis=0), alpha)
        if factor is None or not all(_can_divide(graph, nodes[name], factor.size) for name in passage.writers):
            continue
        for name in passage.writers:
            _divide(graph, nodes[name], factor.astype(np.float32))
        axis = "1" if nodes[passage.writers[-1]].op_type == "Conv" else "-1"
        for name in {*passage.writers, graph.producers[passage.value].name}:
            nodes[name].metadata_props.add(key=DIVIDED, value=axis)
        for reader in readers:
            _multiply(graph, reader, factor.astype(np.float32))
        done.append(passage.value)
    graph.reindex()
    graph.sort()
    return equal, done


def divided_along(node: onnx.NodeProto) -> int | None:
    """The axis of the channels of what this node gives, if they were equalised."""
    return next((int(entry.value) for entry in node.metadata_props if entry.key == DIVIDED), None)


def _factor(peak: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray | None:
    """What each channel is divided by: peak^α / weights^(1−α), about 1 in the geometric mean."""
    alive = (peak > 0) & (weights > 0)
    if alive.sum() < 2:
        return None
    logs = np.where(
        alive, alpha * np.log(np.where(alive, peak, 1)) - (1 - alpha) * np.log(np.where(alive, weights, 1)), 0
    )
    logs = np.where(alive, logs - logs[alive].mean(), 0)
    return np.clip(np.exp(logs), LEAST, MOST)


def _reads_by_channel(graph: Graph, node: onnx.NodeProto, value: str) -> bool:
    weights = graph.constant(node.input[1]) if len(node.input) > 1 else None
    return (
        node.op_type in ("Conv", "Gemm", "MatMul")
        and node.input[0] == value
        and list(node.input).count(value) == 1
        and weights is not None
        and weights.dtype == np.float32
        and weights.ndim >= 2
        and (node.op_type != "MatMul" or weights.ndim == 2)
        and not attribute(node, "transA", 0)
    )


def _writers(graph: Graph, value: str) -> list[onnx.NodeProto]:
    """The layer that writes a value, through a ReLU and the Add of a bias; empty where a factor cannot pass."""
    node = graph.producers.get(value)
    if node is not None and node.op_type == "Relu":
        if graph.only_reader(node.input[0]) is None:
            return []
        node = graph.producers.get(node.input[0])
    writers = []
    if node is not None and node.op_type == "Add":
        constants = [graph.constant(name) is not None for name in node.input]
        if sum(constants) != 1 or graph.only_reader(node.input[constants.index(False)]) is None:
            return []
        writers.append(node)
        node = graph.producers.get(node.input[constants.index(False)])
        if node is None or node.op_type != "MatMul":
            return []
    if node is None or node.op_type not in ("Conv", "Gemm", "MatMul", "LayerNormalization"):
        return []
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        return []
    return [*writers, node]


def _channels_of(node: onnx.NodeProto, weights: np.ndarray) -> int:
    """Axis of a layer's output channels in its weights."""
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    return 1 if turned else 0


def _can_divide(graph: Graph, node: onnx.NodeProto, size: int) -> bool:
    if node.op_type == "Add":
        constant = next(array for name in node.input if (array := graph.constant(name)) is not None)
        return constant.size == size and constant.shape[-1] == size
    if any(graph.constant(name) is None for name in node.input[1:] if name):
        return False
    weights = graph.constant(node.input[1])
    assert weights is not None
    if node.op_type == "LayerNormalization":
        return weights.size == size
    if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1):
        return False
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    matrices = weights.ndim == 2 or (weights.ndim > 2 and node.op_type == "Conv")
    fits = matrices and weights.shape[_channels_of(node, weights)] == size
    return fits and weights.dtype == np.float32 and (bias is None or bias.size == size)


def _divide(graph: Graph, node: onnx.NodeProto, factor: np.ndarray) -> None:
    for index, name in enumerate(node.input):
        array = graph.constant(name) if name else None
        if array is None:
            continue
        shape = [1] * array.ndim
        matrix = index == 1 and node.op_type in ("Conv", "Gemm", "MatMul")
        shape[_channels_of(node, array) if matrix else array.ndim - 1] = -1
        node.input[index] = graph.add_constant(f"{node.name}_{index}_equalised", array / factor.reshape(shape))


def _weight_peaks(graph: Graph, node: onnx.NodeProto) -> np.ndarray:
    """Largest absolute weight by input channel."""
    weights = graph.constant(node.input[1])
    assert weights is not None
    magnitudes = np.abs(weights)
    if node.op_type != "Conv":
        return magnitudes.max(axis=_channels_of(node, weights))
    groups = attribute(node, "group", 1)
    by_group = magnitudes.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
    return by_group.max(axis=(1, 3)).reshape(-1)


def _multiply(graph: Graph, node: onnx.NodeProto, factor: np.ndarray) -> None:
    weights = graph.constant(node.input[1])
    assert weights is not None
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        by_group = factor.reshape(groups, 1, weights.shape[1])
        whole = np.broadcast_to(by_group, (groups, weights.shape[0] // groups, weights.shape[1]))
        scale = whole.reshape(weights.shape[0], weights.shape[1], *[1] * (weights.ndim - 2))
    else:
        scale = factor[:, None] if _channels_of(node, weights) == 1 else factor[None, :]
    node.input[1] = graph.add_constant(f"{node.name}_1_multiplied", (weights * scale).astype(np.float32))
