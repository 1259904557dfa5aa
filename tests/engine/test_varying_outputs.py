"""Outputs whose length depends on the data, as of detectors: what can be compared is, the rest is named."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import open_baseline, run_technique

from engine.graphs.sensitivity import Judge
from engine.graphs.verification import compare_outputs, varying_outputs
from engine.models import file_sha256
from engine.protocol import ModelSource

RANDOM = np.random.default_rng(0)


def detector(directory, with_scores: bool):
    """Scores of 64 places, and the coordinates of those above a threshold, as many as there are."""
    weights = {
        "w": RANDOM.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "v": RANDOM.standard_normal((1, 8, 1, 1)).astype(np.float32) / 3,
        "threshold": np.array(0.3, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "v"], ["scores"], "second"),
        helper.make_node("Greater", ["scores", "threshold"], ["above"], "above"),
        helper.make_node("NonZero", ["above"], ["places"], "places"),
        helper.make_node("Cast", ["places"], ["found"], "cast", to=TensorProto.FLOAT),
    ]
    outputs = [helper.make_tensor_value_info("found", TensorProto.FLOAT, [4, None])]
    if with_scores:
        outputs.insert(0, helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1, 16, 16]))
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = directory / "detector.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    source = open_baseline(ModelSource(path=str(path), kind="onnx", sha256=file_sha256(path)), directory)
    assert varying_outputs(source.path) == {"found"}
    return source, model


def test_what_varies_with_the_data_is_left_out_and_named(tmp_path):
    source, _ = detector(tmp_path, True)
    figures = run_technique(source, "quantize-static", tmp_path, synthetic=True).variants[0].record.changed.figures
    assert "found" in figures["not_compared"]
    assert figures["cosine"] > 0.99


def test_where_nothing_else_is_there_the_common_part_is_compared(tmp_path):
    source, model = detector(tmp_path, False)
    figures = run_technique(source, "quantize-static", tmp_path, synthetic=True, search="never")
    assert "as far as both reach" in figures.variants[0].record.changed.figures["not_compared"]
    answers = Judge(model, [source.model.example(2, seed=1)], 1).answers(model)
    assert answers.difference.cosine == pytest.approx(1)


def test_with_nothing_in_common_the_reason_is_told():
    some, none = {"found": np.ones((4, 3), np.float32)}, {"found": np.ones((4, 0), np.float32)}
    with pytest.raises(ValueError, match="how long found is depends on the data"):
        compare_outputs([some], [none], varying={"found"})
    with pytest.raises(ValueError, match=r"shape \(4, 0\) and not \(4, 3\)"):
        compare_outputs([some], [none])


def test_a_graph_that_answers_nothing_finite_is_as_bad_as_can_be(tmp_path):
    source, model = detector(tmp_path, True)
    broken = type(model)()
    broken.CopyFrom(model)
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, np.float32), "w"))
    answers = Judge(model, [source.model.example(2, seed=1)], 1).answers(broken)
    assert answers.difference.cosine == 0
    assert not answers.within(1.0)
