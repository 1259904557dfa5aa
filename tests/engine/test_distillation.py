"""Distillation: the student is smaller, learns from the teacher, and starts from it where it is derived from it."""

import msgspec
import pytest
import torch
from torch import nn

from engine.context import JobCancelled
from engine.hardware import read_processor
from engine.models import ModelError
from engine.protocol import Hardware, Progressed
from engine.structure.network import CannotPrune
from engine.structure.students import derive, drop_blocks
from engine.techniques import Refusal
from engine.techniques.distillation import Distill, distill, refuse
from engine.training import held_out_accuracy
from engine.training.data import TrainingData
from engine.training.objectives import Objective

from .learning_models import CNN_FILE, RECURRENT_FILE, TRANSFORMER_FILE, adopted, baseline, make_job, open_text, points
from .test_pruning import TIED_FILE, trained_file

FAMILIES = {"cnn": CNN_FILE, "transformer": TRANSFORMER_FILE, "recurrent": RECURRENT_FILE}


def run(model, directory, parameters):
    job, messages = make_job(model, directory, "distill", msgspec.to_builtins(parameters))
    (files,) = distill(baseline(model, directory), parameters, job)
    return adopted(model, directory, files), files, messages


def test_the_users_student_learns_from_the_teacher(tmp_path):
    model = trained_file(CNN_FILE, tmp_path)
    asked = Distill(epochs=6, learning_rate=5e-3, precision="float32")
    variant, files, messages = run(model, tmp_path, asked)
    figures = files.changed.figures
    assert figures["student"] == "student_model()"
    assert figures["teacher_answers_kept"] is True
    assert files.parameter_count == sum(p.numel() for p in variant.module().parameters())
    assert files.parameter_count < figures["parameter_count_before"] / 4
    accuracy = held_out_accuracy(variant.module(), TrainingData(model), Objective(model))
    assert accuracy == pytest.approx(figures["held_out_accuracy"], abs=0.01)
    assert accuracy > figures["held_out_accuracy_before"] - 0.15
    assert points(messages, "loss")
    assert points(messages, "accuracy")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_derived_student_starts_from_the_teachers_weights(family, tmp_path):
    model = open_text(tmp_path, FAMILIES[family])
    teacher = model.module()
    inputs = model.torch_args(model.example(2))[0]
    student, done, _ = derive(teacher, lambda m: m(*inputs), width=0.5, depth=1.0, round_to=2)
    assert done
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    assert student(*inputs).shape == teacher(*inputs).shape
    if family == "cnn":
        theirs, ours = teacher.stem.weight.flatten(1).tolist(), student.stem.weight.flatten(1).tolist()
        assert len(ours) == len(theirs) // 2
        assert all(row in theirs for row in ours)


def test_a_derived_student_keeps_tied_weights_tied_and_says_what_it_left(tmp_path):
    model = open_text(tmp_path, TIED_FILE)
    asked = Distill(student="derived", student_width=0.5, round_to=2, epochs=0.1, precision="float32")
    variant, files, _ = run(model, tmp_path, asked)
    student = variant.module()
    assert student.guess.weight is student.table.weight
    assert student.mid.out_features == 12
    assert ("back", "guess has weights in common with table") in {(one.name, one.reason) for one in files.changed.left}


def test_a_shallower_student_keeps_an_even_selection_of_blocks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5))
            self.last = nn.Linear(8, 2)

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return self.last(x)

    module = Net().eval()
    first, middle, last = module.blocks[0], module.blocks[2], module.blocks[4]
    x = torch.randn(3, 4)
    assert drop_blocks(module, lambda m: m(x), 0.6) == ["blocks.1", "blocks.3"]
    assert list(module.blocks) == [first, middle, last]
    assert module(x).shape == (3, 2)


def test_blocks_that_change_the_shape_stay():
    module = nn.Sequential(*(nn.Sequential(nn.Linear(8 - i, 7 - i), nn.ReLU()) for i in range(3))).eval()
    x = torch.randn(3, 8)
    assert drop_blocks(module, lambda m: m(x), 0.5) == []
    with pytest.raises(CannotPrune, match="student_width"):
        derive(module, lambda m: m(x), width=1.0, depth=0.5)


