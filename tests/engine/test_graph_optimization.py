"""Fused graphs: the same answers, attention as one node, and a sentence where nothing is won."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_models import TORCHVISION
from onnx import helper
from technique_jobs import (
    NORM_BEHIND,
    TOKENS,
    TRANSFORMER,
    apply,
    cosine,
    open_baseline,
    open_python,
    operators,
    run_technique,
)

from engine.graphs.attention_fusion import fuse_attention
from engine.graphs.graph_optimization import (
    Candidate,
    architectures,
    candidates,
    confirmed,
    heads_and_width,
    rivals,
    verify,
)
from engine.graphs.onnx_graph import load_graph
from engine.graphs.preparation import with_shapes
from engine.graphs.timing import time_in_turns
from engine.graphs.verification import compare_outputs, run_graph
from engine.protocol import Logged, ModelSource
from engine.techniques import Refusal

PACKED = """
class Net(nn.Module):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v{bias}).transpose(1, 2).flatten(2))
"""
MASKED = """
class Net(nn.Module):
    '''Attention as Hugging Face's eager BERT writes it: a mask with one row for all queries.'''

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(50, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(8)])
        self.head = nn.Linear(width, 5)

    def attention(self, x, mask, layers):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers[:3])
        scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5) + mask
        return layers[3]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def forward(self, tokens, attention_mask):
        mask = ({mask} - 1) * 10000.0
        x = self.embedding(tokens)
        x = x + self.attention(x, mask, self.layers[:4])
        x = x + self.attention(x, mask, self.layers[4:])
        return self.head(x).mean(1)
"""
MASKS = {
    "one row for all queries": "attention_mask[:, None, None, :].float()",
    "a row for every query": "(attention_mask[:, None, None, :] * attention_mask[:, None, :, None]).float()",
    "one for all samples": "attention_mask[0][None, :].float()",
}
TOKENS_AND_MASK = (
    "{'tokens': torch.randint(0, 50, (batch_size, 9)), "
    "'attention_mask': torch.cat([torch.ones(batch_size, 5), torch.randint(0, 2, (batch_size, 4))], 1).long()}"
)
BERT = """
from transformers import BertConfig, BertModel

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                            intermediate_size=64, max_position_embeddings=32)
        config._attn_implementation = "{attention}"
        self.bert = BertModel(config)

    def forward(self, tokens, attention_mask):
        return self.bert(tokens, attention_mask=attention_mask).last_hidden_state
