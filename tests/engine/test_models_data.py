"""Data of every usual kind becomes named batches, and calibration never meets test data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from opened_models import CLASSIFIER, LABELLED, linear_graph, opened, refusal, write

from engine.models import ModelError
from engine.models.datasets import labels_array
from engine.models.scoring import by_user, top_1


def rows(batches: object) -> set[bytes]:
    """Every sample of some batches of `features` or `x`."""
    found = set()
    for batch in batches:  # type: ignore[attr-defined]
        inputs = batch[0] if isinstance(batch, tuple) else batch
        found |= {row.tobytes() for row in next(iter(inputs.values()))}
    return found


ZEROS = "torch.zeros({}, dtype=torch.long)"
LOADER = (
    f"torch.utils.data.DataLoader(torch.utils.data.TensorDataset(samples(40, 0), {ZEROS.format(40)}), batch_size=7)"
)

SOURCES = {
    "a list of batches": f"def test_data():\n    return [(samples(8, i), {ZEROS.format(8)}) for i in range(5)]",
    "a generator function": f"def test_data():\n    for i in range(5):\n        yield samples(8, i), {ZEROS.format(8)}",
    "a loader": f"def test_data():\n    return {LOADER}",
    "a loader that is no function": f"test_data = {LOADER}",
    "single samples": "def test_data():\n    return [(sample, 0) for sample in samples(40, 0)]",
    "dictionaries": "def test_data():\n    return [{'features': samples(8, i), 'labels': [0] * 8} for i in range(5)]",
    "numpy": "def test_data():\n    return [(samples(8, i).numpy(), np.zeros(8, np.int64)) for i in range(5)]",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_test_data_of_every_kind_comes_in_the_batches_asked_for(tmp_path: Path, kind: str) -> None:
    example = "def example_input(batch_size):\n    return {'features': torch.randn(batch_size, 6)}\n"
    text = (
        CLASSIFIER
        + (example if kind == "dictionaries" else "")
        + SOURCES[kind]
        + "\ncalibration_data = [samples(4, 9)]\n"
    )
    model = opened(write(tmp_path, text))

    batches = list(model.test_batches(16))
    assert [len(batch["features"]) for batch, _ in batches] == [16, 16, 8]
    assert all(labels is not None and len(labels) == len(batch["features"]) for batch, labels in batches)
    assert sum(len(batch["features"]) for batch, _ in model.test_batches(16, limit=20)) == 20


def test_samples_without_labels_are_unlabelled(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER + "def test_data():\n    return [samples(8, 0), samples(8, 1)]"))
    assert not model.labelled


def test_batches_that_do_not_fit_the_model_are_named(tmp_path: Path) -> None:
    data = "def test_data():\n    yield samples(8, 0), torch.zeros(8)\n    yield torch.zeros(8, 2, 6), torch.zeros(8)\n"
    text = refusal(write(tmp_path, CLASSIFIER + data))
    assert text.startswith("Batch 1 of test_data() in net.py does not fit: features has 3 axes")


def test_a_wrong_number_of_labels_is_told(tmp_path: Path) -> None:
    data = "def test_data():\n    yield samples(8, 0), torch.zeros(7)\n"
    assert "8 samples but 7 labels" in refusal(write(tmp_path, CLASSIFIER + data))


def test_an_error_in_the_users_data_names_its_line(tmp_path: Path) -> None:
    data = "def test_data():\n    yield samples(8, 0), torch.zeros(8)\n    raise OSError('disk is gone')\n"
    text = refusal(write(tmp_path, CLASSIFIER + data))
    assert "test_data() failed at net.py line" in text
    assert "disk is gone" in text


def test_calibration_data_is_the_users_own_first(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER + LABELLED))
    assert sum(len(batch["features"]) for batch in model.calibration_batches(8)) == 32
    assert sum(len(labels) for _, labels in model.test_batches(64)) == 300


def test_without_calibration_data_training_data_serves(tmp_path: Path) -> None:
    train = "def train_data():\n    yield samples(50, 7), torch.zeros(50)\n"
    test = "def test_data():\n    yield samples(40, 8), torch.zeros(40)\n"
    model = opened(write(tmp_path, CLASSIFIER + train + test))
    assert not rows(model.calibration_batches(8)) & rows(model.test_batches(8))
    assert sum(len(labels) for _, labels in model.test_batches(64)) == 40


def test_with_test_data_alone_a_part_is_set_aside_and_never_tested(tmp_path: Path) -> None:
    data = "def test_data():\n    order = torch.randperm(400)\n    yield samples(400, 8)[order], torch.zeros(400)\n"
    model = opened(write(tmp_path, CLASSIFIER + data))
    calibration = rows(model.calibration_batches(16))
    tested = rows(model.test_batches(16))

    assert not calibration & tested
    assert len(calibration | tested) == 400
    assert 25 <= len(calibration) <= 80
    assert rows(model.calibration_batches(16)) == calibration, "the split must not depend on the loader's order"


def test_without_any_data_example_inputs_stand_in(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER))
    assert model.synthetic_data
    assert not model.has_calibration_data
    assert sum(len(batch["features"]) for batch, _ in model.test_batches(64)) == 512
    with pytest.raises(ModelError, match="add calibration_data"):
        model.calibration_batches()


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 2],
        (1, 0, 2),
        np.array([1, 0, 2]),
        torch.tensor([1, 0, 2]),
        [torch.tensor(1), torch.tensor(0), torch.tensor(2)],
    ],
    ids=["list", "tuple", "numpy", "tensor", "list of tensors"],
)
def test_labels_of_any_kind_are_the_same_labels(labels: object) -> None:
    assert labels_array(labels, 3).tolist() == [1, 0, 2]


def test_labels_that_are_no_numbers_keep_their_own_form() -> None:
    boxes = [{"boxes": [1, 2]}, {"boxes": []}]
    assert labels_array(boxes, 2).tolist() == boxes
    assert labels_array({"a": [1, 2], "b": [3, 4]}, 2).tolist() == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


SCORES = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]], np.float32)
PIXELS = np.array([[[0.9, 0.1], [0.1, 0.2], [0.0, 0.3]], [[0.1, 0.1], [0.9, 0.0], [0.0, 0.9]]], np.float32)
"""Two samples, three classes, two positions: the answers are (0, 2) and (1, 2)."""


@pytest.mark.parametrize(
    ("outputs", "labels", "expected"),
    [
        (SCORES, np.array([1, 0, 0]), [1, 1, 0]),
        (SCORES, np.array([[1], [0], [0]]), [1, 1, 0]),
        (SCORES, np.eye(3)[[1, 0, 0]], [1, 1, 0]),
        (SCORES.argmax(axis=1), np.array([1, 0, 0]), [1, 1, 0]),
        (PIXELS, np.array([[0, 0], [1, 2]]), [0.5, 1]),
        (PIXELS.swapaxes(1, 2), np.array([[0, 0], [1, 2]]), [0.5, 1]),
        (np.where(np.eye(3, dtype=bool), np.nan, SCORES), np.array([1, 0, 2]), [0, 0, 0]),
    ],
    ids=["class numbers", "a column", "one-hot", "answers", "classes first", "classes last", "not a number"],
)
def test_top_1_understands_labels_and_outputs(outputs: np.ndarray, labels: np.ndarray, expected: list[float]) -> None:
    assert top_1({"scores": outputs}, labels).tolist() == expected


def test_labels_that_top_1_cannot_judge_ask_for_accuracy() -> None:
    with pytest.raises(ModelError, match="add accuracy"):
        top_1({"y": np.zeros((3, 1), np.float32)}, np.array([0.5, 0.1, 0.2]))
    with pytest.raises(ModelError, match="add accuracy"):
        top_1({"y": np.zeros((3, 1), np.float32)}, np.array([0, 1, 1]))


def test_the_users_accuracy_may_be_per_sample_or_a_mean() -> None:
    outputs, labels = torch.tensor([1, 2, 3]), np.array([1, 2, 0])

    def one_sample(i: int) -> torch.Tensor:
        return outputs[i : i + 1]

    def per_sample(answers: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return answers == right

    def mean(answers: torch.Tensor, right: torch.Tensor) -> float:
        return (answers == right).float().mean().item()

    assert by_user(per_sample, outputs, labels, one_sample).tolist() == [1, 1, 0]
    assert by_user(mean, outputs, labels, one_sample).tolist() == [1, 1, 0]
    with pytest.raises(ModelError, match="one value a sample"):
        by_user(lambda *_: [1, 0], outputs, labels, one_sample)


def test_npz_data_must_fit_the_graph(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path / "net.onnx")
    x, data = np.zeros((5, 6), np.float32), tmp_path / "data.npz"

    def saying(**arrays: np.ndarray) -> str:
        np.savez(data, **arrays)
        return refusal(graph, data=str(data))

    assert "has no array called 'x' (it has: images)" in saying(images=x)
    assert "x in data.npz has the shape (5, 7); the graph wants (n, 6)" in saying(x=np.zeros((5, 7), np.float32))
    assert "x in data.npz is complex128; the graph wants float32" in saying(x=x.astype(complex))
    assert "5 samples but 4 labels" in saying(x=x, labels=np.zeros(4))
    assert "pickled objects, which are not read" in saying(x=np.array([{"a": 1}], dtype=object))
    data.write_bytes(b"not a zip")
    assert "is not an .npz file" in refusal(graph, data=str(data))
    assert "There is no data file" in refusal(graph, data=str(tmp_path / "nowhere.npz"))


def test_npz_data_serves_examples_tests_and_calibration(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((200, 6))  # float64: cast to what the graph wants
    np.savez(tmp_path / "data.npz", x=x, labels=np.zeros(200, int))
    model = opened(linear_graph(tmp_path / "net.onnx"), data=str(tmp_path / "data.npz"))

    assert model.labelled
    assert model.offers == ("test_data",)
    assert model.has_calibration_data
    assert rows([model.example(4)]) <= {row.tobytes() for row in x.astype(np.float32)}
    assert not rows(model.calibration_batches(8)) & rows(model.test_batches(8))

    np.savez(tmp_path / "calib.npz", x=x[:10])
    both = opened(tmp_path / "net.onnx", data=str(tmp_path / "data.npz"), calibration_data=str(tmp_path / "calib.npz"))
    assert sum(len(batch["x"]) for batch in both.calibration_batches(8)) == 10
    assert sum(len(batch["x"]) for batch, _ in both.test_batches(8)) == 200
