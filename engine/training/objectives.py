"""What one training stage is after, as the model file says it: how its module is called, its loss and its score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models import Model, ModelError
from ..models.datasets import labels_array
from ..models.tensors import to_array
from .losses import cross_entropy
from .precision import Precision


class Objective:
    """How the model file wants its module called, what is minimised and what counts as right."""

    def __init__(self, model: Model) -> None:
        self._model = model
        function = getattr(model, "function", None)
        self._loss = (function("loss") if function else None) or cross_entropy
        self._own_score = bool(function and function("accuracy"))
        self.metric = getattr(model, "metric", None)
        """The user's `metric(all_outputs, all_labels)`: it judges all held-out samples at once."""
        self._whole_mapping = getattr(getattr(model, "structure", None), "form", "") == "mapping"
        self.scored = True
        """False once it has turned out that labels cannot be scored: then what judges is minus the loss."""

    def forward(self, module: nn.Module, inputs: Any) -> Any:
        """One call with a batch as training data gives it: a tensor, a tuple of arguments, or a dictionary of them."""
        if isinstance(inputs, Mapping) and not self._whole_mapping:
            return module(**inputs)
        if isinstance(inputs, (tuple, list)):
            return module(*inputs)
        return module(inputs)

    def answer(self, module: nn.Module, inputs: Any, precision: Precision) -> Any:
        """The same in this precision; the outputs are float32, as the user's functions expect them."""
        with precision.autocast():
            outputs = self.forward(module, precision.laid_out(inputs))
        return precision.widened(outputs)

    def loss(self, outputs: Any, labels: Any) -> torch.Tensor:
        """The mean loss of a batch, a scalar tensor."""
        loss = self._loss(outputs, labels)
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            raise ModelError("loss(outputs, labels) must return a tensor with one number, the mean over the batch.")
        return loss

    def quality(self, outputs: Any, labels: Any) -> float:
        """Mean correctness of a batch (fraction), or minus its loss where there is no score for such labels.

        Raises ModelError when the outputs are not what the model's own are, or the user's accuracy() fails.
        """
        arrays = self.arrays(outputs)
        if self.scored:
            try:
                return float(self._model.score(arrays, label_array(labels)).mean())
            except ModelError:
                if self._own_score:
                    raise
                self.scored = False
        return -float(self.loss(outputs, labels))

    def metric_of(self, batches: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> float:
        """The user's metric of all batches (outputs, labels) together."""
        try:
            whole = {name: np.concatenate([outputs[name] for outputs, _ in batches]) for name in batches[0][0]}
            truth = np.concatenate([labels for _, labels in batches])
        except ValueError as error:
            raise ModelError(f"metric() needs outputs of one shape for all batches: {error}.") from error
        return self._model.metric_value(whole, truth)

    def arrays(self, outputs: Any) -> dict[str, np.ndarray]:
        """Outputs as named arrays. Raises ModelError when one is missing that the model's own outputs have."""
        tensors = self._model.output_structure.tensors(outputs)  # type: ignore[attr-defined]
        return {name: to_array(tensor) for name, tensor in tensors.items()}


def label_array(labels: Any) -> np.ndarray:
    """Labels as the model's scores take them: one entry a sample."""
    if isinstance(labels, Mapping):
        return labels_array(labels, len(next(iter(labels.values()))))
    return to_array(labels) if isinstance(labels, torch.Tensor) else np.asarray(labels)
