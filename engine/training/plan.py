"""How one stage of training goes and what it ends with: rate, optimizer, length."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one stage trains. The rate rises over `warm_up` of the steps, then falls along a cosine to 1 %."""

    epochs: float
    learning_rate: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    warm_up: float = 0.1
    clip_norm: float = 2.0
    """The gradient's L2 norm is cut to this."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    stop_at: float | None = None
    """End early once the held-out accuracy has reached this."""
    seed: int = 0

    def steps(self, in_pass: int) -> int:
        """How many steps that is with so many batches in a pass; one at least."""
        return max(1, round(self.epochs * in_pass))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a stage ended with."""

    accuracy: float
    """On the held-out part of the training data, fraction."""
    steps: int
    recovered: bool
    """Ended early because `stop_at` was reached."""


def rate_factor(step: int, total: int, warm_up: float) -> float:
    """The learning rate at a step, as a share of its peak: linear warm-up, then a cosine down to 1 %."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        return (step + 1) / rising
    through = min(1.0, (step - rising) / max(1, total - rising))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * through))


@contextlib.contextmanager
def unfrozen(module: nn.Module) -> Iterator[bool]:
    """Inside, something of the module can be trained; True if all of it was frozen. The flags are put back afterwards.

    A network that was saved for inference often has no parameter that requires a gradient: then all of them learn.
    Where only some are frozen that was meant, and they stay as they are.
    """
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    frozen = not any(flags.values())
    for parameter in flags:
        parameter.requires_grad_(flags[parameter] or (frozen and parameter.is_floating_point()))
    try:
        yield frozen
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def make_optimizer(module: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Weight decay falls on matrices and filters only, not on biases, norms and tokens."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=plan.learning_rate)
