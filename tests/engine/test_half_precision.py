"""FP16 and BF16: 16 bits inside, the same inputs and outputs, and the truth about what can run where."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from technique_jobs import (
    CONVOLUTIONAL,
    IMAGE,
    RECURRENT,
    ROWS,
    TOKENS,
    TRANSFORMER,
    apply,
    cosine,
    open_python,
    run_technique,
)

from engine.graphs import sessions
from engine.graphs.onnx_graph import load_graph
from engine.graphs.precision import convert, rounded
from engine.graphs.preparation import with_shapes
from engine.graphs.sessions import HALF_WEIGHTS, LEAVE_OUT, crashing_optimisers
from engine.graphs.verification import compare_outputs, run_graph
from engine.models import open_model
from engine.protocol import Logged, ModelSource
from engine.runtimes import RuntimeUnavailable, load
from engine.techniques import Refusal


def exported(directory, body, example):
    return apply(open_python(directory, body, example), "export-onnx", directory)


@pytest.mark.parametrize(
    ("body", "example"),
    [(CONVOLUTIONAL, IMAGE), (TRANSFORMER, TOKENS), (RECURRENT.format(kind="LSTM"), ROWS)],
    ids=["convolutional", "transformer", "lstm"],
)
def test_fp16_halves_the_file_and_keeps_inputs_outputs_and_answers(tmp_path, body, example):
    source = exported(tmp_path, body, example)
    half = apply(source, "quantize-fp16", tmp_path)
    before, after = load_graph(source.path).graph, load_graph(half.path).graph
    assert [value.type.tensor_type.elem_type for value in after.input] == [
        value.type.tensor_type.elem_type for value in before.input
    ]
    assert {value.type.tensor_type.elem_type for value in after.output} == {TensorProto.FLOAT}
    weights = [tensor for tensor in after.initializer if np.prod(tensor.dims) > 64]
    assert weights
    assert not any(tensor.data_type == TensorProto.FLOAT for tensor in weights)
    assert cosine(source, half) > 0.999
    assert half.record.changed.figures["precision"] == "FP16"
    onnx.checker.check_model(load_graph(half.path), full_check=True)


@pytest.mark.parametrize(("target", "told"), [("this-machine", True), ("cuda", False)])
def test_the_log_says_that_a_cpu_gets_slower_by_it(tmp_path, target, told):
    run = run_technique(exported(tmp_path, CONVOLUTIONAL, IMAGE), "quantize-fp16", tmp_path, target=target)
    logged = [message.text for message in run.messages if isinstance(message, Logged)]
    assert any("most graphs get smaller by them, but slower" in text for text in logged) == told


def test_values_that_do_not_fit_stay_in_fp32(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
        def forward(self, x):
            return torch.tanh(self.layer(x * 100000) / 100000)
    """
    source = exported(tmp_path, body, "torch.randn(batch_size, 8)")
    changed = apply(source, "quantize-fp16", tmp_path).record.changed
    assert "layer/Gemm" in {left.name for left in changed.left}
    assert changed.touched == ("Tanh",)
    assert changed.figures["cosine"] > 0.999


def test_a_node_can_be_left_in_fp32(tmp_path):
    source = exported(tmp_path, CONVOLUTIONAL, IMAGE)
    changed = apply(source, "quantize-fp16", tmp_path, exclude=["depthwise/Conv"]).record.changed
    assert [(left.name, left.reason) for left in changed.left] == [
        ("depthwise/Conv", "kept in FP32 so that the answers hold")
    ]
    assert changed.figures["casts"] >= 3
    with pytest.raises(Refusal, match="no node 'conv9'"):
        apply(source, "quantize-fp16", tmp_path, exclude=["conv9"])


def test_bf16_is_refused_for_a_cpu_and_made_for_a_gpu(tmp_path):
    source = exported(tmp_path, CONVOLUTIONAL, IMAGE)
    with pytest.raises(Refusal, match=r"no BF16 kernels .* make it for the target cuda or tensorrt"):
        apply(source, "quantize-bf16", tmp_path)
    made = apply(source, "quantize-bf16", tmp_path, target="cuda")
    assert made.record.target == "cuda"
    kinds = {tensor.data_type for tensor in load_graph(made.path).graph.initializer if np.prod(tensor.dims) > 64}
    assert kinds == {TensorProto.BFLOAT16}
    assert made.record.changed.figures["cosine"] > 0.99
    assert "rounding" in made.record.changed.summary


