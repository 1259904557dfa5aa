"""INT4 weights: blocks, three ways of rounding, two forms of graph, and the truth about what has no 4-bit kernel."""

import msgspec
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
    VNNI,
    apply,
    cosine,
    open_python,
    operators,
    random_graph_input,
    run_technique,
)

from engine.graphs.four_bits import Blocks, compensated, least_error, output_error, rounded
from engine.graphs.onnx_graph import load_graph
from engine.graphs.verification import run_graph
from engine.protocol import Hardware, Logged
from engine.techniques import Refusal, find_technique, parse_parameters
from engine.techniques.weight_quantization import refuse_int4

WIDE = """
class Net(nn.Module):
    def __init__(self, width=128, words=400):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 256, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 40)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(dim=1))
"""


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("transformer")
    return apply(open_python(directory, WIDE, TOKENS.replace("200", "400")), "export-onnx", directory)


def matrices(inner=200, outputs=48, rows=900):
    """(weights, inputs that hang together, further inputs of the same kind)."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((inner, inner)) * np.geomspace(1, 0.02, inner)
    weights = (rng.standard_t(5, (inner, outputs)) * 0.05).astype(np.float32)
    inputs = [(rng.standard_normal((rows, inner)) @ mixing.T).astype(np.float32) for _ in range(2)]
    return weights, *inputs


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 64, 256])
def test_each_better_method_has_less_error_than_rounding_to_nearest(block, symmetric):
    weights, seen, unseen = matrices()
    plain, narrowed = rounded(weights, block, symmetric), least_error(weights, block, symmetric)
    put_right = compensated(weights, seen.T @ seen, len(seen), block, symmetric)

    def squared(blocks: Blocks) -> float:
        return float(((blocks.values() - weights) ** 2).sum())

    assert squared(narrowed) < 0.98 * squared(plain)
    moments = unseen.T @ unseen
    assert output_error(weights, put_right, moments) < 0.5 * output_error(weights, plain, moments)
    assert output_error(weights, put_right, moments) < 0.5 * output_error(weights, narrowed, moments)


def test_with_few_inputs_seen_the_compensation_is_cautious():
    """A third as many vectors as inner indices, that hang together by chance only."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_t(5, (128, 64)) * 0.02).astype(np.float32)
    seen, unseen = (rng.standard_normal((rows, 128)).astype(np.float32) for rows in (48, 4000))
    moments = unseen.T @ unseen
    cautious = output_error(weights, compensated(weights, seen.T @ seen, 48, 64, False), moments)
    assert cautious < 1.3 * output_error(weights, least_error(weights, 64, False), moments)
    assert cautious < 0.8 * output_error(weights, compensated(weights, seen.T @ seen, 10**6, 64, False), moments)


def test_rounding_to_nearest_is_what_onnx_runtime_does():
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    weights, *_ = matrices(inner=192)
    codes, scales, zeros = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=32)).qbits_block_quant(
        weights
    )
    ours = rounded(weights, 32, symmetric=False).packed()
    assert np.allclose(ours[1].ravel(), scales.ravel(), rtol=1e-5)
    assert np.array_equal(ours[2].ravel(), zeros.ravel())
    assert (ours[0] != codes).mean() < 0.01, "only ties may fall to the other side"


def test_weights_that_are_whole_steps_come_back_exactly():
    rng = np.random.default_rng(0)
    weights = rng.integers(-8, 8, (70, 5)).astype(np.float32)
    weights[::32], weights[1::32] = -8, 7
    for symmetric in (True, False):
        blocks = rounded(weights, 32, symmetric)
        assert blocks.scales.shape == (3, 5), "the last block is shorter"
        assert np.allclose(blocks.values(), weights, atol=1e-5)


def test_inputs_that_are_always_zero_do_not_break_the_compensation():
    weights, seen, _ = matrices(inner=64)
    seen[:, 5:20] = 0
    blocks = compensated(weights, seen.T @ seen, len(seen), 32, False)
    assert np.isfinite(blocks.values()).all()
    with pytest.raises(ValueError, match="not finite"):
        compensated(weights, np.full((64, 64), np.inf), 64, 32, False)


