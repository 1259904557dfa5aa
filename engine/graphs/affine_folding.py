"""Multiplications and additions with constants, folded into the weights around them; hard activations by their name.

Scaled and shifted features (learnable affine blocks, normalisation written out, a division by six behind a clip)
cost a float node each, and in a quantized graph a Dequantize and a Quantize beside it. Folded, they cost nothing, and
the answers are the same but for rounding of the last bit:

- behind a convolution or a matrix product, into its weights and bias;
- before one, a factor into its weights, and an addend into its bias where there is no padding to tell them apart.

`clip(x + 3, 0, 6) / 6` becomes HardSigmoid, and HardSwish becomes HardSigmoid and a Mul: both have integer forms.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .onnx_graph import Graph, attribute

ANCHORS = ("Conv", "Gemm", "MatMul")

NEAR = 1e-6
"""Relative difference up to which a constant counts as 3, 6 or a sixth."""


def fold_affine(model: onnx.ModelProto) -> int:
    """Fold in place; gives how many nodes went away or got a shorter form."""
    folded, graph = 0, Graph(model)
    while True:
        count = 0
        for node in list(graph.proto.node):
            if graph.producers.get(node.output[0]) != node:
                continue  # it went with another
            if _named(graph, node) or _swapped(graph, node) or _behind(graph, node) or _before(graph, node):
                count += 1
                graph.reindex()
        if not count:
            break
        folded += count
    if folded:
        graph.drop_dead()
        graph.sort()
    return folded


def _is(graph: Graph, name: str, wanted: float) -> bool:
    value = graph.scalar(name)
    return value is not None and abs(value - wanted) <= NEAR * max(abs(wanted), 1.0)


def _affine(graph: Graph, node: onnx.NodeProto) -> tuple[str, str, np.ndarray] | None:
    """("factor" or "addend", the value it changes, the constant) of a Mul, Div, Add or Sub with one constant."""
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.input) != 2:
        return None
    first, second = graph.constant(node.input[0]), graph.constant(node.input[1])
    if (first is None) == (second is None):
        return None
    if second is None and node.op_type in ("Div", "Sub"):
        return None
    constant = second if second is not None else first
    assert constant is not None
    if (
        constant.dtype != np.float32
        or not np.isfinite(constant).all()
        or (node.op_type == "Div" and not constant.all())
    ):
        return None
    kind = "factor" if node.op_type in ("Mul", "Div") else "addend"
    value = node.input[0] if second is not None else node.input[1]
    return kind, value, 1 / constant if node.op_type == "Div" else -constant if node.op_type == "Sub" else constant


def _named(graph: Graph, node: onnx.NodeProto) -> bool:
    """clip(x + 3, 0, 6) / 6 → HardSigmoid; x · clip(x + 3, 0, 6) / 6 and HardSwish → HardSigmoid and Mul."""
    if node.op_type == "HardSwish":
        _write_hard(graph, node, node.input[0], node.name, times=True)
        return True
    if (
        node.op_type != "Clip"
        or len(node.input) < 3
        or not (_is(graph, node.input[1], 0) and _is(graph, node.input[2], 6))
    ):
        return False
    shift = graph.producers.get(node.input[0])
    found = _affine(graph, shift) if shift is not None else None
    if shift is None or found is None or found[0] != "addend" or found[2].size != 1 or abs(found[2].item() - 3) > NEAR:
        return False
    value, reader = found[1], graph.only_reader(node.output[0])
    if reader is None or graph.only_reader(shift.output[0]) is None:
        return False
    if _is_sixth(graph, reader):
        _write_hard(graph, reader, value, node.name, times=False)
    elif reader.op_type == "Mul" and set(reader.input) == {value, node.output[0]}:
        last = graph.only_reader(reader.output[0])
        if last is None or not _is_sixth(graph, last):
            return False
        _write_hard(graph, last, value, node.name, times=True)
        graph.proto.node.remove(reader)
    else:
        return False
    graph.proto.node.remove(node)
    graph.proto.node.remove(shift)
    return True


def _is_sixth(graph: Graph, node: onnx.NodeProto) -> bool:
    found = _affine(graph, node)
    return found is not None and found[0] == "factor" and found[2].size == 1 and abs(found[2].item() * 6 - 1) < NEAR


def _write_hard(graph: Graph, last: onnx.NodeProto, value: str, name: str, times: bool) -> None:
    """HardSigmoid of the value (and a Mul with it) instead of the node that gives the result."""
    output = list(last.output)
    graph.proto.node.remove(last)
    gate = graph.unique(f"{output[0]}_gate") if times else output[0]
    made = [
        helper.make_node("HardSigmoid", [value], [gate], graph.unique(f"{name}/HardSigmoid"), alpha=1 / 6, beta=0.5)
    ]
    if times:
        made.append(helper.make_node("Mul", [value, gate], output, graph.unique(f"{name}/Mul")))
    graph.proto.node.extend(made)


def _swapped(graph: Graph, node: onnx.NodeProto) -> bool:
    """a · x + b → a · (x + b / a) before anchors, so that the factor can go into their weights."""
    found = _affine(graph, node)
    if found is None or found[0] != "addend" or found[2].size != 1:
        return False
    before = graph.producers.get(found[1])
    inner = _affine(graph, before) if before is not None else None
    if before is None or inner is None or inner[0] != "factor" or inner[2].size != 1 or not inner[2].item():
        return False
    maker = graph.producers.get(inner[1])
    if graph.only_reader(before.output[0]) is None or (maker is not None and maker.op_type in ANCHORS):
        return False
    if not _only_anchors(graph, node.output[0]):
        return False
    factor, addend = inner[2].item(), found[2].item() / inner[2].item()
    if not 1e-3 < abs(factor) < 1e3:
        return False
    shifted = graph.unique(f"{before.output[0]}_shifted")  # another value than the one that had the name
    before.CopyFrom(
        helper.make_node(
            "Add",
            [inner[1], graph.add_constant(f"{shifted}_addend", np.array(addend, dtype=np.float32))],
            [shifted],
            before.name,
        )
    )
    constant = graph.add_constant(f"{node.output[0]}_factor", np.array(factor, dtype=np.float32))
    node.CopyFrom(helper.make_node("Mul", [shifted, constant], list(node.output), node.name))
    return True


def _only_anchors(graph: Graph, value: str) -> bool:
    """Every reader takes the value as activation and has constant weights."""
    readers = graph.readers.get(value, [])
    return (
        bool(readers)
        and value not in graph.outputs
        and all(
            reader.op_type in ANCHORS
            and reader.input[0] == value
            and list(reader.input).count(value) == 1
            and _weights(graph, reader) is not None
            and not attribute(reader, "transA", 0)
            for reader in readers
        )
    )


def _weights(graph: Graph, node: onnx.NodeProto) -> np.ndarray | None:
    weights = graph.constant(node.input[1])
    return weights if weights is not None and weights.dtype == np.float32 and weights.ndim >= 2 else None


def _behind(graph: Graph, node: onnx.NodeProto) -> bool:
    """Fold a factor or an addend into the anchor that makes the value."""
    found = _affine(graph, node)
    if found is None:
        return False
    kind, value, constant = found
    anchor = graph.producers.get(value)
    if anchor is None or anchor.op_type not in ANCHORS or graph.only_reader(value) is None:
        return False
    weights = _weights(graph, anchor)
    if weights is None or (anchor.op_type == "MatMul" and (kind == "addend" or weights.ndim != 2)):
        return False
    if anchor.op_type == "Gemm" and (attribute(anchor, "alpha", 1.0) != 1 or attribute(anchor, "beta", 1.0) != 1):
        return False
    turned = anchor.op_type == "MatMul" or (anchor.op_type == "Gemm" and not attribute(anchor, "transB", 0))
    channels = weights.shape[1] if turned else weights.shape[0]
    by_channel = _by_channel(constant, channels, weights.ndim if anchor.op_type == "Conv" else None)
    bias = graph.constant(anchor.input[2]) if len(anchor.input) > 2 and anchor.input[2] else None
    if by_channel is None or (bias is None and len(anchor.input) > 2 and anchor.input[2]):
        return False
    if bias is not None and bias.size != channels:
        return False
    if kind == "factor":
        shape = [1] * weights.ndim
        shape[1 if turned else 0] = channels
        anchor.input[1] = graph.add_constant(f"{anchor.name}_weights", weights * by_channel.reshape(shape))
        new_bias = None if bias is None else bias.reshape(-1) * by_channel
    else:
        new_bias = by_channel if bias is None else bias.reshape(-1) + by_channel
    if new_bias is not None:
        name = graph.add_constant(f"{anchor.name}_bias", new_bias.astype(np.float32))
        del anchor.input[2:]
        anchor.input.append(name)
    anchor.output[0] = node.output[0]
    graph.proto.node.remove(node)
    return True


def _by_channel(constant: np.ndarray, channels: int, rank: int | None) -> np.ndarray | None:
    """The constant as one number per output channel, if it is that; `rank`: of a convolution's output, else None."""
    if constant.size == 1:
        return np.full(channels, constant.reshape(()), dtype=np.float32)
    if constant.size != channels:
        return None
    if rank is None:
        return constant.reshape(-1) if constant.shape[-1] == channels else None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    return constant.reshape(-1) if len(shape) == rank and shape[1] == channels else None