def test_rounding_every_value_gives_the_answers_of_the_converted_graph(tmp_path):
    model = with_shapes(load_graph(exported(tmp_path, TRANSFORMER, TOKENS).path))
    result = convert(model, "fp16")
    batch = {"tokens": np.random.default_rng(0).integers(0, 200, (4, 10))}
    real = run_graph(result.model, [batch], optimize=False)
    emulated = run_graph(rounded(model, result.touched, "fp16"), [batch], optimize=False)
    exact = run_graph(model, [batch])
    assert compare_outputs(real, emulated).sqnr_db > 45
    assert 30 < compare_outputs(exact, emulated).sqnr_db < 120, "rounding must show"


def test_for_tensorrt_int8_pairs_stand_in_an_fp16_graph(tmp_path):
    source = exported(tmp_path, CONVOLUTIONAL, IMAGE)
    quantized = apply(source, "quantize-static", tmp_path, target="tensorrt")
    graph = load_graph(quantized.path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    scales = [kinds[node.input[1]] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert scales
    assert set(scales) == {TensorProto.FLOAT16}
    assert sum(node.op_type == "Cast" for node in graph.node) <= 2, "only the graph's own input and output are cast"
    assert cosine(source, quantized) > 0.98


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_behind_onnx_runtimes_own_operators_everything_is_converted_too(tmp_path, precision):
    """onnx infers no type behind FusedMatMul: without ONNX Runtime's schemas the rest would stay in FP32 unnamed."""
    source = exported(tmp_path, TRANSFORMER, TOKENS)
    fused = apply(source, "optimize-graph", tmp_path, optimiser="onnxruntime")
    graph = load_graph(fused.path).graph
    assert any(node.domain == "com.microsoft" for node in graph.node)
    half = apply(fused, f"quantize-{precision}", tmp_path, target="cuda")
    kinds = {tensor.data_type for tensor in load_graph(half.path).graph.initializer if np.prod(tensor.dims) > 64}
    assert TensorProto.FLOAT not in kinds
    changed = half.record.changed
    assert changed.figures["cosine"] > 0.999
    products = {node.name for node in graph.node if node.op_type in ("MatMul", "Gemm", "FusedMatMul", "Attention")}
    assert products
    assert products <= set(changed.touched)


def test_a_value_of_unknown_type_names_its_node(tmp_path):
    source = exported(tmp_path, CONVOLUTIONAL, IMAGE)
    model = with_shapes(load_graph(source.path))
    alien = next(node for node in model.graph.node if node.op_type == "Relu" or node.op_type == "Clip")
    alien.domain, alien.op_type = "elsewhere", "Mystery"
    known = {value.name for value in model.graph.value_info}
    del model.graph.value_info[:]
    assert known
    left = convert(model, "fp16").left
    assert "not known" in left[alien.name]


CRASHING = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(200, 16)
        self.first = nn.LSTM(16, 16, bidirectional=True, batch_first=True)
        self.second = nn.GRU(32, 16, batch_first=True)
        self.head = nn.Linear(16, 7)

    def forward(self, tokens):
        return self.head(self.second(self.first(self.embedding(tokens))[0])[0])
"""


@pytest.mark.parametrize("target", ["this-machine", "cuda"])
def test_a_graph_that_crashes_onnx_runtime_runs_without_the_optimiser_that_crashes(tmp_path, target):
    """In ONNX Runtime 1.32; a later one that does not crash leaves nothing out."""
    source = exported(tmp_path, CRASHING, TOKENS)
    half = apply(source, "quantize-fp16", tmp_path, target=target)
    crashes = crashing_optimisers(half.path) == (HALF_WEIGHTS,)
    assert crashing_optimisers(source.path) == ()
    changed = half.record.changed
    assert changed.figures["cosine"] > 0.999
    assert changed.figures.get("left_out") == (HALF_WEIGHTS if crashes else None)
    assert (f"set the session option {LEAVE_OUT}" in changed.summary) == crashes
    batch = source.model.example(3)
    answers = load(half, "onnxruntime", threads=1).run(batch)
    assert compare_outputs([answers], run_graph(load_graph(half.path), [batch])).cosine > 0.999
    opened = open_model(ModelSource(path=str(half.path), kind="onnx", sha256="", shapes={"tokens": ["batch", 10]}))
    assert opened.example(2)["tokens"].shape == (2, 10)


def test_a_graph_that_crashes_whatever_is_left_out_is_not_said_to_answer_otherwise(tmp_path, monkeypatch):
    source = exported(tmp_path, CONVOLUTIONAL, IMAGE)
    monkeypatch.setattr(sessions, "_crashes", lambda path, left_out: True)
    with pytest.raises(Refusal, match=r"crashes while it loads .* so the answers .* cannot be compared"):
        apply(source, "quantize-fp16", tmp_path)
    made = apply(source, "quantize-fp16", tmp_path, target="cuda")
    with pytest.raises(RuntimeUnavailable, match=r"crashes while it loads the graph on a CPU: .* cannot run here"):
        load(made, "onnxruntime")