def test_a_cancel_while_the_network_is_tried_without_a_block_is_no_failure_of_the_network():
    module, x = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4))), torch.randn(3, 8)

    def call(tried):
        if len(tried) < 4:
            raise JobCancelled
        return tried(x)

    with pytest.raises(JobCancelled):
        drop_blocks(module, call, 0.5)


def test_alpha_zero_never_asks_the_teacher(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    _, files, _ = run(model, tmp_path, Distill(epochs=1, alpha=0, precision="float32"))
    assert files.changed.figures["teacher_answers_kept"] is None
    assert "no teacher" in files.changed.summary


OUTPUTS = {
    "dictionary": ("return {'features': x, 'logits': self.head(x)}", "outputs['logits']"),
    "tuple": ("return (self.head(x), x)", "outputs[0]"),
    "object": ("return Output(self.head(x))", "outputs.logits"),
}


@pytest.mark.parametrize("form", OUTPUTS)
def test_outputs_of_any_form_and_the_users_own_loss(form, tmp_path):
    returned, answer = OUTPUTS[form]
    text = CNN_FILE.replace(
        "return self.head(self.pool(self.blocks(self.stem(images))).flatten(1))",
        f"x = self.pool(self.blocks(self.stem(images))).flatten(1)\n        {returned}",
    )
    text += f"""
import dataclasses

@dataclasses.dataclass
class Output:
    logits: torch.Tensor

calls = []

def loss(outputs, labels):
    calls.append(1)
    return nn.functional.cross_entropy({answer}, labels, label_smoothing=0.1)

def accuracy(outputs, labels):
    return {answer}.argmax(1) == labels
"""
    model = open_text(tmp_path, text)
    variant, files, _ = run(model, tmp_path, Distill(epochs=4, learning_rate=5e-3, precision="float32"))
    assert model.file.calls
    assert files.changed.figures["held_out_accuracy"] > 0.35
    assert variant.module() is not None


def test_a_student_that_returns_another_structure_is_refused_before_the_first_step(tmp_path):
    other = CNN_FILE.replace(
        "super().__init__()\n        self.stem", "super().__init__()\n        self.w = width\n        self.stem"
    )
    other = other.replace(
        "return self.head(self.pool(self.blocks(self.stem(images))).flatten(1))",
        "y = self.head(self.pool(self.blocks(self.stem(images))).flatten(1))\n"
        "        return {'logits': y} if self.w == 16 else y",
    )
    model = open_text(tmp_path, other)
    job, messages = make_job(model, tmp_path)
    with pytest.raises(ModelError, match=r"student_model\(\)\) returns a tensor and the model a dict with logits"):
        distill(baseline(model, tmp_path), Distill(epochs=1, precision="float32"), job)
    assert not points(messages, "loss")


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_student_with_other_classes_is_refused_before_the_first_step(alpha, tmp_path):
    model = open_text(
        tmp_path,
        CNN_FILE.replace("return Net(8, 1)", "net = Net(8, 1)\n    net.head = nn.Linear(32, 7)\n    return net"),
    )
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match=r"\(2, 7\) and the model in \(2, 4\)"):
        distill(baseline(model, tmp_path), Distill(epochs=1, alpha=alpha, precision="float32"), job)


@pytest.mark.parametrize(
    ("width", "words"), [(16, "with as many parameters as the teacher"), (32, "× as many parameters as the teacher")]
)
def test_a_student_that_is_not_smaller_is_said_to_be_none(width, words, tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("    return Net(8, 1)", f"    return Net({width}, 2)"))
    _, files, messages = run(model, tmp_path, Distill(epochs=0.1, precision="float32"))
    assert words in files.changed.summary
    assert "fewer" not in files.changed.summary
    assert any("it is not smaller" in getattr(message, "text", "") for message in messages)


