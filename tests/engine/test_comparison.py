"""How far outputs are apart: floats by numbers, whole numbers by the share that are others, nothing by nothing."""

import tracemalloc
import weakref

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graphs.sensitivity import Judge
from engine.graphs.verification import compare_outputs, outputs_of

IDS = np.arange(200).reshape(10, 20)


def classes(weights):
    """A graph that ends in an ArgMax, as exported classifiers often do."""
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["rows", "w"], ["scores"], "product"),
                helper.make_node("ArgMax", ["scores"], ["classes"], "choice", axis=1, keepdims=0),
            ],
            "classes",
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("classes", TensorProto.INT64, ["batch"])],
            [numpy_helper.from_array(np.asarray(weights, np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_whole_numbers_are_compared_place_by_place():
    others = IDS.copy()
    others[0, :5] += 1
    found = compare_outputs([{"ids": IDS}], [{"ids": others}])
    assert (found.changed, found.whole, found.only_whole) == (5 / 200, 200, True)
    assert found.cosine == pytest.approx(195 / 200), "as one-hot vectors"
    assert found.beyond(0.03) == ""
    assert "2.50% of the whole numbers" in found.beyond(0.02)
    assert found.figures["whole_numbers_changed"] == 0.025


def test_whole_numbers_beside_floats_count_too():
    floats = np.ones((10, 3), np.float32)
    mask = np.array([True, False])
    found = compare_outputs([{"y": floats, "mask": mask}], [{"y": floats, "mask": ~mask}])
    assert (found.cosine, found.relative, found.changed) == (pytest.approx(1), 0, 1)
    assert found.beyond(0.5)
    assert compare_outputs([{"y": floats}], [{"y": floats}]).figures.keys() == {"cosine", "sqnr_db"}


def test_one_whole_number_of_few_may_be_another_where_rounding_is_meant():
    found = compare_outputs([{"ids": np.arange(16)}], [{"ids": np.minimum(np.arange(16), 14)}])
    assert found.beyond(0.02)
    assert not found.beyond(0.02, one_may_change=True)


@pytest.mark.parametrize("outputs", [[], [{"y": np.zeros((0, 4), np.float32), "ids": np.zeros(0, np.int64)}]])
def test_nothing_compared_is_no_agreement(outputs):
    with pytest.raises(ValueError, match="there is nothing to compare"):
        compare_outputs(outputs, outputs)


def test_sums_over_batches_are_those_of_one_batch():
    random = np.random.default_rng(0)
    wanted = random.standard_normal((64, 8)).astype(np.float32)
    given = wanted + random.standard_normal((64, 8)).astype(np.float32) / 50
    whole = compare_outputs([{"y": wanted}], [{"y": given}])
    parts = compare_outputs([{"y": part} for part in np.split(wanted, 8)], [{"y": part} for part in np.split(given, 8)])
    for name in ("maximum", "relative", "cosine", "sqnr_db"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name)), name
    assert whole.sqnr_db == pytest.approx(34, abs=1)


def test_a_graph_that_answers_in_classes_is_judged_by_those_that_changed():
    rows = np.repeat(np.eye(4, dtype=np.float32), 25, axis=0)
    judge = Judge(classes(np.eye(4)), [{"rows": rows}], 1)
    same, one_of_four = judge.answers(classes(2 * np.eye(4))), judge.answers(classes(np.eye(4)[[0, 1, 2, 2]]))
    assert (same.changed, same.samples) == (0, 100)
    assert same.within(0)
    assert one_of_four.changed == 0.25
    assert not one_of_four.within(0.2)
    assert one_of_four.within(0.3), "no cosine of class numbers stands in the way of the limit"
    assert np.isfinite(same.difference.sqnr_db)
    assert same.difference.sqnr_db > one_of_four.difference.sqnr_db


def large(shift=0.0):
    """A graph that answers with a megabyte for each sample."""
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Expand", ["rows", "shape"], ["wide"], "wide"),
                helper.make_node("Add", ["wide", "shift"], ["picture"], "shift"),
            ],
            "large",
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 1 << 18])],
            [
                numpy_helper.from_array(np.array([1, 1 << 18]), "shape"),
                numpy_helper.from_array(np.array(shift, np.float32), "shift"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_large_answers_are_compared_one_batch_at_a_time(monkeypatch):
    batches = [{"rows": np.full((1, 1), value, np.float32)} for value in range(1, 49)]
    judge, seen, alive = Judge(large(), batches, 1), [], []

    def watched(*args, **options):
        for outputs in outputs_of(*args, **options):
            seen.append(weakref.ref(outputs["picture"]))
            alive.append(sum(one() is not None for one in seen))
            yield outputs

    monkeypatch.setattr("engine.graphs.sensitivity.outputs_of", watched)
    tracemalloc.start()
    try:
        answers = judge.answers(large(0.5))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answers.difference.maximum == pytest.approx(0.5)
    assert len(alive) == 48
    assert max(alive) <= 3
    assert peak < 16 << 20, "copies in float64 are made of one batch at a time, too"


def test_a_judge_keeps_only_so_many_answers_and_says_so(monkeypatch):
    monkeypatch.setattr("engine.graphs.sensitivity.KEPT_BYTES", 5 << 20)
    batches = [{"rows": np.ones((2, 1), np.float32)} for _ in range(4)]
    told = []
    judge = Judge(large(), batches, 1, told.append)
    assert judge.samples == 4
    assert told == [
        "The answers to all 8 samples are too large to be held: quantized graphs are judged on the first 4."
    ]
    assert judge.answers(large()).difference.relative == 0
    monkeypatch.setattr("engine.graphs.sensitivity.KEPT_BYTES", 1)
    assert Judge(large(), batches, 1).samples == 2, "one batch in any case"
