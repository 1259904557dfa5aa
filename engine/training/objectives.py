"""What one training stage is after: the user's loss and score, and if wanted a teacher's answers.

`Objective` is what the model file says of right and wrong. `Teaching` adds knowledge distillation to it
(Hinton, Vinyals, Dean 2015): loss = alpha · T² · KL(teacher ‖ student) + (1 − alpha) · the user's loss, and as an
option the match of the features before the output layer (in the manner of FitNets, Romero et al. 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..models import Model, ModelError
from ..models.tensors import to_array
from .data import TrainingData, batch_size
from .losses import cross_entropy, main_output, moved, soft_loss

if TYPE_CHECKING:
    from .precision import Precision

CACHE_BYTES = 512 * 1024 * 1024
"""A teacher's answers are kept for later passes if they are smaller than this."""


class Objective:
    """How the model file wants its module called, what is minimised and what counts as right."""

    def __init__(self, model: Model) -> None:
        self._model = model
        function = getattr(model, "function", None)
        self._loss = (function("loss") if function else None) or cross_entropy
        self._whole_mapping = getattr(getattr(model, "structure", None), "form", "") == "mapping"
        self.scored = True
        """False once it has turned out that labels cannot be scored: then `quality` is minus the loss."""

    def forward(self, module: nn.Module, inputs: Any) -> Any:
        """One call with a batch as training data gives it: a tensor, a tuple of arguments, or a dictionary of them."""
        if isinstance(inputs, Mapping) and not self._whole_mapping:
            return module(**inputs)
        if isinstance(inputs, (tuple, list)):
            return module(*inputs)
        return module(inputs)

    def loss(self, outputs: Any, labels: Any) -> torch.Tensor:
        """The mean loss of a batch, a scalar tensor."""
        loss = self._loss(outputs, labels)
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            raise ModelError("loss(outputs, labels) must return a tensor with one number, the mean over the batch.")
        return loss

    def quality(self, outputs: Any, labels: Any) -> float:
        """Sum of the samples' correctness, or of minus their losses where there is no score for such labels."""
        if self.scored:
            try:
                tensors = self._model.output_structure.tensors(outputs)  # type: ignore[attr-defined]
                arrays = {name: to_array(tensor) for name, tensor in tensors.items()}
                return float(self._model.score(arrays, _array(labels)).sum())
            except ModelError:
                self.scored = False
        first = labels if isinstance(labels, torch.Tensor) else main_output(outputs)
        return -float(self.loss(outputs, labels)) * len(first)


class Teaching:
    """Knowledge distillation from a teacher during one stage of training."""

    def __init__(
        self, teacher: nn.Module, alpha: float = 0.5, temperature: float = 3.0, feature_weight: float = 0.0
    ) -> None:
        self.teacher, self.alpha, self.temperature, self.feature_weight = teacher, alpha, temperature, feature_weight
        self.trained_modules: list[nn.Module] = []
        """The projection of the student's features, when they are matched and have another width."""
        self._answers: dict[int, Any] = {}
        self.cached = False
        """The teacher is asked only once for every batch."""
        self._hooks: list[Any] = []
        self._features: dict[str, torch.Tensor] = {}

    def prepare(self, student: nn.Module, data: TrainingData, objective: Objective, device: torch.device) -> None:
        """Called once before the first step. Decides whether the teacher's answers can be kept.

        Raises ModelError when features are to be matched and one of the two has no output layer to look before.
        """
        self._objective = objective
        self.teacher.to(device).eval().requires_grad_(False)
        sample = moved(data.held_out[0][0], device)
        with torch.no_grad():
            answer = main_output(objective.forward(self.teacher, sample))
        per_pass = answer.element_size() * answer[0].numel() * batch_size(data.held_out[0]) * data.steps
        self.cached = not self.feature_weight and per_pass <= CACHE_BYTES and data.repeats
        if self.feature_weight:
            self._watch_features(student, sample, device)

    def mixed(
        self, hard: torch.Tensor, outputs: Any, inputs: Any, labels: Any, index: int, precision: Precision
    ) -> torch.Tensor:
        """The loss of a batch with the teacher's part in it. `index` is the batch's place in its pass."""
        theirs = self._answers.get(index)
        if theirs is None:
            with torch.no_grad():
                theirs = main_output(self._objective.forward(self.teacher, precision.laid_out(inputs)))
            if self.cached:
                self._answers[index] = theirs
        loss = self.alpha * soft_loss(outputs, theirs, labels, self.temperature) + (1 - self.alpha) * hard
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

    def _watch_features(self, student: nn.Module, sample: Any, device: torch.device) -> None:
        for role, module in (("student", student), ("teacher", self.teacher)):
            layer = output_layer(module, self._objective, sample)

            def keep(_: nn.Module, inputs: tuple[Any, ...], role: str = role) -> None:
                self._features[role] = inputs[0]

            self._hooks.append(layer.register_forward_pre_hook(keep))
            with torch.no_grad():
                self._objective.forward(module, sample)
        ours, theirs = self._features["student"].shape[-1], self._features["teacher"].shape[-1]
        self._projection = nn.Linear(ours, theirs).to(device) if ours != theirs else nn.Identity()
        self.trained_modules = [self._projection]

    def _feature_loss(self) -> torch.Tensor:
        """Mean squared distance of the normalised features: 0 for the same direction, at most 4."""
        ours = F.normalize(self._projection(self._features["student"]).float(), dim=-1)
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


def _array(labels: Any) -> np.ndarray:
    return to_array(labels) if isinstance(labels, torch.Tensor) else np.asarray(labels)
