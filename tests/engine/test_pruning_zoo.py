"""Networks that nobody wrote for this project, pruned: smaller, they run and export, or are refused with a reason."""

import importlib.util

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from engine.context import LoadedVariant
from engine.graphs.verification import run_graph
from engine.structure.linears import ordinary_linears
from engine.structure.network import CannotPrune, PrunableNetwork
from engine.techniques import Refusal
from engine.techniques.distillation import Distill, distill
from engine.techniques.pruning import PruneStructured, PruneUnstructured, prune_structured, prune_unstructured

from .foreign_models import ZOO
from .learning_models import adopted, baseline, make_job, open_text
from .technique_jobs import apply

pytestmark = pytest.mark.timeout(600)

HEADS = {"transformers-bert", "transformers-vit", "transformers-gpt2"}
"""Whose attention heads go; in the others without convolutions only neurons or hidden units do."""


def opened(name, directory):
    """The model, or a skipped test where its package is not installed."""
    package, dash, _ = name.partition("-")
    if dash and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return open_text(directory, ZOO[name])


def made_by(technique, model, directory, parameters):
    """(the variant, what the technique gave)"""
    job, _ = make_job(model, directory, parameters.__struct_config__.tag, msgspec.to_builtins(parameters))
    (files,) = technique(baseline(model, directory), parameters, job)
    return adopted(model, directory, files), files


def exported(variant: LoadedVariant, directory):
    """The variant's ONNX file; ONNX Runtime's answers to a batch must be PyTorch's."""
    graph = apply(variant, "export-onnx", directory)
    batch = variant.model.example(3, seed=7)
    with torch.no_grad():
        expected = variant.model.call(variant.module(), batch)
    (answers,) = run_graph(graph.path, [batch])
    assert answers.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(answers[name], np.asarray(value), rtol=1e-3, atol=1e-4)
    return graph.path


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_foreign_network_gets_smaller_runs_and_exports(name, tmp_path):
    model = opened(name, tmp_path)
    asked = PruneStructured(ratio=0.5, fine_tune_epochs=1, learning_rate=1e-4, precision="float32")
    variant, files = made_by(prune_structured, model, tmp_path, asked)
    before = baseline(model, tmp_path)
    module = variant.module()
    assert files.parameter_count == sum(p.numel() for p in module.parameters()) < 0.8 * before.record.parameter_count
    assert files.macs < 0.8 * before.record.macs
    assert all(left.name and left.reason for left in files.changed.left)
    assert name not in HEADS or any("attention" in layer or "attn" in layer for layer in files.changed.touched)
    path = exported(variant, tmp_path)
    weights = sum(numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer)
    assert weights < 0.85 * before.path.stat().st_size  # beside them a graph of a few kilobytes


@pytest.mark.parametrize(
    ("name", "perceptron", "heads"),
    [("inline", "blocks.0.fc1", "blocks.0"), ("torchvision-vit", "encoder.layers.encoder_layer_0.mlp.0", None)],
)
def test_the_perceptron_of_a_block_that_counts_heads_is_no_attention(name, perceptron, heads, tmp_path):
    model = opened(name, tmp_path)
    variant, files = made_by(prune_structured, model, tmp_path, PruneStructured(ratio=0.5, fine_tune_epochs=0))
    module, before = variant.module(), model.module()
    half = before.get_submodule(perceptron).out_features // 2
    assert module.get_submodule(perceptron).out_features == half >= 64
    assert len(set(files.changed.touched)) == len(files.changed.touched) == (4 if heads else 2)
    if heads is not None:
        block = module.get_submodule(heads)
        assert (block.num_heads, block.qkv.out_features, block.out.in_features) == (2, 48, 16)
    else:
        reasons = {left.name: left.reason for left in files.changed.left}
        assert "MultiheadAttention" in reasons["encoder.layers.encoder_layer_0.self_attention"]
    exported(variant, tmp_path)


