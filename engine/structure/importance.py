"""What a network could best do without: a score for every unit of a group, the lower the sooner it goes.

- "l2": the norm of the filters (rows) that make the unit; needs no data (Li et al. 2017, "Pruning Filters for
  Efficient ConvNets", there with L1).
- "taylor": how much the loss would change to first order, from gradients on training batches: the squares of
  weight × gradient, summed over the filters, the biases and the normalisation of the unit, and over the batches
  (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning").

Scores are divided by their mean in the group, so that groups can be ranked together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from ..training.data import TrainingData
from ..training.losses import moved
from ..training.objectives import Objective
from .network import Group, PrunableNetwork

Mass = Callable[[torch.Tensor], torch.Tensor]
"""What each single weight counts for: weight → non-negative tensor of its shape, on the CPU."""

TAYLOR_BATCHES = 16
"""Training batches whose gradients are looked at."""


def squares(weight: torch.Tensor) -> torch.Tensor:
    """The mass behind "l2"."""
    return weight.detach().cpu().square()


def taylor_mass(module: nn.Module, data: TrainingData, objective: Objective, batches: int = TAYLOR_BATCHES) -> Mass:
    """The mass behind "taylor", gathered on the module's device in eval mode (batch norm as it will be used)."""
    device = next(module.parameters()).device
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    for parameter in frozen:  # what cannot learn can still matter
        parameter.requires_grad_(parameter.is_floating_point())
    gathered = {parameter: torch.zeros_like(parameter, device="cpu") for parameter in module.parameters()}
    for index, (inputs, labels) in enumerate(data.batches()):
        if index >= batches:
            break
        module.zero_grad(set_to_none=True)
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN cannot backpropagate RNNs in eval
            objective.loss(objective.forward(module, moved(inputs, device)), moved(labels, device)).backward()
        for parameter, mass in gathered.items():
            if parameter.grad is not None:
                mass += (parameter.detach() * parameter.grad).square().cpu()
    module.zero_grad(set_to_none=True)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return lambda weight: gathered[weight]  # type: ignore[index]


@torch.no_grad()
def unit_scores(network: PrunableNetwork, group: Group, kind: Literal["l2", "taylor"], mass: Mass) -> torch.Tensor:
    """Scores of a group's units: (1, width), or (cells, width) for a recurrent layer; mean 1 in every row."""
    if group.recurrent is not None:
        scores = group.recurrent.importance(mass)
    elif group.heads is not None and group.heads.packed is not None:
        scores = group.heads.packed_mass(mass, with_bias=kind == "taylor")[None]
    else:
        scores = _graph_scores(network, group, kind, mass)[None]
    if kind == "l2":
        scores = scores.sqrt()
    return scores / scores.mean(1, keepdim=True).clamp_min(1e-12)


def _graph_scores(network: PrunableNetwork, group: Group, kind: str, mass: Mass) -> torch.Tensor:
    size = group.heads.size if group.heads is not None else 1
    scores = torch.zeros(group.width * size)
    found = network.dependents(group, range(group.width))
    for item in found:
        for rows in _rows(item.dep, mass, kind):
            for position, root in zip(item.idxs, item.root_idxs):
                if root is not None:
                    scores[root] += rows[position]
    return scores.reshape(group.width, size).sum(1)


def _rows(dep: Any, mass: Mass, kind: str) -> list[torch.Tensor]:
    """One value per output channel of the layer behind a dependency, for every weight that counts."""
    import torch_pruning as tp

    layer, prune = dep.target.module, dep.handler
    rows = []
    if prune in (tp.prune_conv_out_channels, tp.prune_linear_out_channels, tp.prune_depthwise_conv_out_channels):
        weight = mass(layer.weight)
        if getattr(layer, "transposed", False):
            weight = weight.transpose(0, 1)
        rows.append(weight.flatten(1).sum(1))
        if kind == "taylor" and layer.bias is not None:
            rows.append(mass(layer.bias))
    elif kind == "taylor" and isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
        rows += [mass(layer.weight), mass(layer.bias)]
    return rows
