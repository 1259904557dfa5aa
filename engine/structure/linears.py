"""Linear layers that keep their weight transposed, as GPT-2's `Conv1D` of Hugging Face does, as ordinary ones.

Everything that follows or prunes layers knows `nn.Linear` and nothing of other people's layers with the same
arithmetic. So before a network is looked at, such layers are replaced; the answers stay the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import nn

TRANSPOSED = ("Conv1D",)
"""Class names of layers that compute x · weight + bias, with a weight of (inputs, outputs = `nf`)."""


def ordinary_linears(module: nn.Module) -> list[str]:
    """Replace transposed linear layers in place by `nn.Linear`; the paths of those replaced."""
    replaced = []
    for path, layer in list(module.named_modules()):
        if path and type(layer).__name__ in TRANSPOSED and _multiplies(layer):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, _ordinary(layer))
            replaced.append(path)
    return replaced


def _multiplies(layer: nn.Module) -> bool:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    return (
        isinstance(weight, nn.Parameter)
        and weight.ndim == 2
        and isinstance(bias, nn.Parameter)
        and bias.shape == weight.shape[1:] == (getattr(layer, "nf", None),)
    )


@torch.no_grad()
def _ordinary(layer: nn.Module) -> nn.Linear:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype)
    linear.weight.copy_(weight.t())
    linear.bias.copy_(bias)
    linear.weight.requires_grad_(weight.requires_grad)
    linear.bias.requires_grad_(bias.requires_grad)
    linear.train(layer.training)
    return linear