def test_attentions_that_share_one_number_of_heads_are_left_with_the_reason():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = 4
            self.first, self.first_out = nn.Linear(32, 96), nn.Linear(32, 32)
            self.second, self.second_out = nn.Linear(32, 96), nn.Linear(32, 32)
            self.hidden, self.head = nn.Linear(32, 64), nn.Linear(64, 5)

        def attend(self, x, qkv, out):
            q, k, v = qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            return out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

        def forward(self, x):
            x = x + self.attend(x, self.first, self.first_out)
            x = x + self.attend(x, self.second, self.second_out)
            return self.head(torch.relu(self.hidden(x)))

    torch.manual_seed(0)
    x = torch.randn(2, 6, 32)
    network = PrunableNetwork(Twice().eval(), lambda m: m(x))
    assert [(group.name, group.kind) for group in network.groups] == [("hidden", "neurons")]
    reasons = {left.name: left.reason for left in network.left}
    assert all("shares its number of heads" in reasons[name] for name in ("first", "second"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision-resnet18", "transformers-bert"])
def test_a_student_derived_from_a_foreign_network_learns_and_exports(name, tmp_path):
    model = opened(name, tmp_path)
    asked = Distill(student="derived", student_width=0.5, student_depth=0.67, epochs=1, precision="float32")
    variant, files = made_by(distill, model, tmp_path, asked)
    assert files.parameter_count < 0.6 * baseline(model, tmp_path).record.parameter_count
    assert any(change.startswith("without") for change in files.changed.touched), "shallower"
    assert any("→" in change for change in files.changed.touched), "and narrower"
    exported(variant, tmp_path)


@pytest.mark.parametrize("name", ["transformers-gpt2", "tagger"])
def test_zeroed_weights_of_a_foreign_network(name, tmp_path):
    model = opened(name, tmp_path)
    variant, files = made_by(prune_unstructured, model, tmp_path, PruneUnstructured(sparsity=0.5, fine_tune_epochs=0))
    weights = [variant.module().get_parameter(path) for path in files.changed.touched]
    assert sum(int((weight == 0).sum()) for weight in weights) / sum(w.numel() for w in weights) > 0.49
    assert name != "transformers-gpt2" or "transformer.h.0.mlp.c_fc.weight" in files.changed.touched


def test_heads_behind_a_split_leave_the_others_exactly_as_they_were(tmp_path):
    model = opened("transformers-gpt2", tmp_path)
    batch = model.torch_args(model.example(2))
    network = PrunableNetwork(model.module(), lambda m: m(*batch[0], **batch[1]))
    silent = model.module()
    ordinary_linears(silent)
    silent.transformer.h[0].attn.c_proj.weight.data[:, network.group("transformer.h.0.attn").heads.columns([0, 2])] = 0
    network.remove(network.group("transformer.h.0.attn"), [[0, 2]])
    attention = network.module.transformer.h[0].attn
    assert (attention.num_heads, attention.c_attn.out_features, attention.c_proj.in_features) == (2, 96, 32)
    with torch.no_grad():
        ours, theirs = (m(*batch[0], **batch[1]).logits for m in (network.module, silent))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_transposed_linear_layers_become_ordinary_ones_with_the_same_answers():
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf = nf
            self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

        def forward(self, x):
            return x @ self.weight + self.bias

    torch.manual_seed(0)
    module, x = nn.Sequential(Conv1D(6, 4), nn.ReLU(), Conv1D(3, 6)).eval(), torch.randn(5, 4)
    expected = module(x)
    assert ordinary_linears(module) == ["0", "2"]
    assert torch.allclose(module(x), expected, atol=1e-6)
    assert isinstance(module[0], nn.Linear)
    assert not module[0].training


def test_attention_that_cannot_be_followed_does_not_keep_the_rest_from_being_pruned(tmp_path):
    model = opened("transformers-llama", tmp_path)
    batch = model.torch_args(model.example(2))
    network = PrunableNetwork(model.module(), lambda m: m(*batch[0], **batch[1]))
    assert {group.kind for group in network.groups} == {"neurons"}
    reasons = {left.name: left.reason for left in network.left}
    assert "no end" in reasons["model.layers.0.self_attn.k_proj"]


def test_pytorchs_own_attention_is_left_with_the_reason_and_the_layers_beside_it_are_pruned():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    module = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5)).eval()
    x = torch.randn(2, 6, 32)
    network = PrunableNetwork(module, lambda m: m(x))
    assert {group.name for group in network.groups} == {"0.layers.0.linear1", "0.layers.1.linear1"}
    reasons = {left.name: left.reason for left in network.left}
    assert "MultiheadAttention" in reasons["0.layers.0.self_attn"]


def test_a_network_that_shuffles_its_channels_is_refused_with_a_sentence(tmp_path):
    model = open_text(
        tmp_path,
        """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3, groups=4)
        self.last = nn.Conv2d(24, 24, 1, groups=4)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = torch.relu(self.grouped(self.first(x)))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x).mean((2, 3)))

def load_model():
    return Net().eval()

def example_input(batch_size):
    return torch.randn(batch_size, 3, 16, 16)
""",
    )
    with pytest.raises((Refusal, CannotPrune), match=r"(first|grouped|last): .*grouped|cannot follow") as refused:
        made_by(prune_structured, model, tmp_path, PruneStructured(fine_tune_epochs=0))
    assert "Error" not in str(refused.value) or "cannot follow" in str(refused.value)
