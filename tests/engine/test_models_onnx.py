"""An ONNX file's inputs, axes and data are understood, or asked for in one sentence."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from opened_models import baseline_of, linear_graph, opened, refusal, save_graph

from engine.models import ModelError

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def test_an_open_batch_axis_is_found_and_kept_open(tmp_path: Path) -> None:
    model = opened(linear_graph(tmp_path / "net.onnx"))
    assert model.inputs[0].shape == ("batch", 6)
    assert model.outputs[0].shape == ("batch", 3)
    assert model.fixed_batch is None
    assert model.synthetic_data
    assert "made-up inputs" in " ".join(model.info().notes)


@pytest.mark.parametrize("axis", ["N", "p2o.DynamicDimension.0", None])
def test_the_batch_axis_may_have_any_name_or_none(tmp_path: Path, axis: str | None) -> None:
    assert opened(linear_graph(tmp_path / "net.onnx", batch=axis)).inputs[0].shape == ("batch", 6)


def test_a_fixed_batch_is_said_and_other_sizes_refused(tmp_path: Path) -> None:
    model = opened(linear_graph(tmp_path / "net.onnx", batch=4))
    assert model.fixed_batch == 4
    assert "measured at batch 4 only" in model.notes[0]
    assert {len(batch["x"]) for batch, _ in model.test_batches(64)} == {4}
    with pytest.raises(ModelError, match="takes batches of 4 only, not of 8"):
        model.example(8)


def test_a_graph_that_only_claims_an_open_batch_is_found_out(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Reshape", ["x", "one"], ["y"])],
        {"x": (FLOAT, ["batch", 6])},
        {"y": (FLOAT, [1, 6])},
        {"one": np.array([1, 6])},
    )
    model = opened(path)
    assert model.fixed_batch == 1
    assert "takes one sample only" in model.notes[0]


def test_open_axes_beside_the_batch_are_asked_for_in_one_sentence(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (FLOAT, ["batch", 3, "height", "width"])},
        {"y": (FLOAT, ["batch", 3, "height", "width"])},
    )
    text = refusal(path)
    assert 'x (axis 2 and 3). Give them as shapes = { x = ["batch", 3, ?, ?] }' in text

    model = opened(path, shapes={"x": ["batch", 3, 8, 10]})
    assert model.example(2)["x"].shape == (2, 3, 8, 10)
    assert opened(path, shapes={"x": [1, 3, 8, 10]}).fixed_batch == 1


def test_the_graphs_own_name_of_its_batch_axis_may_be_given_for_it(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (FLOAT, ["b", "seq"])},
        {"y": (FLOAT, ["b", "seq"])},
    )
    assert opened(path, shapes={"x": ["b", 32]}).inputs[0].shape == ("batch", 32)
    assert opened(path, shapes={"x": [16, "batch"]}).inputs[0].shape == (16, "batch")
    assert "axis 1 of x as 'seq': it must be a size" in refusal(path, shapes={"x": ["b", "seq"]})


def test_a_file_with_damaged_names_is_called_damaged(tmp_path: Path) -> None:
    """ONNX Runtime quotes the name in its message, which Python then cannot read."""
    path = linear_graph(tmp_path / "net.onnx")
    content = path.read_bytes()
    assert content.count(b"MatMul") or content.count(b"Gemm")
    path.write_bytes(content.replace(b"MatMul", b"Mat\x8bul").replace(b"Gemm", b"G\x8bmm"))
    assert "a name in it is no text, so the file is probably damaged" in refusal(path)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"z": ["batch"]}, "shapes names 'z', which is no input; the inputs are x"),
        ({"x": ["batch", 3]}, "shapes gives x 2 axes; the graph declares 3"),
        ({"x": ["batch", 4, 8]}, "shapes gives axis 1 of x as 4; the graph fixes it to 3"),
        ({"x": ["batch", 3, "wide"]}, "shapes gives axis 2 of x as 'wide': it must be a size"),
        ({"x": ["batch", 3, 0]}, "shapes gives axis 2 of x as 0"),
    ],
)
def test_shapes_that_do_not_fit_are_told(tmp_path: Path, shapes: dict[str, list[int | str]], expected: str) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (FLOAT, ["batch", 3, "width"])},
        {"y": (FLOAT, ["batch", 3, "width"])},
    )
    assert expected in refusal(path, shapes=shapes)


def test_axes_of_one_name_are_given_once(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Add", ["a", "b"], ["y"])],
        {"a": (FLOAT, ["batch", "length"]), "b": (FLOAT, ["batch", "length"])},
        {"y": (FLOAT, ["batch", "length"])},
    )
    model = opened(path, shapes={"a": ["batch", 7]})
    assert [spec.shape for spec in model.inputs] == [("batch", 7), ("batch", 7)]


def test_integers_stay_within_the_tables_they_index(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [
            helper.make_node("Cast", ["ids"], ["wide"], to=INT64),
            helper.make_node("Unsqueeze", ["wide", "last"], ["raised"]),
            helper.make_node("Squeeze", ["raised", "last"], ["flat"]),
            helper.make_node("Gather", ["words", "flat"], ["embedded"]),
            helper.make_node("Gather", ["kinds", "types"], ["kind"]),
            helper.make_node("Add", ["embedded", "kind"], ["y"]),
        ],
        {"ids": (TensorProto.INT32, ["batch", 40]), "types": (INT64, ["batch", 40])},
        {"y": (FLOAT, ["batch", 40, 4])},
        {"words": np.zeros((11, 4), np.float32), "kinds": np.zeros((2, 4), np.float32), "last": np.array([2])},
    )
    model = opened(path)
    inputs = model.example(16)
    assert model.bounds == {"ids": 11, "types": 2}
    assert set(inputs["ids"].ravel()) == set(range(11))
    assert set(inputs["types"].ravel()) == {0, 1}
    assert inputs["ids"].dtype == np.int32


def test_masks_are_ones_states_are_zeros_and_initializers_are_no_inputs(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [
            helper.make_node("Where", ["keep", "x", "weight"], ["kept"]),
            helper.make_node("Mul", ["kept", "attention_mask"], ["masked"]),
            helper.make_node("Add", ["masked", "state"], ["new_state"]),
        ],
        {
            "x": (FLOAT, ["batch", 6]),
            "keep": (BOOL, ["batch", 6]),
            "attention_mask": (FLOAT, ["batch", 6]),
            "state": (FLOAT, ["batch", 6]),
            "weight": (FLOAT, [6]),
        },
        {"new_state": (FLOAT, ["batch", 6])},
        {"weight": np.ones(6, np.float32)},
    )
    model = opened(path)
    assert model.input_names == ("x", "keep", "attention_mask", "state")
    inputs = model.example(2)
    assert inputs["keep"].all()
    assert (inputs["attention_mask"] == 1).all()
    assert (inputs["state"] == 0).all()
    assert inputs["x"].std() > 0.5


def test_a_state_tensor_whose_batch_is_its_second_axis_follows_the_batch(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Add", ["state", "x"], ["stateN"])],
        {"x": (FLOAT, ["batch", 4]), "state": (FLOAT, [2, "batch", 4])},
        {"stateN": (FLOAT, [2, "batch", 4])},
    )
    model = opened(path)
    assert model.example(3)["state"].shape == (2, 3, 4)
    assert model.outputs[0].shape == (2, "batch", 4)


def test_an_axis_0_that_speaks_of_a_sequence_is_not_taken_for_the_batch(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (FLOAT, ["seq_len", 4])},
        {"y": (FLOAT, ["seq_len", 4])},
    )
    assert "x (axis 0)" in refusal(path)
    assert opened(path, shapes={"x": ["batch", 4]}).fixed_batch is None


def test_outputs_that_are_no_tensors_are_left_out_and_said(tmp_path: Path) -> None:
    from onnxruntime.datasets import get_example

    model = opened(Path(get_example("logreg_iris.onnx")))
    assert model.output_names == ("label",)
    assert "probabilities" in " ".join(model.notes)


def test_a_graph_that_fails_on_made_up_inputs_asks_for_real_ones(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Reshape", ["x", "size"], ["y"])],
        {"x": (FLOAT, ["batch", 6]), "size": (INT64, [3])},
        {"y": (FLOAT, [None, None, None])},
    )
    text = refusal(path)
    assert "fails at batch 1 on made-up inputs" in text
    assert 'give real ones as data = "test.npz"' in text
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 6), np.float32), size=np.array([-1, 2, 3]))
    assert opened(path, data=str(tmp_path / "data.npz")).example(3)["x"].shape == (3, 6)


def test_the_baseline_is_the_graph_with_its_external_data(tmp_path: Path) -> None:
    (tmp_path / "model" / "weights").mkdir(parents=True)
    path = linear_graph(
        tmp_path / "model" / "net.onnx", save_as_external_data=True, location="weights/net.data", size_threshold=0
    )
    model = opened(path)
    baseline = baseline_of(model, tmp_path)

    assert [file.path for file in baseline.record.files] == ["model.onnx", "weights/net.data"]
    assert baseline.record.size_bytes > 6 * 3 * 4
    onnx.load(baseline.path)  # with its data
    draft = model.write_baseline(tmp_path / "again")
    assert draft.parameter_count == 18
    assert draft.macs == 18
    assert draft.portable


def test_an_onnx_file_has_no_module(tmp_path: Path) -> None:
    model = opened(linear_graph(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match="no PyTorch module"):
        model.module()
    with pytest.raises(ModelError, match="no training data"):
        model.train_data()
