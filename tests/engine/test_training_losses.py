"""What training minimises: the right loss for every kind of output and label, the teacher's part included."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.models import ModelError
from engine.models.scoring import top_1
from engine.training.losses import class_axis, cross_entropy
from engine.training.soft_targets import answers, likenesses, soft_loss


def by_hand(student, teacher, temperature, axis=1):
    """T² · KL over an axis, averaged over everything else."""
    log_ours, log_theirs = (scores.div(temperature).log_softmax(axis) for scores in (student, teacher))
    return float(temperature**2 * (log_theirs.exp() * (log_theirs - log_ours)).sum(axis).mean())


def softened(student, teacher, labels, temperature, kinds=None):
    return soft_loss(answers(student), answers(teacher), labels, temperature, kinds).item()


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(8, 5), torch.randn(8, 5)


LABELS = {
    "numbers": lambda numbers: numbers,
    "one-hot": lambda numbers: F.one_hot(numbers, 5),
    "probabilities": lambda numbers: F.one_hot(numbers, 5) * 0.9 + 0.02,
    "dictionary": lambda numbers: {"y": numbers},
    "tuple": lambda numbers: (numbers, torch.rand(8)),
    "none": lambda numbers: None,
}


@pytest.mark.parametrize("form", LABELS)
def test_classes_are_taught_by_softened_probabilities_whatever_the_labels_look_like(form, pair):
    labels = LABELS[form](torch.arange(8) % 5)
    for temperature in (1.0, 4.0):
        assert softened(*pair, labels, temperature) == pytest.approx(by_hand(*pair, temperature), rel=1e-4)


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.long, torch.float])
def test_one_score_for_yes_or_no_is_taught_by_its_softened_probability(shape, dtype):
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(8, 1), torch.randn(8, 1), torch.randint(0, 2, shape).to(dtype)
    both = [torch.cat([scores, torch.zeros(8, 1)], 1) for scores in (student, teacher)]
    assert softened(student, teacher, labels, 3.0) == pytest.approx(by_hand(*both, 3.0), rel=1e-4)
    probabilities = softened(student.sigmoid(), teacher.sigmoid(), labels, 3.0)
    assert probabilities == pytest.approx(by_hand(*both, 3.0), rel=1e-3)


def test_a_tagger_with_as_many_tokens_as_tags_is_taught_tag_by_tag():
    torch.manual_seed(0)
    student, teacher, tags = torch.randn(2, 9, 9), torch.randn(2, 9, 9), torch.randint(0, 9, (2, 9))
    assert class_axis(student, tags) == 2
    assert class_axis(torch.randn(2, 9, 7), torch.zeros(2, 7, dtype=torch.long)) == 1  # fits in one way only
    assert class_axis(torch.randn(2, 8, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)) == 1  # an image
    assert softened(student, teacher, tags, 2.0) == pytest.approx(by_hand(student, teacher, 2.0, 2), rel=1e-4)
    assert float(cross_entropy(student, tags)) == pytest.approx(
        float(F.cross_entropy(student.flatten(0, 1), tags.flatten())), rel=1e-5
    )


def test_training_and_accuracy_agree_where_the_classes_are():
    tags = torch.arange(18).reshape(2, 9) % 9
    right = F.one_hot(tags, 9).float().log().clamp_min(-5)
    assert float(cross_entropy(right, tags)) < 0.1
    assert top_1({"output": right.numpy()}, tags.numpy()).tolist() == [1, 1]


@dataclasses.dataclass
class Span:
    start_logits: torch.Tensor
    end_logits: torch.Tensor


def test_every_output_is_taught():
    torch.manual_seed(0)
    start, end, other_start, other_end = (torch.randn(4, 12) for _ in range(4))
    labels = {"start_positions": torch.arange(4), "end_positions": torch.arange(4)}
    expected = (by_hand(start, other_start, 3.0) + by_hand(end, other_end, 3.0)) / 2
    assert softened(Span(start, end), Span(other_start, other_end), labels, 3.0) == pytest.approx(expected, rel=1e-4)
    detection = {"pred_logits": start.reshape(4, 3, 4), "pred_boxes": end.reshape(4, 3, 4)[..., :2]}
    kinds = likenesses(answers(detection), None)
    assert kinds[""].classes == 2
    assert kinds["pred_boxes"].classes is None
    assert kinds["pred_boxes"].variance == pytest.approx(float(detection["pred_boxes"].var(unbiased=False)), rel=1e-5)


def test_regression_is_taught_by_squared_errors_even_one_sample_at_a_time():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(32, 1), torch.randn(32, 1), torch.randn(32)
    kinds = likenesses(answers(teacher), labels)
    expected = float(F.mse_loss(student, teacher) / teacher.var(unbiased=False))
    assert softened(student, teacher, labels, 3.0, kinds) == pytest.approx(expected, rel=1e-5)
    one = softened(student[:1], teacher[:1], labels[:1], 3.0, kinds)
    assert one == pytest.approx(float((student[0] - teacher[0]) ** 2 / teacher.var(unbiased=False)), rel=1e-5)
    assert softened(student[:1], teacher[:1], labels[:1], 3.0) < 1e3
    assert likenesses(answers({"value": torch.randn(8, 3)}), {"value": torch.randn(8, 3)})[""].classes is None


def test_a_batch_in_which_no_label_counts_has_a_loss_of_zero():
    scores = torch.randn(2, 3, requires_grad=True)
    loss = cross_entropy(scores, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0
    assert bool((scores.grad == 0).all())
    assert softened(scores, torch.randn(2, 3), torch.tensor([-100, -100]), 3.0) == 0


def test_one_score_is_no_classification_without_a_loss_of_the_users():
    with pytest.raises(ModelError, match="add loss"):
        cross_entropy(torch.randn(8, 1), torch.randint(0, 2, (8,)))


def test_one_hot_labels_train_as_class_numbers_do():
    scores, numbers = torch.randn(4, 3, 6, 6), torch.randint(0, 3, (4, 6, 6))
    one_hot = nn.functional.one_hot(numbers, 3).movedim(-1, 1)
    assert float(cross_entropy(scores, one_hot)) == pytest.approx(float(cross_entropy(scores, numbers)), rel=1e-5)
