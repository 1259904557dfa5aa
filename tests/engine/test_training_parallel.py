"""Training by two processes over gloo: the same curve as one, one voice, one end, whatever ends it."""

import functools
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
import torch

from engine.context import JobCancelled
from engine.models import ModelError
from engine.protocol import Logged, MetricReported, Progressed
from engine.structure.masks import apply_masks, magnitude_masks
from engine.training import Course, Plan, train
from engine.training.checkpoints import Checkpoints
from engine.training.data import TrainingData
from engine.training.objectives import Objective
from engine.training.teacher import Teaching
from engine.training.team import Team

from .learning_models import CNN_FILE, TRANSFORMER_FILE, make_job, open_text, points

PLAN = Plan(epochs=2, learning_rate=3e-3, precision="float32")


def two_device_job(model, directory):
    """A job that has leased two devices; here they are the processor, twice."""
    job, messages = make_job(model, directory)
    job.spec = msgspec.structs.replace(job.spec, devices=("cpu", "cpu"))
    return job, messages


def processes_of(word):
    """The ids of processes whose command line has this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def until(condition, seconds=60.0):
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return value


def test_a_batch_is_shared_out_by_rows_and_weighted():
    inputs, labels = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    teams = [Team(torch.device("cpu"), rank, 2) for rank in range(2)]
    (one, one_labels), one_weight = teams[0].share(({"x": inputs, "scale": torch.ones(3)}, labels))
    (_, other_labels), other_weight = teams[1].share(({"x": inputs, "scale": torch.ones(3)}, labels))
    assert sorted([*one_labels.tolist(), *other_labels.tolist()]) == labels.tolist()
    assert (one["x"].shape, one["scale"].shape) == ((3, 2), (3,))
    assert (one_weight, other_weight) == pytest.approx((6 / 5, 4 / 5))
    mean = (one_labels.float().mean() * one_weight + other_labels.float().mean() * other_weight) / 2
    assert mean == labels.float().mean()
    small, weight = teams[1].share((inputs[:3], labels[:3]))
    assert len(small[0]) == 3
    assert weight == 1


def test_two_processes_train_as_one_with_the_same_batch(tmp_path):
    model = open_text(tmp_path, TRANSFORMER_FILE)
    curves, weights = [], []
    for make in (make_job, two_device_job):
        job, messages = make(model, tmp_path)
        data, module = TrainingData(model), model.module()
        torch.manual_seed(5)
        teacher = type(module)(48)
        outcome = train(module, data, Objective(model), PLAN, Course(job), teaching=Teaching(teacher))
        assert outcome.steps == 2 * data.steps
        curves.append(points(messages, "accuracy"))
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        assert not module.training
        assert points(messages, "loss")[-1][0] == outcome.steps
    assert any(isinstance(m, Logged) and "2 processes" in m.text for m in messages)
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]]
    for (_, one), (_, two) in zip(*curves):
        assert one == pytest.approx(two, abs=0.05)
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 1e-3
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.slow
def test_what_is_done_after_each_step_is_done_everywhere(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, _ = two_device_job(model, tmp_path)
    module = model.module()
    masks, _ = magnitude_masks(module, 0.5, False, [])
    apply_masks(module, masks)
    before = module.head.weight.detach().clone()
    after_step = functools.partial(apply_masks, module, masks)
    train(module, TrainingData(model), Objective(model), PLAN, Course(job), after_step=after_step)
    assert not torch.equal(before, module.head.weight)
    for name, mask in masks.items():
        assert bool((module.get_parameter(name)[~mask] == 0).all())


def test_a_network_that_cannot_be_sent_trains_alone_and_says_so(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, messages = two_device_job(model, tmp_path)
    module = model.module()
    module.hold = (step for step in range(3))
    outcome = train(module, TrainingData(model), Objective(model), PLAN, Course(job))
    assert outcome.accuracy > 0.4
    assert any(isinstance(m, Logged) and "alone" in m.text for m in messages)


FAILING = """
def loss(outputs, labels):
    import os
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
        calls.append(1)
        if len(calls) == 5:
            %s
    return nn.functional.cross_entropy(outputs, labels)

calls = []
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("raise ValueError('no more')", r"ValueError: no more \(in training process 1 of 2"),
        ("os.kill(os.getpid(), 9)", "training process 1 of 2 .* was killed by signal 9"),
    ],
)
def test_an_error_in_one_process_ends_all_with_its_reason(act, reason, tmp_path):
    model = open_text(tmp_path, CNN_FILE + FAILING % act)
    job, _ = two_device_job(model, tmp_path)
    with pytest.raises(ModelError, match=reason):
        train(model.module(), TrainingData(model), Objective(model), PLAN, Course(job))
    assert not processes_of(str(tmp_path))


@pytest.mark.slow
def test_a_cancelled_training_goes_on_where_it_was(tmp_path):
    model = open_text(tmp_path, TRANSFORMER_FILE)
    job, first = two_device_job(model, tmp_path)
    send = job.send

    def cancel_on_the_way(message):
        send(message)
        if isinstance(message, MetricReported) and message.name == "accuracy":
            job.cancel()

    job.send = cancel_on_the_way
    long = Plan(epochs=8, learning_rate=3e-3, precision="float32")
    data, objective = TrainingData(model), Objective(model)
    with pytest.raises(JobCancelled):
        train(model.module(), data, objective, long, Course(job, Checkpoints(tmp_path / "checkpoints")))
    assert not processes_of(str(tmp_path))
    kept = torch.load(tmp_path / "checkpoints" / "training.pt", weights_only=True)
    assert kept["step"] >= points(first, "accuracy")[0][0]

    job, second = two_device_job(model, tmp_path)
    outcome = train(model.module(), data, objective, long, Course(job, Checkpoints(tmp_path / "checkpoints")))
    steps = [m.done for m in second if isinstance(m, Progressed) and "step" in m.message]
    assert steps[0] == kept["step"] + 1
    assert outcome.steps == 8 * data.steps
    losses = points(second, "loss")
    assert losses[: len(points(first, "loss"))] == points(first, "loss")
    assert [step for step, _ in losses] == sorted({step for step, _ in losses})


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    child = os.fork()
    if child == 0:
        try:
            job, _ = two_device_job(model, tmp_path)
            plan = Plan(epochs=100_000, learning_rate=1e-3, precision="float32")
            train(model.module(), TrainingData(model), Objective(model), plan, Course(job))
        finally:
            os._exit(1)
    try:
        until(lambda: len(processes_of(str(tmp_path / "work"))) == 2)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    until(lambda: not processes_of(str(tmp_path / "work")))