@pytest.mark.parametrize("form", ["matmul-nbits", "qdq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_both_forms_give_the_answers_of_their_numbers(transformer, tmp_path, form, symmetric):
    made = apply(
        transformer, "quantize-int4", tmp_path, form=form, symmetric=symmetric, method="least-error", compute="float32"
    )
    assert cosine(transformer, made) > 0.98
    kinds = [node.op_type for node in load_graph(made.path).graph.node]
    assert kinds.count("MatMulNBits" if form == "matmul-nbits" else "DequantizeLinear") == 5
    assert made.record.portable is (form == "qdq")
    assert operators(made)["MatMulNBits"] == 5, "ONNX Runtime must run 4-bit kernels for either form"
    onnx.checker.check_model(load_graph(made.path))


def test_the_file_is_an_eighth_and_the_record_says_what_was_done(transformer, tmp_path):
    made = run_technique(transformer, "quantize-int4", tmp_path, block_size=128)
    variant = made.variants[0].record
    figures = variant.changed.figures
    assert figures["quantized_weight_share"] > 0.95
    assert made.variants[0].path.stat().st_size < 0.2 * transformer.path.stat().st_size
    assert figures["size_share"] == pytest.approx(variant.size_bytes / transformer.record.size_bytes, abs=0.001)
    assert figures["method"] in ("least-error", "gptq")
    assert figures[f"sqnr_db_{figures['method']}"] == max(
        figures[f"sqnr_db_{name}"] for name in ("rtn", "least-error", "gptq")
    )
    assert figures["sqnr_db_gptq"] > figures["sqnr_db_rtn"]
    assert made.files[0].parameters["method"] == figures["method"], "a replay does not search again"
    assert any("embedding" in name for name in variant.changed.touched)
    assert "in 4 bits" in variant.changed.summary


def test_for_tensorrt_the_graph_is_fp16_with_symmetric_standard_blocks(transformer, tmp_path):
    made = apply(transformer, "quantize-int4", tmp_path, target="tensorrt", method="gptq")
    assert made.record.portable
    graph = load_graph(made.path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(pairs) == 5
    assert all(len(node.input) == 2 for node in pairs), "no zero points"
    assert {kinds[node.input[0]] for node in pairs} == {TensorProto.INT4}
    assert {kinds[node.input[1]] for node in pairs} == {TensorProto.FLOAT16}
    reasons = {left.name: left.reason for left in made.record.changed.left}
    assert any("4-bit table" in reason for name, reason in reasons.items() if "embedding" in name)
    with pytest.raises(Refusal, match="TensorRT does not know MatMulNBits"):
        apply(transformer, "quantize-int4", tmp_path, target="tensorrt", form="matmul-nbits")


@pytest.mark.parametrize("symmetric", [True, False])
def test_openvino_reads_the_standard_form(transformer, tmp_path, symmetric):
    pytest.importorskip("openvino")
    from engine.runtimes import load

    made = apply(transformer, "quantize-int4", tmp_path, form="qdq", method="rtn", symmetric=symmetric)
    batch = transformer.model.example(5, seed=3)
    outputs = [load(made, runtime, threads=1).run(batch) for runtime in ("openvino", "onnxruntime")]
    (first,), (second,) = (list(found.values()) for found in outputs)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.999


def test_nodes_can_be_left_in_float(transformer, tmp_path):
    full = apply(transformer, "quantize-int4", tmp_path, method="rtn")
    name = full.record.changed.touched[0]
    part = apply(transformer, "quantize-int4", tmp_path, method="rtn", exclude=[name], embeddings=False)
    assert name not in part.record.changed.touched
    assert {left.name: left.reason for left in part.record.changed.left}[name] == "kept in float on request"
    assert "only a part" in part.record.changed.summary
    with pytest.raises(Refusal, match="no node 'nowhere'"):
        apply(transformer, "quantize-int4", tmp_path, exclude=["nowhere"])


def test_weights_that_two_nodes_share_are_stored_once(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(96, 96)
        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))
    """
    source = apply(open_python(tmp_path, body, "torch.randn(batch_size, 96)"), "export-onnx", tmp_path)
    for form in ("matmul-nbits", "qdq"):
        made = apply(source, "quantize-int4", tmp_path, form=form, method="rtn")
        assert made.record.changed.figures["quantized_weight_share"] <= 1
        assert len(made.record.changed.touched) == 2
        assert sum("codes" in tensor.name for tensor in load_graph(made.path).graph.initializer) == 1
        assert cosine(source, made) > 0.98


def test_a_fused_attention_is_taken_apart_and_quantized(tmp_path):
    from onnx import helper, numpy_helper
    from technique_jobs import open_baseline

    from engine.protocol import ModelSource

    rng = np.random.default_rng(0)
    constants = {"w": (64, 192), "b": (192,)}
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], "attention", domain="com.microsoft", num_heads=4)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6, 64])],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.2, name)
            for name, shape in constants.items()
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "attention.onnx")
    source = open_baseline(ModelSource(path=str(tmp_path / "attention.onnx"), kind="onnx", sha256=""), tmp_path)
    made = apply(source, "quantize-int4", tmp_path)
    batch = {"x": random_graph_input((3, 6, 64))}
    wanted, given = run_graph(source.path, [batch])[0]["y"], run_graph(made.path, [batch])[0]["y"]
    assert np.corrcoef(wanted.ravel(), given.ravel())[0, 1] > 0.97
    assert {"MatMulNBits", "MultiHeadAttention"} <= {node.op_type for node in load_graph(made.path).graph.node}
    assert set(made.record.changed.figures) >= {"sqnr_db_rtn", "sqnr_db_least-error"}
    assert "sqnr_db_gptq" not in made.record.changed.figures, "there was no data to calibrate on"
    with pytest.raises(Refusal, match="GPTQ needs data"):
        apply(source, "quantize-int4", tmp_path, method="gptq")


def test_a_recurrent_network_is_refused_with_the_reason(tmp_path):
    source = apply(open_python(tmp_path, RECURRENT.format(kind="LSTM"), ROWS), "export-onnx", tmp_path)
    with pytest.raises(Refusal, match="there is no 4-bit LSTM"):
        apply(source, "quantize-int4", tmp_path)


@pytest.mark.parametrize(
    ("operators", "advice"),
    [
        (("Conv", "Relu"), "embeddings. Use quantize-static."),
        (("Conv", "LSTM"), "embeddings. Use quantize-static or quantize-dynamic."),
        (("Relu", "Sigmoid"), "matrix products and embeddings."),
    ],
)
def test_only_what_can_be_done_is_advised_instead(transformer, operators, advice):
    model = msgspec.structs.replace(transformer.model.info(), operators=operators)
    hardware = Hardware(hostname="h", processor=VNNI)
    assert refuse_int4(transformer.record, model, hardware, None).endswith(advice)


def test_a_network_of_convolutions_with_one_product_is_refused(tmp_path):
    body = CONVOLUTIONAL.replace("nn.Linear(16, 5)", "nn.Linear(16, 260)").replace(
        "self.pool =",
        "self.more = nn.Conv2d(16, 256, 5)\n        self.other = nn.Conv2d(256, 16, 5)\n        self.pool =",
    )
    body = body.replace("self.pool(x)", "self.pool(self.other(self.more(x)))")
    source = apply(open_python(tmp_path, body, IMAGE), "export-onnx", tmp_path)
    with pytest.raises(Refusal, match=r"Only 2\.0% of the weights .* \(head/Gemm\): the file would hardly get smaller"):
        apply(source, "quantize-int4", tmp_path)


def test_what_is_quantized_already_is_refused(transformer, tmp_path):
    made = apply(transformer, "quantize-int4", tmp_path, method="rtn")
    with pytest.raises(Refusal, match="quantized already"):
        apply(made, "quantize-int4", tmp_path)
    with pytest.raises(Refusal, match="block_size"):
        parse_parameters("quantize-int4", {"block_size": "48"})
    assert parse_parameters("quantize-int4", {"block_size": "32"}).block_size == 32
    assert "faster for few rows only" in find_technique("quantize-int4").expectation


def test_too_little_data_for_one_batch_is_no_data(transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer.model, "calibration_batches", lambda batch_size, limit: iter(()))
    figures = apply(transformer, "quantize-int4", tmp_path).record.changed.figures
    assert figures["calibration_samples"] == 0
    assert "sqnr_db_gptq" not in figures
    assert figures["sqnr_db"] < 60, "the answers were compared on example inputs"
    with pytest.raises(Refusal, match="at least one whole batch"):
        apply(transformer, "quantize-int4", tmp_path, method="gptq")


PRODUCTS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 64)
    def forward(self, x):
        return self.second(torch.relu(self.first(x)))
"""


def test_samples_that_are_learned_from_and_judged_by_count_once(tmp_path, monkeypatch):
    source = apply(open_python(tmp_path, PRODUCTS, "torch.randn(batch_size, 64)"), "export-onnx", tmp_path)
    batches = list(source.model.calibration_batches(batch_size=16, limit=64))
    for count in (1, 4):
        monkeypatch.setattr(
            source.model, "calibration_batches", lambda batch_size, limit, count=count: iter(batches[:count])
        )
        figures = apply(source, "quantize-int4", tmp_path, method="rtn").record.changed.figures
        assert figures["calibration_samples"] == 16 * count


def test_gptq_is_left_out_or_refused_where_a_value_inside_is_not_finite(tmp_path, monkeypatch):
    source = apply(open_python(tmp_path, PRODUCTS, "torch.randn(batch_size, 64)"), "export-onnx", tmp_path)
    real = list(source.model.calibration_batches(batch_size=16, limit=64))
    real[1]["x"][3] = 3e38  # the products overflow
    monkeypatch.setattr(source.model, "calibration_batches", lambda batch_size, limit: iter(real))
    run = run_technique(source, "quantize-int4", tmp_path)
    assert "sqnr_db_gptq" not in run.variants[0].record.changed.figures
    logged = [message.text for message in run.messages if isinstance(message, Logged)]
    assert "gptq is left out: the inputs of first/Gemm are not all finite on the calibration data." in logged
    with pytest.raises(Refusal, match="GPTQ cannot be used: the inputs of first/Gemm"):
        apply(source, "quantize-int4", tmp_path, method="gptq")


ONLY_ROWS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(400, 64)
        self.recurrent = nn.GRU(64, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens):
        return self.head(self.recurrent(self.embedding(tokens))[0].mean(dim=1))
"""


def test_a_graph_of_which_only_the_embedding_fits_gets_it_in_four_bits_without_gptq(tmp_path):
    source = apply(open_python(tmp_path, ONLY_ROWS, TOKENS.replace("200", "400")), "export-onnx", tmp_path)
    changed = apply(source, "quantize-int4", tmp_path).record.changed
    assert changed.summary.startswith("1 embedding in 4 bits")
    assert "sqnr_db_gptq" not in changed.figures
    with pytest.raises(Refusal, match="only embeddings can be put into 4 bits"):
        apply(source, "quantize-int4", tmp_path, method="gptq")
