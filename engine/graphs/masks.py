"""Attention masks that make a softmax compute numbers below the smallest float, which takes ten times as long.

With two in five of (8, 4, 64, 64) scores masked, ONNX Runtime's softmax takes 60 µs while the mask is −80 or above, and
600 to 1,200 µs with anything lower, −inf included: each exponential that underflows stops the processor for a hundred
cycles (1.32, AVX-512). A mask of −100 also leaves denormal shares behind, and the product with the values slows down
as much. −60 does neither, and what it leaves of a masked share is 10⁻²⁶ of an unmasked one's with the same score.

That is nothing unless masked scores are some forty above the unmasked. So whoever takes a raised mask checks the
answers with `DOUBT`, too: if even that mask changes nothing, the one that is kept has a margin of e²⁵.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .onnx_graph import Graph, attribute

RAISED, DOUBT = -60.0, -35.0
"""What masks become, and what they may become without a change of the answers if that is to be safe."""

THROUGH = {
    "Add", "Sum", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Tile", "Transpose", "Cast", "Identity", "Concat",
    "Where",
}  # fmt: skip
"""Operators that hand values of a mask on, or add them to others."""

FILTER = "mask_filter_value"
"""Attribute of ONNX Runtime's attentions: what their mask of zeros and ones adds to a score."""

FILTER_DEFAULT = -10000.0

MASK_INPUT = {"MultiHeadAttention": 4, "Attention": 3, "QAttention": 5}
"""Fused attentions → where their mask of zeros and ones comes in."""


def raise_masks(model: onnx.ModelProto, value: float = RAISED) -> tuple[onnx.ModelProto, int]:
    """(a copy whose masks before a softmax are nowhere below `value`, how many constants were raised)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    raised: dict[str, str] = {}
    waiting = [(node, 0) for node in graph.proto.node if node.op_type == "Softmax"]
    waiting += [(node, 5) for node in graph.proto.node if node.op_type == "MultiHeadAttention" and len(node.input) > 5]
    seen: set[tuple[int, int]] = set()
    while waiting:
        node, index = waiting.pop()
        if (id(node), index) in seen:
            continue
        seen.add((id(node), index))
        name = node.input[index]
        if not name:
            continue
        before = graph.producers.get(name)
        if before is not None and before.op_type in THROUGH:
            waiting += [(before, number) for number in range(len(before.input))]
        elif before is not None and before.op_type == "Mul":  # (1 − mask) · −10,000
            waiting += [(before, number) for number in range(2) if graph.scalar(before.input[number]) is not None]
        mask = graph.constant(name)
        if mask is None or mask.dtype != np.float32 or not (mask < value).any():
            continue
        if name not in raised:
            raised[name] = graph.add_constant(f"{name}_raised", np.maximum(mask, np.float32(value)))
        node.input[index] = raised[name]
    count = len(raised) + sum(_filter_raised(node, value) for node in graph.proto.node)
    if count:
        graph.reindex()
        graph.sort()
    return copy, count


def _filter_raised(node: onnx.NodeProto, value: float) -> bool:
    """Raise what a fused attention adds where its mask is zero."""
    index = MASK_INPUT.get(node.op_type)
    if index is None or node.domain != "com.microsoft" or len(node.input) <= index or not node.input[index]:
        return False
    if attribute(node, FILTER, FILTER_DEFAULT) >= value:
        return False
    kept = [entry for entry in node.attribute if entry.name != FILTER]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(FILTER, value)])
    return True
