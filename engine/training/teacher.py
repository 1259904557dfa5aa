"""Knowledge distillation during one stage of training.

loss = alpha · T² · KL(teacher ‖ student) + (1 − alpha) · the user's loss (Hinton, Vinyals, Dean 2015), and as an option
the match of the features before the output layer (in the manner of FitNets, Romero et al. 2015).

Answers of the teacher are kept by a hash of the inputs they answer, so an answer never belongs to other inputs,
whatever the user's data does from pass to pass. They stay on the device of the training.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..models import ModelError
from ..models.tensors import tensors_by_path
from .data import TrainingData
from .losses import moved
from .objectives import Objective
from .precision import Precision
from .soft_targets import Answers, Likeness, answers, likenesses, soft_loss

CACHE_BYTES = 512 * 1024 * 1024
"""A teacher's answers are kept for later passes if those to one pass are smaller than this."""


class Teaching:
    """What a teacher adds to the loss of one stage."""

    def __init__(
        self, teacher: nn.Module, alpha: float = 0.5, temperature: float = 3.0, feature_weight: float = 0.0
    ) -> None:
        self.teacher, self.alpha, self.temperature, self.feature_weight = teacher, alpha, temperature, feature_weight
        self.trained_modules: list[nn.Module] = []
        """The projection of the student's features, when they are matched and have another width."""
        self.cached = False
        """The teacher is asked only once for every batch."""
        self._kept: dict[bytes, Answers] = {}
        self._kinds: dict[str, Likeness] | None = None
        self._hooks: list[Any] = []
        self._features: dict[str, torch.Tensor] = {}

    def prepare(self, student: nn.Module, data: TrainingData, objective: Objective, device: torch.device) -> None:
        """Called once before the first step. Decides what is compared how, and whether answers can be kept.

        Raises ModelError when the student answers in another shape, and when features are to be matched and one of the
        two has no output layer to look before.
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
            self._watch_features(student, sample, device)

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
        if self.feature_weight:
            loss = loss + self.feature_weight * self._feature_loss()
        return loss

    @property
    def settings(self) -> tuple[float, float, float]:
        """What it was made with beside the teacher: alpha, temperature, feature weight."""
        return self.alpha, self.temperature, self.feature_weight

    def close(self) -> None:
        """Take the hooks off the student and the teacher again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _keep(self, key: bytes, theirs: Answers) -> None:
        size = sum(tensor.element_size() * tensor.numel() for tensor in theirs.values())
        if (len(self._kept) + 1) * size <= 2 * CACHE_BYTES:  # data that does not repeat after all fills no memory
            self._kept[key] = theirs

    def _watch_features(self, student: nn.Module, sample: Any, device: torch.device) -> None:
        for role, module in (("student", student), ("teacher", self.teacher)):
            layer = output_layer(module, self._objective, sample)

            def keep(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], role: str = role) -> None:
                self._features[role] = inputs[0] if inputs else named["input"]

            self._hooks.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
            with torch.no_grad():
                self._objective.forward(module, sample)
        ours, theirs = self._features["student"].shape[-1], self._features["teacher"].shape[-1]
        self._projection = nn.Linear(ours, theirs).to(device) if ours != theirs else nn.Identity()
        self.trained_modules = [self._projection]

    def _feature_loss(self) -> torch.Tensor:
        """Mean squared distance of the normalised features: 0 for the same direction, at most 4."""
        ours = F.normalize(self._projection(self._features["student"].float()), dim=-1)
        theirs = F.normalize(self._features["teacher"].float(), dim=-1)
        if ours.shape != theirs.shape:
            raise ModelError("Features of student and teacher cannot be matched: set feature_weight = 0.")
        return (ours - theirs).square().sum(-1).mean()


def output_layer(module: nn.Module, objective: Objective, inputs: Any) -> nn.Linear:
    """The linear layer called last. Raises ModelError when there is none."""
    called: list[nn.Linear] = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: called.append(layer))
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            objective.forward(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise ModelError("Feature matching needs a linear output layer in both networks: set feature_weight = 0.")
    return called[-1]


def _digest(inputs: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path, tensor in tensors_by_path(inputs).items():
        digest.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
