"""Dynamic INT8: matrix products, LSTM and embeddings as bytes, never convolutions."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import (
    CONVOLUTIONAL,
    IMAGE,
    NORM_BEHIND,
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

from engine.graphs.touches import Touched
from engine.protocol import Hardware, LayerInfo, ModelInfo, ModelSource, Processor
from engine.techniques import Refusal, find_technique, why_unavailable


def exported(directory, body, example):
    return apply(open_python(directory, body, example), "export-onnx", directory)


def test_a_transformers_products_and_embedding_become_bytes(tmp_path):
    source = exported(tmp_path, TRANSFORMER, TOKENS)
    quantized = apply(source, "quantize-dynamic", tmp_path)
    assert cosine(source, quantized) > 0.99
    changed = quantized.record.changed
    assert changed.figures["quantized_weight_share"] > 0.9
    kinds = operators(quantized)
    assert kinds["DynamicQuantizeMatMul"] + kinds["MatMulIntegerToFloat"] >= 4
    assert "MatMulInteger" not in kinds, "each product must be one fused kernel"
    assert quantized.path.stat().st_size < 0.5 * source.path.stat().st_size
    assert any("Gather" in name for name in changed.touched)


def test_embeddings_can_be_left_in_float(tmp_path):
    source = exported(tmp_path, TRANSFORMER, TOKENS)
    changed = apply(source, "quantize-dynamic", tmp_path, embeddings=False).record.changed
    assert not any("Gather" in name for name in changed.touched)
    assert changed.figures["quantized_weight_share"] < 0.9
    assert "only a part" in changed.summary


@pytest.mark.parametrize("per_channel", [True, False])
def test_both_directions_of_a_deep_lstm_are_quantized(tmp_path, per_channel):
    source = exported(tmp_path, RECURRENT.format(kind="LSTM"), ROWS)
    quantized = apply(source, "quantize-dynamic", tmp_path, per_channel=per_channel)
    assert operators(quantized)["DynamicQuantizeLSTM"] == 2
    assert "LSTM" not in operators(quantized)
    assert cosine(source, quantized) > 0.99
    assert quantized.record.changed.figures["quantized_weight_share"] > 0.9
    assert not quantized.record.portable, "only ONNX Runtime knows DynamicQuantizeLSTM"


def test_without_vnni_weights_keep_to_seven_bits(tmp_path):
    source = exported(tmp_path, RECURRENT.format(kind="LSTM"), ROWS)
    quantized = apply(source, "quantize-dynamic", tmp_path, target="cpu-avx2")
    bytes_ = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(quantized.path).graph.initializer
        if tensor.data_type == TensorProto.INT8 and tensor.name.endswith("_quantized")
    ]
    assert max(np.abs(array.astype(int)).max() for array in bytes_) == 63


def test_convolutions_stay_in_float_and_are_named(tmp_path):
    source = exported(tmp_path, CONVOLUTIONAL.replace("Linear(16, 5)", "Linear(16, 40)"), IMAGE)
    changed = apply(source, "quantize-dynamic", tmp_path).record.changed
    assert changed.touched == ("head/Gemm",)
    assert {left.name for left in changed.left} == {"stem.0/Conv", "depthwise/Conv", "pointwise/Conv"}
    assert all("slower" in left.reason for left in changed.left)
    assert "only a part" in changed.summary


def test_a_head_on_top_of_convolutions_is_too_little_to_gain_by(tmp_path):
    with pytest.raises(
        Refusal, match=r"Only 8\.\d% of the weights .*head/Gemm.*convolution is slower than a float one"
    ):
        apply(exported(tmp_path, CONVOLUTIONAL, IMAGE), "quantize-dynamic", tmp_path)


@pytest.mark.parametrize("technique", ["quantize-dynamic", "quantize-static"])
def test_a_gru_is_refused_with_the_way_that_quantizes_it(tmp_path, technique):
    source = exported(tmp_path, RECURRENT.format(kind="GRU"), ROWS)
    with pytest.raises(
        Refusal, match=r"Only 0\.9% of the weights .* no quantized GRU, PyTorch has: .* format = pytorch"
    ):
        apply(source, technique, tmp_path)


def test_nothing_but_convolutions_is_refused(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)
        def forward(self, image):
            return self.layer(image).mean((2, 3))
    """
    source = exported(tmp_path, body, IMAGE)
    with pytest.raises(Refusal, match="a dynamically quantized convolution is slower"):
        apply(source, "quantize-dynamic", tmp_path)


