"""Why a variant is faster, or is not: planted causes on real graphs are each named, with the nodes and the numbers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from profile_jobs import CHANNELS, GraphMaker, explain, graph_variant
from technique_jobs import CONVOLUTIONAL, IMAGE, RECURRENT, ROWS, TOKENS, TRANSFORMER, UNEVEN, VNNI, apply, open_python

from engine.graphs.affine_folding import fold_affine
from engine.measurements import explaining, profiling
from engine.measurements.layer_errors import layer_errors
from engine.protocol import Processor, Ratio

NO_VNNI = Processor(name="old", features=("avx2",), physical_cores=2, logical_cores=2, memory_bytes=1 << 33)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The causes do not hang on tenths of a millisecond, so a fraction of the usual calls is enough."""
    monkeypatch.setattr(explaining, "BUDGET_SECONDS", 0.4)
    monkeypatch.setattr(profiling, "PLAIN_SECONDS", 0.1)
    monkeypatch.setattr(profiling, "PROFILED_SECONDS", 0.2)


def chain(
    quantized: str = "", between: str = "", full_range: bool = False, size: int = 24, count: int = 3
) -> GraphMaker:
    """Convolutions with a ReLU (or Clip) behind each. Quantized: a pair behind each ReLU, as careless tools put it."""
    maker = GraphMaker(size=size)
    value = "x"
    for index in range(count):
        value = maker.convolution(value, f"conv{index}", quantized, full_range)
        if between == "Clip":
            maker.constant("low", np.float32(0))
            maker.constant("high", np.float32(6))
            value = maker.add("Clip", [value, "low", "high"], f"act{index}")
        elif between:
            value = maker.add(between, [value], f"act{index}")
    if quantized:
        value = maker.pair(value, quantized)
    return maker


def last(maker: GraphMaker) -> str:
    return str(maker.nodes[-1].output[0])


def test_a_gain_by_integers_names_the_operators_and_the_times(tmp_path: Path) -> None:
    plain, quantized = chain(size=32), chain("uint8", full_range=True, size=32)
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    found = explain(tmp_path, after, before, batch_size=8)
    assert found.unfused == ()
    assert {one.precision for one in found.changes if one.type == "QLinearConv"} == {"int8"}
    assert found.speedup.against_variant == "plain"
    if found.speedup.ratio >= 1.1:
        assert found.cause_kind == "integer-kernels"
        assert "3 QLinearConv" in found.cause


def test_a_clip_between_convolution_and_quantize_is_named(tmp_path: Path) -> None:
    plain, quantized = chain(between="Clip"), chain("int8", between="Clip")
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    found = explain(tmp_path, after, before)
    assert {one.node for one in found.unfused} == {"conv0/Conv", "conv1/Conv", "conv2/Conv"}
    assert all("Clip stands between it and its QuantizeLinear" in one.reason for one in found.unfused)
    assert any(one.pairs for one in found.unfused)
    assert found.cause_kind == "unfused"
    assert "3 of 3 quantized operators run in float" in found.cause
    assert "Clip stands between" in found.cause


def test_every_third_pair_missing_is_named_by_node(tmp_path: Path) -> None:
    maker = GraphMaker()
    first = maker.convolution("x", "good", "uint8")
    second = maker.convolution(first, "bad", "uint8")
    value = maker.add("Sigmoid", [second], "sigmoid")
    plain = GraphMaker()
    plain_value = plain.add("Sigmoid", [plain.convolution(plain.convolution("x", "good"), "bad")], "sigmoid")
    before = graph_variant(tmp_path, "plain", plain.model(plain_value))
    after = graph_variant(tmp_path, "int8", maker.model(value), before)
    found = explain(tmp_path, after, before)
    assert [one.node for one in found.unfused] == ["bad/Conv"]
    assert found.unfused[0].reason == "its result is not quantized: Sigmoid reads it in float"


def test_pairs_that_are_not_fused_are_the_cause(tmp_path: Path) -> None:
    plain, quantized = chain(between="Tanh"), chain("uint8", between="Tanh")
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    found = explain(tmp_path, after, before)
    assert found.cause_kind == "unfused"
    assert "3 of 3 quantized operators run in float" in found.cause
    assert "Tanh stands between it and its QuantizeLinear" in found.cause


