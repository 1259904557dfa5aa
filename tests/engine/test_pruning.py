"""Pruning: what is removed is gone, the network still runs and is what it claims to be, and it recovers."""

import json

import msgspec
import pytest
import torch
from torch import nn

from engine.context import JobCancelled
from engine.hardware import read_processor
from engine.protocol import Hardware, Progressed
from engine.structure import cutting, recurrent
from engine.structure.cost import example_call
from engine.structure.importance import squares, taylor_mass, unit_scores
from engine.structure.masks import apply_masks, magnitude_masks, two_of_four_masks
from engine.structure.network import CannotPrune, Group, PrunableNetwork
from engine.structure.retraining import Retraining
from engine.structure.widths import rounded, search, shrink, widths_at
from engine.techniques import Refusal, fields_of, with_defaults
from engine.techniques.pruning import (
    PruneStructured,
    PruneUnstructured,
    prune_structured,
    prune_unstructured,
    refuse_structured,
    refuse_unstructured,
)
from engine.training import Course, Plan, held_out_accuracy, train
from engine.training.data import TrainingData
from engine.training.objectives import Objective

from .learning_models import (
    CNN_FILE,
    RECURRENT_FILE,
    TRANSFORMER_FILE,
    adopted,
    baseline,
    make_job,
    open_text,
    points,
)

FAMILIES = {"cnn": CNN_FILE, "transformer": TRANSFORMER_FILE, "recurrent": RECURRENT_FILE}


TIED_FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 16)
        self.mid = nn.Linear(16, 24)
        self.back = nn.Linear(24, 16)
        self.guess = nn.Linear(16, 10, bias=False)
        self.guess.weight = self.table.weight

    def forward(self, tokens):
        return self.guess(torch.tanh(self.back(torch.relu(self.mid(self.table(tokens))))))

def load_model():
    torch.manual_seed(0)
    return Net()

def example_input(batch_size):
    return torch.arange(5).expand(batch_size, 5).contiguous()

def train_data():
    tokens = torch.randint(0, 10, (32, 5), generator=torch.Generator().manual_seed(1))
    return [(some, some) for some in tokens.split(4)]

def loss(outputs, labels):
    return nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())

def accuracy(outputs, labels):
    return (outputs.argmax(-1) == labels).float().mean(1)
