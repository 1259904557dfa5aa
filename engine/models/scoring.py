"""Per-sample correctness: the user's `accuracy`, or top-1.

Every function gives float64 (n,): 1 right, 0 wrong, a share between where a sample has many answers (pixels,
tokens). Per sample, because only then can two variants be compared sample by sample.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .model import Arrays, ModelError
from .tensors import to_array


def top_1(outputs: Arrays, labels: np.ndarray) -> np.ndarray:
    """Share of right answers per sample: the largest score along the class axis against the label.

    Labels may be class numbers of the shape of the scores without their class axis, or one-hot. A class axis is
    axis 1 if the shapes fit so (PyTorch's habit), else the last; of sequences (three axes) the last comes first: a
    tagger may have as many tokens as tags. Training decides the same (`training/losses.py`). An output of integers is
    the answer itself.
    Raises ModelError when no output fits the labels, or labels are no class numbers.
    """
    if labels.dtype.kind not in "iub" and not _one_hot(labels):
        raise ModelError(
            f"The labels are {labels.dtype}, not class numbers, so top-1 accuracy has no meaning: add "
            "accuracy(outputs, labels) or metric(outputs, labels) to the model file."
        )
    for scores in outputs.values():
        if scores.shape[:1] != labels.shape[:1]:
            continue
        if scores.dtype.kind in "iu" and scores.shape == labels.shape:
            return _mean_per_sample(scores == labels)
        if scores.dtype.kind == "f" and scores.ndim >= 2:
            numbers = labels
            if scores.shape == labels.shape and _one_hot(labels):
                numbers = labels.argmax(axis=1)
            elif labels.ndim > 1 and labels.ndim == scores.ndim and labels.shape[-1] == 1:
                numbers = labels[..., 0]
            last = scores.ndim - 1
            for axis in (last, 1) if scores.ndim == 3 else (1, last):
                if scores.shape[axis] > 1 and scores.shape[:axis] + scores.shape[axis + 1 :] == numbers.shape:
                    return _mean_per_sample(answers_along(scores, axis) == numbers)
    shapes = ", ".join(f"{name} {array.shape}" for name, array in outputs.items())
    raise ModelError(
        f"No output ({shapes}) has one score per class for labels of shape {labels.shape}: add "
        "accuracy(outputs, labels) to the model file."
    )


def answers_along(scores: np.ndarray, axis: int) -> np.ndarray:
    """The class with the largest score; -1 where a score is not a number, which equals no label."""
    answers = scores.argmax(axis=axis)
    return np.where(np.isnan(scores).any(axis=axis), -1, answers)


def by_user(
    accuracy: Callable[[Any, Any], Any], outputs: Any, labels: np.ndarray, one_sample: Callable[[int], Any]
) -> np.ndarray:
    """What the user's `accuracy(outputs, labels)` says of each sample.

    It should return one value a sample. If it returns a single number for several (a mean), it is asked again
    sample by sample, where the mean *is* the sample's own correctness; `one_sample(i)` gives outputs of sample i
    alone. Raises ModelError when it returns anything else.
    """
    values = _as_values(accuracy(outputs, for_user(labels)))
    if values.ndim == 0 and len(labels) > 1:
        values = np.array(
            [
                _as_values(accuracy(one_sample(i), for_user(labels[i : i + 1]))).reshape(-1)[0]
                for i in range(len(labels))
            ]
        )
    values = values.reshape(-1) if values.size == len(labels) else values
    if values.shape != (len(labels),):
        raise ModelError(
            f"accuracy(outputs, labels) returned the shape {values.shape} for {len(labels)} samples: it must give one "
            "value a sample (1 right, 0 wrong)."
        )
    if not np.isfinite(values).all():
        raise ModelError("accuracy(outputs, labels) returned values that are not numbers.")
    return values


def for_user(labels: np.ndarray) -> Any:
    """Labels as the user's functions know them: a tensor, or a list for what is no number."""
    return torch.from_numpy(np.ascontiguousarray(labels)) if labels.dtype.kind in "iufbc" else list(labels)


def _as_values(result: Any) -> np.ndarray:
    if isinstance(result, torch.Tensor):
        result = to_array(result)
    elif isinstance(result, Sequence) and result and isinstance(result[0], torch.Tensor):
        result = [to_array(value) for value in result]
    return np.asarray(result, dtype=np.float64)


def _one_hot(labels: np.ndarray) -> bool:
    return (
        labels.ndim == 2
        and labels.shape[1] > 1
        and labels.dtype.kind in "iufb"
        and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())
    )


def _mean_per_sample(right: np.ndarray) -> np.ndarray:
    return right.reshape(len(right), -1).mean(axis=1, dtype=np.float64)
