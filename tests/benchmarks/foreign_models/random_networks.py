"""What makes a network with random weights fit to be quantized: signals that reach its end, and a head that decides.

The networks are torchvision's and Hugging Face's as they come, with the weights their libraries draw. Their answers
would mean nothing, and how many of them change when numbers are rounded neither. So batch norms get the statistics
of the data, and the last linear layer is fitted to it (ridge regression). Then there are right answers, and a
network is judged by what a trained one is judged by: how many fewer are right.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from made_up_data import CLASSES, Made, batches
from torch import nn

try:
    import torchvision
except RuntimeError:  # compiled for another build of torch: it looks for operators that no network here uses
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["fitted", "torchvision"]

SEED = 1
"""Of the samples that the head is fitted to; other data has other seeds."""

SPREAD = 10.0
"""Distance between the scores of a right and a wrong class."""


def fitted(
    network: nn.Module, head: nn.Linear, make: Callable[[int, int], Made], samples: int = 600, ridge: float = 0.1
) -> nn.Module:
    """The network with its statistics and its head fitted to so many samples, ready for inference.

    That takes half a minute, and every job of a recipe loads the network: what was found is kept for the next.
    """
    network.eval()
    kept = _place(network)
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network
    with torch.no_grad():
        _settle_statistics(network, make)
        _fit(network, head, make, samples, ridge)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        torch.save(network.state_dict(), file)
    os.replace(file.name, kept)
    return network


def _place(network: nn.Module) -> Path:
    """Where this network is kept once it is fitted: beside the peers, for these weights and this code."""
    seen = hashlib.sha256(torch.__version__.encode())
    for name in ("made_up_data.py", "random_networks.py"):
        seen.update((Path(__file__).parent / name).read_bytes())
    for name, tensor in network.state_dict().items():
        seen.update(name.encode() + tensor.contiguous().numpy().tobytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab-benchmarks"
    return cache / "foreign-models" / f"{seen.hexdigest()[:16]}.pt"


def _settle_statistics(network: nn.Module, make: Callable[[int, int], Made]) -> None:
    """Statistics of the batch norms as training leaves them: no two channels alike."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_(0, 0.1)
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    for inputs, _ in batches(make, 200, SEED) if norms else ():
        network(inputs)
    network.eval()


def _fit(network: nn.Module, head: nn.Linear, make: Callable[[int, int], Made], samples: int, strength: float) -> None:
    """Ridge regression of the classes on what the last layer reads."""
    read: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0]))
    labels = []
    for inputs, some in batches(make, samples, SEED):
        network(**inputs) if isinstance(inputs, dict) else network(inputs)
        labels.append(some)
    hook.remove()
    features = torch.cat(read).double()
    wanted = SPREAD * nn.functional.one_hot(torch.cat(labels), CLASSES).double()
    middle, mean = features.mean(0), wanted.mean(0)
    features, wanted = features - middle, wanted - mean
    products = features.T @ features
    ridge = strength * products.trace() / len(products) * torch.eye(len(products), dtype=torch.float64)
    weights = torch.linalg.solve(products + ridge, features.T @ wanted)
    head.weight.copy_(weights.T)
    head.bias.copy_(mean - middle @ weights)