"""
SAMPLE = Path(__file__).parents[2] / "sample_models" / "vision_transformer.py"
SEQUENCE = "torch.randn(batch_size, 9, 32)"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("transformer")
    return apply(open_python(directory, TRANSFORMER, TOKENS), "export-onnx", directory)


@pytest.mark.parametrize("bias", ["", ", torch.linspace(-1, 1, 81).view(1, 1, 9, 9)", ", scale=0.3"])
def test_attention_over_one_packed_product_becomes_one_node(tmp_path, bias):
    exported = apply(open_python(tmp_path, PACKED.format(bias=bias), SEQUENCE), "export-onnx", tmp_path)
    fused, count = fuse_attention(with_shapes(load_graph(exported.path)))
    assert count == 1
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count("MultiHeadAttention") == 1
    assert not {"Softmax", "Transpose"} & set(kinds)
    batches = [exported.model.example(size, seed=size) for size in (1, 4)]
    assert compare_outputs(run_graph(exported.path, batches), run_graph(fused, batches)).relative < 1e-5


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_attention_over_separate_products_becomes_one_node(tmp_path, mask):
    exported = apply(open_python(tmp_path, MASKED.format(mask=mask), TOKENS_AND_MASK), "export-onnx", tmp_path)
    fused, count = fuse_attention(with_shapes(load_graph(exported.path)))
    assert count == 2
    batches = [exported.model.example(size, seed=size) for size in (1, 3)]
    assert compare_outputs(run_graph(exported.path, batches), run_graph(fused, batches)).relative < 1e-5


def test_attention_that_gives_zeros_where_every_key_is_masked_becomes_one_node_that_does_so_too(tmp_path):
    body = PACKED.format(bias=", attn_mask=kept[:, None, None, :] > 0").replace(
        "forward(self, x)", "forward(self, x, kept)"
    )
    example = f"{{'x': {SEQUENCE}, 'kept': torch.tensor([1] * 5 + [0] * 4).expand(batch_size, 9)}}"
    exported = apply(open_python(tmp_path, body, example), "export-onnx", tmp_path)
    source = load_graph(exported.path)
    assert "IsNaN" in {node.op_type for node in source.graph.node}, "what PyTorch writes for a mask of truth values"
    fused, count = fuse_attention(with_shapes(source))
    assert count == 1
    assert not {"Softmax", "IsNaN"} & {node.op_type for node in fused.graph.node}
    batch = exported.model.example(3, seed=1)
    batch["kept"] = np.array([[1] * 9, [1] + [0] * 8, [0] * 9], dtype=batch["kept"].dtype)
    reference = run_graph(source, [batch])
    assert all(np.isfinite(value).all() for value in reference[0].values())
    assert compare_outputs(reference, run_graph(fused, [batch])).relative < 1e-5


def test_a_masked_transformer_is_quantized_with_whichever_attention_is_fastest(tmp_path):
    body = MASKED.format(mask=MASKS["one row for all queries"])
    exported = apply(open_python(tmp_path, body, TOKENS_AND_MASK), "export-onnx", tmp_path)
    run = run_technique(exported, "quantize-dynamic", tmp_path)
    figures = run.variants[0].record.changed.figures
    assert "tried: attention fused, a scale per channel" in figures
    assert not any("dropped" in message.text for message in run.messages if isinstance(message, Logged))
    assert cosine(exported, run.variants[0]) > 0.99


def test_a_flavour_that_cannot_run_is_dropped_and_the_job_goes_on(tmp_path, monkeypatch):
    exported = apply(open_python(tmp_path, PACKED.format(bias=""), SEQUENCE), "export-onnx", tmp_path)

    def wrong(model):
        fused, count = fuse_attention(model)
        for node in fused.graph.node:
            if node.op_type == "MultiHeadAttention":
                node.attribute[0].i = 7
        return fused, count

    monkeypatch.setattr("engine.graphs.dynamic_search.fuse_attention", wrong)
    run = run_technique(exported, "quantize-dynamic", tmp_path)
    assert run.files[0].parameters["attention"] == "kept"
    assert any(
        "attention fused is dropped: " in message.text for message in run.messages if isinstance(message, Logged)
    )


@pytest.mark.parametrize(
    ("attention", "optimiser"), [("eager", "attention"), ("sdpa", "onnxscript"), ("sdpa", "attention")]
)
def test_every_attention_of_a_hugging_face_bert_fuses(tmp_path, attention, optimiser):
    pytest.importorskip("transformers")
    body = TORCHVISION + BERT.format(attention=attention)
    exported = apply(open_python(tmp_path, body, TOKENS_AND_MASK), "export-onnx", tmp_path)
    optimized = apply(exported, "optimize-graph", tmp_path, optimiser=optimiser)
    figures = optimized.record.changed.figures
    assert figures.get("fused_Attention", 0) + figures.get("fused_MultiHeadAttention", 0) == 2
    assert cosine(exported, optimized) > 0.9999
    run = run_technique(exported, "optimize-graph", tmp_path, least_gain=0)
    assert any(
        f"{optimiser}: " in message.text and "Attention" in message.text
        for message in run.messages
        if isinstance(message, Logged)
    )


def test_every_attention_of_the_sample_transformer_fuses(tmp_path):
    source = open_baseline(ModelSource(path=str(SAMPLE), kind="python", sha256=""), tmp_path)
    exported = apply(source, "export-onnx", tmp_path)
    softmaxes = sum(node.op_type == "Softmax" for node in load_graph(exported.path).graph.node)
    optimized = apply(exported, "optimize-graph", tmp_path, optimiser="attention")
    figures = optimized.record.changed.figures
    assert figures["fused_MultiHeadAttention"] == softmaxes > 0
    assert figures["compared_samples"] > 100, "real samples beside the made-up ones"
    assert cosine(exported, optimized) > 0.9999


def test_a_graph_whose_first_nodes_read_nothing_has_heads_and_a_width_too(transformer):
    model = with_shapes(load_graph(transformer.path))
    constant = helper.make_node("Constant", [], ["unread"], "constant", value_float=1.0)
    nodes = [constant, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert heads_and_width(model) == (2, 32)


def test_the_architecture_whose_patterns_fuse_most_is_kept(tmp_path):
    exported = apply(open_python(tmp_path, PACKED.format(bias=""), SEQUENCE), "export-onnx", tmp_path)
    names = [candidate.name for candidate in candidates(exported.path)]
    (chosen,) = [name for name in names if name.startswith("onnxruntime.transformers")]
    assert chosen.rpartition(" ")[2] in architectures(load_graph(exported.path))
    (again,) = candidates(exported.path, chosen)
    assert again.name == chosen


def test_an_optimiser_asked_for_by_name_runs_alone(transformer, monkeypatch):
    monkeypatch.setattr("engine.graphs.graph_optimization._by_onnxscript", lambda source: pytest.fail("not asked for"))
    (only,) = candidates(transformer.path, "onnxruntime")
    assert only.name == "onnxruntime"


WINDOWS = """
class Net(nn.Module):
    # Attention within windows, which are part of the batch while it is computed, as in a Swin transformer.

    def __init__(self, width=32, heads=4, size=9, windows=4):
        super().__init__()
        self.heads, self.size, self.windows = heads, size, windows
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])
        self.near = nn.Parameter(torch.randn(1, heads, size, size))
        self.register_buffer("mask", torch.randn(windows, 1, size, size))

    def forward(self, x):
        inside = x.unflatten(1, (self.windows, self.size)).flatten(0, 1)
        q, k, v = (layer(inside).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in self.layers[:3])
        bias = self.near + {mask}
        found = nn.functional.scaled_dot_product_attention(q, k, v, bias)
        return self.layers[3](found.transpose(1, 2).flatten(2)).unflatten(0, (-1, self.windows)).flatten(1, 2)
