"""FP8: a real graph for TensorRT whose answers are checked on the CPU, and refusals that name the hardware."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from technique_jobs import CONVOLUTIONAL, IMAGE, RECURRENT, ROWS, apply, open_python

from engine.graphs.onnx_graph import load_graph
from engine.graphs.verification import compare_outputs, run_graph
from engine.protocol import Gpu, Hardware, ModelInfo, Processor
from engine.techniques import Refusal, describe, find_technique, why_unavailable

TRANSFORMER = """
class Net(nn.Module):
    def __init__(self, width=64, words=200):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 128, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 10)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(dim=1))
"""

WIDE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 1))
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.head = nn.Linear(64, 32)

    def forward(self, image):
        x = torch.relu(self.depthwise(self.body(torch.relu(self.stem(image)))))
        return self.head(x.mean((2, 3)))
"""

MODELS = {"transformer": (TRANSFORMER, "torch.randint(0, 200, (batch_size, 16))"), "convolutions": (WIDE, IMAGE)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    made = {}
    for name, (body, example) in MODELS.items():
        directory = tmp_path_factory.mktemp(name)
        made[name] = apply(open_python(directory, body, example), "export-onnx", directory)
    return made


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_weights_and_activations_are_e4m3_inside_an_fp16_graph(sources, tmp_path, name, per_channel):
    source = sources[name]
    made = apply(source, "quantize-fp8", tmp_path, target="tensorrt", per_channel=per_channel)
    model = load_graph(made.path)
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantize = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    stored = [
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in kinds
    ]  # weights: no QuantizeLinear in front of them
    assert quantize
    assert stored
    assert {kinds[node.input[2]] for node in quantize} == {TensorProto.FLOAT8E4M3FN}
    assert {kinds[node.input[0]] for node in stored} == {TensorProto.FLOAT8E4M3FN}
    assert {kinds[node.input[1]] for node in quantize + stored} == {TensorProto.FLOAT16}
    assert all(len(scales.dims) == int(per_channel) for scales in model.graph.initializer if "weight" in scales.name
               and scales.name.endswith("_fp8_scale_fp16"))  # fmt: skip
    batch = source.model.example(6, seed=77)
    found = compare_outputs(run_graph(source.path, [batch]), run_graph(made.path, [batch], optimize=False))
    assert found.cosine > 0.998
    assert 20 < found.sqnr_db < 60, "rounding to 3 bits of fraction must show, and no more than that"
    assert made.path.stat().st_size < 0.62 * source.path.stat().st_size
    figures = made.record.changed.figures
    assert figures["float8"] == "E4M3FN"
    assert figures["quantized_weight_share"] > 0.6
    assert made.record.portable
    assert made.record.target == "tensorrt"
    assert "can only be measured on a GPU" in made.record.changed.summary


def test_the_largest_value_seen_is_the_largest_number_of_e4m3(sources, tmp_path):
    from engine.graphs.calibration import Calibrator
    from engine.graphs.fp8_quantization import OPSET, plan_fp8, write_fp8
    from engine.graphs.preparation import prepare

    source = sources["convolutions"]
    plan = plan_fp8(prepare(source.path, least_opset=OPSET), True, frozenset())
    batches = list(source.model.calibration_batches(16))
    ranges = Calibrator(plan.model, lambda: batches).ranges(plan.values)
    graph = write_fp8(plan, ranges, True).model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            seen = ranges[node.input[0]]
            assert constants[node.input[1]] * 448 == pytest.approx(max(-seen.low, seen.high), rel=1e-5)
    for name, codes in constants.items():
        if codes.dtype == "float8_e4m3fn" and codes.size > 64:
            rows = np.abs(codes.astype(np.float32)).reshape(len(codes), -1) if codes.ndim == 4 else None
            if rows is not None:
                assert (rows.max(axis=1) == 448).all(), name


def test_what_has_no_fp8_kernel_is_named(sources, tmp_path):
    changed = apply(sources["convolutions"], "quantize-fp8", tmp_path, target="tensorrt").record.changed
    left = {one.name: one.reason for one in changed.left}
    assert "grouped" in left["depthwise/Conv"]
    assert "3 is no multiple of 16" in left["stem/Conv"]
    assert {"body.0/Conv", "body.3/Conv", "head/Gemm"} == set(changed.touched)


def test_the_products_inside_attention_can_be_left(sources, tmp_path):
    both = apply(sources["transformer"], "quantize-fp8", tmp_path, target="tensorrt")
    without = apply(sources["transformer"], "quantize-fp8", tmp_path, target="tensorrt", attention=False)
    assert len(set(both.record.changed.touched) - set(without.record.changed.touched)) == 2
    excluded = apply(
        sources["transformer"], "quantize-fp8", tmp_path, target="tensorrt", exclude=["layer.linear1/MatMul"]
    )
    reasons = {one.name: one.reason for one in excluded.record.changed.left}
    assert reasons["layer.linear1/MatMul"] == "kept in float on request"


def test_any_other_target_is_refused_with_what_it_is(sources, tmp_path):
    with pytest.raises(Refusal, match=r"capability 8\.9 or more .* cpu-vnni is x86-64 with VNNI\. .* target tensorrt"):
        apply(sources["convolutions"], "quantize-fp8", tmp_path)
    with pytest.raises(Refusal, match="cuda is ONNX Runtime on an NVIDIA GPU"):
        apply(sources["convolutions"], "quantize-fp8", tmp_path, target="cuda")


def test_that_it_can_never_run_here_is_said_before_data_is_asked_for(sources):
    source = sources["convolutions"]
    processor = Processor(name="p", features=("avx2",), physical_cores=1, logical_cores=1, memory_bytes=1)
    model = ModelInfo(
        name="m", source=source.model.source, inputs=(), outputs=(), offers=(), labelled=False, operators=("Conv",)
    )
    hardware = Hardware(hostname="h", processor=processor)
    chosen = find_technique("quantize-fp8")
    assert "needs an NVIDIA GPU" in why_unavailable(chosen, source.record, model, hardware)
    assert "needs data to calibrate on" in why_unavailable(chosen, source.record, model, hardware, target="tensorrt")


def test_a_network_without_fitting_layers_is_refused(tmp_path):
    small = apply(open_python(tmp_path, CONVOLUTIONAL.replace("16", "12"), IMAGE), "export-onnx", tmp_path)
    with pytest.raises(Refusal, match="multiple of 16"):
        apply(small, "quantize-fp8", tmp_path, target="tensorrt")


def test_a_recurrent_network_is_refused(tmp_path):
    source = apply(open_python(tmp_path, RECURRENT.format(kind="LSTM"), ROWS), "export-onnx", tmp_path)
    with pytest.raises(Refusal, match="no FP8 LSTM"):
        apply(source, "quantize-fp8", tmp_path, target="tensorrt")


@pytest.mark.parametrize(
    ("capabilities", "refused"),
    [(["7.5"], True), (["8.6", "8.9"], False), (["9.0"], False), ([None], False), ([], False)],
)
def test_gpus_that_are_too_old_are_known_beforehand(sources, capabilities, refused):
    source = sources["convolutions"]
    processor = Processor(name="p", features=(), physical_cores=1, logical_cores=1, memory_bytes=1)
    gpus = tuple(
        Gpu(index=index, uuid=str(index), name=f"GPU {index}", compute_capability=text)
        for index, text in enumerate(capabilities)
    )
    model = ModelInfo(
        name="m", source=source.model.source, inputs=(), outputs=(), offers=("calibration_data",), labelled=False,
        operators=("Conv", "Gemm"),
    )  # fmt: skip
    hardware = Hardware(hostname="h", processor=processor, gpus=gpus)
    sentence = why_unavailable(find_technique("quantize-fp8"), source.record, model, hardware, target="tensorrt")
    assert (sentence is not None) is refused
    if refused:
        assert "GPU 0 has 7.5" in sentence
    (listed,) = [one for one in describe(source.record, model, hardware) if one.tag == "quantize-fp8"]
    assert "TensorRT" in (listed.unavailable or ""), "a target without FP8 is refused before a job runs"
    assert refused or "the target cpu-portable is any processor" in (listed.unavailable or "")
    (listed,) = [one for one in describe(source.record, model, hardware, "tensorrt") if one.tag == "quantize-fp8"]
    assert (listed.unavailable is not None) is refused


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["quantize-fp8", "quantize-int4"])
def test_tensorrt_builds_an_engine_for_ada_from_it(sources, tmp_path, technique):
    """With the builder of TensorRT-RTX, which needs no GPU (`pip install tensorrt-rtx-cu13-bindings …-libs`)."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    messages = []

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, text):
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(text)

    made = apply(sources["transformer"], technique, tmp_path, target="tensorrt")
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(made.path.read_bytes()), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [8 if size == -1 else size for size in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, messages
    assert plan.nbytes > 10_000


def test_too_little_data_for_one_batch_is_told_and_not_called_never_finite(sources, tmp_path, monkeypatch):
    source = sources["convolutions"]
    monkeypatch.setattr(source.model, "calibration_batches", lambda batch_size, limit: iter(()))
    with pytest.raises(Refusal, match="at least one whole batch"):
        apply(source, "quantize-fp8", tmp_path, target="tensorrt")
    made = apply(source, "quantize-fp8", tmp_path, target="tensorrt", synthetic=True)
    assert made.record.changed.figures["synthetic_calibration"]
