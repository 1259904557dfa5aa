"""Residual additions stay apart from the normalisation behind them where that is faster, and the answers stay."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graphs.residuals import separate_residuals

WIDTH = 32


def block(bias: bool = False) -> onnx.ModelProto:
    """x + x·W, normalised; with `bias` a constant is added instead of x."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH)).astype(np.float32), "w"),
        numpy_helper.from_array(np.ones(WIDTH, np.float32), "scale"),
        numpy_helper.from_array(random.standard_normal(WIDTH).astype(np.float32), "shift"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "product"),
        helper.make_node("Add", ["product", "shift" if bias else "x"], ["added"], "added"),
        helper.make_node("LayerNormalization", ["added", "scale", "shift"], ["y"], "norm", axis=-1),
    ]
    shape = ["batch", 4, WIDTH]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, directory) -> tuple[np.ndarray, Counter[str]]:
    """(the answer, which operators ONNX Runtime ran)."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 4, WIDTH)).astype(np.float32)
    ran = onnx.load(options.optimized_model_filepath)
    return session.run(None, {"x": x})[0], Counter(node.op_type for node in ran.graph.node)


def is_taken_apart(model: onnx.ModelProto, directory) -> None:
    """ONNX Runtime runs one node for both before, two afterwards, and the answers are the same."""
    apart, count = separate_residuals(model)
    assert count == 1
    onnx.checker.check_model(apart)
    (before, ran), (after, left) = run(model, directory), run(apart, directory)
    assert ran["SkipLayerNormalization"] == 1
    assert left["SkipLayerNormalization"] == 0
    assert left["LayerNormalization"] == 1
    assert after == pytest.approx(before, abs=1e-5)


def test_the_two_are_not_fused_and_the_answers_are_the_same(tmp_path):
    model = block()
    is_taken_apart(model, tmp_path)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add", "LayerNormalization"], "it was copied"


def test_a_bias_before_a_normalisation_stays_an_add():
    assert separate_residuals(block(bias=True))[1] == 0


@pytest.mark.parametrize("inputs", [3, 4, 5])
@pytest.mark.parametrize("total_read", [False, True])
def test_what_an_optimiser_has_fused_is_taken_apart(tmp_path, inputs, total_read):
    is_taken_apart(fused(inputs, ["", "", "total"] if total_read else []), tmp_path)


def test_a_fused_normalisation_whose_deviation_is_read_and_one_in_an_old_graph_stay():
    assert separate_residuals(fused(4, ["mean", "deviation", ""]))[1] == 0
    assert separate_residuals(fused(4, [], opset=16))[1] == 0


def fused(inputs: int, more: list[str], opset: int = 17) -> onnx.ModelProto:
    """The block with one node for addition and normalisation; `more` are its further outputs."""
    model = block()
    model.graph.initializer.append(numpy_helper.from_array(np.linspace(-1, 1, WIDTH, dtype=np.float32), "bias"))
    del model.graph.node[1:]
    given = ["product", "x", "scale", "shift", "bias"][:inputs]
    outputs = ["normalised" if more else "y", *more]
    model.graph.node.append(
        helper.make_node("SkipLayerNormalization", given, outputs, "norm", domain="com.microsoft", epsilon=1e-5)
    )
    if more:
        read = next(name for name in more if name)
        model.graph.node.append(helper.make_node("Add", ["normalised", read], ["y"], "both"))
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])
    return model
