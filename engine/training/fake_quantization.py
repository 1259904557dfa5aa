"""Rounding while training: a module that computes in float what its INT8 graph will compute in integers.

`FakeQuantized` wraps a module. While it runs, chosen calls of PyTorch functions get rounded operands (weights,
inputs) and give rounded results, whoever makes the call: a layer, `torch.relu`, a plain `+`. Nothing in the user's
module is replaced, so it can be exported as it is once `close()` has been called.

Rounding has no useful gradient, so the gradient passes straight through inside the range (Bengio, Léonard, Courville
2013). Ranges are learned together with the weights: the gradient of a range is that of LSQ (Esser et al., "Learned
Step Size Quantization", ICLR 2020), taken in the logarithm, where one learning rate suits all (Jain et al., "Trained
Quantization Thresholds", MLSys 2020). Weights are symmetric, activations as the target wants them; both follow
`graphs/integers.py` to the letter, so that the graph written in the end rounds as the training did.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

RANGE_GAIN = 10.0
"""Ranges move this much faster than weights: a step of AdamW changes them by about ten times its rate, relatively."""

SAMPLED = 8
"""One sample in so many tells where the ends of a range should go."""

TINY = 1e-12
"""Smallest scale, as in the graph."""

PRUNED_SHARE = 0.1
"""From this share of exact zeros on, a weight counts as pruned: its zeros stay zeros."""

CallKey = tuple[str, str, int]
"""One call of a forward pass: path of the calling module, name of the PyTorch function, how many such came before."""


@dataclasses.dataclass(frozen=True)
class Site:
    """What is rounded at one call. Numbers are indices into `FakeQuantized.grids`."""

    operands: Mapping[int, int]
    """Position among the flattened (args, kwargs) → grid."""
    result: int | None = None


class WeightGrid(nn.Module):
    """The levels of one weight: symmetric, −limit…limit, one scale per index of `axis` or one for all.

    `learned` False: the scale always follows from the largest weight, as graphs are written that cannot be told one.
    """

    start: torch.Tensor
    kept: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, limit: int, axis: int | None, learned: bool = True) -> None:
        super().__init__()
        self.limit, self.axis, self.learned = limit, axis, learned
        weight = weight.detach().float()
        start = self._extremes(weight)
        if learned:
            start = start * _least_error_share(weight, self._along(start, weight.ndim), limit, axis)
        self.register_buffer("start", start)
        self.stretch = nn.Parameter(torch.zeros_like(start), requires_grad=learned)
        kept = weight != 0
        self.register_buffer("kept", None if kept.float().mean() > 1 - PRUNED_SHARE else kept)

    @property
    def scales(self) -> torch.Tensor:
        """float32 (channels,), or () for one scale. Only for learned ones."""
        return (self.start * torch.exp(RANGE_GAIN * self.stretch) / self.limit).clamp_min(TINY)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.float()
        if self.kept is not None:
            weight = weight * self.kept
        scales = self.scales if self.learned else self._extremes(weight.detach()).clamp_min(TINY) / self.limit
        gentle = 1 / math.sqrt(weight.numel() / max(1, scales.numel()) * self.limit)
        scales = self._along(scales * gentle + (scales * (1 - gentle)).detach(), weight.ndim)
        levels = (weight / scales).clamp(-self.limit, self.limit)
        return (levels + (levels.round() - levels).detach()) * scales

    def _extremes(self, weight: torch.Tensor) -> torch.Tensor:
        if self.axis is None:
            return weight.abs().max()
        return weight.abs().movedim(self.axis, 0).flatten(1).amax(1)

    def _along(self, scales: torch.Tensor, axes: int) -> torch.Tensor:
        return scales if self.axis is None else scales.reshape([-1 if i == self.axis else 1 for i in range(axes)])


class ActivationGrid(nn.Module):
    """The levels of one activation: unsigned bytes with a zero point, or signed ones around zero.

    A range that starts at zero (behind a ReLU) keeps doing so; `bound` is what its upper end may not pass (a Clip's).
    """

    start: torch.Tensor

    def __init__(self, low: float, high: float, symmetric: bool, bound: float | None = None) -> None:
        super().__init__()
        self.symmetric, self.bound = symmetric, bound
        low, high = min(low, 0.0), max(high, 0.0)
        if symmetric:
            low, high = 0.0, max(-low, high)
        self.register_buffer("start", torch.tensor([low, high]))
        self.stretch = nn.Parameter(torch.zeros(2))

    def ends(self) -> torch.Tensor:
        """Lower and upper end of the range, float32 (2,)."""
        ends = self.start * torch.exp(RANGE_GAIN * self.stretch)
        low, high = ends.unbind()
        if self.bound is not None:
            high = high.clamp_max(self.bound)
        if self.symmetric:
            low = -high
        return torch.stack([low, high])

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return _RoundedActivation.apply(value.float(), self.ends(), self.symmetric)


class _RoundedActivation(torch.autograd.Function):
    """Round to 256 levels between two ends; straight-through inside them, LSQ gradients for the ends.

    The ends' gradient is taken from the first samples of the batch alone: two numbers do not need all of them, and
    rounding would cost half as much again as the network.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, ends: torch.Tensor, symmetric: bool) -> torch.Tensor:
        low, high = ends.tolist()
        if symmetric:
            scale, zero, least, most = max(high / 127, TINY), 0, -128, 127
        else:
            scale, least, most = max((high - low) / 255, TINY), 0, 255
            zero = min(max(round(-low / scale), 0), 255)
        rounded, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(value, scale, zero, least, most)
        part = slice(-(-len(value) // SAMPLED)) if value.ndim else ...
        ctx.save_for_backward(inside, value[part].clone(), rounded[part].clone())  # what follows may work in place
        ctx.width, ctx.symmetric = max(high if symmetric else high - low, TINY), symmetric
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (gradient,), (inside, value, rounded) = gradients, ctx.saved_tensors
        sampled, within = (gradient[: len(value)], inside[: len(value)]) if value.ndim else (gradient, inside)
        error = sampled * (rounded - value)
        stretching = (error * within).sum() / ctx.width
        outside = sampled.masked_fill(within, 0)
        upper, lower = (outside * (value > rounded)).sum(), (outside * (value < rounded)).sum()
        pair = (
            torch.stack([torch.zeros_like(upper), upper - lower + stretching])
            if ctx.symmetric
            else torch.stack([lower - stretching, upper + stretching])
        )
        return gradient * inside, pair / math.sqrt(max(1, value.numel()) * 255), None


class Calls:
    """Gives every call of a PyTorch function in one forward pass a key that is the same in the next pass.

    A key counts per module and function, so a call made only while training (the counter of a batch normalisation)
    moves nobody else's. Puts hooks on the module until `close()`; they travel with it to other processes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._path: list[str] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._hooks: list[Any] = []
        for name, part in module.named_modules():
            self._hooks.append(part.register_forward_pre_hook(_Entering(self._path, name)))
            self._hooks.append(part.register_forward_hook(self._leaving, always_call=True))

    def restart(self) -> None:
        """A new forward pass begins."""
        self._path.clear()
        self._seen.clear()

    def key(self, function: Any) -> CallKey:
        """The key of the call that is made now."""
        place = (self._path[-1] if self._path else "", getattr(function, "__name__", str(function)))
        self._seen[place] += 1
        return (*place, self._seen[place])

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _leaving(self, *_: Any) -> None:
        if self._path:
            self._path.pop()


class _Entering:
    """The hook at the beginning of a module's forward: one that can be pickled."""

    def __init__(self, path: list[str], name: str) -> None:
        self._path, self._name = path, name

    def __call__(self, *_: Any) -> None:
        self._path.append(self._name)


class FakeQuantized(nn.Module):
    """A module whose calls at `sites` round. Its ranges are parameters, so they train and are kept in checkpoints.

    Batch normalisations that are still in it keep the statistics they have: those are what is deployed.
    """

    def __init__(self, module: nn.Module, sites: Mapping[CallKey, Site], grids: Sequence[nn.Module]) -> None:
        super().__init__()
        self.module, self.grids = module, nn.ModuleList(grids)
        self._calls = Calls(module)
        self._mode = _Rounding(self._calls, sites, self.grids)
        self._held = [
            layer.register_forward_pre_hook(_keep_statistics)
            for layer in module.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._calls.restart()
        with self._mode:
            return self.module(*args, **kwargs)

    def close(self) -> nn.Module:
        """Take all hooks off; gives the module as it was wrapped, with trained weights."""
        self._calls.close()
        for hook in self._held:
            hook.remove()
        return self.module


def _keep_statistics(layer: nn.Module, _: Any) -> None:
    layer.eval()


class _Rounding(TorchFunctionMode):
    def __init__(self, calls: Calls, sites: Mapping[CallKey, Site], grids: nn.ModuleList) -> None:
        super().__init__()
        self._calls, self._sites, self._grids = calls, sites, grids

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        site = self._sites.get(self._calls.key(func))
        if site is None:
            return func(*args, **kwargs)
        if site.operands:
            leaves, structure = pytree.tree_flatten((args, kwargs))
            done: dict[tuple[int, int], torch.Tensor] = {}  # one tensor given twice (query, key) stays one
            for position, grid in site.operands.items():
                known = (id(leaves[position]), grid)
                if known not in done:
                    done[known] = self._grids[grid](leaves[position])
                leaves[position] = done[known]
            args, kwargs = pytree.tree_unflatten(leaves, structure)
        result = func(*args, **kwargs)
        return result if site.result is None else self._grids[site.result](result)


def _least_error_share(weight: torch.Tensor, extremes: torch.Tensor, limit: int, axis: int | None) -> torch.Tensor:
    """Which share of the largest weight makes the range with the least squared error: shaped like the scales."""
    best = found = None
    for share in torch.linspace(1.0, 0.4, 13).tolist():
        scale = (extremes * share / limit).clamp_min(TINY)
        error = (((weight / scale).round().clamp(-limit, limit) * scale - weight) ** 2).float()
        error = error.sum() if axis is None else error.movedim(axis, 0).flatten(1).sum(1)
        if best is None or found is None:
            best, found = error, torch.full_like(error, share)
        else:
            found = torch.where(error < best, torch.full_like(error, share), found)
            best = torch.minimum(error, best)
    assert found is not None
    return found
