"""Fine-tuning: it learns, reports live, judges on what it does not train on, and goes on after it was stopped."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from engine.context import JobCancelled
from engine.models import ModelError
from engine.protocol import Logged, MetricReported, Progressed
from engine.training import Course, Plan, held_out_accuracy, rate_factor, reestimate_batch_norm, train
from engine.training.checkpoints import Checkpoints
from engine.training.data import TrainingData
from engine.training.losses import cross_entropy, main_output
from engine.training.objectives import Objective
from engine.training.soft_targets import answers, soft_loss
from engine.training.teacher import Teaching

from .learning_models import CNN_FILE, make_job, open_text, points

PLAN = Plan(epochs=3, learning_rate=3e-3, precision="float32")


@pytest.fixture
def model(tmp_path):
    return open_text(tmp_path, CNN_FILE)


def test_training_learns_and_reports_curves(model, tmp_path):
    job, messages = make_job(model, tmp_path)
    data, objective, module = TrainingData(model), Objective(model), model.module()
    before = held_out_accuracy(module, data, objective)
    outcome = train(module, data, objective, PLAN, Course(job, total_steps=3 * data.steps))
    assert outcome.accuracy > before + 0.3
    assert outcome.accuracy == pytest.approx(held_out_accuracy(module, data, objective))
    assert points(messages, "accuracy")[-1] == (outcome.steps, outcome.accuracy)
    assert points(messages, "loss")[-1][0] == outcome.steps == 3 * data.steps
    assert points(messages, "steps_per_epoch") == [(0, data.steps)], "the charts' axis"
    assert points(messages, "total_steps") == [(0, 3 * data.steps)]
    assert [m.done for m in messages if isinstance(m, Progressed)][-1] == outcome.steps
    assert not module.training


def test_curves_are_thinned(model, tmp_path):
    job, messages = make_job(model, tmp_path)
    data = TrainingData(model)
    start = time.monotonic()
    train(model.module(), data, Objective(model), PLAN, Course(job))
    seconds = time.monotonic() - start
    assert len(points(messages, "loss")) <= seconds / 0.25 + 1


def test_training_stops_early_once_recovered(model, tmp_path):
    job, _ = make_job(model, tmp_path)
    data = TrainingData(model)
    plan = Plan(epochs=50, learning_rate=3e-3, precision="float32", stop_at=0.6, warm_up=0.01)
    outcome = train(model.module(), data, Objective(model), plan, Course(job))
    assert outcome.recovered
    assert outcome.accuracy >= 0.6
    assert outcome.steps < 50 * data.steps


def test_a_diverging_loss_is_a_sentence(tmp_path):
    model = open_text(tmp_path, CNN_FILE + "\ndef loss(outputs, labels):\n    return outputs.sum() * float('nan')\n")
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match="lower learning_rate"):
        train(model.module(), TrainingData(model), Objective(model), PLAN, Course(job))


def test_a_frozen_network_is_trained_whole_and_comes_back_frozen(model, tmp_path):
    job, messages = make_job(model, tmp_path)
    module = model.module().requires_grad_(False)
    before = module.stem.weight.clone()
    train(module, TrainingData(model), Objective(model), PLAN, Course(job))
    assert not torch.equal(before, module.stem.weight)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert any(isinstance(m, Logged) and "frozen" in m.text for m in messages)


def test_what_the_user_has_frozen_stays_as_it_is(model, tmp_path):
    job, messages = make_job(model, tmp_path)
    module = model.module()
    module.stem.requires_grad_(False)
    stem, head = module.stem.weight.clone(), module.head.weight.clone()
    train(module, TrainingData(model), Objective(model), PLAN, Course(job))
    assert torch.equal(stem, module.stem.weight)
    assert not torch.equal(head, module.head.weight)
    assert not any(isinstance(m, Logged) for m in messages)


PARTICULAR = """
def loss(outputs, labels):
    assert outputs["logits"].dtype == torch.float32, outputs["logits"].dtype
    assert not torch.is_autocast_enabled("cpu")
    probabilities = outputs["logits"].softmax(1)
    return nn.functional.binary_cross_entropy(probabilities, nn.functional.one_hot(labels, 4).float())
