"""Ways to quantize that cost less accuracy: equalised channels, measured biases, ranges. The best is pinned."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import CONVOLUTIONAL, IMAGE, UNEVEN, apply, cosine, open_python, run_technique

from engine.graphs.bias_correction import channels_second
from engine.graphs.calibration import BINS, Calibrator, Range, mse_range
from engine.graphs.equalisation import equalise, passages
from engine.graphs.onnx_graph import Graph
from engine.graphs.preparation import with_shapes
from engine.graphs.static_recipe import Quantizer, Settings
from engine.graphs.verification import compare_outputs, run_graph

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def graph(nodes, constants, shape):
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return with_shapes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


GROUPED = (
    [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], "second", group=2),
    ],
    {"w1": weights(4, 3, 1, 1), "b1": weights(4), "w2": weights(6, 2, 3, 3)},
    (2, 3, 6, 6),
)
NORMALISED = (
    [
        helper.make_node("LayerNormalization", ["x", "g", "h"], ["a"], "norm"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], "first"),
        helper.make_node("Add", ["b", "b1"], ["c"], "bias"),
        helper.make_node("Relu", ["c"], ["d"], "relu"),
        helper.make_node("Gemm", ["d", "w2", "b2"], ["y"], "second", transB=1),
    ],
    {"g": weights(5), "h": weights(5), "w1": weights(5, 7), "b1": weights(7), "w2": weights(3, 7), "b2": weights(3)},
    (4, 5),
)


@pytest.mark.parametrize(("case", "expected"), [(GROUPED, ["b"]), (NORMALISED, ["a", "d"])])
def test_equalised_channels_are_of_like_size_and_the_answers_stay(case, expected):
    nodes, constants, shape = case
    source = graph(nodes, constants, shape)
    batches = [{"x": weights(*shape)} for _ in range(3)]
    values = [passage.value for passage in passages(Graph(source))]
    assert values == expected
    second = channels_second(Graph(source))
    peaks = Calibrator(source, lambda: batches).peaks(values, channels_second=second)
    equal, done = equalise(source, peaks, 1.0)
    assert done == expected
    assert compare_outputs(run_graph(source, batches), run_graph(equal, batches)).relative < 1e-5
    after = Calibrator(equal, lambda: batches).peaks(values, channels_second=second)
    for value in values:
        alive = after[value][after[value] > 0]
        assert alive.max() < 1.01 * alive.min(), "with alpha 1 all of the size goes into the weights"


def test_a_value_with_another_reader_is_not_equalised():
    nodes, constants, shape = GROUPED
    nodes = [*nodes, helper.make_node("Sigmoid", ["b"], ["z"], "other")]
    assert passages(Graph(graph(nodes, constants, shape))) == []


def test_a_product_with_a_stack_of_matrices_is_not_divided():
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], "second"),
    ]
    source = graph(nodes, {"w1": weights(2, 5, 5), "w2": weights(5, 3)}, (2, 4, 5))
    equal, done = equalise(source, {"b": np.geomspace(0.1, 10, 5)}, 0.5)
    assert done == []
    batches = [{"x": weights(2, 4, 5)}]
    assert compare_outputs(run_graph(source, batches), run_graph(equal, batches)).relative < 1e-5


def test_the_range_of_least_error_clips_a_lone_outlier_and_keeps_a_full_range():
    counts = np.zeros(BINS, dtype=np.int64)
    counts[:20] = 1_000_000
    counts[-1] = 1
    assert mse_range(counts, Range(0.0, 10.0)).high < 5
    assert mse_range(np.full(BINS, 1000), Range(-1.0, 1.0)).high > 0.95


@pytest.fixture(autouse=True)
def no_variant_by_chance(no_choice_by_chance, monkeypatch):
    """Nor does a second variant take over for its speed."""
    monkeypatch.setattr("engine.graphs.more_exact.TAKES_OVER", float("inf"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uneven")
    return apply(open_python(directory, UNEVEN, IMAGE.replace("rand(", "randn(")), "export-onnx", directory)


def test_measured_biases_bring_every_layer_to_its_mean(tmp_path):
    from engine.graphs.preparation import prepare

    source = apply(open_python(tmp_path, CONVOLUTIONAL, IMAGE), "export-onnx", tmp_path)
    prepared = prepare(source.path, True)
    batches = [source.model.example(16, seed=seed) for seed in range(3)]

    def worst_mean(settings: Settings) -> float:
        model = Quantizer(prepared, lambda: batches, settings).quantize().model
        names = {node.name: node.output[0] for node in model.graph.node if node.op_type == "Conv"}
        wanted = {node.name: node.output[0] for node in prepared.graph.node if node.op_type == "Conv"}
        right = Calibrator(prepared, lambda: batches).means(list(wanted.values()))
        got = Calibrator(model, lambda: batches).means(list(names.values()))
        errors = [np.abs(got[names[name]] - right[wanted[name]]) / right[wanted[name]].std() for name in wanted]
        return float(np.max(errors))

    coarse = Settings(weight_bits=4)
    assert worst_mean(replace(coarse, measured_correction=True)) < 0.1 * worst_mean(
        replace(coarse, bias_correction=False)
    )


@pytest.mark.parametrize("measured", [False, True])
def test_a_calibration_value_that_is_not_finite_ruins_no_bias(measured):
    nodes, constants, shape = GROUPED
    source = graph(nodes, constants, shape)
    batches = [{"x": weights(*shape)} for _ in range(3)]
    inputs = [{"x": batch["x"].copy()} for batch in batches]
    batches[1]["x"][1, 0, 3, 3] = np.nan
    settings = Settings(threads=1, bias_correction=True, measured_correction=measured)
    made = Quantizer(source, lambda: batches, settings).quantize()
    assert len(made.touched) == 2
    assert compare_outputs(run_graph(source, inputs), run_graph(made.model, inputs)).cosine > 0.99


def test_equalising_helps_where_channels_differ(uneven, tmp_path):
    plain = apply(uneven, "quantize-static", tmp_path, search="never")
    equal = apply(uneven, "quantize-static", tmp_path, search="never", equalise=0.5)
    assert cosine(uneven, plain) < 0.99 < cosine(uneven, equal)


def test_the_search_finds_the_way_and_pins_it(uneven, tmp_path):
    run = run_technique(uneven, "quantize-static", tmp_path)
    first = run.variants[0].record.changed
    assert first.figures["nodes_left_for_accuracy"] == 0, "no node has to go back to float"
    assert first.figures["tried: channels equalised"] > first.figures["tried: as given"]
    pinned = run.files[0].parameters
    assert pinned["search"] == "never"
    assert pinned["equalise"] > 0
    work = tmp_path / "again"
    work.mkdir()
    again = apply(uneven, "quantize-static", work, **pinned)
    assert again.path.read_bytes() == run.variants[0].path.read_bytes()
    onnx.checker.check_model(onnx.load(again.path), full_check=True)


def test_entropy_is_tried_too_and_no_way_once_the_time_is_over(uneven):
    from engine.graphs.preparation import prepare
    from engine.graphs.sensitivity import Judge
    from engine.graphs.settings_search import settle

    prepared = prepare(uneven.path, True, fold=True)
    batches = [uneven.model.example(16, seed=1)]
    judge = Judge(prepared, batches, 1)
    names = [way.name for way in settle(prepared, batches, Settings(threads=1), judge)[1]]
    assert {"ranges by entropy", "ranges by mse", "channels equalised", "biases measured layer by layer"} <= set(names)
    told: list[str] = []
    hurried = settle(prepared, batches, Settings(threads=1), judge, lambda share, what: told.append(what), seconds=0)
    assert [way.name for way in hurried[1]] == ["as given"]
    assert "no time is left to try ranges by entropy" in told
