"""Masks that make a softmax underflow are raised; the answers stay the same."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graphs.masks import RAISED, raise_masks
from engine.graphs.verification import run_graph

KEYS = 6


def attention(mask: np.ndarray, *, before: tuple[str, ...] = (), choose: bool = False) -> onnx.ModelProto:
    """softmax(x·xᵀ + mask)·x, where the mask comes through some operators; or the mask chosen where x·xᵀ < 0."""
    nodes = [helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1])]
    nodes.append(helper.make_node("MatMul", ["x", "turned"], ["scores"]))
    constants = [numpy_helper.from_array(mask, "mask"), numpy_helper.from_array(np.zeros((), np.float32), "zero")]
    value = "mask"
    for kind in before:
        inputs = {"Unsqueeze": [value, "axes"], "Add": [value, "zero"]}.get(kind, [value])
        nodes.append(helper.make_node(kind, inputs, [f"{value}_{kind}"]))
        value += f"_{kind}"
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    if choose:
        nodes.append(helper.make_node("Less", ["scores", "zero"], ["hidden"]))
        nodes.append(helper.make_node("Where", ["hidden", value, "scores"], ["masked"]))
    else:
        nodes.append(helper.make_node("Add", ["scores", value], ["masked"]))
    nodes += [
        helper.make_node("Softmax", ["masked"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", KEYS, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", KEYS, None]) for name in ("y", "shares")],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def mask_of(value: float) -> np.ndarray:
    """Each row hides some keys and never all."""
    return np.where(np.tri(KEYS, dtype=bool), 0, value).astype(np.float32)


def shares_below(model: onnx.ModelProto) -> tuple[int, np.ndarray]:
    """(how many shares are below the smallest normal float, the answers)."""
    x = np.random.default_rng(0).standard_normal((2, KEYS, 8)).astype(np.float32)
    ((found),) = run_graph(model, [{"x": x}])
    shares = found["shares"]
    return int((shares < np.finfo(np.float32).tiny).sum()), found["y"]


@pytest.mark.parametrize("value", [-100.0, -1e4, float(np.finfo(np.float32).min), -np.inf])
@pytest.mark.parametrize("before", [(), ("Unsqueeze",), ("Unsqueeze", "Identity", "Add")])
def test_a_mask_is_raised_and_the_answers_stay(before, value):
    model = attention(mask_of(value), before=before)
    raised, count = raise_masks(model)
    onnx.checker.check_model(raised)
    assert count == 1
    (below, answers), (left, after) = shares_below(model), shares_below(raised)
    assert below > 0
    assert left == 0
    assert after == pytest.approx(answers, abs=1e-7)


def test_one_value_that_stands_for_every_masked_score_is_raised():
    model = attention(np.array(-1e9, np.float32), choose=True)
    raised, count = raise_masks(model)
    assert count == 1
    (below, answers), (left, after) = shares_below(model), shares_below(raised)
    assert (below > 0, left) == (True, 0)
    assert after == pytest.approx(answers, abs=1e-7)


def test_a_factor_that_makes_a_mask_of_zeros_and_ones_is_raised():
    model = attention(mask_of(1.0))
    factor = numpy_helper.from_array(np.array(-1e4, np.float32), "factor")
    model.graph.initializer.append(factor)
    model.graph.node.insert(0, helper.make_node("Mul", ["mask", "factor"], ["low"]))
    next(node for node in model.graph.node if node.op_type == "Add").input[1] = "low"
    raised, count = raise_masks(model)
    assert count == 1
    assert shares_below(raised)[1] == pytest.approx(shares_below(model)[1], abs=1e-7)


@pytest.mark.parametrize("mask", [mask_of(-20.0), mask_of(RAISED), mask_of(3.0)])
def test_what_is_no_mask_or_high_enough_is_left_alone(mask):
    raised, count = raise_masks(attention(mask))
    assert count == 0
    assert raised == attention(mask)


def test_a_mask_that_something_else_reads_keeps_its_value_there():
    model = attention(mask_of(-100.0))
    model.graph.node.append(helper.make_node("Identity", ["mask"], ["seen"]))
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, [KEYS, KEYS]))
    (found,) = run_graph(raise_masks(model)[0], [{"x": np.ones((1, KEYS, 8), np.float32)}])
    assert found["seen"].min() == -100


def test_what_fused_attentions_add_where_their_mask_is_zero_is_raised():
    mask = helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", KEYS])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", KEYS, 8]) for name in "xy"]
    node = helper.make_node(
        "MultiHeadAttention", ["x", "x", "x", "", "mask"], ["y"], num_heads=2, domain="com.microsoft"
    )
    graph = helper.make_graph([node], "attention", [value[0], mask], [value[1]])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    raised, count = raise_masks(model)
    assert count == 1
    feed = {
        "x": np.random.default_rng(0).standard_normal((2, KEYS, 8)).astype(np.float32),
        "mask": np.array([[1] * 4 + [0] * 2, [1] * 6], np.int32),
    }
    (before,), (after,) = run_graph(model, [feed]), run_graph(raised, [feed])
    assert after["y"] == pytest.approx(before["y"], abs=1e-6)
    assert raise_masks(raised)[1] == 0
