"""Weights that several layers share, stored once again: optimisers fold each use of one into a constant of its own."""

from __future__ import annotations

import hashlib
from collections import Counter

import onnx
from onnx import numpy_helper

from .onnx_graph import all_nodes

LEAST_BYTES = 1 << 10
"""Smaller constants stay as they are: that scales and biases are equal is chance, and saves nothing."""


def share_weights(model: onnx.ModelProto) -> int:
    """Keep one of the main graph's constants of equal type, shape and bytes; gives how many were dropped.

    Only those whose type and shape are not unique are read. Those that are inputs or outputs of the graph stay.
    """
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    kinds = [
        (tensor.data_type, tuple(tensor.dims))
        if tensor.name not in fixed and tensor.data_location != onnx.TensorProto.EXTERNAL
        else None
        for tensor in model.graph.initializer
    ]
    counts = Counter(kinds)
    first: dict[tuple[object, bytes], str] = {}
    renamed: dict[str, str] = {}
    for tensor, kind in zip(model.graph.initializer, kinds, strict=True):
        if kind is not None and counts[kind] > 1 and kind[0] != onnx.TensorProto.STRING:
            content = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
            if len(content) >= LEAST_BYTES:
                name = first.setdefault((kind, hashlib.blake2b(content).digest()), tensor.name)
                if name != tensor.name:
                    renamed[tensor.name] = name
    if renamed:
        for node in all_nodes(model.graph):
            for index, name in enumerate(node.input):
                if name in renamed:
                    node.input[index] = renamed[name]
        dropped = [index for index, tensor in enumerate(model.graph.initializer) if tensor.name in renamed]
        for index in reversed(dropped):
            del model.graph.initializer[index]
    return len(renamed)