def test_the_refusal_for_convolutions_is_known_beforehand(tmp_path):
    source = exported(tmp_path, CONVOLUTIONAL, IMAGE)
    processor = Processor(name="p", features=(), physical_cores=1, logical_cores=1, memory_bytes=1)
    model = ModelInfo(
        name="m",
        source=source.model.source,
        inputs=(),
        outputs=(),
        offers=(),
        labelled=False,
        layers=(LayerInfo(name="c", type="Conv"),),
        operators=("Conv", "Relu"),
    )
    sentence = why_unavailable(
        find_technique("quantize-dynamic"), source.record, model, Hardware(hostname="h", processor=processor)
    )
    assert "Use quantize-static" in sentence


def test_gpus_have_no_kernel_for_it(tmp_path):
    source = exported(tmp_path, RECURRENT.format(kind="LSTM"), ROWS)
    with pytest.raises(Refusal, match="for CPUs"):
        apply(source, "quantize-dynamic", tmp_path, target="tensorrt")


def plain_graph(path, nodes, inputs, outputs, constants):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return open_baseline(ModelSource(path=str(path), kind="onnx", sha256=""), path.parent)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def test_gemm_with_factors_transposes_and_bias_gives_the_same_answers(tmp_path):
    rng = np.random.default_rng(0)
    constants = {"w": (6, 16), "v": (6, 4), "b": (6,), "c": (1, 4)}
    source = plain_graph(
        tmp_path / "gemm.onnx",
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], "first", transB=1, alpha=0.5, beta=2.0),
            helper.make_node("Gemm", ["h", "v", "c"], ["y"], "second", alpha=3.0),
        ],
        [value("x", ["batch", 16])],
        [value("y", ["batch", 4])],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in constants.items()
        ],
    )
    quantized = apply(source, "quantize-dynamic", tmp_path)
    assert quantized.record.changed.touched == ("first", "second")
    assert cosine(source, quantized) > 0.999


def test_the_graphs_inside_an_if_are_named_as_left_alone(tmp_path):
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), name) for name in ("w", "v")]
    branch = lambda name, weight: helper.make_graph(  # noqa: E731
        [helper.make_node("MatMul", ["h", weight], [name])], name, [], [value(name, ["batch", 8])]
    )
    source = plain_graph(
        tmp_path / "if.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "outside"),
            helper.make_node("ReduceSum", ["x"], ["total"], "total", keepdims=0),
            helper.make_node("Greater", ["total", "zero"], ["positive"], "compare"),
            helper.make_node(
                "If", ["positive"], ["y"], "choice", then_branch=branch("a", "w"), else_branch=branch("b", "v")
            ),
        ],
        [value("x", ["batch", 8])],
        [value("y", ["batch", 8])],
        [*weights, numpy_helper.from_array(np.array(0, dtype=np.float32), "zero")],
    )
    quantized = apply(source, "quantize-dynamic", tmp_path)
    changed = quantized.record.changed
    assert changed.touched == ("outside",)
    assert [(left.name, left.reason) for left in changed.left] == [("choice", "the graphs inside If are not quantized")]
    assert cosine(source, quantized) > 0.99


PACKED = """
class Net(nn.Module):
    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return (x + self.out(mixed.transpose(1, 2).flatten(2))).mean(dim=1)
"""
SEQUENCE = "torch.randn(batch_size, 9, 32)"


