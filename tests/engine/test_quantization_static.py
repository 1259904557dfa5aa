"""Static INT8: whole chains run in integers, ReLU and Clip vanish, what stays in float is named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import (
    CONVOLUTIONAL,
    IMAGE,
    RECURRENT,
    ROWS,
    TOKENS,
    TRANSFORMER,
    apply,
    cosine,
    open_baseline,
    open_python,
    operators,
    run_technique,
)

from engine.context import JobCancelled
from engine.protocol import ModelSource, Processor
from engine.techniques import Refusal, find_technique, parse_parameters, why_unavailable

pytestmark = pytest.mark.usefixtures("no_choice_by_chance")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    directory = tmp_path_factory.mktemp("convolutional")
    return apply(open_python(directory, CONVOLUTIONAL, IMAGE), "export-onnx", directory)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("transformer")
    return apply(open_python(directory, TRANSFORMER, TOKENS), "export-onnx", directory)


def weights_of(variant) -> list[np.ndarray]:
    graph = onnx.load(variant.path).graph
    return [
        numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT8 and tensor.name.endswith("weight_quantized")
    ]


def test_a_convolutional_network_runs_in_integers_from_end_to_end(convolutional, tmp_path):
    quantized = apply(convolutional, "quantize-static", tmp_path)
    assert cosine(convolutional, quantized) > 0.99
    kinds = operators(quantized)
    assert kinds["QLinearConv"] == 3
    assert kinds["QLinearAdd"] == kinds["QLinearGlobalAveragePool"] == kinds["QGemm"] == 1
    assert kinds["QuantizeLinear"] == 1, "only the image is turned into integers"
    assert not {"Conv", "FusedConv", "Relu", "Clip", "Add", "DequantizeLinear"} & set(kinds)
    changed = quantized.record.changed
    assert changed.figures["absorbed_activations"] == 3
    assert changed.figures["quantized_weight_share"] > 0.9
    assert set(changed.touched) >= {"stem.0/Conv", "depthwise/Conv", "pointwise/Conv", "head/Gemm"}
    assert quantized.record.target == "cpu-vnni"
    assert quantized.record.portable
    onnx.checker.check_model(onnx.load(quantized.path), full_check=True)


def test_the_source_is_left_as_it_was(convolutional, tmp_path):
    before = convolutional.path.read_bytes()
    apply(convolutional, "quantize-static", tmp_path)
    assert convolutional.path.read_bytes() == before


@pytest.mark.parametrize(
    ("target", "largest"), [("cpu-vnni", 127), ("cpu-avx2", 63), ("cpu-portable", 63), ("cuda", 127)]
)
def test_weights_keep_to_the_bits_the_target_can_add(convolutional, tmp_path, target, largest):
    quantized = apply(convolutional, "quantize-static", tmp_path, target=target)
    assert quantized.record.target == target
    assert max(np.abs(weights.astype(int)).max() for weights in weights_of(quantized)) == largest
    assert cosine(convolutional, quantized) > 0.98


def test_this_machine_without_vnni_gets_seven_bits(convolutional, tmp_path):
    old = Processor(name="old", features=("avx2",), physical_cores=1, logical_cores=1, memory_bytes=1)
    quantized = apply(convolutional, "quantize-static", tmp_path, processor=old)
    assert quantized.record.target == "cpu-avx2"
    assert quantized.record.changed.figures["weight_bits"] == 7


def test_gpus_get_signed_symmetric_pairs_and_float_biases(convolutional, tmp_path):
    graph = onnx.load(apply(convolutional, "quantize-static", tmp_path, target="cuda").path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert all(zero.dtype == np.int8 and zero == 0 for zero in zeros)
    assert not any(array.dtype == np.int32 and array.size > 1 for array in constants.values())
    assert sum(node.op_type == "Clip" for node in graph.node) == 1, "TensorRT fuses it itself"


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_the_add_of_a_short_cut_can_be_left_in_float_on_a_gpu_too(convolutional, tmp_path, target):
    changed = apply(convolutional, "quantize-static", tmp_path, target=target, search="never").record.changed
    (add,) = [name for name in changed.touched if "add" in name.lower()]
    without = apply(convolutional, "quantize-static", tmp_path, target=target, search="never", exclude=[add])
    changed = without.record.changed
    assert add not in changed.touched
    assert {one.name: one.reason for one in changed.left}[add] == "kept in float on request"


@pytest.mark.parametrize("calibration", ["min-max", "entropy", "percentile"])
def test_every_way_to_calibrate_gives_a_graph_near_the_source(convolutional, tmp_path, calibration):
    quantized = apply(convolutional, "quantize-static", tmp_path, calibration=calibration, percentile=99.9)
    assert cosine(convolutional, quantized) > 0.98


def test_bias_correction_brings_the_mean_output_nearer(convolutional, tmp_path):
    from engine.graphs.verification import run_graph

    batches = list(convolutional.model.calibration_batches(batch_size=64))
    means = {}
    for name, variant in {
        "float": convolutional,
        "plain": apply(convolutional, "quantize-static", tmp_path, target="cpu-avx2", bias_correction=False),
        "corrected": apply(convolutional, "quantize-static", tmp_path, target="cpu-avx2"),
    }.items():
        means[name] = np.mean(
            [next(iter(outputs.values())).mean(axis=0) for outputs in run_graph(variant.path, batches)]
        )
    assert abs(means["corrected"] - means["float"]) <= abs(means["plain"] - means["float"]) + 1e-4


def test_an_excluded_node_stays_in_float_and_is_named(convolutional, tmp_path):
    quantized = apply(convolutional, "quantize-static", tmp_path, exclude=["depthwise/Conv"])
    changed = quantized.record.changed
    assert "depthwise/Conv" not in changed.touched
    assert {left.name: left.reason for left in changed.left}["depthwise/Conv"] == "kept in float on request"
    assert operators(quantized)["QLinearConv"] == 2
    assert cosine(convolutional, quantized) > 0.99


def test_a_node_that_does_not_exist_cannot_be_excluded(convolutional, tmp_path):
    with pytest.raises(Refusal, match="no node 'conv9'"):
        apply(convolutional, "quantize-static", tmp_path, exclude=["conv9"])


def test_in_a_transformer_only_products_with_weights_are_quantized(transformer, tmp_path):
    quantized = apply(transformer, "quantize-static", tmp_path)
    assert cosine(transformer, quantized) > 0.99
    reasons = {left.reason for left in quantized.record.changed.left}
    assert any("both operands are activations" in reason for reason in reasons)
    kinds = operators(quantized)
    assert kinds["MatMulIntegerToFloat"] + kinds["QGemm"] >= 4


@pytest.mark.parametrize(("gain", "kind"), [(1.5, "separate"), (1.0, "kept")])
def test_residuals_are_kept_apart_from_normalisations_only_where_that_is_faster(
    transformer, tmp_path, monkeypatch, gain, kind
):
    monkeypatch.setattr("engine.graphs.touches.time_in_turns", lambda models, *_, **__: [1.0, gain])
    run = run_technique(transformer, "quantize-static", tmp_path)
    pinned = run.files[0].parameters
    assert pinned["residuals"] == kind
    graph = onnx.load(run.variants[0].path).graph
    assert any(node.op_type == "Sum" for node in graph.node) == (kind == "separate")
    assert cosine(transformer, run.variants[0]) > 0.99
    again = apply(transformer, "quantize-static", tmp_path, **pinned)
    assert again.path.read_bytes() == run.variants[0].path.read_bytes()


def test_an_lstm_whose_head_alone_would_be_quantized_is_refused(tmp_path):
    exported = apply(open_python(tmp_path, RECURRENT.format(kind="LSTM"), ROWS), "export-onnx", tmp_path)
    with pytest.raises(Refusal, match="LSTM has no statically quantized kernel: use quantize-dynamic"):
        apply(exported, "quantize-static", tmp_path, dynamic_rest=False)


def test_what_has_no_static_kernel_is_quantized_dynamically(tmp_path):
    exported = apply(open_python(tmp_path, RECURRENT.format(kind="LSTM"), ROWS), "export-onnx", tmp_path)
    quantized = apply(exported, "quantize-static", tmp_path)
    assert not quantized.record.changed.left
    assert quantized.record.changed.figures["quantized_weight_share"] > 0.9
    assert operators(quantized)["DynamicQuantizeLSTM"] == 2
    assert not quantized.record.portable
    assert cosine(exported, quantized) > 0.99


def test_what_is_quantized_is_not_quantized_again(convolutional, tmp_path):
    quantized = apply(convolutional, "quantize-static", tmp_path)
    with pytest.raises(Refusal, match="quantized already"):
        apply(quantized, "quantize-static", tmp_path)
    with pytest.raises(Refusal, match="quantized already"):
        apply(quantized, "quantize-dynamic", tmp_path)


def test_cancelling_ends_it_at_the_next_batch(convolutional, tmp_path, monkeypatch):
    from engine.context import JobContext

    monkeypatch.setattr(JobContext, "cancelled", property(lambda self: True))
    with pytest.raises(JobCancelled):
        apply(convolutional, "quantize-static", tmp_path)


def onnx_file(path, nodes, inputs, outputs, constants, opset=17):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)


def test_made_up_inputs_are_used_only_on_request(tmp_path):
    rng = np.random.default_rng(0)
    onnx_file(
        tmp_path / "plain.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        {"x": ["batch", 8]},
        {"y": ["batch", 4]},
        {"w": rng.standard_normal((8, 4)).astype(np.float32)},
    )
    source = ModelSource(path=str(tmp_path / "plain.onnx"), kind="onnx", sha256="")
    baseline = open_baseline(source, tmp_path)
    chosen = find_technique("quantize-static")
    if not baseline.model.has_calibration_data:
        with pytest.raises(Refusal, match="synthetic = true"):
            apply(baseline, "quantize-static", tmp_path)
    quantized = apply(baseline, "quantize-static", tmp_path, synthetic=True)
    assert quantized.record.changed.figures["synthetic_calibration"] is True
    assert "made-up inputs" in quantized.record.changed.summary
    assert chosen.needs


def test_a_graph_without_weights_is_refused_with_the_reason(tmp_path):
    onnx_file(
        tmp_path / "plain.onnx",
        [helper.make_node("MatMul", ["a", "b"], ["y"], "product")],
        {"a": ["batch", 4, 8], "b": ["batch", 8, 4]},
        {"y": ["batch", 4, 4]},
        {},
    )
    baseline = open_baseline(ModelSource(path=str(tmp_path / "plain.onnx"), kind="onnx", sha256=""), tmp_path)
    with pytest.raises(Refusal, match=r"Nothing in baseline could be quantized: both operands are activations"):
        apply(baseline, "quantize-static", tmp_path, synthetic=True)


def test_a_bias_that_comes_through_a_reshape_is_left_or_folded_never_broken(tmp_path):
    """onnxruntime.quantization writes an invalid graph here."""
    rng = np.random.default_rng(0)
    onnx_file(
        tmp_path / "reshaped.onnx",
        [
            helper.make_node("Reshape", ["b", "shape"], ["bias"], "reshape"),
            helper.make_node("Conv", ["x", "w", "bias"], ["y"], "conv"),
            helper.make_node(
                "ReduceMax",
                [
                    "x",
                ],
                ["peak"],
                "peak",
                axes=[0, 2, 3],
                keepdims=0,
            ),
            helper.make_node("Conv", ["x", "w2", "peak"], ["z"], "conv_computed_bias"),
        ],
        {"x": ["batch", 3, 8, 8]},
        {"y": ["batch", 4, 6, 6], "z": ["batch", 3, 6, 6]},
        {
            "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "w2": rng.standard_normal((3, 3, 3, 3)).astype(np.float32),
            "b": rng.standard_normal((1, 4)).astype(np.float32),
            "shape": np.array([4], dtype=np.int64),
        },
    )
    baseline = open_baseline(ModelSource(path=str(tmp_path / "reshaped.onnx"), kind="onnx", sha256=""), tmp_path)
    quantized = apply(baseline, "quantize-static", tmp_path, synthetic=True)
    assert quantized.record.changed.touched == ("conv",)
    assert quantized.record.changed.left[0].reason == "its bias is computed in the graph"
    assert cosine(baseline, quantized) > 0.99


def test_the_dashboard_is_told_why_not_beforehand(convolutional):
    from engine.protocol import Hardware

    hardware = Hardware(
        hostname="h", processor=Processor(name="p", features=(), physical_cores=1, logical_cores=1, memory_bytes=1)
    )
    chosen = find_technique("quantize-static")
    parameters = parse_parameters("quantize-static", {})
    info = convolutional.model.info()
    assert why_unavailable(chosen, convolutional.record, info, hardware, parameters) is None
    quantized = convolutional.record.__class__(
        **{
            name: getattr(convolutional.record, name)
            for name in convolutional.record.__struct_fields__
            if name != "changed"
        },
        changed=type(convolutional.record.changed)(summary="", figures={"quantized_weight_share": 0.9}),
    )
    assert "quantized already" in why_unavailable(chosen, quantized, info, hardware, parameters)


def test_progress_only_goes_forward(convolutional, tmp_path):
    from engine.protocol import Progressed

    run = run_technique(convolutional, "quantize-static", tmp_path, calibration="percentile")
    shares = [message.done / message.total for message in run.messages if isinstance(message, Progressed)]
    assert shares == sorted(shares)
    assert shares[-1] <= 1


MOBILE = """
class Net(nn.Module):
    '''A block of MobileNetV3: HardSwish, and a gate of HardSigmoid over channels.'''

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Hardswish())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1))
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.depthwise(self.stem(image))
        x = x * torch.nn.functional.hardsigmoid(self.squeeze(x))
        return self.head(self.pointwise(x).mean((2, 3)))
"""


def test_hard_activations_and_gates_run_in_integers(tmp_path):
    source = apply(open_python(tmp_path, MOBILE, IMAGE), "export-onnx", tmp_path)
    quantized = apply(source, "quantize-static", tmp_path)
    kinds = operators(quantized)
    assert kinds["QLinearConv"] == 5
    assert kinds["QLinearMul"] == 3
    assert kinds["QLinearAdd"] == 3, "a HardSigmoid is an addition that the range of its result clamps"
    assert kinds["QuantizeLinear"] == 1
    assert not {"HardSigmoid", "HardSwish", "Mul", "Add", "DequantizeLinear", "Conv"} & set(kinds)
    assert cosine(source, quantized) > 0.99
    assert quantized.record.portable
