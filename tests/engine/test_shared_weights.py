"""Weights that several nodes share: stored once, counted once, with scales that suit every one of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import apply, cosine, open_baseline

from engine.graphs.graph_optimization import candidates
from engine.graphs.onnx_graph import load_graph
from engine.graphs.sharing import share_weights
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


@pytest.fixture
def tied(tmp_path):
    """Two layers with one matrix and one bias, behind Identity nodes, as PyTorch's exporter writes what is equal."""
    constants = {
        "w": RANDOM.standard_normal((96, 96)).astype(np.float32) / 10,
        "b": RANDOM.standard_normal(96).astype(np.float32),
    }
    nodes = [
        helper.make_node("Identity", ["w"], ["w2"], "again"),
        helper.make_node("Identity", ["b"], ["b2"], "bias again"),
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "second"),
    ]
    path = tmp_path / "tied.onnx"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 96])
    path.write_bytes(model_of(nodes, [x], constants).SerializeToString())
    return open_baseline(ModelSource(path=str(path), kind="onnx", sha256=file_sha256(path)), tmp_path)


def matrices(path_or_model) -> list[onnx.TensorProto]:
    model = path_or_model if isinstance(path_or_model, onnx.ModelProto) else load_graph(path_or_model)
    return [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) == 96 * 96]


def test_no_optimiser_writes_a_shared_weight_twice(tied):
    made = {one.name: one.model for one in candidates(tied.path) if one.model is not None}
    assert "onnxruntime" in made
    assert {name: len(matrices(model)) for name, model in made.items()} == dict.fromkeys(made, 1)


@pytest.mark.parametrize(
    ("technique", "options"),
    [
        ("quantize-static", {"synthetic": True, "search": "never"}),
        ("quantize-dynamic", {"search": "never"}),
        ("quantize-int4", {"method": "least-error"}),
        ("quantize-fp16", {}),
    ],
)
def test_what_shares_a_weight_again_is_quantized_all_the_same(tied, tmp_path, technique, options):
    optimised = apply(tied, "optimize-graph", tmp_path, optimiser="onnxruntime")
    made = apply(optimised, technique, tmp_path, **options)
    assert {"fused first", "second"} <= {name.partition("/")[0] for name in made.record.changed.touched}
    assert made.path.stat().st_size < optimised.path.stat().st_size
    assert cosine(tied, made) > 0.98


def test_only_equal_weights_of_some_size_are_shared():
    same = RANDOM.standard_normal((20, 20)).astype(np.float32)
    other = same.copy()
    other[3, 4] += 1
    constants = {"a": same, "b": same.copy(), "c": other, "d": same.reshape(10, 40), "e": same.view(np.int32)}
    constants |= {"f": np.ones(8, np.float32), "g": np.ones(8, np.float32)}
    model = model_of([helper.make_node("Sum", ["a", "b", "c"], ["y"], "sum")], [], constants)
    model.graph.initializer.append(numpy_helper.from_array(same, "given"))
    model.graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, [20, 20]))
    assert share_weights(model) == 1
    assert list(model.graph.node[0].input) == ["a", "a", "c"]
    assert [tensor.name for tensor in model.graph.initializer] == ["a", "c", "d", "e", "f", "g", "given"]