"""


@pytest.mark.parametrize("mask", ["0.0", "self.mask.repeat(x.shape[0], 1, 1, 1)"])
def test_attention_within_windows_becomes_one_node(tmp_path, mask):
    body = WINDOWS.format(mask=mask)
    exported = apply(open_python(tmp_path, body, "torch.randn(batch_size, 36, 32)"), "export-onnx", tmp_path)
    source = load_graph(exported.path)
    fused, count = fuse_attention(with_shapes(source))
    assert count == 1
    assert not any(node.op_type == "Softmax" for node in fused.graph.node)
    batches = [exported.model.example(size, seed=size) for size in (1, 3)]
    assert compare_outputs(run_graph(source, batches), run_graph(fused, batches)).relative < 1e-5


def test_a_softmax_that_is_no_attention_is_left_alone(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
        def forward(self, x):
            return torch.softmax(self.layer(x), -1)
    """
    exported = apply(open_python(tmp_path, body, "torch.randn(batch_size, 8)"), "export-onnx", tmp_path)
    model = load_graph(exported.path)
    fused, count = fuse_attention(model)
    assert count == 0
    assert fused == model


def test_every_candidate_that_is_kept_answers_as_the_source(transformer):
    batches = [transformer.model.example(3)]
    reference = run_graph(transformer.path, batches)
    tried = list(candidates(transformer.path))
    assert {"onnxruntime", "onnxscript", "attention"} <= {candidate.name for candidate in tried}
    for candidate in tried:
        assert (candidate.model is None) == (candidate.failure is not None)
        if candidate.model is not None:
            verify(candidate, reference, batches)
            assert candidate.failure is None, candidate.sentence()


def test_a_candidate_with_other_answers_is_dropped(transformer):
    batches = [transformer.model.example(3)]
    candidate = next(candidate for candidate in candidates(transformer.path) if candidate.model is not None)
    wrong = [{name: value + 1 for name, value in outputs.items()} for outputs in run_graph(transformer.path, batches)]
    verify(candidate, wrong, batches)
    assert candidate.model is None
    assert "answers differ" in candidate.failure


def test_an_optimiser_asked_for_by_name_gives_its_graph(tmp_path):
    exported = apply(open_python(tmp_path, PACKED.format(bias=""), SEQUENCE), "export-onnx", tmp_path)
    optimized = apply(exported, "optimize-graph", tmp_path, optimiser="attention")
    changed = optimized.record.changed
    assert changed.figures["optimiser"] == "attention"
    assert changed.figures["fused_MultiHeadAttention"] == 1
    assert len(changed.touched) == 1
    assert not optimized.record.portable
    assert cosine(exported, optimized) > 0.9999
    quantized = apply(optimized, "quantize-dynamic", tmp_path, search="never")
    assert operators(quantized)["MultiHeadAttention"] == 1
    assert quantized.record.changed.figures["quantized_weight_share"] > 0.9
    assert cosine(exported, quantized) > 0.99


def test_onnx_runtimes_packed_attention_is_quantized_as_a_product(transformer, tmp_path):
    optimized = apply(transformer, "optimize-graph", tmp_path, optimiser="onnxscript")
    quantized = apply(optimized, "quantize-dynamic", tmp_path, search="never")
    assert quantized.record.changed.figures["quantized_weight_share"] > 0.9
    assert cosine(transformer, quantized) > 0.99


