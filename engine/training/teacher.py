"""Knowledge distillation during one stage of training.

loss = alpha · T² · KL(teacher ‖ student) + (1 − alpha) · the user's loss (Hinton, Vinyals, Dean 2015), and as an option
feature_weight · the distance of what both hold on the way to their answers (`features`).

Answers of the teacher are kept by a hash of the inputs they answer, so an answer never belongs to other inputs,
whatever the user's data does from pass to pass. They stay on the device of the training.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import torch
from torch import nn

from ..models.tensors import tensors_by_path
from .data import TrainingData
from .features import FeatureMatching
from .losses import moved
from .objectives import Objective
from .precision import Precision
from .soft_targets import Answers, Likeness, answers, likenesses, soft_loss

CACHE_BYTES = 512 * 1024 * 1024
"""A teacher's answers are kept for later passes if those to one pass are smaller than this."""


class Teaching:
    """What a teacher adds to the loss of one stage."""

    def __init__(
        self,
        teacher: nn.Module,
        alpha: float = 0.5,
        temperature: float = 3.0,
        feature_weight: float = 0.0,
        features: Literal["last", "blocks"] = "last",
    ) -> None:
        self.teacher, self.alpha, self.temperature = teacher, alpha, temperature
        self.feature_weight, self.features = feature_weight, features
        self.trained_modules: list[nn.Module] = []
        """The projections of the student's features, where they are matched and have another width."""
        self.cached = False
        """The teacher is asked only once for every batch."""
        self._kept: dict[bytes, Answers] = {}
        self._kinds: dict[str, Likeness] | None = None
        self._matching: FeatureMatching | None = None

    def prepare(self, student: nn.Module, data: TrainingData, objective: Objective, device: torch.device) -> None:
        """Called once before the first step. Decides what is compared how, and whether answers can be kept.

        Raises ModelError when the student answers in another shape, and when features are to be matched and cannot be.
        """
        self._objective = objective
        self.teacher.to(device).eval().requires_grad_(False)
        student.to(device).eval()
        sample, labels = (moved(part, device) for part in data.held_out[0])
        with torch.no_grad():
            theirs = answers(objective.forward(self.teacher, sample))
            ours = answers(objective.forward(student, sample))
        self._kinds = likenesses(theirs, labels)
        soft_loss(ours, theirs, labels, self.temperature, self._kinds)  # raises where they cannot be compared
        per_batch = sum(tensor.element_size() * tensor.numel() for tensor in theirs.values())
        self.cached = not self.feature_weight and per_batch * data.steps <= CACHE_BYTES and data.repeats
        if self.feature_weight:
            self._matching = FeatureMatching(
                student, self.teacher, lambda module: objective.forward(module, sample), self.features == "blocks"
            )
            self.trained_modules = self._matching.trained_modules

    def key(self, inputs: Any) -> bytes | None:
        """What the answers to these inputs are kept by (cheapest on the CPU); None where none are kept."""
        return _digest(inputs) if self.cached else None

    def distance(self, outputs: Any, inputs: Any, labels: Any, key: bytes | None, precision: Precision) -> torch.Tensor:
        """How far the student's outputs are from what the teacher answers to the same inputs, softened."""
        theirs = self._kept.get(key) if key else None
        if theirs is None:
            with torch.no_grad():
                theirs = answers(self._objective.answer(self.teacher, inputs, precision))
            if key:
                self._keep(key, theirs)
        return soft_loss(answers(outputs), theirs, labels, self.temperature, self._kinds)

    def mixed(
        self,
        hard: torch.Tensor | None,
        outputs: Any,
        inputs: Any,
        labels: Any,
        key: bytes | None,
        precision: Precision,
    ) -> torch.Tensor:
        """The loss of a batch with the teacher's part in it. `hard` may be None where alpha is 1: it counts nothing."""
        loss = self.alpha * self.distance(outputs, inputs, labels, key, precision)
        if hard is not None:
            loss = loss + (1 - self.alpha) * hard
        if self._matching is not None:
            loss = loss + self.feature_weight * self._matching.loss()
        return loss

    @property
    def settings(self) -> tuple[float, float, float, str]:
        """What it was made with beside the teacher: alpha, temperature, feature weight, features."""
        return self.alpha, self.temperature, self.feature_weight, self.features

    def close(self) -> None:
        """Take the hooks off the student and the teacher again."""
        if self._matching is not None:
            self._matching.close()

    def _keep(self, key: bytes, theirs: Answers) -> None:
        size = sum(tensor.element_size() * tensor.numel() for tensor in theirs.values())
        if (len(self._kept) + 1) * size <= 2 * CACHE_BYTES:  # data that does not repeat after all fills no memory
            self._kept[key] = theirs


def _digest(inputs: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path, tensor in tensors_by_path(inputs).items():
        digest.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