"""


def test_mixed_precision_trains_with_losses_in_float32_and_leaves_a_float32_network(tmp_path):
    text = CNN_FILE.replace(".flatten(1))", ".flatten(1))}").replace(
        "return self.head(", 'return {"logits": self.head('
    )
    model = open_text(tmp_path, text + PARTICULAR)
    job, _ = make_job(model, tmp_path)
    module, data, objective = model.module(), TrainingData(model), Objective(model)
    seen = []
    hook = module.head.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    before = held_out_accuracy(module, data, objective)
    plan = Plan(epochs=4, learning_rate=5e-3, precision="bfloat16")
    outcome = train(module, data, objective, plan, Course(job), teaching=Teaching(model.module(), alpha=0.2))
    hook.remove()
    assert seen[-1] == torch.bfloat16
    assert outcome.accuracy > before + 0.2
    tensors = [*module.parameters(), *module.buffers()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point())
    assert all(tensor.is_contiguous() for tensor in tensors)


METRIC = """
sizes = []

def metric(outputs, labels):
    sizes.append(len(labels))
    return 100 * (outputs.argmax(1) == labels).float().mean()
"""


def test_the_users_metric_judges_and_stops(tmp_path):
    model = open_text(tmp_path, CNN_FILE + METRIC + "\ndef validation_data():\n    return batches(300, 5)\n")
    job, messages = make_job(model, tmp_path)
    plan = Plan(epochs=50, learning_rate=3e-3, precision="float32", stop_at=60.0, warm_up=0.01)
    outcome = train(model.module(), TrainingData(model), Objective(model), plan, Course(job))
    assert outcome.recovered
    assert outcome.accuracy >= 60
    assert points(messages, "accuracy")[-1][1] == outcome.accuracy
    assert set(model.file.sizes) == {300}, "all held-out samples at once"


MIXED = """
def validation_data():
    (first, one), (second, other) = batches(128, 5)
    one, other = (nn.functional.one_hot(labels, 4).float() for labels in (one, other))
    return [(first, one), (second, 0.9 * other + 0.025)]
"""


def test_where_labels_of_a_later_batch_cannot_be_scored_all_batches_are_judged_by_the_loss(tmp_path):
    model = open_text(tmp_path, CNN_FILE + MIXED)
    data, objective, module = TrainingData(model), Objective(model), model.module().eval()
    value = held_out_accuracy(module, data, objective)
    assert not objective.scored
    with torch.no_grad():
        losses = [float(cross_entropy(module(inputs), labels)) for inputs, labels in data.held_out]
    assert value == pytest.approx(-sum(losses) / 2)
    assert not module.training


def test_a_score_of_the_users_that_fails_is_told_and_not_passed_over(tmp_path):
    model = open_text(tmp_path, CNN_FILE + "\ndef accuracy(outputs, labels):\n    return outputs.nonsense\n")
    with pytest.raises(ModelError, match=r"accuracy\(\).*nonsense"):
        held_out_accuracy(model.module(), TrainingData(model), Objective(model))


# --- data -------------------------------------------------------------------------------------------


def test_fixed_order_data_is_split_exactly(model):
    data = TrainingData(model, samples=100)
    held_out = torch.cat([inputs for inputs, _ in data.held_out])
    trained_on = torch.cat([inputs for inputs, _ in data.batches()])
    assert data.held_out_exact
    assert data.repeats
    assert len(held_out) + len(trained_on) == 1024
    assert not any(torch.equal(image, other) for image in held_out[:5] for other in trained_on)


def test_a_shuffling_data_loader_is_split_by_index(tmp_path):
    text = CNN_FILE.replace(
        "return batches(1024, 1)",
        "return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples(1024, 1)), 32, shuffle=True)",
    )
    data = TrainingData(open_text(tmp_path, text))
    held_out = {tuple(image.flatten().tolist()) for inputs, _ in data.held_out for image in inputs}
    trained_on = {tuple(image.flatten().tolist()) for inputs, _ in data.batches() for image in inputs}
    assert data.held_out_exact
    assert not held_out & trained_on
    assert len(held_out) + len(trained_on) == 1024
    assert not data.repeats


def test_data_that_shuffles_by_itself_is_called_inexact(tmp_path):
    text = CNN_FILE.replace("return batches(1024, 1)", "import random; return Shuffled(batches(1024, 1))")
    text += """