def test_where_nothing_is_won_every_candidate_is_named(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
        def forward(self, x):
            return self.layer(x)
    """
    exported = apply(open_python(tmp_path, body, "torch.randn(batch_size, 8)"), "export-onnx", tmp_path)
    with pytest.raises(Refusal, match=r"No optimiser made export-onnx faster .* onnxruntime: changed nothing"):
        apply(exported, "optimize-graph", tmp_path)
    with pytest.raises(Refusal, match="no optimiser 'magic'"):
        apply(exported, "optimize-graph", tmp_path, optimiser="magic")


def test_what_was_tried_goes_to_the_log(tmp_path):
    exported = apply(open_python(tmp_path, PACKED.format(bias=""), SEQUENCE), "export-onnx", tmp_path)
    run = run_technique(exported, "optimize-graph", tmp_path, optimiser="attention")
    assert any("attention: " in message.text for message in run.messages if isinstance(message, Logged))


def test_heads_and_width_are_read_from_shapes(tmp_path):
    exported = apply(open_python(tmp_path, PACKED.format(bias=""), SEQUENCE), "export-onnx", tmp_path)
    assert heads_and_width(load_graph(exported.path)) == (4, 32)


def test_a_graph_is_as_fast_as_itself(transformer):
    ratios = time_in_turns([transformer.path, transformer.path], [transformer.model.example(8)], 1, seconds=0.3)
    assert ratios[0] == 1
    assert np.isclose(ratios[1], 1, rtol=0.5)


def test_the_fastest_is_kept_only_if_it_is_fast_when_timed_again():
    model = onnx.ModelProto()
    again = iter([0.97, 1.2])
    timed = [Candidate("lucky", model, ratio=1.68), Candidate("better", model, ratio=1.3), Candidate("slow", model)]
    best, told = confirmed(timed, 1.02, lambda model: next(again))
    assert (best.name, best.ratio) == ("better", 1.2)
    assert told == ["lucky seemed 1.68× as fast, and was 0.97× when it was timed again"]
    assert confirmed(timed[:1], 1.02, lambda model: pytest.fail("it is too slow already")) == (None, [])


def test_noise_is_refused_and_what_was_seen_is_told(tmp_path, monkeypatch):
    def noisy(models, feeds, threads, watch=None, seconds=0.0):
        return [1.0, *([1.68] * (len(models) - 1))] if len(models) != 2 else [1.0, 0.97]

    for place in ("timing", "touches"):
        monkeypatch.setattr(f"engine.graphs.{place}.time_in_turns", noisy)
    source = apply(open_python(tmp_path, NORM_BEHIND, SEQUENCE), "export-onnx", tmp_path)
    with pytest.raises(Refusal, match=r"No optimiser made .* seemed 1\.68× as fast, and was 0\.97× when"):
        apply(source, "optimize-graph", tmp_path)


def has_gelu(model) -> bool:
    return not isinstance(model, Path) and any(node.op_type == "FastGelu" for node in model.graph.node)


@pytest.mark.parametrize(("gain", "kind"), [(1.5, "separate"), (1.0, "kept")])
def test_residuals_are_taken_apart_in_the_fastest_graph_where_that_is_faster(tmp_path, monkeypatch, gain, kind):
    def pretended(models, feeds, threads, watch=None, seconds=0.0):
        """Two graphs: one and the same with its residuals apart. Else those with a fused GELU are the fastest."""
        if len(models) == 2 and not isinstance(models[0], Path):
            return [1.0, gain]
        return [1.3 if has_gelu(model) else 1.0 for model in models]

    for place in ("timing", "touches"):
        monkeypatch.setattr(f"engine.graphs.{place}.time_in_turns", pretended)
    source = apply(open_python(tmp_path, NORM_BEHIND, SEQUENCE), "export-onnx", tmp_path)
    run = run_technique(source, "optimize-graph", tmp_path)
    made = run.files[0]
    assert made.parameters["residuals"] == kind
    assert ("apart" in made.changed.summary) == (kind == "separate")
    assert ("Sum" in operators(run.variants[0])) == (kind == "separate")
    assert cosine(source, run.variants[0]) > 0.99999
    again = apply(source, "optimize-graph", tmp_path, **made.parameters)
    assert again.path.read_bytes() == run.variants[0].path.read_bytes()


def test_another_way_of_attention_that_is_nearly_as_fast_is_a_rival():
    fast, slow, fused = Candidate("a", ratio=1.2), Candidate("b", ratio=1.1), {"MultiHeadAttention": 2}
    near, best_near, far = (
        Candidate(name, ratio=ratio, fused=dict(fused)) for name, ratio in zip("cde", (1.0, 1.1, 0.9))
    )
    assert rivals(fast, [fast, slow, near, best_near, far]) == [best_near, near]
    assert rivals(best_near, [fast, slow, near, best_near, far]) == [fast, slow]
