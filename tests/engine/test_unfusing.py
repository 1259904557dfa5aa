"""Graphs that ONNX Runtime has fused already: convolutions and products are quantized, what is not is named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import CONVOLUTIONAL, IMAGE, apply, cosine, open_python, operators

from engine.graphs.dynamic_quantization import quantize_dynamically
from engine.graphs.onnx_graph import Graph, load_graph
from engine.graphs.placement import place
from engine.graphs.unfusing import unfuse
from engine.graphs.verification import compare_graphs

RANDOM = np.random.default_rng(0)


def fused_graph(node: onnx.NodeProto, constants: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


KERNEL = {"w": RANDOM.standard_normal((4, 3, 3, 3)), "b": RANDOM.standard_normal(4)}
ADDED = {"z": RANDOM.standard_normal((2, 4, 4, 4))}


@pytest.mark.parametrize(
    ("kind", "inputs", "options", "constants", "shape"),
    [
        ("FusedConv", ["x", "w", "b"], {"activation": "Relu"}, KERNEL, [2, 3, 6, 6]),
        ("FusedConv", ["x", "w", "b", "z"], {"activation": "Relu"}, KERNEL | ADDED, [2, 3, 6, 6]),
        ("FusedConv", ["x", "w"], {"activation": "Clip", "activation_params": [0.0, 6.0]}, KERNEL, [2, 3, 6, 6]),
        ("FusedConv", ["x", "w"], {"activation": "LeakyRelu", "activation_params": [0.3]}, KERNEL, [2, 3, 6, 6]),
        ("FusedConv", ["x", "w"], {"activation": "HardSigmoid", "activation_params": [0.1, 0.4]}, KERNEL, [2, 3, 6, 6]),
        ("FusedGemm", ["x", "m", "b"], {"activation": "LeakyRelu", "activation_alpha": 0.2, "transB": 1},
         {"m": RANDOM.standard_normal((4, 5)), "b": RANDOM.standard_normal(4)}, [2, 5]),
        ("FusedMatMul", ["x", "m"], {"alpha": 0.25, "transB": 1}, {"m": RANDOM.standard_normal((4, 5))}, [2, 5]),
    ],
)  # fmt: skip
def test_what_was_fused_answers_the_same_apart(kind, inputs, options, constants, shape):
    model = fused_graph(
        helper.make_node(kind, inputs, ["y"], "node", domain="com.microsoft", **options), constants, shape
    )
    apart = onnx.ModelProto()
    apart.CopyFrom(model)
    unfuse(apart)
    assert not any(node.domain == "com.microsoft" for node in apart.graph.node)
    assert "node" in {node.name for node in apart.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    batch = {"x": RANDOM.standard_normal(shape).astype(np.float32)}
    assert compare_graphs(model, apart, [batch]).relative < 1e-5


def fused(directory, body, example):
    exported = apply(open_python(directory, body, example), "export-onnx", directory)
    return apply(exported, "optimize-graph", directory, optimiser="onnxruntime")


def test_fused_convolutions_are_quantized_statically(tmp_path):
    source = fused(tmp_path, CONVOLUTIONAL.replace("ReLU6", "ReLU"), IMAGE)
    assert any(node.op_type == "FusedConv" for node in load_graph(source.path).graph.node)
    made = apply(source, "quantize-static", tmp_path)
    assert operators(made)["QLinearConv"] == 3
    assert made.record.changed.figures["quantized_weight_share"] > 0.8
    assert cosine(source, made) > 0.99


def test_what_is_fused_for_good_is_named():
    packed = {"w": RANDOM.standard_normal((16, 48)), "b": RANDOM.standard_normal(48)}
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], "attention", domain="com.microsoft", num_heads=2)
    left = place(Graph(fused_graph(node, packed, [2, 4, 16]))).left
    assert left == {
        "attention": "its weights are fused into Attention: start from the variant before optimize-graph to reach them"
    }
    tables = {"words": RANDOM.standard_normal((50, 8)), "places": RANDOM.standard_normal((16, 8)), "g": np.ones(8)}
    inputs = ["x", "", "words", "places", "", "g", "g"]
    node = helper.make_node("EmbedLayerNormalization", inputs, ["y", "mask"], "embed", domain="com.microsoft")
    left = quantize_dynamically(fused_graph(node, tables, [2, 4]), False).left
    assert "fused into EmbedLayerNormalization" in left["embed"]


@pytest.mark.parametrize(
    ("kind", "inputs", "constants"),
    [
        # relative positions, added to the scores: a constant of many numbers that no integer product could use
        ("MultiHeadAttention", ["x", "x", "x", "", "", "c"], {"c": RANDOM.standard_normal((1, 2, 49, 49))}),
        ("SkipLayerNormalization", ["x", "x", "c", "c"], {"c": np.ones(768)}),
    ],
)
def test_a_fused_node_that_only_adds_constants_is_not_said_to_hold_weights(kind, inputs, constants):
    node = helper.make_node(kind, inputs, ["y"], "node", domain="com.microsoft")
    model = fused_graph(node, constants, [2, 49, 768])
    assert place(Graph(model)).left == {}
    assert quantize_dynamically(model, False).left == {}


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_statically_too_the_graphs_inside_a_node_are_named_as_left(kind):
    inner = helper.make_graph([], "inner", [], [])
    node = onnx.NodeProto(op_type=kind, name="outer", output=["y"])
    node.attribute.append(helper.make_attribute("body", inner))
    assert place(Graph(fused_graph(node, {}, [2]))).left == {"outer": f"the graphs inside {kind} are not quantized"}
