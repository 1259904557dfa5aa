"""Residual additions before a normalisation, written so that ONNX Runtime leaves the two apart.

ONNX Runtime makes one `SkipLayerNormalization` of an Add and the LayerNormalization behind it. Its kernel for CPUs goes
element by element: 0.36 ms for (512, 256) where the two nodes take 0.10 ms together (1.32, AVX-512), a quarter of the
time of a quantized BERT. `Sum` of two values is the same addition, and no fusion looks for it.
"""

from __future__ import annotations

import onnx

from .onnx_graph import Graph


def separate_residuals(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """(a copy whose residual Adds before a LayerNormalization are Sums, how many there are)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, count = Graph(copy), 0
    for node in graph.proto.node:
        if node.op_type != "LayerNormalization":
            continue
        before = graph.producers.get(node.input[0])
        if before is None or before.op_type != "Add" or before.domain:
            continue
        if all(graph.constant(name) is None for name in before.input):  # else a bias
            before.op_type = "Sum"
            count += 1
    return copy, count
