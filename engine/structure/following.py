"""Following which layers hang together, by Torch-Pruning's dependency graph, with the ways in which it fails tamed.

It raises whatever it raises on operations it does not know, and goes round in circles on others (1.6.1: rotary
embeddings, the windows of Swin). Here the first is one exception with a sentence, and the second a layer that is left.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Call = Callable[[nn.Module], Any]
"""One forward call of a module on example inputs; gradients as they are set outside."""

MOST_VISITS = 50
"""A group that comes to one node more often than this, each time with other units, has no end: real ones do it once
or twice."""

MOST_WIDTHS = 4
"""Nor has one whose units have become more than so many times the widest layer."""


class CannotFollow(Exception):
    """The network has an operation that Torch-Pruning does not know; the text says which error it gave."""


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """The tensors in a nest of outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def dependency_graph(module: nn.Module, call: Call) -> Any:
    """Torch-Pruning's graph of a module. Raises CannotFollow."""
    import torch_pruning as tp

    def run(module: nn.Module, _: Any) -> list[torch.Tensor]:
        return [tensor for tensor in tensors_of(call(module)) if tensor.grad_fn is not None]

    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(module, None, forward_fn=run, verbose=False)
    except Exception as error:  # it fails in many ways on operations it does not know
        raise CannotFollow(f"{type(error).__name__}: {error}") from error


def followed_groups(
    graph: Any, module: nn.Module, roots: Collection[nn.Module] | None, on_endless: Callable[[nn.Module], None]
) -> Iterator[Any]:
    """Torch-Pruning's group of all output channels of each convolution and linear layer, every group once.

    `roots`: follow from these layers only (None: from all). `on_endless` is told the layers that have no end.
    """
    seen: set[Any] = set()
    widest = max((size for parameter in module.parameters() for size in parameter.shape), default=0)
    for layer in list(graph.module2node):
        if layer in seen or not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            continue
        if layer in graph.IGNORED_LAYERS_IN_TRACING or (roots is not None and layer not in roots):
            continue
        visits: collections.Counter[Any] = collections.Counter()
        try:
            found = _bounded_group(graph, layer, visits, MOST_WIDTHS * widest)
        except _Endless:
            on_endless(layer)
            found = None
        seen.update(met for met, handler in visits if graph.is_out_channel_pruning_fn(handler))
        if found is not None:
            yield found


class _Endless(Exception):
    """A group has more links than a group can have."""


def _bounded_group(graph: Any, layer: nn.Module, visits: collections.Counter[Any], most_units: int) -> Any:
    """The group of all output channels of a layer. `visits` counts the steps. Raises _Endless."""
    import torch_pruning as tp

    place = tp.dependency.graph
    unbounded: Any = place.Group

    class Bounded(unbounded):
        def add_dep(self, dep: Any, idxs: Any) -> None:
            step = dep.target.module, dep.handler
            visits[step] += 1
            if visits[step] > MOST_VISITS or len(idxs) > most_units:
                raise _Endless
            super().add_dep(dep, idxs)

    pruner = graph.get_pruner_of_module(layer)
    units = list(range(pruner.get_out_channels(layer)))
    place.Group = Bounded  # there is no other way in: the class is looked up in that module
    try:
        return graph.get_pruning_group(layer, pruner.prune_out_channels, units)
    finally:
        place.Group = unbounded
