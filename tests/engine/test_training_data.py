"""Training data of every kind: passes that come again, arrays, samples along other axes, data without an end."""

import random

import pytest
import torch

from engine.context import JobCancelled
from engine.models import ModelError
from engine.protocol import Logged, Progressed
from engine.training import Course, Plan, Precision, held_out_accuracy, reestimate_batch_norm, train
from engine.training import data as training_data
from engine.training.checkpoints import Checkpoints
from engine.training.data import TrainingData
from engine.training.objectives import Objective
from engine.training.rows import Rows
from engine.training.teacher import Teaching
from engine.training.team import Team

from .learning_models import CNN, CNN_FILE, make_job, open_text, points

PLAN = Plan(epochs=4, learning_rate=3e-3, precision="float32")

FLOAT = Precision("float32", torch.device("cpu"), ())

DATASET = "torch.utils.data.TensorDataset(*samples(1024, 1))"

SHUFFLED = {
    "loader": f"return torch.utils.data.DataLoader({DATASET}, 64, shuffle=True)",
    "loader with a generator": f"return torch.utils.data.DataLoader({DATASET}, 64, shuffle=True, "
    "generator=torch.Generator().manual_seed(3))",
    "loader with a sampler": f"data = {DATASET}\n    return torch.utils.data.DataLoader(data, "
    "batch_sampler=torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(data), 64, False))",
    "set_epoch": "return Epochs(batches(1024, 1))",
    "python's generator": "return Shuffled(batches(1024, 1))",
    "distorted": "return Distorted(batches(1024, 1))",
}

SHUFFLING = """
import random

class Epochs(list):
    number = 0
    def set_epoch(self, number):
        self.number = number
    def __iter__(self):
        order = list(super().__iter__())
        random.Random(self.number).shuffle(order)
        self.number += 1
        return iter(order)

class Shuffled(list):
    def __iter__(self):
        yield from random.sample(list(super().__iter__()), len(self))

class Distorted(list):
    def __iter__(self):
        for images, labels in list(super().__iter__()):
            yield images + 0.1 * torch.randn_like(images), labels
"""

DROPPING = CNN.replace(".flatten(1))", ".flatten(1).mul(torch.rand(4 * self.head.in_features // 4)))")


def stopped_at(model, directory, step, plan=PLAN):
    """Train until a step, cancel there, and go on in what a new process would have; the parameters at the end."""
    module = model.module()
    job, _ = make_job(model, directory)
    send = job.send

    def cancel(message):
        send(message)
        if isinstance(message, Progressed) and message.done == step:
            job.cancel()

    job.send = cancel
    with pytest.raises(JobCancelled):
        train(module, TrainingData(model), Objective(model), plan, Course(job, Checkpoints(directory / "checkpoints")))
    torch.manual_seed(99)
    random.seed(99)
    module = model.module()
    job, _ = make_job(model, directory)
    train(module, TrainingData(model), Objective(model), plan, Course(job, Checkpoints(directory / "checkpoints")))
    return list(module.parameters())


@pytest.mark.parametrize("kind", SHUFFLED)
def test_a_training_stopped_in_a_later_pass_ends_with_the_very_same_weights(kind, tmp_path):
    text = CNN_FILE.replace(CNN, DROPPING).replace("return batches(1024, 1)", SHUFFLED[kind]) + SHUFFLING
    model = open_text(tmp_path, text)
    job, _ = make_job(model, tmp_path)
    whole, data = model.module(), TrainingData(model)
    train(whole, data, Objective(model), PLAN, Course(job))
    resumed = stopped_at(model, tmp_path, 2 * data.steps + 5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(resumed, whole.parameters(), strict=True))


def test_data_in_order_that_is_distorted_anew_in_every_pass_is_split_exactly(tmp_path):
    text = CNN_FILE.replace("return batches(1024, 1)", SHUFFLED["distorted"]) + SHUFFLING
    assert TrainingData(open_text(tmp_path, text)).held_out_exact


