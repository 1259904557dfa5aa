"""Matching what student and teacher hold inside: before the output layer, and block by block."""

import pytest
import torch
from torch import nn

from engine.models import ModelError
from engine.training import Course, Plan, train
from engine.training.data import TrainingData
from engine.training.features import FeatureMatching, blocks_of
from engine.training.objectives import Objective
from engine.training.teacher import Teaching

from .learning_models import CNN_FILE, RECURRENT_FILE, TRANSFORMER_FILE, make_job, open_text

PLAN = Plan(epochs=2, learning_rate=3e-3, precision="float32")


def widths(matching):
    """(in, out) of every projection; None where there is none."""
    return [
        (site.projection.in_features, site.projection.out_features) if isinstance(site.projection, nn.Linear) else None
        for site in matching.sites
    ]


def matched(text, directory, student, features="blocks"):
    model = open_text(directory, text)
    inputs = model.torch_args(model.example(2))[0]
    return FeatureMatching(student(model), model.module(), lambda m: m(*inputs), features == "blocks")


def test_blocks_of_a_shallower_narrower_student_are_matched_with_an_even_selection(tmp_path):
    text = CNN_FILE.replace("return Net()", "return Net(16, 6)").replace("return Net(8, 1)", "return Net(8, 3)")
    matching = matched(text, tmp_path, lambda model: model.student())
    assert [site.name.partition(":")[2].strip(" )") for site in matching.sites[:3]] == ["1", "3", "5"]
    assert [site.axis for site in matching.sites] == [1, 1, 1, 1]
    assert widths(matching) == [(8, 16)] * 3 + [(32, 64)]


def test_the_same_network_is_no_distance_away(tmp_path):
    matching = matched(TRANSFORMER_FILE, tmp_path, lambda model: model.module())
    assert widths(matching) == [None] * 3
    assert matching.loss().item() == pytest.approx(0, abs=1e-6)


def test_blocks_are_found_in_the_order_of_their_calls():
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())  # noqa: E731
    module = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([block()])[0], block(), nn.Linear(4, 2))
    assert blocks_of(module, lambda m: m(torch.ones(1, 4))) == [module[1], module[2]]


@pytest.mark.parametrize("text", [CNN_FILE, TRANSFORMER_FILE.replace("Net(8, 1)", "Net(16, 1)")], ids=["cnn", "vit"])
def test_a_student_taught_block_by_block_comes_nearer(text, tmp_path):
    model = open_text(tmp_path, text)
    job, _ = make_job(model, tmp_path)
    student, teaching = model.student(), Teaching(model.module(), feature_weight=5.0, features="blocks")
    distances = []
    original = FeatureMatching.loss

    def loss(self):
        distances.append(original(self))
        return distances[-1]

    teaching_data, objective = TrainingData(model), Objective(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureMatching, "loss", loss)
        train(student, teaching_data, objective, PLAN, Course(job), teaching=teaching)
    assert distances[-1].item() < 0.7 * distances[0].item()
    assert len(teaching.trained_modules) == 2
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in student.modules())


class Telling(nn.Module):
    """Returns its hidden states beside its answer, the embeddings first, as Hugging Face's networks do."""

    def __init__(self, width, depth):
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.layers = nn.ParameterList(torch.randn(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, ids):
        states = [self.embedding(ids)]
        for layer in self.layers:
            states.append(torch.tanh(states[-1] @ layer))
        return {"logits": self.head(states[-1][:, 0]), "hidden_states": tuple(states)}


def test_hidden_states_that_networks_return_are_matched():
    torch.manual_seed(0)
    student, teacher, ids = Telling(16, 2), Telling(32, 4), torch.randint(0, 50, (2, 6))
    matching = FeatureMatching(student, teacher, lambda module: module(ids), blocks=True)
    assert widths(matching) == [(16, 32)] * 3
    states = teacher(ids)["hidden_states"]
    for site, at in zip(matching.sites, (2, 4), strict=False):
        assert torch.equal(matching._held["teacher", site.name], states[at])


def test_what_cannot_be_matched_is_said(tmp_path):
    with pytest.raises(ModelError, match="features = last"):
        matched(RECURRENT_FILE, tmp_path, lambda model: model.module())
    with pytest.raises(ModelError, match="no more than the teacher; here it has 3"):
        matched(CNN_FILE.replace("Net(8, 1)", "Net(8, 3)"), tmp_path, lambda model: model.student())
    with pytest.raises(ModelError, match="output layer"):
        FeatureMatching(nn.ReLU(), nn.ReLU(), lambda module: module(torch.ones(2)), blocks=False)
