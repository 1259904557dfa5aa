"""Masks: which single weights become zero, by their absolute value (L1).

The weights of linear, convolution and recurrent layers count as prunable; biases and normalisation are left alone,
they are few and matter much. A mask is True where a weight stays.

The 2:4 pattern of NVIDIA's sparse tensor cores (Ampere and later) wants two zeros in every four neighbours along the
input axis: the columns of a linear layer, the input channels of a convolution (Mishra et al. 2021, "Accelerating Sparse
Deep Neural Networks").
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..protocol import Left
from .protecting import is_protected

Masks = dict[str, torch.Tensor]
"""Parameter name → bool tensor of its shape, True where the weight stays."""


def prunable_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, weight) of linear, convolution and recurrent layers; a shared weight once."""
    seen = set()
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            names = ["weight"]
        elif isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            names = [name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight")]
        elif isinstance(layer, nn.MultiheadAttention):
            names = ["in_proj_weight"] if layer.in_proj_weight is not None else []
        else:
            continue
        for name in names:
            weight = getattr(layer, name)
            if isinstance(weight, nn.Parameter) and id(weight) not in seen:
                seen.add(id(weight))
                yield f"{path}.{name}" if path else name, weight


def magnitude_masks(
    module: nn.Module, sparsity: float, global_scope: bool, protect: Sequence[str]
) -> tuple[Masks, list[Left]]:
    """Zero the smallest weights: this share of every layer, or of all prunable weights together."""
    weights, left = _chosen(module, protect)
    masks: Masks = {}
    if global_scope and weights:
        every = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
        parts = _largest(every, sparsity).split([weight.numel() for weight in weights.values()])
        masks = {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts)}
    else:
        for name, weight in weights.items():
            masks[name] = _largest(weight.detach().abs().flatten(), sparsity).reshape(weight.shape)
    return masks, left


def two_of_four_masks(module: nn.Module, protect: Sequence[str]) -> tuple[Masks, list[Left]]:
    """Of every four neighbours along the input axis the two smallest go."""
    weights, left = _chosen(module, protect)
    masks = {}
    for name, weight in weights.items():
        if weight.shape[1] % 4:
            left.append(Left(name=name, reason=f"its {weight.shape[1]} inputs are no multiple of 4"))
            continue
        last = weight.detach().abs().movedim(1, -1)
        fours = last.reshape(-1, 4)
        keep = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.topk(2, dim=1).indices, True)
        masks[name] = keep.reshape(last.shape).movedim(-1, 1).contiguous()
    return masks, left


@torch.no_grad()
def apply_masks(module: nn.Module, masks: Masks) -> None:
    """Set what is masked to zero."""
    for name, mask in masks.items():
        weight = module.get_parameter(name)
        weight.mul_(mask.to(weight.device))


def sparsity_of(module: nn.Module) -> dict[str, float]:
    """Share of exact zeros in every prunable weight."""
    return {name: float((weight == 0).float().mean()) for name, weight in prunable_weights(module)}


def compressed_bytes(module: nn.Module) -> int:
    """Size of all weights after zlib: what a download or an archive of the file would take, roughly."""
    return sum(
        len(zlib.compress(tensor.detach().cpu().contiguous().view(torch.uint8).numpy(), 6))
        for tensor in module.state_dict().values()
        if tensor.numel() and tensor.ndim
    )


def _chosen(module: nn.Module, protect: Sequence[str]) -> tuple[dict[str, nn.Parameter], list[Left]]:
    weights, left = {}, []
    for name, weight in prunable_weights(module):
        layer = name.rpartition(".")[0]
        if is_protected(layer, protect):
            left.append(Left(name=layer, reason="protected"))
        else:
            weights[name] = weight
    return weights, left


def _largest(sizes: torch.Tensor, sparsity: float) -> torch.Tensor:
    """True for all but this share of the sizes, the smallest; of equal ones the first go, so the share is exact."""
    count = round(sparsity * sizes.numel())
    if not count:
        return torch.ones_like(sizes, dtype=torch.bool)
    threshold = sizes.kthvalue(count).values
    keep = sizes > threshold
    equal = (sizes == threshold).nonzero().flatten()
    below = int((sizes < threshold).sum())
    keep[equal[count - below :]] = True
    return keep