def test_passes_of_a_shuffling_loader_differ_and_come_again(tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", SHUFFLED["loader"]))

    def order(data, number):
        return torch.cat([inputs.flatten(1)[:, 0] for inputs, _ in data.batches(number=number)]).tolist()

    one, other = TrainingData(model), TrainingData(model)
    assert order(one, 0) != order(one, 1)
    assert order(other, 1) == order(one, 1)
    assert sorted(order(other, 2)) == sorted(order(one, 0))


def test_an_answer_of_the_teacher_never_belongs_to_other_inputs(tmp_path, monkeypatch):
    """Data that shuffles few batches begins two passes alike every now and then, and then looks as if it repeated."""
    text = CNN_FILE.replace("return batches(1024, 1)", "return Shuffled(batches(256, 1))") + SHUFFLING
    model = open_text(tmp_path, text)
    monkeypatch.setattr(TrainingData, "repeats", True)
    job, _ = make_job(model, tmp_path)
    data, teacher = TrainingData(model), model.module()
    teaching = Teaching(teacher)
    asked = []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    train(model.student(), data, Objective(model), PLAN, Course(job), teaching=teaching)
    assert teaching.cached
    assert len(asked) == 1 + 4, "to each batch once, in whatever order they come"
    for inputs, labels in data.batches():
        with torch.no_grad():
            theirs = teaching.distance(teacher(inputs), inputs, labels, teaching.key(inputs), FLOAT)
        assert float(theirs) == pytest.approx(0, abs=1e-6)


def test_arrays_of_numpy_can_be_trained_on(tmp_path):
    text = CNN_FILE.replace(
        "return batches(1024, 1)", "return [(x.double().numpy(), y.numpy()) for x, y in batches(256, 1)]"
    )
    model = open_text(tmp_path, text)
    data = TrainingData(model)
    assert data.held_out[0][0].dtype == torch.float32
    job, _ = make_job(model, tmp_path)
    outcome = train(model.module(), data, Objective(model), PLAN, Course(job), teaching=Teaching(model.module()))
    assert outcome.steps == 4 * data.steps


TIME_FIRST = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.lstm(self.embedding(ids))[0][-1])

def tokens(count, seed):
    return torch.randint(0, 50, (12, count), generator=torch.Generator().manual_seed(seed))

def load_model():
    torch.manual_seed(0)
    return Net()

def example_input(batch_size):
    return tokens(batch_size, 0)

def train_data():
    return [(tokens(32, seed), tokens(32, seed)[-1] % 3) for seed in range(12)]
"""


def test_samples_are_counted_and_shared_along_their_own_axis(tmp_path):
    model = open_text(tmp_path, TIME_FIRST)
    data = TrainingData(model)
    assert data.held_out_samples == 32
    assert 0 <= held_out_accuracy(model.module(), data, Objective(model)) <= 1
    shares = [Team(torch.device("cpu"), rank, 2, data.rows).share(data.held_out[0]) for rank in range(2)]
    for (ids, labels), weight in shares:
        assert (ids.shape, labels.shape, weight) == ((12, 16), (16,), 1.0)
        assert torch.equal(ids[-1] % 3, labels)
    (_, tags), _ = Team(torch.device("cpu"), 0, 2, data.rows).share((tokens := torch.ones(12, 12), tokens))
    assert tags.shape == (12, 6), "labels by time and sample"


def test_rows_of_dictionaries_and_constants():
    rows = Rows(("a", "b"), {"a": 1, "b": None})
    batch = ((torch.zeros(3, 8), torch.ones(8)), torch.arange(8))
    assert rows.count(batch) == 8
    (a, b), labels = rows.taken(batch, slice(0, None, 2))
    assert (a.shape, b.shape, labels.tolist()) == ((3, 4), (8,), [0, 2, 4, 6])
    assert Rows().count(({"x": torch.zeros(5, 2)}, None)) == 5


def test_held_out_batches_fill_no_more_memory_than_allowed(tmp_path, monkeypatch):
    model = open_text(tmp_path, CNN_FILE + "\ndef validation_data():\n    return batches(1024, 5)\n")
    monkeypatch.setattr(training_data, "HELD_OUT_BYTES", 3 * 64 * 64 * 4)
    assert TrainingData(model).held_out_samples == 3 * 64


@pytest.mark.parametrize(("name", "limit"), [("COUNTED_BATCHES", 50), ("COUNTED_SECONDS", 0.2)])
def test_data_without_an_end_is_refused(name, limit, tmp_path, monkeypatch):
    endless = "import itertools\n    for pair in itertools.cycle(batches(1024, 1)):\n        yield pair"
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", endless))
    monkeypatch.setattr(training_data, name, limit)
    with pytest.raises(ModelError, match=r"did not end after .* batches.*__len__"):
        TrainingData(model)


LONE = {
    "loader": "return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples(74, 1)), 11, shuffle=True)",
    "list": "return batches(67, 1, 11)",
}


@pytest.mark.parametrize("kind", LONE)
def test_a_last_batch_of_one_sample_does_not_stop_batch_normalisation(kind, tmp_path):
    """It has no variance, so its statistics are none: the running ones are used for it, and kept."""
    text = CNN_FILE.replace("return batches(1024, 1)", LONE[kind]).replace(
        "self.head = nn.Linear(4 * width, 4)",
        "self.head = nn.Sequential(nn.BatchNorm1d(4 * width), nn.Linear(4 * width, 4))",
    )
    model = open_text(tmp_path, text)
    data = TrainingData(model)
    assert [len(labels) for _, labels in data.batches()][-2:] == [11, 1]
    job, _ = make_job(model, tmp_path)
    module = model.module()
    assert train(module, data, Objective(model), PLAN, Course(job)).steps == 4 * data.steps
    assert reestimate_batch_norm(module, data, Objective(model)) == 5
    assert module.head[0].num_batches_tracked == data.steps - 1
    module.train()
    with pytest.raises(ValueError, match="more than 1 value"):
        module(data.held_out[0][0][:1])


LONGER = """return Longer(batches(1024, 1))

