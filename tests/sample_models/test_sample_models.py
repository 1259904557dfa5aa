"""The sample models are what their README promises: the contract, the accuracy, the data, the size.

Slow (`pytest -m slow`): the accuracy on all 10,000 test images, and the ONNX export of each model.
"""

import contextlib
import importlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.training.data import TrainingData

FOLDER = Path(__file__).parents[2] / "sample_models"
MEGABYTE = 1_000_000

THRESHOLDS = {"residual_cnn": 0.905, "vision_transformer": 0.86, "lstm": 0.86}
"""The least test accuracy of each model, on all test images."""

QUICK_BATCHES = 8
QUICK_MARGIN = 0.015
"""Two standard errors of an accuracy of 0.87 measured on 8 batches, 2,000 images."""


@pytest.fixture(scope="module", autouse=True)
def own_folder_first():
    """A model file imports its neighbour `fashion_mnist` plainly: its folder is on the path when it is loaded."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in (*THRESHOLDS, "fashion_mnist"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def fashion_mnist(own_folder_first):
    return importlib.import_module("fashion_mnist")


@pytest.fixture(scope="module", params=THRESHOLDS)
def model_file(request, own_folder_first):
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def network(model_file):
    return model_file.load_model()


def accuracy(network, batches) -> float:
    with torch.inference_mode():
        return torch.cat([network(inputs).argmax(1) == labels for inputs, labels in batches]).float().mean().item()


def test_the_model_is_trained_and_in_evaluation_mode(model_file, network):
    assert not network.training
    assert all(p.dtype is torch.float32 for p in network.parameters())
    quick = itertools.islice(model_file.test_data(), QUICK_BATCHES)
    assert accuracy(network, quick) >= THRESHOLDS[model_file.__name__] - QUICK_MARGIN


@pytest.mark.slow
def test_the_accuracy_on_all_test_images_is_as_promised(model_file, network):
    assert accuracy(network, model_file.test_data()) >= THRESHOLDS[model_file.__name__]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_example_input_is_a_real_batch_and_always_the_same(model_file, network, batch_size):
    example = model_file.example_input(batch_size)
    assert example.shape == (batch_size, *model_file.SAMPLE_SHAPE)
    assert example.dtype is torch.float32
    assert torch.equal(example, model_file.example_input(batch_size))
    with torch.inference_mode():
        assert network(example).shape == (batch_size, 10)


@pytest.mark.parametrize("name", ["train_data", "validation_data", "calibration_data", "test_data"])
def test_data_come_in_batches_and_can_be_read_again(model_file, name):
    data = getattr(model_file, name)()
    for _ in range(2):
        inputs, labels = next(iter(data))
        assert inputs.shape == (len(labels), *model_file.SAMPLE_SHAPE)
        assert inputs.dtype is torch.float32
        assert labels.dtype is torch.int64
        assert 64 <= len(labels) <= 250
        assert abs(inputs.mean()) < 0.4
        assert 0.7 < inputs.std() < 1.3


def test_training_data_are_shuffled_anew_in_each_pass_and_reproducible(model_file):
    data = model_file.train_data()
    (first, _), (second, _) = next(iter(data)), next(iter(data))
    assert not torch.equal(first, second)
    assert torch.equal(first, next(iter(model_file.train_data()))[0])


class Functions:
    """What training asks of an opened model file."""

    def __init__(self, file):
        self.train_data, self.function = file.train_data, lambda name: getattr(file, name, None)
        self.path = Path(file.__file__)


def test_what_judges_the_training_is_no_part_of_it(model_file, fashion_mnist):
    trained, judging = model_file.train_data(), model_file.validation_data()
    assert not set(trained._chosen()) & set(judging._chosen())
    assert len(trained._chosen()) + len(judging._chosen()) == 30_000
    assert sum(len(labels) for _, labels in judging) == fashion_mnist.VALIDATION_IMAGES
    assert TrainingData(Functions(model_file)).held_out_exact


def test_calibration_and_test_data_have_the_promised_sizes(model_file, fashion_mnist):
    assert sum(len(labels) for _, labels in model_file.calibration_data()) == fashion_mnist.CALIBRATION_IMAGES
    assert sum(len(labels) for _, labels in model_file.test_data()) == 10_000


def test_a_raw_image_becomes_the_input_the_model_was_tested_with(model_file):
    raw = list(itertools.islice(model_file.raw_inputs(), 3))
    assert all(image.dtype == np.uint8 and image.shape == (28, 28) for image in raw)
    inputs, _ = next(iter(model_file.test_data()))
    assert torch.equal(model_file.preprocess(raw[2]), inputs[2:3])
    assert torch.equal(model_file.preprocess(np.stack(raw)), inputs[:3])


def test_the_student_is_much_smaller_and_fits_the_same_data(model_file, network):
    student = model_file.student_model()
    assert parameters(student) * 4 <= parameters(network)
    assert student(model_file.example_input(2)).shape == (2, 10)


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.slow
def test_the_model_exports_to_onnx_with_an_open_batch_axis(model_file, network, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    with (tmp_path / "export.log").open("w") as log, contextlib.redirect_stdout(log):
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(network, (model_file.example_input(4),), path, dynamo=True, dynamic_shapes=(batch,))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch_size in (1, 3, 8):
        example = model_file.example_input(batch_size)
        (scores,) = session.run(None, {session.get_inputs()[0].name: example.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(scores, network(example).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("split", "count"), [("train", 30_000), ("test", 10_000)])
def test_every_class_has_its_tenth_of_the_images(fashion_mnist, split, count):
    assert fashion_mnist.images(split).shape == (count, 28, 28)
    per_class = np.bincount(fashion_mnist.labels(split), minlength=10)
    assert per_class.sum() == count
    assert len(per_class) == len(fashion_mnist.CLASSES)
    assert per_class.min() > 0.09 * count
    assert per_class.max() < 0.11 * count


def test_no_test_image_is_a_training_image(fashion_mnist):
    training = {image.tobytes() for image in fashion_mnist.images("train")}
    assert not any(image.tobytes() in training for image in fashion_mnist.images("test"))


def test_labels_belong_to_their_images(fashion_mnist):
    """The mean image of a class in one split is nearest to that of the same class in the other split."""
    means = {}
    for split in ("train", "test"):
        images, labels = fashion_mnist.images(split).reshape(-1, 784), fashion_mnist.labels(split)
        means[split] = np.stack([images[labels == label].mean(axis=0) for label in range(10)])
    distance = np.linalg.norm(means["train"][:, None] - means["test"][None], axis=2)
    assert (distance.argmin(axis=1) == np.arange(10)).all()


def test_the_folder_stays_under_25_megabytes():
    shipped = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in shipped) < 25 * MEGABYTE


def test_the_licence_of_the_data_is_kept():
    assert "Zalando SE" in (FOLDER / "data" / "LICENSE.txt").read_text()
