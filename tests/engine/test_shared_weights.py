"""Weights that several nodes share: stored once, counted once, with scales that suit every one of them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import apply, cosine, open_baseline

from engine.graphs.onnx_graph import load_graph
from engine.graphs.static_recipe import Quantizer, Settings
from engine.graphs.verification import run_graph
from engine.models import file_sha256
from engine.protocol import ModelSource

RANDOM = np.random.default_rng(0)


def model_of(nodes, inputs, constants) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_table_that_is_embedding_and_output_layer_is_stored_and_counted_once(tmp_path):
    constants = {
        "table": RANDOM.standard_normal((600, 32)).astype(np.float32),
        "w": RANDOM.standard_normal((32, 32)).astype(np.float32) / 6,
        "b": np.zeros(32, np.float32),
        "axes": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["words"], "embedding"),
        helper.make_node("ReduceMean", ["words"], ["mean"], "mean", axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["hidden"], "hidden", transB=1),
        helper.make_node("Gemm", ["hidden", "table"], ["y"], "tied", transB=1),
    ]
    constants.pop("axes")
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 7])
    path = tmp_path / "tied.onnx"
    path.write_bytes(model_of(nodes, [tokens], constants).SerializeToString())
    source = open_baseline(ModelSource(path=str(path), kind="onnx", sha256=file_sha256(path)), tmp_path)
    made = apply(source, "quantize-static", tmp_path, synthetic=True, search="never")
    assert 0.9 < made.record.changed.figures["quantized_weight_share"] <= 1
    assert {"embedding", "tied"} <= set(made.record.changed.touched)
    tables = [tensor for tensor in load_graph(made.path).graph.initializer if np.prod(tensor.dims) == 600 * 32]
    assert [tensor.data_type for tensor in tables] == [TensorProto.INT8]
    assert cosine(source, made) > 0.98


def test_a_large_bias_of_the_second_reader_is_not_clipped():
    """Both convolutions share kernels with a channel of near-zero weights; only the second has a large bias there."""
    kernels = RANDOM.standard_normal((4, 3, 1, 1)).astype(np.float32)
    kernels[2] *= 1e-9
    constants = {
        "w": kernels,
        "small": np.zeros(4, np.float32),
        "large": np.array([0, 0, 500, 0], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "small"], ["a"], "first"),
        helper.make_node("Conv", ["x", "w", "large"], ["b"], "second"),
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["y"], "flatten"),
    ]
    model = model_of(nodes, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 4])], constants)
    batches = [{"x": RANDOM.standard_normal((2, 3, 4, 4)).astype(np.float32)} for _ in range(4)]
    made = Quantizer(onnx.shape_inference.infer_shapes(model), lambda: batches, Settings()).quantize()
    assert {"first", "second"} <= set(made.touched)
    assert run_graph(made.model, batches[:1])[0]["y"][0, 2] > 490