class Longer(list):
    def __len__(self):
        return {length}
"""


@pytest.mark.parametrize(("length", "real"), [(17, 15), (40, 12), (1024, 15)])
def test_a_length_that_says_more_than_a_pass_gives_does_not_end_the_training(length, real, tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", LONGER.format(length=length)))
    data = TrainingData(model)
    assert data.held_out_exact
    job, messages = make_job(model, tmp_path)
    course = Course(job, total_steps=4 * data.steps)
    said = data.steps
    assert train(model.module(), data, Objective(model), PLAN, course).steps == 4 * real == course.total_steps
    assert points(messages, "total_steps")[-1][1] == 4 * real
    lines = [message.text for message in messages if isinstance(message, Logged)]
    words = f"gave {real} batches to train on where {said} were expected"
    assert [words in line for line in lines] == [True] * (said > real)


def test_a_training_on_data_that_gives_less_than_it_says_goes_on_where_it_stopped(tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", LONGER.format(length=40)))
    job, _ = make_job(model, tmp_path)
    whole = model.module()
    train(whole, TrainingData(model), Objective(model), PLAN, Course(job))
    resumed = stopped_at(model, tmp_path, 2 * 12 + 5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(resumed, whole.parameters(), strict=True))


def test_data_that_gives_nothing_on_a_later_pass_is_refused(tmp_path):
    once = """return Once(batches(1024, 1))

class Once(list):
    passes = 0
    def __iter__(self):
        self.passes += 1
        return super().__iter__() if self.passes < 4 else iter(())
"""
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", once))
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match="nothing on a later pass"):
        train(model.module(), TrainingData(model), Objective(model), PLAN, Course(job))


def test_a_loss_that_is_no_number_is_blamed_on_the_data_only_where_they_hold_such(tmp_path):
    spoiled = "found = batches(1024, 1)\n    found[7][0][3] = float('nan')\n    return found"
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", spoiled))
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match=r"because train_data\(\) gives NaN or infinity. Leave such samples out"):
        train(model.module(), TrainingData(model), Objective(model), PLAN, Course(job))
    model = open_text(tmp_path, CNN_FILE)
    job, _ = make_job(model, tmp_path)
    wild = Plan(epochs=4, learning_rate=1e30, precision="float32")
    with pytest.raises(ModelError, match=r"Training diverged: .* Try a lower learning_rate"):
        train(model.module(), TrainingData(model), Objective(model), wild, Course(job))


@pytest.mark.parametrize(
    ("replaced", "by", "sentence"),
    [
        (
            "def train_data():\n    return batches(1024, 1)",
            "once = iter(batches(1024, 1))\n\ndef train_data():\n    return once",
            r"net.py: train_data\(\) gives its batches only once",
        ),
        (
            "    return batches(1024, 1)",
            "    yield from batches(1024, 1)\n    raise OSError('disk gone')",
            r"net.py: train_data\(\) failed at net.py line \d+ in train_data: OSError: disk gone",
        ),
        (
            "    return batches(1024, 1)",
            "    return batches(1024, 1)\n\ndef validation_data():\n    yield 1 / 0",
            r"net.py: validation_data\(\) failed at net.py line \d+ in validation_data: ZeroDivisionError",
        ),
        (
            "    return batches(1024, 1)",
            "    return [(x.flatten(1), y) for x, y in batches(1024, 1)]",
            r"forward failed on inputs of train_data\(\) \(float32 \(64, 64\)\) at net.py line \d+ in forward: ",
        ),
        (
            "    return batches(1024, 1)",
            "    return [(x, y + 1) for x, y in batches(1024, 1)]",
            r"failed on labels of train_data\(\) \(int64 \(64,\) from 1 to 4\): IndexError: Target 4 is out of bounds",
        ),
        (
            "    return batches(1024, 1)",
            "    return batches(1024, 1)\n\ndef loss(outputs, labels):\n    return outputs[:, labels.max() + 9].mean()",
            r"loss\(outputs, labels\) failed on labels of train_data\(\) .* at net.py line \d+ in loss: IndexError",
        ),
    ],
)
def test_what_fails_in_the_users_data_or_on_it_is_told_with_its_place(replaced, by, sentence, tmp_path):
    model = open_text(tmp_path, CNN_FILE.replace(replaced, by))
    job, _ = make_job(model, tmp_path)
    with pytest.raises(ModelError, match=sentence) as told:
        train(model.module(), TrainingData(model), Objective(model), PLAN, Course(job))
    assert "\n" not in str(told.value)


def test_data_without_an_end_that_says_how_long_a_pass_is_can_be_trained_on(tmp_path):
    endless = """return Endless(batches(1024, 1))

class Endless(list):
    def __iter__(self):
        import itertools
        return itertools.cycle(list(super().__iter__()))
"""
    model = open_text(tmp_path, CNN_FILE.replace("return batches(1024, 1)", endless))
    data = TrainingData(model)
    assert sum(1 for _ in data.batches()) == data.steps == 15
