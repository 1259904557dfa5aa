"""What training minimises: the user's loss or cross-entropy, and the teacher's answers.

Models answer in many shapes. `main_output` finds the tensor that matters in a tensor, tuple, dictionary or Hugging
Face output; `class_axis` finds the axis of the classes from the shape of the labels. Losses are means over the batch,
in float32 whatever precision the model ran in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..models import ModelError

Loss = Callable[[Any, Any], torch.Tensor]
"""`loss(outputs, labels) -> scalar`, as the user's model file has it."""

SCORE_NAMES = ("logits", "scores", "output", "outputs", "prediction_logits", "last_hidden_state")
"""Where a dictionary of outputs keeps the answer, by the first name that is there; else its first float tensor."""


def moved(value: Any, device: torch.device | str) -> Any:
    """Every tensor or array in a nest of tuples, lists and dictionaries, as a tensor on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value).to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(moved(item, device) for item in value)
    return value


def main_output(outputs: Any) -> torch.Tensor:
    """The tensor that holds the model's answer. Raises ModelError when there is no float tensor at all."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        for name in SCORE_NAMES:
            if isinstance(outputs.get(name), torch.Tensor):
                return outputs[name]
        items = [value for name, value in outputs.items() if name != "loss"]
    elif isinstance(outputs, (tuple, list)):
        items = list(outputs)
    elif dataclasses.is_dataclass(outputs):
        return main_output({field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)})
    else:
        items = []
    for item in items:
        if isinstance(item, torch.Tensor) and item.is_floating_point() and item.ndim:
            return item
    raise ModelError("The model's output holds no tensor of scores: add loss() to the model file.")


def class_axis(scores: torch.Tensor, labels: Any) -> int | None:
    """The axis of `scores` that counts classes, or None when the labels are no class numbers.

    (n, classes) with (n,) labels; (n, classes, …) as in segmentation; (n, tokens, classes) as in tagging.
    """
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.ndim != scores.ndim - 1:
        return None
    if scores.shape[:1] + scores.shape[2:] == labels.shape:
        return 1
    if scores.shape[:-1] == labels.shape:
        return scores.ndim - 1
    return None


def cross_entropy(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the class axis; labels of -100 do not count. Labels may be one-hot or probabilities.

    Raises ModelError when outputs and labels do not look like classification.
    """
    scores = main_output(outputs)
    if isinstance(labels, torch.Tensor) and labels.shape == scores.shape and _probabilities(labels):
        return F.cross_entropy(scores.float(), labels.float())
    axis = class_axis(scores, labels)
    if axis is None:
        raise ModelError(
            f"Outputs of shape {tuple(scores.shape)} and these labels are no classification: "
            "add loss(outputs, labels) to the model file."
        )
    return F.cross_entropy(scores.float().movedim(axis, 1), labels.long(), ignore_index=-100)


def soft_loss(student: Any, teacher: Any, labels: Any, temperature: float) -> torch.Tensor:
    """How far the student's answer is from the teacher's.

    For classes: T² · KL(teacher ‖ student) of the softened probabilities, averaged over the batch and all positions
    that count (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network"). For anything else
    (regression, boxes, embeddings) the mean squared error of the outputs, relative to the teacher's variance.
    """
    ours, theirs = main_output(student).float(), main_output(teacher).float()
    if ours.shape != theirs.shape:
        raise ModelError(
            f"The student answers with shape {tuple(ours.shape[1:])} a sample, the teacher with "
            f"{tuple(theirs.shape[1:])}: they must be the same."
        )
    axis = class_axis(ours, labels)
    if axis is None:
        return F.mse_loss(ours, theirs) / theirs.var().clamp_min(1e-6)
    log_ours = F.log_softmax(ours / temperature, axis)
    log_theirs = F.log_softmax(theirs / temperature, axis)
    divergence = F.kl_div(log_ours, log_theirs, reduction="none", log_target=True).sum(axis)
    counts = labels != -100
    return temperature**2 * (divergence * counts).sum() / counts.sum().clamp_min(1)


def _probabilities(labels: torch.Tensor) -> bool:
    """Each row of (n, classes) is a distribution: one-hot, or smoothed, or mixed up."""
    return labels.ndim == 2 and bool((labels >= 0).all() and (labels.sum(1) - 1).abs().max() < 1e-3)
