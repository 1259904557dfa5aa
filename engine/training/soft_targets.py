"""How far a student's answers are from its teacher's.

A model may give several answers (the start and the end of a span, scores beside boxes): every float output that both
have in the same shape is taught, and the loss is the mean over them. What kind of answer each is follows from the
teacher's output and the labels, once, before the first step (`likenesses`), so that one odd batch does not change the
loss. For T the temperature:

- classes: T² · KL(teacher ‖ student) of the softened probabilities, averaged over the batch and all positions that
  count (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network");
- one score for yes or no, or one for each of several labels: the same of the two probabilities of every score;
- anything else (regression, boxes, embeddings): the mean squared error relative to the variance of the teacher's.

Answers that are probabilities already are turned back into scores first. All in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from ..models import ModelError
from ..models.tensors import tensors_by_path
from .losses import class_axis, main_output

Answers = dict[str, torch.Tensor]
"""The float outputs of a model: "" is the main one, the others are called by their place."""

NO_ANSWERS = {
    "loss",
    "hidden_states",
    "attentions",
    "encoder_hidden_states",
    "decoder_hidden_states",
    "past_key_values",
}
"""Parts of a Hugging Face output that are no answers."""

LEAST_PROBABILITY = 1e-6


@dataclasses.dataclass(frozen=True)
class Likeness:
    """What kind of answer an output is, and so how two of it are compared."""

    classes: int | None = None
    """The axis of the classes."""
    binary: bool = False
    """Every number says yes or no by itself."""
    probabilities: bool = False
    """The classes' or the yes's probabilities, not scores."""
    variance: float = 1.0
    """Of the teacher's numbers: what a squared error is relative to."""


def answers(outputs: Any) -> Answers:
    """What a model answered, as it can be taught. Raises ModelError when there is no float tensor at all."""
    main = main_output(outputs)
    found = {"": main}
    for path, tensor in tensors_by_path(outputs).items():
        if tensor is not main and tensor.is_floating_point() and tensor.ndim and str(path[0]) not in NO_ANSWERS:
            found["_".join(str(key) for key in path)] = tensor
    return found


def likenesses(teacher: Answers, labels: Any) -> dict[str, Likeness]:
    """For each of the teacher's answers to a batch with these labels (None: there are none)."""
    return {name: _likeness(name, scores.detach().float(), teacher[""], labels) for name, scores in teacher.items()}


def soft_loss(
    student: Answers, teacher: Answers, labels: Any, temperature: float, kinds: Mapping[str, Likeness] | None = None
) -> torch.Tensor:
    """How far the student's answers are from the teacher's: a scalar, 0 where they are the same.

    `kinds`: what `likenesses` said of an earlier batch. Raises ModelError when the main answers differ in shape.
    """
    kinds = likenesses(teacher, labels) if kinds is None else kinds
    if student[""].shape != teacher[""].shape:
        raise ModelError(
            f"The student answers with shape {tuple(student[''].shape[1:])} a sample, the teacher with "
            f"{tuple(teacher[''].shape[1:])}: they must be the same."
        )
    taught = [name for name in kinds if name in student and student[name].shape == teacher[name].shape]
    losses = [
        _distance(kinds[name], student[name].float(), teacher[name].float(), labels, temperature) for name in taught
    ]
    return torch.stack(losses).mean()


def _likeness(name: str, scores: torch.Tensor, main: torch.Tensor, labels: Any) -> Likeness:
    within = bool(((scores >= 0) & (scores <= 1)).all())
    numbers = False  # the labels are real numbers: a regression
    for truth in _labels_for(name, scores, main, labels):
        axis = class_axis(scores, truth)
        if axis is not None:
            return _classes(scores, axis)
        if truth.numel() == scores.numel() and bool(((truth == 0) | (truth == 1)).all()):
            return Likeness(binary=True, probabilities=within)
        numbers |= truth.is_floating_point() and truth.numel() == scores.numel()
    numbers |= isinstance(labels, torch.Tensor) and labels.is_floating_point()
    if not numbers and _is_scores(name, scores, main) and not _named(labels, name):
        axis = 1 if scores.ndim > 3 else scores.ndim - 1
        if axis > 0 and scores.shape[axis] > 1:
            return _classes(scores, axis)
    spread = scores.var(unbiased=False) if scores.numel() > 1 else scores.square().mean()
    return Likeness(variance=max(float(spread), 1e-6))


def _classes(scores: torch.Tensor, axis: int) -> Likeness:
    sums = scores.sum(axis)
    return Likeness(axis, probabilities=bool((scores >= 0).all() and (sums - 1).abs().max() < 1e-3))


def _labels_for(name: str, scores: torch.Tensor, main: torch.Tensor, labels: Any) -> list[torch.Tensor]:
    """The labels that may say what an answer is: those of its name, else all, where the answer looks like scores."""
    named = _named(labels, name)
    if named:
        return named
    found = list(tensors_by_path(labels).values())
    return found if len(found) > 1 or _is_scores(name, scores, main) else []


def _named(labels: Any, name: str) -> list[torch.Tensor]:
    own = labels.get(name) if isinstance(labels, Mapping) and name else None
    return [own] if isinstance(own, torch.Tensor) else []


def _is_scores(name: str, scores: torch.Tensor, main: torch.Tensor) -> bool:
    """The main answer, one of its shape (the end beside the start of a span), or one that is called so."""
    return not name or scores.shape == main.shape or "logit" in name or "score" in name


def _distance(
    kind: Likeness, ours: torch.Tensor, theirs: torch.Tensor, labels: Any, temperature: float
) -> torch.Tensor:
    if kind.binary:
        if kind.probabilities:
            ours, theirs = torch.logit(ours, LEAST_PROBABILITY), torch.logit(theirs, LEAST_PROBABILITY)
        ours, theirs = (torch.stack([scores, torch.zeros_like(scores)], -1) for scores in (ours, theirs))
        axis = ours.ndim - 1
    elif kind.classes is not None:
        axis = kind.classes
        if kind.probabilities:
            ours, theirs = ours.clamp_min(LEAST_PROBABILITY).log(), theirs.clamp_min(LEAST_PROBABILITY).log()
    else:
        return F.mse_loss(ours, theirs) / kind.variance
    log_ours, log_theirs = F.log_softmax(ours / temperature, axis), F.log_softmax(theirs / temperature, axis)
    divergence = F.kl_div(log_ours, log_theirs, reduction="none", log_target=True).sum(axis)
    counts = _counting(labels, divergence)
    return temperature**2 * (divergence * counts).sum() / counts.sum().clamp_min(1)


def _counting(labels: Any, divergence: torch.Tensor) -> torch.Tensor:
    """1 where a position counts, 0 where a label of -100 says that it does not."""
    for truth in tensors_by_path(labels).values():
        if truth.shape == divergence.shape and not truth.is_floating_point():
            return (truth != -100).to(divergence.dtype)
    return torch.ones_like(divergence)
