"""What training minimises where the user has no loss of their own, and where the answer is in what a model returns.

Models answer in many shapes. `main_output` finds the tensor that matters in a tensor, tuple, dictionary or Hugging
Face output; `class_axis` finds the axis of the classes from the labels. The loss is the mean over the batch, in float32
whatever precision the model ran in.
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


def moved(value: Any, device: torch.device | str | None) -> Any:
    """Every tensor or array in a nest of tuples, lists and dictionaries, as a tensor on `device` (None: where it is).

    numpy's float64, which is only its default, becomes float32; arrays of what no tensor can hold stay as they are.
    """
    if isinstance(value, torch.Tensor):
        return value if device is None else value.to(device, non_blocking=True)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        tensor = torch.as_tensor(value.astype(np.float32) if value.dtype == np.float64 else value)
        return tensor if device is None else tensor.to(device)
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
    """The axis of `scores` that counts classes, or None when the labels name none.

    Labels may be class numbers, (n,) for (n, classes), (n, …) for (n, classes, …) as in segmentation or for
    (n, …, classes) as in tagging; or one-hot, smoothed or mixed-up rows in the shape of the scores. Where axis 1 and
    the last fit alike, images have their classes on axis 1, and sequences (three axes: a tagger that happens to have as
    many tokens as tags) on the last. One score alone counts no classes.
    """
    if not isinstance(labels, torch.Tensor) or scores.ndim < 2:
        return None
    last = scores.ndim - 1
    axes = [axis for axis in ((last, 1) if scores.ndim == 3 else (1, last)) if scores.shape[axis] > 1]
    if labels.shape == scores.shape:
        return next((axis for axis in axes if _distributions(labels, axis)), None)
    if labels.is_floating_point():
        return None
    return next((axis for axis in axes if scores.shape[:axis] + scores.shape[axis + 1 :] == labels.shape), None)


def cross_entropy(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the class axis; labels of -100 do not count. Labels may be one-hot or probabilities.

    Raises ModelError when outputs and labels do not look like classification.
    """
    scores = main_output(outputs)
    axis = class_axis(scores, labels)
    if axis is None:
        shape = f"of shape {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else f"({type(labels).__name__})"
        raise ModelError(
            f"Outputs of shape {tuple(scores.shape)} and labels {shape} are no classification: "
            "add loss(outputs, labels) to the model file."
        )
    scores = scores.float().movedim(axis, 1)
    if labels.shape == main_output(outputs).shape:
        return F.cross_entropy(scores, labels.float().movedim(axis, 1))
    total = F.cross_entropy(scores, labels.long(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp_min(1)  # 0, not NaN, for a batch in which no label counts


def _distributions(labels: torch.Tensor, axis: int) -> bool:
    """Along this axis lie distributions: one-hot, or smoothed, or mixed up."""
    return bool((labels >= 0).all() and (labels.sum(axis) - 1).abs().max() < 1e-3) if labels.numel() else False
