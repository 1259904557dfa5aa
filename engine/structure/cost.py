"""What a network costs: multiply-adds, parameters, or time, each as one number to search with."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..complexity import count_macs
from ..models import Model
from .network import Call

TIMING_SECONDS = 0.6
"""How long one candidate is timed against the original."""


def example_call(model: Model, batch_size: int = 2, device: torch.device | str = "cpu") -> tuple[Call, int]:
    """(a call on example inputs, samples in it) for a module of this model on this device."""
    size = model.fixed_batch or batch_size
    args, kwargs = model.torch_args(model.example(size))
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))
    return (lambda module: module(*args, **kwargs)), size


def macs_of(module: nn.Module, call: Call, samples: int) -> int | None:
    """Multiply-adds for one sample; None when they cannot be counted."""
    with torch.no_grad():
        count = count_macs(module, lambda: call(module))
    return None if count is None else count // samples


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def time_share(module: nn.Module, original: nn.Module, call: Call, device: torch.device | str = "cpu") -> float:
    """The module's time for a call as a share of the original's, under eager PyTorch, the two taking turns.

    They are timed on `device`, where the call's inputs must lie, and come back on the CPU.
    """
    device = torch.device(device)
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[nn.Module, list[float]] = {module: [], original: []}
    for warm in times:
        call(warm.to(device))
        finish()
    end = time.perf_counter() + TIMING_SECONDS
    while time.perf_counter() < end:
        for timed in (module, original, original, module):
            start = time.perf_counter()
            call(timed)
            finish()
            times[timed].append(time.perf_counter() - start)
    for timed in times:
        timed.to("cpu")
    return statistics.median(times[module]) / statistics.median(times[original])