class Shuffled(list):
    def __iter__(self):
        import random
        return iter(random.sample(list(super().__iter__()), len(self)))
"""
    data = TrainingData(open_text(tmp_path, text))
    assert not data.held_out_exact
    assert data.held_out


@pytest.mark.parametrize("labels", ["None", "torch.zeros(len(y), dtype=torch.long)", "y"])
@pytest.mark.parametrize("shuffled", [True, False])
def test_shuffled_data_is_told_by_its_inputs_where_labels_say_nothing(tmp_path, labels, shuffled):
    text = CNN_FILE.replace("return batches(1024, 1)", f"return Data((x, {labels}) for x, y in batches(1024, 1))")
    text += f"""
class Data(list):
    def __iter__(self):
        import random
        batches = list(super().__iter__())
        return iter(random.sample(batches, len(batches)) if {shuffled} else batches)
"""
    assert TrainingData(open_text(tmp_path, text)).held_out_exact is not shuffled


def test_generators_can_be_gone_through_again(tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", "yield from batches(1024, 1)"))
    data = TrainingData(model)
    assert data.steps + len(data.held_out) == 16
    for _ in range(2):
        assert sum(1 for _ in data.batches()) == data.steps
    assert sum(1 for _ in data.batches(skip=3)) == data.steps - 3


def test_validation_data_comes_first(tmp_path):
    model = open_text(tmp_path, CNN_FILE + "\ndef validation_data():\n    return batches(256, 5)\n")
    data = TrainingData(model)
    assert sum(len(labels) for _, labels in data.held_out) == 256
    assert data.steps == 16


def test_wrong_train_data_is_a_sentence(tmp_path):
    with pytest.raises(ModelError, match="pairs"):
        TrainingData(open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", "return [torch.zeros(4)] * 8")))


# --- losses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outputs",
    [
        lambda t: t,
        lambda t: (t, None),
        lambda t: {"loss": torch.zeros(()), "logits": t},
        lambda t: {"hidden": t, "other": t + 1},
        lambda t: [None, t],
    ],
)
def test_the_answer_is_found_in_any_output(outputs):
    scores = torch.randn(3, 4)
    assert torch.equal(main_output(outputs(scores)), scores)


def test_cross_entropy_finds_the_class_axis():
    torch.manual_seed(0)
    tagging, tags = torch.randn(2, 7, 5), torch.randint(0, 5, (2, 7))
    expected = torch.nn.functional.cross_entropy(tagging.flatten(0, 1), tags.flatten())
    assert torch.allclose(cross_entropy(tagging, tags), expected)
    assert torch.allclose(cross_entropy(tagging.movedim(2, 1), tags), expected)
    ignored = tags.clone()
    ignored[:, 3:] = -100
    assert torch.allclose(
        cross_entropy(tagging, ignored),
        torch.nn.functional.cross_entropy(tagging[:, :3].flatten(0, 1), tags[:, :3].flatten()),
    )
    with pytest.raises(ModelError, match="add loss"):
        cross_entropy(torch.randn(3, 4), torch.randn(3))


def test_soft_loss_is_zero_for_equal_answers_and_keeps_its_scale_over_temperatures():
    torch.manual_seed(0)
    teacher, student, labels = torch.randn(64, 10), torch.randn(64, 10), torch.randint(0, 10, (64,))
    teacher, student = answers(teacher), answers(student)
    assert float(soft_loss(teacher, teacher, labels, 3.0)) == pytest.approx(0, abs=1e-5)
    by_hand = torch.nn.functional.kl_div(
        (student[""] / 3).log_softmax(1), (teacher[""] / 3).softmax(1), reduction="batchmean"
    )
    assert float(soft_loss(student, teacher, labels, 3.0)) == pytest.approx(9 * float(by_hand), rel=1e-4)
    assert float(soft_loss(student, teacher, torch.randn(64), 3.0)) > 0  # no classes: squared error


def test_the_rate_rises_then_falls():
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.01, abs=0.002)


def test_batch_norm_is_reestimated_from_data(model):
    module, data = model.module(), TrainingData(model)
    module.stem.weight.data *= 5
    assert reestimate_batch_norm(module, data, Objective(model)) == 4
    seen = []
    hook = module.blocks[0].conv1.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        for inputs, _ in data.batches():
            module(inputs)
    hook.remove()
    measured = torch.cat(seen).mean((0, 2, 3))
    assert torch.allclose(module.blocks[0].bn1.running_mean, measured, atol=1e-3)
    assert module.blocks[0].bn1.momentum == 0.1


# --- teaching ---------------------------------------------------------------------------------------


def test_a_teacher_is_asked_once_per_batch_when_data_repeats(model, tmp_path):
    job, _ = make_job(model, tmp_path)
    data, teacher = TrainingData(model), model.module()
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    train(model.student(), data, Objective(model), PLAN, Course(job), teaching=Teaching(teacher))
    assert len(calls) == 1 + data.steps


def test_features_are_matched_through_a_projection(model, tmp_path):
    job, _ = make_job(model, tmp_path)
    data, teacher, student = TrainingData(model), model.module(), model.student()
    teaching = Teaching(teacher, feature_weight=1.0)
    train(student, data, Objective(model), PLAN, Course(job), teaching=teaching)
    first, last = teaching.trained_modules[0], student.head
    assert (first.in_features, first.out_features) == (32, 64)
    assert not last._forward_pre_hooks


def test_features_are_found_where_the_output_layer_is_called_by_keyword(tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("self.head(self.pool", "self.head(input=self.pool"))
    job, _ = make_job(model, tmp_path)
    teaching = Teaching(model.module(), feature_weight=1.0)
    outcome = train(model.student(), TrainingData(model), Objective(model), PLAN, Course(job), teaching=teaching)
    assert outcome.steps


# --- going on after a stop ---------------------------------------------------------------------------


def test_a_cancelled_job_goes_on_where_it_was(model, tmp_path):
    data, objective = TrainingData(model), Objective(model)
    whole = model.module()
    job, _ = make_job(model, tmp_path)
    train(whole, data, objective, PLAN, Course(job))

    stopped = model.module()
    job, first = make_job(model, tmp_path)
    send = job.send

    def cancel_at_step_20(message):
        send(message)
        if isinstance(message, Progressed) and message.done == 20:
            job.cancel()

    job.send = cancel_at_step_20
    with pytest.raises(JobCancelled):
        train(stopped, data, objective, PLAN, Course(job, Checkpoints(tmp_path / "checkpoints")))

    resumed = model.module()
    job, second = make_job(model, tmp_path)
    outcome = train(resumed, data, objective, PLAN, Course(job, Checkpoints(tmp_path / "checkpoints")))
    assert outcome.steps == 3 * data.steps
    assert next(m.done for m in second if isinstance(m, Progressed)) == 22
    assert points(second, "accuracy")[: len(points(first, "accuracy"))] == points(first, "accuracy")
    for ours, theirs in zip(resumed.parameters(), whole.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_job_killed_between_two_stages_keeps_the_step_and_the_curve(model, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    data, objective = TrainingData(model), Objective(model)
    plan = Plan(epochs=50, learning_rate=3e-3, precision="float32", stop_at=0.5, warm_up=0.01)
    first = model.module()
    job, messages = make_job(model, tmp_path)
    ended = train(first, data, objective, plan, Course(job, checkpoints), stage="fine-tuning 1 of 2")
    assert ended.recovered

    again = model.module()  # killed before the next cut: the stage that had ended is not trained again
    job, _ = make_job(model, tmp_path)
    course = Course(job, checkpoints)
    assert train(again, data, objective, plan, course, stage="fine-tuning 1 of 2") == ended
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.parameters(), first.parameters(), strict=True))

    job, later = make_job(model, tmp_path)  # killed after it, before the next stage's first checkpoint
    course = Course(job, checkpoints)
    assert course.step == ended.steps
    train(first, data, objective, PLAN, course, stage="fine-tuning 2 of 2")
    assert course.step == ended.steps + 3 * data.steps
    assert points(later, "loss")[: len(points(messages, "loss"))] == points(messages, "loss")
    assert [step for step, _ in points(later, "accuracy")] == sorted({step for step, _ in points(later, "accuracy")})


def test_a_broken_checkpoint_counts_as_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "training.pt").write_bytes(b"half")
    assert checkpoints.load("training") is None
    checkpoints.save("training", {"step": 3})
    assert checkpoints.load("training") == {"step": 3}
    checkpoints.remove()
    assert checkpoints.load("training") is None


@pytest.mark.parametrize(
    "error",
    [JobCancelled(), MemoryError(), OSError(5, "Input/output error"), RuntimeError("can't allocate memory: 9 bytes")],
    ids=lambda error: type(error).__name__,
)
def test_a_checkpoint_is_kept_when_the_job_is_cancelled_or_memory_fails_while_it_is_read(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("training", {"step": 3})

    def stopped(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", stopped)
    with pytest.raises(type(error)):
        checkpoints.load("training")
    monkeypatch.undo()
    assert checkpoints.load("training") == {"step": 3}


SCRIPT = """
import pathlib, sys
sys.path[:0] = [{repository!r}, {tests!r}]
import engine.training as training
from engine.training import loop
from learning_models import CNN_FILE, make_job, open_text
from engine.training.checkpoints import Checkpoints
from engine.training.objectives import Objective
from engine.training.data import TrainingData
loop.CHECKPOINT_SECONDS = 0.2
directory = pathlib.Path({directory!r})
model = open_text(directory, CNN_FILE)
job, _ = make_job(model, directory)
def tell(message):
    print(type(message).__name__, getattr(message, "step", getattr(message, "done", "")), flush=True)
job.send = tell
course = training.Course(job, Checkpoints(directory / "checkpoints"))
plan = training.Plan(epochs={epochs}, learning_rate=1e-3, precision="float32")
training.train(model.module(), TrainingData(model), Objective(model), plan, course)
"""


def test_a_worker_killed_outright_goes_on_from_its_checkpoint(tmp_path):
    def start(epochs):
        text = SCRIPT.format(
            repository=str(Path(__file__).parents[2]),
            tests=str(Path(__file__).parent),
            directory=str(tmp_path),
            epochs=epochs,
        )
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, text=True)

    checkpoint = tmp_path / "checkpoints" / "training.pt"
    process = start(100_000)
    try:
        while not checkpoint.exists():
            assert process.stdout.readline(), "the training ended by itself"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["step"] >= 1

    process = start(100_000)
    try:
        lines = []
        while not any(line.startswith("Progressed") for line in lines):
            lines.append(process.stdout.readline())
            assert lines[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    steps = [int(line.split()[1]) for line in lines if line.startswith(MetricReported.__name__)]
    assert steps[: len(kept["points"])] == [step for _, _, step in kept["points"]]
    assert lines[-1].split() == ["Progressed", str(kept["step"] + 1)]
