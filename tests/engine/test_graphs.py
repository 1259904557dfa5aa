"""The parts quantization is made of: ranges, integers, and a graph that stays sorted and whole."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from engine.graphs.calibration import BINS, Calibrator, Range, entropy_range, percentile_range
from engine.graphs.integers import activation_scale, dequantize_weights, quantize_weights
from engine.graphs.onnx_graph import Graph, element_count, float_weights, load_graph, save_graph
from engine.graphs.preparation import with_shapes
from engine.graphs.verification import compare_outputs

numbers = st.floats(-1e4, 1e4, width=32)


@given(low=numbers, high=numbers, symmetric=st.booleans())
def test_zero_is_exact_and_both_ends_are_represented(low, high, symmetric):
    found = Range(min(low, high), max(low, high))
    scale = activation_scale(found, symmetric)
    bottom, top = (-128, 127) if scale.signed else (0, 255)
    assert bottom <= scale.zero_point <= top
    assert symmetric is (scale.signed and scale.zero_point == 0)
    for end in (min(found.low, 0.0), max(found.high, 0.0)):
        integer = np.clip(np.rint(end / float(scale.scale)) + scale.zero_point, bottom, top)
        restored = (integer - scale.zero_point) * float(scale.scale)
        assert abs(restored - end) <= 1.01 * float(scale.scale)


@given(weights=arrays(np.float32, (4, 9), elements=numbers), seven_bit=st.booleans())
def test_weights_come_back_within_half_a_step_of_their_channel(weights, seven_bit):
    integers, scales = quantize_weights(weights, 0, seven_bit)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= (63 if seven_bit else 127)
    error = np.abs(dequantize_weights(integers, scales, 0) - weights).max(axis=1)
    assert (error <= 0.501 * scales + 1e-6).all()


def test_the_least_error_search_is_never_worse_than_covering_the_extremes():
    weights = np.random.default_rng(0).standard_t(2, (8, 20_000)).astype(np.float32)
    errors = []
    for search in (False, True):
        integers, scales = quantize_weights(weights, 0, True, clip_search=search)
        errors.append(((dequantize_weights(integers, scales, 0) - weights) ** 2).sum())
    assert errors[1] < errors[0]


def test_a_percentile_leaves_outliers_out_and_keeps_a_zero_end():
    counts = np.zeros(BINS, dtype=np.int64)
    counts[: BINS // 4] = 1000
    counts[-1] = 1
    found = percentile_range(counts, Range(0.0, 4.0), 99.9)
    assert found.low == 0
    assert found.high == pytest.approx(1.0, abs=0.01)
    assert percentile_range(counts, Range(0.0, 4.0), 100).high == pytest.approx(4.0)


def test_entropy_cuts_a_long_thin_tail():
    values = np.abs(np.random.default_rng(0).standard_normal(200_000))
    counts = np.histogram(np.append(values, [40.0]), BINS, range=(0, 40))[0]
    assert 2.5 < entropy_range(counts, Range(0.0, 40.0)).high < 10


def scaled_identity():
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["h"], ["y"], "last"),
            helper.make_node("Mul", ["x", "two"], ["h"], "first"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array(2, np.float32), "two"),
            numpy_helper.from_array(np.ones(5, np.float32), "idle"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_sorting_puts_nodes_behind_what_they_read_and_drops_idle_constants():
    graph = Graph(scaled_identity())
    graph.sort()
    assert [node.name for node in graph.proto.node] == ["first", "last"]
    assert set(graph.initializers) == {"two"}
    onnx.checker.check_model(graph.model)


def test_a_cycle_is_an_error_and_not_an_endless_loop():
    model = scaled_identity()
    model.graph.node[1].input[0] = "y"
    with pytest.raises(ValueError, match="cycle"):
        Graph(model).sort()


def test_scalars_keep_their_empty_shape():
    """With shape (1,) instead, ONNX Runtime does not fuse what reads them."""
    graph = Graph(scaled_identity())
    name = graph.add_constant("two", np.float32(3))
    assert name == "two_2"
    assert list(graph.initializers[name].dims) == []


def test_calibration_sees_every_batch_and_skips_what_is_not_finite():
    model = scaled_identity()
    Graph(model).sort()
    batches = [{"x": np.array([[1, -5]], np.float32)}, {"x": np.array([[np.inf, 2]], np.float32)}]
    calibrator = Calibrator(model, lambda: batches)
    found = calibrator.ranges(["h", "y"])
    assert found["h"] == Range(-10.0, 4.0)
    assert found["y"] == Range(0.0, 4.0)
    assert calibrator.means([]) == {}


def test_means_and_peaks_leave_out_what_is_not_finite():
    model = scaled_identity()
    Graph(model).sort()
    batches = [{"x": np.array([[1, -5], [3, np.nan]], np.float32)}, {"x": np.array([[np.inf, 2]], np.float32)}]
    calibrator = Calibrator(model, lambda: batches)
    assert calibrator.means(["h"])["h"].tolist() == [4.0, -3.0]
    assert calibrator.peaks(["h"])["h"].tolist() == [6.0, 10.0]
    batches[0]["x"][:, 1] = batches[1]["x"][:, 1] = np.nan
    assert calibrator.means(["h"]) == {}, "nothing is known of the second channel"


def test_large_weights_go_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.graphs.onnx_graph.EXTERNAL_DATA_BYTES", 100)
    model = scaled_identity()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4096, np.float32), "large"))
    files = save_graph(model, tmp_path / "model.onnx")
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    assert element_count(float_weights(load_graph(files[0]).graph)) == 1 + 5 + 4096


@given(noise=st.floats(1e-6, 1e-1))
def test_the_noise_ratio_is_that_of_the_noise_put_in(noise):
    wanted = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    error = np.where(np.arange(64) % 2, noise, -noise).astype(np.float32)
    found = compare_outputs([{"y": wanted}], [{"y": wanted + error}])
    expected = 10 * np.log10((wanted.astype(float) ** 2).mean() / noise**2)
    assert found.sqnr_db == pytest.approx(expected, abs=0.2)
    assert found.maximum == pytest.approx(noise, rel=0.2)


def test_calibration_fetches_no_more_at_once_than_the_memory_it_may_take(monkeypatch):
    nodes = [helper.make_node("Relu", [f"v{index}"], [f"v{index + 1}"], f"n{index}") for index in range(9)]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, ["batch", 250])],
        [helper.make_tensor_value_info("v9", TensorProto.FLOAT, ["batch", 250])],
    )
    model = with_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    del model.graph.value_info[3]  # a value of unknown shape counts as the largest
    batches = [{"v0": np.full((4, 250), value, np.float32)} for value in (1, 2)]
    names = [f"v{index}" for index in range(1, 10)]
    everything = Calibrator(model, lambda: batches).ranges(names, "mse")
    fetched: list[int] = []
    real = onnxruntime.InferenceSession.run

    def counted(session, names, feed):
        outputs = real(session, names, feed)
        fetched.append(sum(value.nbytes for value in outputs))
        return outputs

    monkeypatch.setattr("engine.graphs.calibration.WATCHED_BYTES", 12_000)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    done: list[float] = []
    assert Calibrator(model, lambda: batches).ranges(names, "mse", watch=done.append) == everything
    assert len(fetched) == 12, "three groups for each of two batches in each of two passes"
    assert max(fetched) == 12_000
    assert done == sorted(done)
    assert done[-1] == 1
