"""What one training stage is after, as the model file says it: how its module is called, its loss and its score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models import Model, ModelError
from ..models.datasets import labels_array
from ..models.importing import PASSED_ON, in_one_line, where
from ..models.tensors import tensors_by_path, to_array
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
        """One call with a batch as training data gives it: a tensor, a tuple of arguments, or a dictionary of them.

        Raises ModelError when the module fails on them.
        """
        try:
            if isinstance(inputs, Mapping) and not self._whole_mapping:
                return module(**inputs)
            if isinstance(inputs, (tuple, list)):
                return module(*inputs)
            return module(inputs)
        except PASSED_ON:
            raise
        except Exception as error:
            raise self._failed(
                f"the model's forward failed on inputs of train_data() ({_described(inputs)})", error
            ) from error

    def answer(self, module: nn.Module, inputs: Any, precision: Precision) -> Any:
        """The same in this precision; the outputs are float32, as the user's functions expect them."""
        with precision.autocast():
            outputs = self.forward(module, precision.laid_out(inputs))
        return precision.widened(outputs)

    def loss(self, outputs: Any, labels: Any) -> torch.Tensor:
        """The mean loss of a batch, a scalar tensor. Raises ModelError when it cannot be computed."""
        try:
            loss = self._loss(outputs, labels)
        except PASSED_ON:
            raise
        except Exception as error:
            what = "cross-entropy, as there is no loss()," if self._loss is cross_entropy else "loss(outputs, labels)"
            raise self._failed(f"{what} failed on labels of train_data() ({_described(labels)})", error) from error
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            raise ModelError("loss(outputs, labels) must return a tensor with one number, the mean over the batch.")
        return loss

    def _failed(self, what: str, error: Exception) -> ModelError:
        """The sentence for what the user's code, or torch on the user's data, has raised."""
        path = self._model.path
        return ModelError(f"{path.name}: {what}{where(error, path)}: {in_one_line(error)}")

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


def _described(value: Any) -> str:
    """Types and shapes of the tensors in a part of a batch, and the range of whole numbers that are not on a GPU."""
    words = []
    for tensor in tensors_by_path(value).values():
        text = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        if tensor.dtype is torch.int64 and tensor.numel() and tensor.device.type == "cpu":
            text += f" from {int(tensor.min())} to {int(tensor.max())}"
        words.append(text)
    return ", ".join(words) or type(value).__name__