"""
"""A network whose last layer has the weights of its first."""


def run(technique, model, directory, parameters):
    """(the variant made, its record of changes, messages)"""
    tag = parameters.__struct_config__.tag
    job, messages = make_job(model, directory, tag, msgspec.to_builtins(parameters))
    (files,) = technique(baseline(model, directory), parameters, job)
    return adopted(model, directory, files), files, messages


def hardware():
    return Hardware(hostname="here", processor=read_processor())


# --- structured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shrinks_and_recovers(family, tmp_path):
    epochs = 2 if family == "cnn" else 8
    model = trained_file(FAMILIES[family], tmp_path, 2 * epochs)
    asked = PruneStructured(ratio=0.5, round_to=4, fine_tune_epochs=epochs, learning_rate=3e-3, precision="float32")
    variant, files, messages = run(prune_structured, model, tmp_path, asked)
    before = model.module()
    assert files.macs < 0.75 * baseline(model, tmp_path).record.macs
    assert files.parameter_count == sum(p.numel() for p in variant.module().parameters())
    assert files.parameter_count < 0.8 * sum(p.numel() for p in before.parameters())
    inputs = model.example(3)
    assert model.call(variant.module(), inputs)["output"].shape == (3, 4)
    figures = files.changed.figures
    assert figures["held_out_accuracy"] > figures["held_out_accuracy_before"] - 0.05
    data, objective = TrainingData(model), Objective(model)
    assert held_out_accuracy(variant.module(), data, objective) == pytest.approx(figures["held_out_accuracy"], abs=0.01)
    assert points(messages, "loss")
    assert "fewer multiply-adds" in files.changed.summary
    assert any("output" in left.reason for left in files.changed.left) or family == "recurrent"


def trained_file(text, directory, epochs=4):
    """The model with weights that are worth keeping: trained for a moment, stored beside the file."""
    model = open_text(directory, text)
    job, _ = make_job(model, directory)
    module = model.module()
    plan = Plan(epochs=epochs, learning_rate=3e-3, precision="float32")
    train(module, TrainingData(model), Objective(model), plan, Course(job))
    torch.save(module.state_dict(), directory / "weights.pt")
    load = f"    net = Net()\n    net.load_state_dict(torch.load({str(directory / 'weights.pt')!r}))\n    return net"
    return open_text(directory, text.replace("    torch.manual_seed(0)\n    return Net()", load), "trained.py")


def test_removed_heads_leave_the_others_exactly_as_they_were(tmp_path):
    model = open_text(tmp_path, TRANSFORMER_FILE)
    inputs = model.torch_args(model.example(4))[0]
    network = PrunableNetwork(model.module(), lambda module: module(*inputs))
    group, silent = network.group("layers.0.attention"), model.module()
    silent.layers[0].attention.out.weight.data[:, group.heads.columns([1, 3])] = 0
    network.remove(group, [[1, 3]])
    attention = network.module.layers[0].attention
    assert (attention.heads, attention.qkv.out_features, attention.out.in_features) == (2, 48, 16)
    assert torch.allclose(network.module(*inputs), silent(*inputs), atol=1e-5)


def test_removed_hidden_units_leave_the_others_exactly_as_they_were(tmp_path):
    model = open_text(tmp_path, RECURRENT_FILE)
    inputs = model.torch_args(model.example(4))[0]
    network = PrunableNetwork(model.module(), lambda module: module(*inputs))
    silent = model.module()
    units = [[0, 5], [1, 2], [7, 8], [3, 15]]
    for cell, suffix in enumerate(("l0", "l0_reverse", "l1", "l1_reverse")):
        rows = [gate * 16 + unit for gate in range(4) for unit in units[cell]]
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(silent.lstm, f"{kind}_{suffix}").data[rows] = 0
    network.remove(network.group("lstm"), units)
    assert torch.allclose(network.module(*inputs), silent(*inputs), atol=1e-5)
    network.remove(network.group("lstm"), [[0], [1], [2], [3]])  # the readers' columns were counted anew
    assert (network.module.lstm.hidden_size, network.module.head.in_features) == (13, 26)
    assert network.module(*inputs).shape == (4, 4)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_last_states_are_followed_too(kind):
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = getattr(nn, kind)(5, 8, 2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            _, last = self.recurrent(x)
            return self.head(torch.cat([last[-2], last[-1]], dim=1))

    torch.manual_seed(0)
    module, x = Tail().eval(), torch.randn(4, 6, 5)
    network = PrunableNetwork(module, lambda m: m(x))
    network.remove(network.group("recurrent"), [[0, 1, 2]] * 4)
    assert network.module.head.in_features == 10
    assert network.module(x).shape == (4, 3)


def test_recurrent_layers_that_cannot_be_followed_are_refused_with_the_reason():
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(5, 8, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    x = torch.randn(2, 6, 5)
    with pytest.raises(CannotPrune, match="lstm: its output reaches the model's output"):
        PrunableNetwork(Attentive().eval(), lambda m: m(x))


def test_output_layers_and_protected_layers_keep_their_width(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    inputs = model.torch_args(model.example(2))[0]
    network = PrunableNetwork(model.module(), lambda m: m(*inputs), protect=["blocks.0.*"])
    assert {group.name for group in network.groups} == {"blocks.1.conv1"}
    reasons = {left.name: left.reason for left in network.left}
    assert reasons["head"] == "its width is the model's output"
    assert reasons["blocks.0.conv1"] == "protected"


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_tied_weights_stay_tied_and_the_layers_in_front_of_them_are_left(importance, tmp_path):
    model = open_text(tmp_path, TIED_FILE)
    asked = PruneStructured(ratio=0.5, importance=importance, fine_tune_epochs=1, precision="float32")
    variant, files, _ = run(prune_structured, model, tmp_path, asked)
    module = variant.module()
    assert module.guess.weight is module.table.weight
    assert files.changed.touched == ("mid",)
    assert ("back", "guess has weights in common with table") in {(one.name, one.reason) for one in files.changed.left}


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("num_key_value_heads", 2, "share their keys"),
        ("heads", 5, "do not divide"),
        ("fixed", None, "could be followed"),
    ],
)
def test_attention_that_cannot_lose_heads_is_left_with_the_reason(attribute, value, reason, tmp_path):
    model = open_text(tmp_path, TRANSFORMER_FILE)
    inputs = model.torch_args(model.example(2))[0]
    module = model.module()
    attention = module.layers[0].attention
    if attribute == "fixed":
        heads = attention.heads
        attention.qkv.weight.data *= 10  # so that it matters which columns belong together
        attention.register_forward_pre_hook(lambda self, _: setattr(self, "heads", heads))
        value, attribute = heads, "heads"
    elif attribute == "heads":
        attention.forward = lambda x: attention.out(attention.qkv(x)[..., :32])
    setattr(attention, attribute, value)
    network = PrunableNetwork(module, lambda m: m(*inputs))
    found = {left.name: left.reason for left in network.left}
    assert any(reason in text for text in found.values()), found
    assert "layers.1.attention" in {group.name for group in network.groups}


def test_what_the_user_froze_stays_as_it_is(tmp_path):
    frozen = "    torch.manual_seed(0)\n    net = Net()\n    net.stem.requires_grad_(False)\n    return net"
    model = open_text(tmp_path, CNN_FILE.replace("    torch.manual_seed(0)\n    return Net()", frozen))
    for importance in ("l2", "taylor"):
        asked = PruneStructured(
            ratio=0.5, importance=importance, round_to=4, protect=["stem"], fine_tune_epochs=0.5, precision="float32"
        )
        variant, files, _ = run(prune_structured, model, tmp_path, asked)
        module, before = variant.module(), model.module()
        assert "blocks.0.conv1" in files.changed.touched
        assert torch.equal(module.stem.weight, before.stem.weight)
        assert not torch.equal(module.head.weight, before.head.weight)
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, parameter in before.named_parameters() if parameter.requires_grad}


def test_a_network_that_is_frozen_as_a_whole_is_fine_tuned_as_a_whole(tmp_path):
    frozen = "    torch.manual_seed(0)\n    return Net().requires_grad_(False)"
    model = open_text(tmp_path, CNN_FILE.replace("    torch.manual_seed(0)\n    return Net()", frozen))
    asked = PruneStructured(ratio=0.5, round_to=4, fine_tune_epochs=0.5, precision="float32")
    variant, _, messages = run(prune_structured, model, tmp_path, asked)
    assert not torch.equal(variant.module().stem.weight, model.module().stem.weight)
    assert any("frozen" in getattr(message, "text", "") for message in messages)


def test_frozen_layers_that_are_cut_are_frozen_afterwards(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    inputs = model.torch_args(model.example(2))[0]
    network = PrunableNetwork(model.module().requires_grad_(False), lambda m: m(*inputs))
    network.remove(network.group("blocks.0.conv1"), [[0, 1]])
    assert not any(parameter.requires_grad for parameter in network.module.parameters())


@pytest.mark.parametrize("asked", [PruneStructured, PruneUnstructured])
def test_a_protected_layer_that_does_not_exist_is_a_sentence(asked, tmp_path):
    technique = prune_structured if asked is PruneStructured else prune_unstructured
    model = open_text(tmp_path, CNN_FILE)
    job, _ = make_job(model, tmp_path)
    with pytest.raises(Refusal, match=r"protect names 'steem', which matches no layer .*stem, blocks\.0\.conv1"):
        technique(baseline(model, tmp_path), asked(protect=["steem"], fine_tune_epochs=0), job)


def test_protecting_a_block_protects_what_is_in_it(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    _, files, _ = run(
        prune_structured, model, tmp_path, PruneStructured(protect=["blocks.0"], round_to=2, fine_tune_epochs=0)
    )
    assert files.changed.touched == ("blocks.1.conv1",)
    _, files, _ = run(prune_unstructured, model, tmp_path, PruneUnstructured(protect=["blocks"], fine_tune_epochs=0))
    assert set(files.changed.touched) == {"stem.weight", "head.weight"}


def test_a_share_that_contradicts_the_pattern_is_refused(tmp_path):
    info = open_text(tmp_path, CNN_FILE).info()
    for fine in (PruneUnstructured(pattern="2:4"), PruneUnstructured(pattern="2:4", sparsity=0.5)):
        assert refuse_unstructured(None, info, hardware(), fine) is None
    sentence = refuse_unstructured(None, info, hardware(), PruneUnstructured(pattern="2:4", sparsity=0.7))
    assert "never 70%" in sentence
    assert "alike" in refuse_unstructured(None, info, hardware(), PruneUnstructured(pattern="2:4", scope="global"))
    assert "half" in next(field.description for field in fields_of(PruneUnstructured) if field.name == "sparsity")


def test_taylor_keeps_the_channels_that_the_loss_needs(tmp_path):
    trained = trained_file(CNN_FILE, tmp_path)
    inputs = trained.torch_args(trained.example(2))[0]
    network = PrunableNetwork(trained.module(), lambda m: m(*inputs))
    data, objective = TrainingData(trained), Objective(trained)
    group = network.group("blocks.0.conv1")
    mass = taylor_mass(network.module, data, objective)
    scores = unit_scores(network, group, "taylor", mass)
    assert scores.shape == (1, 16)
    assert float(scores.mean()) == pytest.approx(1)
    losses = {}
    for name, order in (("least", scores.argsort()[0]), ("most", scores.argsort(descending=True)[0])):
        twin = network.copy()
        twin.remove(twin.group(group.name), [order[:8].tolist()])
        losses[name] = sum(objective.loss(twin.module(x), y).item() for x, y in data.held_out)
    assert losses["least"] < losses["most"]


def test_l2_removes_the_smallest_filters(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    inputs = model.torch_args(model.example(2))[0]
    network = PrunableNetwork(model.module(), lambda m: m(*inputs))
    group = network.group("blocks.0.conv1")
    norms = network.module.blocks[0].conv1.weight.detach().flatten(1).norm(dim=1)
    kept = norms.sort(descending=True).values[:12]
    network.remove_least(group, unit_scores(network, group, "l2", squares), 4)
    now = network.module.blocks[0].conv1.weight.detach().flatten(1).norm(dim=1)
    assert torch.allclose(now.sort(descending=True).values, kept)
    assert network.module.blocks[0].bn1.num_features == network.module.blocks[0].conv2.in_channels == 12


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_search_meets_its_budget_and_no_more(scope, tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    inputs = model.torch_args(model.example(2))[0]
    network = PrunableNetwork(model.module(), lambda m: m(*inputs))
    scores = {group.name: unit_scores(network, group, "l2", squares) for group in network.groups}

    def cost(module):
        return sum(p.numel() for p in module.parameters())

    budget = 0.5 * cost(network.module)
    widths_of = lambda strength: widths_at(strength, network.groups, scores, scope, 1)  # noqa: E731
    _, widths = search(network, budget, cost, widths_of, scores)
    shrink(network, widths, scores)
    assert 0.4 * 2 * budget < cost(network.module) <= budget
    with pytest.raises(CannotPrune, match="budget"):
        search(network, 1, cost, lambda s: widths_at(s, network.groups, scores, "layer", 1), scores)


def test_widths_are_rounded_to_multiples(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    inputs = model.torch_args(model.example(2))[0]
    group = PrunableNetwork(model.module(), lambda m: m(*inputs)).groups[0]
    assert [rounded(keep, group, 4) for keep in (0.1, 5.9, 6.1, 15.9, 40)] == [4, 4, 8, 16, 16]


@pytest.mark.parametrize("kind", ["channels", "neurons", "hidden units", "heads"])
def test_a_layer_of_less_than_a_multiple_stays_as_it_is(kind):
    group = Group("layer", kind, 48, (), original=48)
    assert [rounded(keep, group, 64) for keep in (43.2, 3)] == ([43, 3] if kind == "heads" else [48, 48])


@pytest.mark.parametrize("width", [10, 12, 20, 44, 67])
def test_rounding_does_not_cut_a_layer_that_is_to_stay(width):
    group = Group("layer", "channels", width, (), original=width)
    assert rounded(width, group, 8) == rounded(width - 0.1, group, 8) == width
    scores = {"layer": torch.ones(1, width)}
    for scope in ("layer", "global", "sensitivity"):
        curves = {"layer": [(0.25, 0.5), (0.5, 0.9)]}
        assert widths_at(0.0, [group], scores, scope, 8, curves) == {"layer": width}
    forbidden = widths_at(0.1, [group], scores, "sensitivity", 8, {"layer": [(0.25, 0.5), (0.5, 1.0)]})["layer"]
    assert width - forbidden <= 0.05 * width, "never more than the scan allows"


def test_equal_scores_remove_no_more_than_asked():
    groups = [Group(name, "channels", 16, (), original=16) for name in "ab"]
    scores = {name: torch.ones(1, 16) for name in "ab"}
    assert sum(widths_at(0.25, groups, scores, "global", 1).values()) == 24


def test_the_sensitivity_scan_is_recorded_and_used(tmp_path):
    model = trained_file(CNN_FILE, tmp_path)
    asked = PruneStructured(keep_macs=0.5, scope="sensitivity", round_to=2, fine_tune_epochs=0, precision="float32")
    _, files, _ = run(prune_structured, model, tmp_path, asked)
    scanned = json.loads(files.files[1].read_text())
    assert json.loads(files.changed.figures["sensitivity"]) == scanned
    assert files.deployed == [files.files[0]]
    assert {layer["name"] for layer in scanned["layers"]} >= {"blocks.0.conv1", "blocks.1.conv1"}
    assert all(len(layer["accuracy"]) == len(scanned["ratios"]) for layer in scanned["layers"])
    assert scanned["accuracy"] > 0.5
    assert files.macs <= 0.5 * files.changed.figures["macs_before"]


def test_a_latency_budget_is_searched_with_times_from_the_jobs_device(monkeypatch, tmp_path):
    timed = []

    def share(module, original, call, device):
        call(module)
        timed.append(str(device))
        return sum(p.numel() for p in module.parameters()) / sum(p.numel() for p in original.parameters())

    monkeypatch.setattr(cutting, "time_share", share)
    model = open_text(tmp_path, CNN_FILE)
    asked = PruneStructured(keep_latency=0.6, round_to=2, fine_tune_epochs=0)
    _, files, messages = run(prune_structured, model, tmp_path, asked)
    figures = files.changed.figures
    assert (
        0.4
        < files.parameter_count / figures["parameter_count_before"]
        == pytest.approx(figures["latency_share"], abs=1e-3)
    )
    assert figures["latency_share"] <= 0.6
    assert set(timed) == {"cpu"}
    assert figures["latency_timed"] == "eager PyTorch on cpu, batch 8"
    assert "of the time a call took under eager PyTorch on cpu" in files.changed.summary
    assert any("searching" in getattr(message, "message", "") for message in messages)


def test_a_latency_budget_makes_a_network_with_less_to_do(tmp_path):
    wide = CNN_FILE.replace("width=16", "width=96")
    model = open_text(tmp_path, wide)
    _, files, _ = run(prune_structured, model, tmp_path, PruneStructured(keep_latency=0.8, fine_tune_epochs=0))
    assert files.macs < 0.95 * files.changed.figures["macs_before"]
    assert files.changed.figures["latency_share"] > 0


def test_times_are_taken_on_the_device_that_is_named():
    class Watched(nn.Module):
        def forward(self, x):
            devices.append(x.device.type)
            return x

    devices = []

    class Stub:
        fixed_batch = None

        def example(self, size):
            return torch.zeros(size, 3)

        def torch_args(self, example):
            return (example,), {}

    call, size = example_call(Stub(), 5, "meta")
    call(Watched())
    assert (devices, size) == (["meta"], 5)


def test_regression_speaks_of_loss_and_not_of_accuracy(tmp_path):
    text = CNN_FILE.replace("nn.Linear(4 * width, 4)", "nn.Linear(4 * width, 1)")
    text += "\ndef loss(outputs, labels):\n    return nn.functional.mse_loss(outputs[:, 0], labels.float() + 0.5)\n"
    model = open_text(tmp_path, text)
    asked = PruneStructured(ratio=0.5, round_to=4, fine_tune_epochs=0.5, scan=True, precision="float32")
    _, files, _ = run(prune_structured, model, tmp_path, asked)
    figures, summary = files.changed.figures, files.changed.summary
    assert "accuracy" not in summary
    assert "; loss on held-out training data" in summary
    assert not any("accuracy" in name for name in figures)
    assert figures["held_out_loss_before"] > 0
    assert figures["held_out_loss"] != figures["held_out_loss_after_cut"] > 0
    assert "sensitivity" not in figures, "a heat map of accuracy cannot be drawn from losses"
    (tmp_path / "zeroed").mkdir()
    _, files, _ = run(prune_unstructured, model, tmp_path / "zeroed", PruneUnstructured(fine_tune_epochs=0))
    assert files.changed.figures["held_out_loss"] > 0


def test_readers_of_a_recurrent_layer_are_looked_for_once_and_the_progress_is_told(monkeypatch, tmp_path):
    searches = []
    found = recurrent._consumers
    monkeypatch.setattr(recurrent, "_consumers", lambda *given: searches.append(given[1]) or found(*given))
    model = open_text(tmp_path, RECURRENT_FILE)
    asked = PruneStructured(ratio=0.5, round_to=2, cycles=3, fine_tune_epochs=0.2, precision="float32")
    _, files, messages = run(prune_structured, model, tmp_path, asked)
    assert searches == ["lstm"]
    assert files.changed.figures["widths"] == "lstm 16→8"
    told = [m for m in messages if isinstance(m, Progressed) and "finding what reads lstm" in m.message]
    assert [(m.done, m.total) for m in told] == [(unit, 64) for unit in range(64)]


def test_batch_normalisation_is_measured_anew_after_each_cut(monkeypatch, tmp_path):
    settled = []
    settle = Retraining.settle

    def spy(self, module, *given):
        before = module.blocks[0].bn2.running_var.clone()
        settle(self, module, *given)
        settled.append((module.blocks[0].conv1.out_channels, not torch.equal(before, module.blocks[0].bn2.running_var)))

    monkeypatch.setattr(Retraining, "settle", spy)
    model = open_text(tmp_path, CNN_FILE)
    asked = PruneStructured(ratio=0.75, round_to=2, cycles=2, fine_tune_epochs=0)
    variant, _, _ = run(prune_structured, model, tmp_path, asked)
    assert settled == [(8, True), (4, True)]
    inputs = torch.cat([x for x, _ in model.train_data()])
    module = variant.module()
    with torch.no_grad():
        made = module.blocks[0].conv1(module.stem(inputs))
    assert torch.allclose(module.blocks[0].bn1.running_mean, made.mean((0, 2, 3)), atol=0.05)


def test_the_technique_cuts_by_taylor_importance(tmp_path):
    model = trained_file(CNN_FILE, tmp_path)
    kept = {}
    for importance in ("l2", "taylor"):
        asked = PruneStructured(ratio=0.5, importance=importance, round_to=4, fine_tune_epochs=0, protect=["stem"])
        variant, files, messages = run(prune_structured, model, tmp_path, asked)
        assert "blocks.0.conv1 16→8" in files.changed.figures["widths"]
        whole = model.module().blocks[0].conv1.weight
        rows = variant.module().blocks[0].conv1.weight
        kept[importance] = [(whole == row).flatten(1).all(1).nonzero().item() for row in rows]
        assert any("does to the loss" in getattr(m, "message", "") for m in messages) == (importance == "taylor")
    assert kept["l2"] != kept["taylor"]


def test_fine_tuning_ends_early_once_the_network_has_recovered(tmp_path):
    model = trained_file(CNN_FILE, tmp_path)
    steps = {}
    for stops in (False, True):
        asked = PruneStructured(
            ratio=0.25,
            round_to=4,
            fine_tune_epochs=12,
            learning_rate=3e-3,
            precision="float32",
            stop_when_recovered=stops,
        )
        _, files, messages = run(prune_structured, model, tmp_path, asked)
        steps[stops] = max(m.done for m in messages if isinstance(m, Progressed) and "fine-tuning" in m.message)
        figures = files.changed.figures
    assert steps[True] < steps[False]
    assert figures["held_out_accuracy"] >= figures["held_out_accuracy_before"]


def test_a_variant_pins_what_the_search_found(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    asked = PruneStructured(keep_parameters=0.6, scope="global", round_to=2, fine_tune_epochs=0)
    _, files, _ = run(prune_structured, model, tmp_path, asked)
    again = msgspec.convert(files.parameters | {"type": "prune-structured"}, PruneStructured)
    assert (again.keep_parameters, again.ratio) == (0.6, None), "what was asked for is recorded, and nothing else"
    assert again.widths
    assert refuse_structured(None, model.info(), hardware(), again) is None
    _, remade, _ = run(prune_structured, model, tmp_path, again)
    assert remade.changed.figures["widths"] == files.changed.figures["widths"]


def test_the_ratio_that_an_empty_one_stands_for_is_recorded(tmp_path):
    _, files, _ = run(prune_structured, open_text(tmp_path, CNN_FILE), tmp_path, PruneStructured(fine_tune_epochs=0))
    assert files.parameters["ratio"] == 0.3
    assert next(field for field in fields_of(PruneStructured) if field.name == "ratio").empty == "0.3"


@pytest.mark.parametrize("budget", ["keep_macs", "keep_parameters", "keep_latency"])
def test_a_ratio_beside_a_budget_is_refused(budget, tmp_path):
    info = open_text(tmp_path, CNN_FILE).info()
    assert refuse_structured(None, info, hardware(), PruneStructured(**{budget: 0.5})) is None
    both = PruneStructured(ratio=0.3, **{budget: 0.5})
    assert f"ratio or {budget}, not both" in refuse_structured(None, info, hardware(), both)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"widths": ["blocks.0.conv1=960"]}, "960 of blocks.0.conv1, which has 16"),
        ({"widths": ["blocks.0.conv1=0"]}, "'blocks.0.conv1=0' leaves nothing of the layer"),
        ({"widths": ["blocks.0.conv1=16"]}, "with the width that it has already"),
        ({"widths": ["head=2"]}, r"no layer that can be made narrower here \(its width is the model's output\)"),
        ({"widths": ["blocks.0.conv1=x"]}, "not of the form layer=channels"),
        (
            {"keep_macs": 0.001},
            r"keep_macs = 0.001 cannot be met: the strongest pruning still keeps \d+\.\d\d% of the mult",
        ),
        ({"keep_parameters": 0.001}, r"Give at least keep_parameters = 0\.\d+, or lower round_to"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(asked, sentence, tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, _ = make_job(model, tmp_path)
    with pytest.raises(Refusal, match=sentence):
        prune_structured(baseline(model, tmp_path), PruneStructured(**asked, fine_tune_epochs=0), job)


def test_a_stopped_job_goes_on_in_its_cycle(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    asked = PruneStructured(ratio=0.5, round_to=2, cycles=2, fine_tune_epochs=4, precision="float32", distillation=0)
    job, first = make_job(model, tmp_path)
    send = job.send

    def cancel_in_the_second_cycle(message):
        send(message)
        if isinstance(message, Progressed) and "fine-tuning 2 of 2: step 5" in message.message:
            job.cancel()

    job.send = cancel_in_the_second_cycle
    source = baseline(model, tmp_path)
    with pytest.raises(JobCancelled):
        prune_structured(source, asked, job)
    assert list((tmp_path / "checkpoints").iterdir())

    job, second = make_job(model, tmp_path)
    (files,) = prune_structured(source, asked, job)
    steps = [m.done for m in second if isinstance(m, Progressed) and "fine-tuning" in m.message]
    assert steps[0] > points(first, "accuracy")[0][0]
    assert points(second, "accuracy")[: len(points(first, "accuracy"))] == points(first, "accuracy")
    assert not list((tmp_path / "checkpoints").iterdir())
    module = adopted(model, tmp_path, files).module()
    assert module.blocks[0].conv1.out_channels == 8


@pytest.mark.parametrize("moment", ["cutting (2 of 2)", "fine-tuning 2 of 2: step 1 "])
def test_a_job_killed_between_its_cycles_goes_on_exactly(moment, tmp_path):
    class Killed(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    shuffled = "torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples(512, 1)), 64, shuffle=True)"
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", f"return {shuffled}"))
    asked = PruneStructured(ratio=0.5, round_to=2, cycles=2, fine_tune_epochs=4, precision="float32")
    whole, _, untouched = run(prune_structured, model, tmp_path, asked)
    expected = whole.module().state_dict()

    job, _ = make_job(model, tmp_path, "prune-structured", msgspec.to_builtins(asked))
    send = job.send

    def kill(message):
        send(message)
        if isinstance(message, Progressed) and moment in message.message:
            raise Killed

    job.send = kill
    with pytest.raises(Killed):
        prune_structured(baseline(model, tmp_path), asked, job)
    again, _, second = run(prune_structured, model, tmp_path, asked)
    steps = [m.done for m in second if isinstance(m, Progressed) and "fine-tuning" in m.message]
    assert steps[0] == 17, "the first cycle's sixteen steps are not repeated"
    assert [step for step, _ in points(second, "accuracy")] == [step for step, _ in points(untouched, "accuracy")]
    for name, tensor in again.module().state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_nothing_removed_is_refused(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, _ = make_job(model, tmp_path)
    with pytest.raises(Refusal, match="nothing was removed"):
        prune_structured(baseline(model, tmp_path), PruneStructured(ratio=0.05, fine_tune_epochs=0), job)


def test_training_data_is_asked_for_only_where_it_is_needed(tmp_path):
    info = open_text(tmp_path, CNN_FILE.replace("def train_data", "def other_data")).info()
    assert "train_data" in refuse_structured(None, info, hardware(), PruneStructured())
    assert refuse_structured(None, info, hardware(), PruneStructured(fine_tune_epochs=0)) is None
    assert "scan" in refuse_structured(None, info, hardware(), PruneStructured(fine_tune_epochs=0, scan=True))
    two = PruneStructured(keep_macs=0.5, keep_latency=0.5)
    assert "only one" in refuse_structured(None, info, hardware(), two)


def test_pruning_without_any_training_data_works(tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("def train_data", "def other_data"))
    _, files, _ = run(prune_structured, model, tmp_path, PruneStructured(fine_tune_epochs=0))
    assert files.changed.figures["held_out_accuracy"] is None
    assert files.macs < files.changed.figures["macs_before"]


# --- unstructured -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zeros_survive_fine_tuning_and_are_reported(family, scope, tmp_path):
    model = open_text(tmp_path, FAMILIES[family])
    asked = PruneUnstructured(sparsity=0.5, scope=scope, fine_tune_epochs=1, precision="float32")
    variant, files, _ = run(prune_unstructured, model, tmp_path, asked)
    before, after = model.module(), variant.module()
    weights = list(files.changed.touched)
    zeros = sum(int((after.get_parameter(name) == 0).sum()) for name in weights)
    total = sum(after.get_parameter(name).numel() for name in weights)
    assert zeros / total == pytest.approx(0.5, abs=0.01)
    assert files.changed.figures["sparsity"] == pytest.approx(zeros / total, abs=1e-4)
    assert files.changed.figures["compressed_bytes"] < 0.8 * files.changed.figures["compressed_bytes_before"]
    assert "neither latency" in files.changed.summary
    if scope == "layer":  # of every layer, not only of all together
        shares = dict(entry.rsplit(" ", 1) for entry in files.changed.figures["sparsity_by_layer"].split(", "))
        assert shares.keys() == set(weights)
        for name, share in shares.items():
            weight = after.get_parameter(name)
            assert int((weight == 0).sum()) == round(0.5 * weight.numel())
            assert share == f"{float((weight == 0).float().mean()):.1%}"
    moved = [name for name in weights if not torch.equal(before.get_parameter(name), after.get_parameter(name))]
    assert moved == weights


def test_layer_scope_zeroes_the_same_share_everywhere_and_global_does_not():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Conv2d(4, 8, 3))
    module[1].weight.data *= 10
    each, _ = magnitude_masks(module, 0.3, False, [])
    together, _ = magnitude_masks(module, 0.3, True, [])
    assert [float((~mask).float().mean()) for mask in each.values()] == pytest.approx([0.3] * 3, abs=0.01)
    assert float((~together["1.weight"]).float().mean()) < 0.15 < 0.3 < float((~together["0.weight"]).float().mean())
    smallest = module[0].weight.abs().flatten().sort().values[479]
    assert torch.equal(each["0.weight"], module[0].weight.abs() > smallest)


@pytest.mark.parametrize("global_scope", [False, True])
def test_weights_of_one_size_lose_no_more_than_the_share_asked_for(global_scope):
    module = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Linear(6, 5))
    for weight in (module[0].weight, module[1].weight):
        weight.data.fill_(1 / 9)
    masks, _ = magnitude_masks(module, 0.3, global_scope, [])
    zeros = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert sum(zeros.values()) == 54 + 9
    assert global_scope or zeros == {"0.weight": 54, "1.weight": 9}


def test_two_of_four_zeroes_the_smaller_two_along_the_inputs():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Linear(12, 5), nn.Linear(5, 3))
    before = module[1].weight.detach().abs().reshape(-1, 4)
    masks, left = two_of_four_masks(module, [])
    assert [item.name for item in left] == ["2.weight"]
    apply_masks(module, masks)
    for weight in (module[0].weight.movedim(1, -1), module[1].weight):
        fours = weight.reshape(-1, 4)
        assert ((fours == 0).sum(1) == 2).all()
    kept = masks["1.weight"].reshape(-1, 4)
    assert (before[kept].reshape(-1, 2).min(1).values >= before[~kept].reshape(-1, 2).max(1).values).all()


def test_the_two_of_four_pattern_survives_fine_tuning(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    asked = PruneUnstructured(pattern="2:4", fine_tune_epochs=1, precision="float32")
    variant, files, _ = run(prune_unstructured, model, tmp_path, asked)
    assert files.changed.summary.startswith("50.0% of")
    assert "2:4" in files.changed.summary
    assert [left.name for left in files.changed.left] == ["stem.weight"]
    for name in files.changed.touched:
        fours = variant.module().get_parameter(name).movedim(1, -1).reshape(-1, 4)
        assert ((fours == 0).sum(1) == 2).all()
        assert not torch.equal(variant.module().get_parameter(name), model.module().get_parameter(name))


def test_a_network_that_cannot_be_followed_to_its_end_is_refused_and_not_chased_for_ever():
    class Rotary(nn.Module):
        """Rotary position embedding and shared keys, as in Llama: Torch-Pruning 1.6.1 goes round in circles here."""

        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(64, 64)

        def forward(self, x):
            def turned(y):
                first, second = y[..., : y.shape[-1] // 2], y[..., y.shape[-1] // 2 :]
                return y * 0.5 + torch.cat((-second, first), dim=-1) * 0.5

            def repeated(y):
                n, heads, tokens, size = y.shape
                return y[:, :, None].expand(n, heads, 2, tokens, size).reshape(n, 2 * heads, tokens, size)

            split = lambda y: y.unflatten(-1, (-1, 16)).transpose(1, 2)  # noqa: E731
            q, k, v = turned(split(self.q(x))), turned(split(self.k(x))), split(self.v(x))
            y = nn.functional.scaled_dot_product_attention(q, repeated(k), repeated(v))
            return x + self.o(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    module, x = nn.Sequential(Rotary(), Rotary(), nn.Linear(64, 3)).eval(), torch.randn(2, 6, 64)
    with pytest.raises(CannotPrune):
        PrunableNetwork(module, lambda m: m(x))


@pytest.mark.parametrize(("parameters", "first"), [(PruneStructured, "ratio"), (PruneUnstructured, "sparsity")])
def test_forms_and_recipes_begin_with_what_is_the_techniques_own(parameters, first):
    names = [field.name for field in fields_of(parameters)]
    assert names[0] == first
    assert names[-7:] == list(PruneStructured.__base__.__struct_fields__)
    assert list(with_defaults(parameters())) == names