def test_signed_times_signed_bytes_are_named_on_a_cpu_without_vnni(tmp_path: Path) -> None:
    """As operators: in Q/DQ form ONNX Runtime (1.32) makes activations unsigned by itself on x86."""
    plain, signed = chain(), GraphMaker()
    signed.constant("s", np.float32(0.05))
    signed.constant("z", np.int8(0))
    value = signed.add("QuantizeLinear", ["x", "s", "z"], "x_q")
    for index in range(3):
        weights = signed.random.integers(-63, 64, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
        names = [value, "s", "z", signed.constant(f"w{index}", weights), "s", "z", "s", "z"]
        value = signed.add("QLinearConv", names, f"conv{index}", pads=[1, 1, 1, 1])
    signed.add("DequantizeLinear", [value, "s", "z"], "y")
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", signed.model(last(signed)), before)
    found = explain(tmp_path, after, before, processor=NO_VNNI)
    assert found.cause_kind == "signed-operands"
    assert "3 operators multiply signed by signed bytes (int8×int8)" in found.cause
    assert "Quantize activations as uint8" in found.cause


@pytest.mark.parametrize("kernels", [0.995, 0.99999])
def test_weights_that_saturate_are_named_where_seven_bits_would_be_nearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: float
) -> None:
    """The kernels' distance is given here: on a processor with VNNI, where tests may run, nothing saturates."""
    monkeypatch.setattr(explaining, "kernel_cosine", lambda *_: kernels)
    plain, quantized = chain(), chain("uint8", full_range=True)
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    found = explain(tmp_path, after, before, processor=NO_VNNI)
    assert ("without VNNI sums of u8×s8 saturate at 16 bits" in found.cause) is (kernels < 0.999)
    assert any("where 7-bit weights would keep 0.99" in note for note in found.notes)
    assert "saturate" not in explain(tmp_path, after, before, processor=VNNI).cause


def test_answers_that_cannot_be_compared_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(*_: object) -> float:
        raise ValueError("output y has values that are not finite")

    monkeypatch.setattr(explaining, "kernel_cosine", differs)
    plain, quantized = chain(), chain("uint8", full_range=True)
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    found = explain(tmp_path, after, before, processor=NO_VNNI)
    assert any("could not be found: output y has values that are not finite." in note for note in found.notes)
    assert found.speedup.ratio > 0


