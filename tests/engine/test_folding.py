"""What is folded away before quantization: computed shapes, zero states, constants around weights, hard activations."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graphs.affine_folding import fold_affine
from engine.graphs.preparation import with_shapes
from engine.graphs.shape_folding import fold_shapes
from engine.graphs.verification import compare_outputs, run_graph

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def model(nodes, constants, shape, outputs=("y",)):
    """A graph of one float input `x` of this shape (names are open axes)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return with_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def kinds(graph) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def same_answers(before, after, shape) -> bool:
    batch = [{"x": weights(*shape)}]
    return compare_outputs(run_graph(before, batch), run_graph(after, batch)).relative < 1e-5


def folded(source, fold):
    after = onnx.ModelProto()
    after.CopyFrom(source)
    return after, fold(after)


def test_a_computed_reshape_becomes_a_constant_that_holds_for_every_batch():
    source = model(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
            helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
            helper.make_node("Reshape", ["x", "target"], ["y"]),
        ],
        {"zero": [0], "one": [1], "rest": [6]},
        ["batch", 2, 3],
    )
    after, count = folded(source, fold_shapes)
    assert count == 1
    assert kinds(after) == ["Reshape"]
    assert same_answers(source, after, (5, 2, 3))
    assert same_answers(source, after, (1, 2, 3))


def test_a_reshape_with_two_sizes_that_are_not_known_stays():
    source = model(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "order"], ["target"]),
            helper.make_node("Reshape", ["x", "target"], ["y"]),
        ],
        {"order": [1, 0]},
        ["batch", "tokens"],
    )
    after, count = folded(source, fold_shapes)
    assert count == 0
    assert kinds(after) == kinds(source)


def test_an_lstm_needs_no_zeros_for_its_first_state():
    hidden = 4
    source = model(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Slice", ["shape", "one", "two"], ["batch"]),
            helper.make_node("Concat", ["direction", "batch", "hidden"], ["target"], axis=0),
            helper.make_node("Expand", ["nothing", "target"], ["state"]),
            helper.make_node("LSTM", ["x", "w", "r", "b", "", "state", "state"], ["y"], hidden_size=hidden),
        ],
        {
            "one": [1], "two": [2], "direction": [1], "hidden": [hidden], "nothing": np.zeros((1, 1, 1), np.float32),
            "w": weights(1, 16, 3), "r": weights(1, 16, 4), "b": weights(1, 32),
        },
        [5, "batch", 3],
    )  # fmt: skip
    after, _ = folded(source, fold_shapes)
    assert kinds(after) == ["LSTM"]
    assert same_answers(source, after, (5, 2, 3))


def test_a_state_that_is_not_zero_stays():
    source = model(
        [helper.make_node("LSTM", ["x", "w", "r", "b", "", "state", "state"], ["y"], hidden_size=4)],
        {
            "w": weights(1, 16, 3),
            "r": weights(1, 16, 4),
            "b": weights(1, 32),
            "state": np.full((1, 2, 4), 0.5, np.float32),
        },
        [5, 2, 3],
    )
    assert folded(source, fold_shapes)[1] == 0


@pytest.mark.parametrize("shape", [(1,), (4, 1, 1)])
def test_what_scales_and_shifts_behind_a_convolution_goes_into_it(shape):
    source = model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Mul", ["factor", "a"], ["b"]),
            helper.make_node("Sub", ["b", "addend"], ["y"]),
        ],
        {"w": weights(4, 3, 3, 3), "factor": weights(*shape), "addend": weights(*shape)},
        ["batch", 3, 6, 6],
    )
    after, count = folded(source, fold_affine)
    assert count == 2
    assert kinds(after) == ["Conv"]
    assert same_answers(source, after, (2, 3, 6, 6))


def test_a_value_that_others_read_too_is_not_changed():
    source = model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Mul", ["a", "factor"], ["y"]),
            helper.make_node("Relu", ["a"], ["z"]),
        ],
        {"w": weights(4, 3, 1, 1), "factor": weights(1)},
        ["batch", 3, 6, 6],
        outputs=("y", "z"),
    )
    after, count = folded(source, fold_affine)
    assert count == 0
    assert same_answers(source, after, (2, 3, 6, 6))


def test_before_a_padded_convolution_only_the_factor_is_folded():
    """The zeros of the padding do not get the addend."""
    source = model(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Mul", ["a", "factor"], ["b"]),
            helper.make_node("Add", ["b", "addend"], ["c"]),
            helper.make_node("Conv", ["c", "w", "bias"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {"w": weights(4, 3, 3, 3), "bias": weights(4), "factor": np.float32(0.4), "addend": np.float32(-0.8)},
        ["batch", 3, 6, 6],
    )
    after, _ = folded(source, fold_affine)
    assert kinds(after) == ["Relu", "Add", "Conv"]
    assert same_answers(source, after, (2, 3, 6, 6))


def test_before_a_convolution_without_padding_both_are_folded():
    source = model(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Mul", ["a", "factor"], ["b"]),
            helper.make_node("Add", ["b", "addend"], ["c"]),
            helper.make_node("Conv", ["c", "w"], ["y"], group=3),
        ],
        {"w": weights(3, 1, 3, 3), "factor": np.float32(0.4), "addend": np.float32(-0.8)},
        ["batch", 3, 6, 6],
    )
    after, _ = folded(source, fold_affine)
    assert kinds(after) == ["Relu", "Conv"]
    assert same_answers(source, after, (2, 3, 6, 6))


@pytest.mark.parametrize("times", [False, True])
def test_a_clip_written_out_becomes_a_hard_sigmoid(times):
    nodes = [
        helper.make_node("Add", ["x", "three"], ["a"]),
        helper.make_node("Clip", ["a", "zero", "six"], ["b"]),
        *([helper.make_node("Mul", ["x", "b"], ["c"])] if times else []),
        helper.make_node("Div", ["c" if times else "b", "six"], ["y"]),
    ]
    source = model(nodes, {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}, ["batch", 8])
    after, count = folded(source, fold_affine)
    assert count == 1
    assert kinds(after) == (["HardSigmoid", "Mul"] if times else ["HardSigmoid"])
    assert same_answers(source, after, (3, 8))