def test_the_search_tries_kinds_of_attention_and_of_scales_and_pins_one(tmp_path):
    source = exported(tmp_path, PACKED, SEQUENCE)
    run = run_technique(source, "quantize-dynamic", tmp_path)
    figures = run.variants[0].record.changed.figures
    tried = [name for name in figures if name.startswith("tried: ")]
    assert len(tried) == 6, "attention kept, fused, integer; a scale per channel, one scale"
    pinned = run.files[0].parameters
    assert pinned["search"] == "never"
    chosen = f"tried: attention {pinned['attention']}, "
    assert figures[chosen + ("a scale per channel" if pinned["per_channel"] else "one scale")] > 0
    again = apply(source, "quantize-dynamic", tmp_path, **pinned)
    assert again.path.read_bytes() == run.variants[0].path.read_bytes()


@pytest.mark.parametrize(("speed", "kind"), [(1.5, "separate"), (1.0, "kept")])
def test_residuals_are_kept_apart_from_the_normalisation_only_where_that_is_faster(tmp_path, monkeypatch, speed, kind):
    def pretended(models, feeds, threads, watch=None, seconds=0.0):
        """Two: a graph and the same with its residuals apart; of more each is as fast as the source."""
        return [1.0, speed] if len(models) == 2 else [1.0] * len(models)

    for place in ("dynamic_search", "touches"):
        monkeypatch.setattr(f"engine.graphs.{place}.time_in_turns", pretended)
    source = exported(tmp_path, NORM_BEHIND, SEQUENCE)
    run = run_technique(source, "quantize-dynamic", tmp_path)
    assert run.files[0].parameters["residuals"] == kind
    operators = {node.op_type for node in onnx.load(run.variants[0].path).graph.node}
    assert ("Sum" in operators) == (kind == "separate")
    assert cosine(source, run.variants[0]) > 0.99
    again = apply(source, "quantize-dynamic", tmp_path, **run.files[0].parameters)
    assert again.path.read_bytes() == run.variants[0].path.read_bytes()


def test_a_fused_attention_that_is_slower_at_first_wins_where_rewrites_help_it_more(tmp_path, monkeypatch):
    def kinds(model) -> set[str]:
        return set() if isinstance(model, Path) else {node.op_type for node in model.graph.node}

    def pretended(models, feeds, threads, watch=None, seconds=0.0):
        return [1.0] + [0.9 if kinds(model) & {"MultiHeadAttention", "QAttention"} else 1.0 for model in models[1:]]

    def helped(model, *_) -> Touched:
        return Touched(model, {"masks": 1}, 1.5) if "MultiHeadAttention" in kinds(model) else Touched(model, {})

    monkeypatch.setattr("engine.graphs.dynamic_search.time_in_turns", pretended)
    monkeypatch.setattr("engine.graphs.dynamic_search.touch_up", helped)
    source = exported(tmp_path, PACKED, SEQUENCE)
    made = run_technique(source, "quantize-dynamic", tmp_path).files[0]
    assert (made.parameters["attention"], made.parameters["masks"]) == ("fused", "raised")


@pytest.mark.parametrize("per_channel", [True, False])
def test_attention_in_integers_answers_as_the_source_does(tmp_path, per_channel):
    source = exported(tmp_path, PACKED, SEQUENCE)
    options = {"search": "never", "attention": "integer", "per_channel": per_channel}
    quantized = apply(source, "quantize-dynamic", tmp_path, **options)
    kinds = operators(quantized)
    assert kinds["QAttention"] == 1
    assert not {"Softmax", "Split", "MultiHeadAttention"} & set(kinds)
    assert cosine(source, quantized) > 0.99
    assert quantized.record.changed.figures["quantized_weight_share"] > 0.9
    assert "qkv/MatMul" in quantized.record.changed.touched


def test_attention_that_is_not_there_cannot_be_asked_for(tmp_path):
    source = exported(tmp_path, RECURRENT.format(kind="LSTM"), ROWS)
    with pytest.raises(Refusal, match="no attention in export-onnx that can be fused"):
        apply(source, "quantize-dynamic", tmp_path, search="never", attention="fused")
