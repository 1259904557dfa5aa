"""Judging a module on held-out data, and measuring its batch normalisation anew; both keep the weights as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models import ModelError
from .data import TrainingData
from .losses import moved
from .objectives import Objective, label_array
from .precision import Precision
from .teacher import Teaching


@torch.no_grad()
def held_out_accuracy(
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    device: torch.device | str = "cpu",
    precision: Precision | None = None,
    samples: int | None = None,
    teaching: Teaching | None = None,
) -> float:
    """Accuracy (fraction) on the held-out batches, or on the first `samples` of them. Keeps the module's mode.

    Where the model file has a metric() it is that. Where the labels cannot be scored (regression without accuracy() in
    the model file) it is minus the mean loss; where there are no labels, minus the mean distance from the teacher's
    answers, and a ModelError where there is no teacher either.
    """
    was_training = module.training
    module.eval()
    total, seen = 0.0, 0
    answered: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
    precision = precision or Precision("float32", torch.device(device), ())
    for batch in data.held_out:
        inputs, labels = moved(batch[0], device), moved(batch[1], device)
        outputs = objective.answer(module, inputs, precision)
        count = data.rows.count(batch)
        if labels is None:
            objective.scored = False
            if teaching is None:
                raise ModelError("train_data() gives no labels (None): only distilling with alpha = 1 needs none.")
            total -= float(teaching.distance(outputs, inputs, None, teaching.key(batch[0]), precision)) * count
        elif objective.metric is not None:
            answered.append((objective.arrays(outputs), label_array(labels)))
        else:
            scored = objective.scored
            total += objective.quality(outputs, labels) * count
            if seen and scored and not objective.scored:  # what was summed before are accuracies
                module.train(was_training)
                return held_out_accuracy(module, data, objective, device, precision, samples, teaching)
        seen += count
        if samples is not None and seen >= samples:
            break
    module.train(was_training)
    return objective.metric_of(answered) if answered else total / seen


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module, data: TrainingData, objective: Objective, device: torch.device | str = "cpu", batches: int = 20
) -> int:
    """Measure the running mean and variance of every batch normalisation anew on training batches.

    After channels were removed or zeroed the old statistics are those of another network. Returns how many layers
    were re-estimated; the module comes back in eval mode.
    """
    layers = _batch_norms(module)
    if not layers:
        return 0
    module.to(device).eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # None: the plain average over all batches seen
        layer.train()
    with lone_samples_accepted(module):
        for index, (inputs, _) in enumerate(data.batches()):
            if index >= batches:
                break
            objective.forward(module, moved(inputs, device))
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    module.eval()
    return len(layers)


@contextlib.contextmanager
def lone_samples_accepted(module: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation that gets one number a channel uses its running statistics, and keeps them.

    The last batch of a pass may be a single sample. It has no variance, and in training mode PyTorch refuses it.
    """
    settled: set[nn.Module] = set()

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer.training and inputs[0].numel() == inputs[0].shape[1]:
            settled.add(layer)
            layer.eval()

    def after(layer: nn.Module, *_: Any) -> None:
        if layer in settled:
            settled.remove(layer)
            layer.train()

    hooks = []
    for layer in _batch_norms(module):
        hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Those that keep running statistics."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [layer for layer in layers if layer.track_running_stats]