def test_what_shapes_a_derived_student_is_refused_for_the_users_own(tmp_path):
    info = open_text(tmp_path, CNN_FILE).info()
    here = Hardware(hostname="here", processor=read_processor())
    assert refuse(None, info, here, Distill()) is None
    assert "protect would count nothing: set student = derived, or leave it out" in refuse(
        None, info, here, Distill(protect=["stem"])
    )
    assert "student_width and round_to" in refuse(None, info, here, Distill(student_width=0.3, round_to=4))
    assert refuse(None, info, here, Distill(student="derived", protect=["stem"])) is None


def test_a_student_model_that_returns_no_module_is_named(tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("    return Net(8, 1)", "    Net(8, 1)"))
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match=r"net.py: student_model\(\) returned a NoneType, not a torch.nn.Module"):
        distill(baseline(model, tmp_path), Distill(), job)


def test_the_teacher_alone_needs_no_labels(tmp_path):
    text = CNN_FILE.replace("return batches(1024, 1)", "return [(images, None) for images, _ in batches(1024, 1)]")
    model = open_text(tmp_path, text)
    _, files, messages = run(model, tmp_path, Distill(epochs=3, alpha=1.0, precision="float32"))
    assert "there are no labels" in files.changed.summary
    held_out = [value for _, value in points(messages, "held_out_loss")]
    assert held_out[-1] < held_out[0]
    assert not points(messages, "accuracy")
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match="no labels"):
        distill(baseline(model, tmp_path), Distill(epochs=1, alpha=0.5, precision="float32"), job)


def test_where_labels_cannot_be_scored_the_summary_speaks_of_the_loss(tmp_path):
    text = CNN_FILE.replace("return images, labels", "return images, labels.float()")
    text = text.replace("nn.Linear(4 * width, 4)", "nn.Linear(4 * width, 1)").replace(
        "batches(1024, 1)", "batches(1025, 1)"
    )
    text += "\ndef loss(outputs, labels):\n    return nn.functional.mse_loss(outputs[:, 0], labels)\n"
    _, files, _ = run(open_text(tmp_path, text), tmp_path, Distill(epochs=2, precision="float32"))
    figures = files.changed.figures
    assert figures["held_out_loss"] > 0
    assert "held_out_accuracy" not in figures
    assert f"loss on held-out training data {figures['held_out_loss']:.4g}" in files.changed.summary
    assert "%" not in files.changed.summary


def test_features_can_be_matched(tmp_path):
    model = trained_file(CNN_FILE, tmp_path)
    _, files, _ = run(model, tmp_path, Distill(epochs=4, learning_rate=5e-3, feature_weight=1.0, precision="float32"))
    assert files.changed.figures["held_out_accuracy"] > 0.4
    assert files.changed.figures["teacher_answers_kept"] is False  # the features are needed, not the answers alone


def test_a_stopped_distillation_goes_on(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    asked = Distill(epochs=3, precision="float32")
    source = baseline(model, tmp_path)
    job, _ = make_job(model, tmp_path)
    send = job.send

    def cancel_at_step_20(message):
        send(message)
        if isinstance(message, Progressed) and message.done == 20:
            job.cancel()

    job.send = cancel_at_step_20
    with pytest.raises(JobCancelled):
        distill(source, asked, job)
    job, messages = make_job(model, tmp_path)
    distill(source, asked, job)
    told = [message for message in messages if isinstance(message, Progressed)]
    assert told[0].done == 22
    assert told[0].message.endswith(", going on from step 21")


def test_a_missing_student_is_said_before_it_runs(tmp_path):
    info = open_text(tmp_path, CNN_FILE.replace("def student_model", "def other")).info()
    hardware = Hardware(hostname="here", processor=read_processor())
    assert "student_model()" in refuse(None, info, hardware, Distill(student="user"))
    assert refuse(None, info, hardware, Distill()) is None
    assert "feature_weight = 0" in refuse(None, info, hardware, Distill(features="blocks"))
    assert refuse(None, info, hardware, Distill(features="blocks", feature_weight=1.0)) is None


def test_a_student_like_the_teacher_is_refused(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, _ = make_job(model, tmp_path)
    with pytest.raises(Refusal, match="no student"):
        distill(baseline(model, tmp_path), Distill(student="derived", student_width=1.0), job)