def test_one_float_operator_that_dominates_is_named(tmp_path: Path) -> None:
    def with_erfs(maker: GraphMaker) -> str:
        value = last(maker)
        for index in range(60):
            value = maker.add("Erf", [maker.add("Sigmoid", [value], f"s{index}")], f"e{index}")
        return value

    plain, quantized = chain(count=1), chain("uint8", count=1)
    before = graph_variant(tmp_path, "plain", plain.model(with_erfs(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(with_erfs(quantized)), before)
    found = explain(tmp_path, after, before)
    assert found.cause_kind == "float-operators"
    assert "stayed in float" in found.cause
    assert "60 Erf" in found.cause or "60 Sigmoid" in found.cause


def test_a_model_too_small_to_matter_is_said_to_be(tmp_path: Path) -> None:
    plain, quantized = chain(size=2, count=1), chain("uint8", size=2, count=1)
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    alike = graph_variant(tmp_path, "alike", plain.model(last(plain)), before)
    for variant in (after, alike):
        found = explain(tmp_path, variant, before, batch_size=1)
        undecided = found.speedup.verdict in ("SAME", "UNDECIDED")
        assert ("too small for this to matter" in found.cause) == (found.cause_kind == "too-small")
        # where a difference was measured there is more to say
        assert undecided or found.cause_kind != "too-small"
        assert not undecided or variant is after or found.cause_kind == "too-small"


def test_what_the_processor_lacks_is_listed(tmp_path: Path) -> None:
    plain, quantized = chain(), chain("uint8", full_range=True)
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    found = explain(tmp_path, after, before, processor=NO_VNNI)
    assert found.missing_features == ("vnni", "amx-int8")
    assert any("use all 8 bits" in note and "saturate" in note for note in found.notes)
    careful = chain("uint8")
    kept = graph_variant(tmp_path, "seven", careful.model(last(careful)), before)
    assert not any("use all 8 bits" in note for note in explain(tmp_path, kept, before, processor=NO_VNNI).notes)
    assert explain(tmp_path, before, kept, processor=NO_VNNI).missing_features == ()


def test_the_layer_that_breaks_accuracy_stands_out(tmp_path: Path) -> None:
    plain, quantized = chain(), chain("uint8", full_range=True)
    quantized.constants["conv1_ws"] = quantized.constants["conv1_ws"] * 16
    quantized.constants["conv1_wq"] = (quantized.constants["conv1_wq"] / 16).round().astype("int8")
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "int8", quantized.model(last(quantized)), before)
    layers = explain(tmp_path, after, before).layers
    assert {one.node for one in layers} == {"conv0/Conv", "conv1/Conv", "conv2/Conv"}
    worst = max((one for one in layers if one.node != "conv0/Conv"), key=lambda one: one.drop_db or 0.0)
    assert worst.node == "conv1/Conv"


def test_equalised_channels_are_no_error(tmp_path: Path) -> None:
    exported = apply(open_python(tmp_path, UNEVEN, IMAGE), "export-onnx", tmp_path)
    made = apply(exported, "quantize-static", tmp_path, search="never", equalise=0.5)
    layers = explain(tmp_path, made, exported).layers
    assert {one.node for one in layers} >= {"first/Conv", "second/Conv"}
    assert all(one.cosine > 0.98 for one in layers)


def test_a_factor_moved_behind_an_addition_is_no_error(tmp_path: Path) -> None:
    scaled = GraphMaker(size=8)
    scaled.constant("factor", np.float32(0.4))
    scaled.constant("addend", np.float32(-0.8))
    value = scaled.add("Mul", [scaled.add("Relu", ["x"], "relu"), "factor"], "scaled")
    scaled.convolution(scaled.add("Add", [value, "addend"], "shifted"), "conv")
    before = tmp_path / "before.onnx"
    onnx.save(scaled.model("conv"), before)
    model = onnx.load(before)
    assert fold_affine(model)
    onnx.save(model, after := tmp_path / "after.onnx")
    inputs = {"x": np.random.default_rng(0).standard_normal((2, CHANNELS, 8, 8)).astype(np.float32)}
    layers = layer_errors(after, before, inputs, 1, tmp_path)
    assert [one.node for one in layers] == ["relu/Relu", "conv/Conv"]
    assert all(one.cosine == pytest.approx(1.0) for one in layers)


def test_a_mask_that_was_raised_is_no_error(tmp_path: Path) -> None:
    paths = []
    for name, mask, factor in (("before", -3.4e38, 1.0), ("after", -60.0, 1.01)):
        maker = GraphMaker(size=8)
        maker.constant("none", np.float32(0))
        maker.constant("mask", np.float32(mask))
        maker.constant("factor", np.float32(factor))
        positive = maker.add("Greater", ["x", "none"], "positive")
        scores = maker.add("Mul", ["x", "factor"], "scores")
        masked = maker.add("Where", [positive, scores, "mask"], "masked")
        onnx.save(maker.model(maker.add("Softmax", [masked], "shares")), tmp_path / f"{name}.onnx")
        paths.append(tmp_path / f"{name}.onnx")
    inputs = {"x": np.random.default_rng(0).standard_normal((2, CHANNELS, 8, 8)).astype(np.float32)}
    found = {one.type: one for one in layer_errors(paths[1], paths[0], inputs, 1, tmp_path)}
    assert found["Where"].sqnr_db == pytest.approx(40.0, abs=0.5)
    assert found["Where"].drop_db == pytest.approx(0.0, abs=0.5)


def test_a_layer_with_a_cast_behind_it_is_listed_once(tmp_path: Path) -> None:
    plain, cast = GraphMaker(size=8), GraphMaker(size=8)
    onnx.save(plain.model(plain.add("Relu", ["x"], "relu")), tmp_path / "before.onnx")
    model = cast.model(cast.add("Relu", ["x"], "relu"))
    (node,) = [one for one in model.graph.node if one.op_type == "Relu"]
    name, node.output[0] = node.output[0], "in_half"
    model.graph.node.append(onnx.helper.make_node("Cast", ["in_half"], [name], name="cast", to=onnx.TensorProto.FLOAT))
    onnx.save(model, tmp_path / "after.onnx")
    inputs = {"x": np.random.default_rng(0).standard_normal((2, CHANNELS, 8, 8)).astype(np.float32)}
    layers = layer_errors(tmp_path / "after.onnx", tmp_path / "before.onnx", inputs, 1, tmp_path)
    assert [one.node for one in layers] == ["relu/Relu"]


@pytest.mark.parametrize(
    ("network", "example", "technique", "options"),
    [
        (TRANSFORMER, TOKENS, "quantize-dynamic", {"search": "never"}),
        (TRANSFORMER.replace("width=32", "width=64"), TOKENS, "quantize-int4", {"form": "qdq", "method": "rtn"}),
        (TRANSFORMER, TOKENS, "quantize-static", {"search": "never"}),
        (RECURRENT.replace("{kind}", "LSTM"), ROWS, "quantize-dynamic", {"search": "never"}),
        (CONVOLUTIONAL, IMAGE, "quantize-static", {"search": "never"}),
    ],
)
def test_each_quantized_layer_is_told_by_the_name_that_leaves_it_in_float(
    tmp_path: Path, network: str, example: str, technique: str, options: dict[str, object]
) -> None:
    exported = apply(open_python(tmp_path, network, example), "export-onnx", tmp_path)
    made = apply(exported, technique, tmp_path, **options)
    layers = explain(tmp_path, made, exported).layers
    touched = made.record.changed.touched if made.record.changed else ()
    quantized = {one.exclude for one in layers if one.exclude}
    moves = ("Reshape", "Flatten", "Transpose", "Squeeze", "Slice", "MaxPool")
    assert quantized >= {name for name in touched if not any(move.lower() in name.lower() for move in moves)}
    assert all(one.exclude is None for one in layers if one.type in ("Softmax", "Erf", "LayerNormalization"))
    for layer in [one for one in layers if one.exclude][:4]:
        again = apply(exported, technique, tmp_path, **options, exclude=[layer.exclude])
        changed = again.record.changed
        assert changed is not None
        assert layer.exclude not in changed.touched


def test_an_export_is_explained_against_pytorch(tmp_path: Path) -> None:
    baseline = open_python(tmp_path, CONVOLUTIONAL, IMAGE)
    exported = apply(baseline, "export-onnx", tmp_path)
    found = explain(tmp_path, exported, baseline, runtime="onnxruntime", against_runtime="pytorch")
    assert found.conditions.runtime == "onnxruntime"
    assert found.against_conditions.runtime == "pytorch"
    assert found.layers == ()
    assert any("An export computes what the module computes" in note for note in found.notes)
    assert found.missing_features == ()


def test_a_graph_made_of_a_module_is_compared_with_the_module_exported(tmp_path: Path) -> None:
    baseline = open_python(tmp_path, CONVOLUTIONAL, IMAGE)
    made = apply(apply(baseline, "export-onnx", tmp_path), "quantize-static", tmp_path, search="never")
    found = explain(tmp_path, made, baseline, runtime="onnxruntime", against_runtime="pytorch")
    assert {one.exclude for one in found.layers} >= {"stem.0/Conv", "depthwise/Conv", "pointwise/Conv", "head/Gemm"}
    assert all(one.cosine > 0.98 for one in found.layers)
    assert any("exported and not trained further" in note for note in found.notes)


def test_what_has_no_profile_is_compared_by_its_time_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "PROFILED_RUNTIMES", ("onnxruntime",))  # so that nothing has to be compiled
    baseline = open_python(tmp_path, CONVOLUTIONAL, IMAGE)
    exported = apply(baseline, "export-onnx", tmp_path)
    found = explain(tmp_path, exported, baseline, runtime="onnxruntime", against_runtime="pytorch")
    assert found.against_operators == ()
    assert found.cause_kind == "runtime"
    assert "pytorch tells no times by operator" in found.cause
    assert any("reads no profile of pytorch" in note for note in found.notes)


@pytest.mark.parametrize("processor", [VNNI, NO_VNNI])
def test_a_variant_against_its_own_copy_is_the_same(tmp_path: Path, processor: Processor) -> None:
    plain = chain(size=32)
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "copy", plain.model(last(plain)), before)
    found = explain(tmp_path, after, before, batch_size=8, processor=processor)
    assert all(one.sqnr_db is None and one.cosine == pytest.approx(1.0) for one in found.layers)
    assert [(one.type, one.before_calls) for one in found.changes] == [(o.type, o.after_calls) for o in found.changes]
    if found.speedup.ratio < 1.1:
        assert found.cause_kind == "same-operators"


def test_profiles_that_disagree_with_calls_timed_in_turns_say_which_to_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = chain(count=1)
    before = graph_variant(tmp_path, "plain", plain.model(last(plain)))
    after = graph_variant(tmp_path, "alike", plain.model(last(plain)), before)
    measured = Ratio(ratio=14.4, low=11.0, high=19.7, verdict="FASTER", against="plain", against_variant="plain")
    monkeypatch.setattr("engine.measurements.explaining._time_both", lambda *_: measured)
    found = explain(tmp_path, after, before)
    assert "Trust the speed-up of 14.40×: both were timed in turns." in found.cause