def _before(graph: Graph, node: onnx.NodeProto) -> bool:
    """Fold one number into all the anchors that read the value."""
    found = _affine(graph, node)
    if found is None or found[2].size != 1 or not _only_anchors(graph, node.output[0]):
        return False
    kind, value, constant = found
    number, readers = np.float32(constant.item()), graph.readers[node.output[0]]
    if kind == "addend" and any(not _takes_addend(graph, reader) for reader in readers):
        return False
    for reader in readers:
        weights = _weights(graph, reader)
        assert weights is not None
        if kind == "factor":
            reader.input[1] = graph.add_constant(f"{reader.name}_weights", weights * number)
            continue
        turned = reader.op_type == "Gemm" and not attribute(reader, "transB", 0)
        sums = number * weights.sum(axis=0 if turned else tuple(range(1, weights.ndim)), dtype=np.float64)
        bias = graph.constant(reader.input[2]) if len(reader.input) > 2 and reader.input[2] else None
        name = graph.add_constant(
            f"{reader.name}_bias", (sums + (0 if bias is None else bias.reshape(-1))).astype(np.float32)
        )
        del reader.input[2:]
        reader.input.append(name)
    graph.replace_reads(node.output[0], value)
    graph.proto.node.remove(node)
    return True


def _takes_addend(graph: Graph, reader: onnx.NodeProto) -> bool:
    """A bias can stand for a number added to the input: nothing is padded with zeros that would not get it."""
    if reader.op_type == "MatMul":
        return False
    if len(reader.input) > 2 and reader.input[2]:
        bias = graph.constant(reader.input[2])
        if bias is None or bias.ndim != 1:
            return False
    if reader.op_type == "Gemm":
        return attribute(reader, "alpha", 1.0) == 1 and attribute(reader, "beta", 1.0) == 1
    pads = attribute(reader, "pads")
    return attribute(reader, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and not (pads and any(pads))
