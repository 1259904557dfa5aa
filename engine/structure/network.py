"""A network as groups of units that can be removed together.

Removing an output channel of one layer changes the layers that read it, the normalisation between, and every layer
whose output is added to its. Torch-Pruning follows these dependencies (Fang et al. 2023, "DepGraph: Towards Any
Structural Pruning"); attention heads and recurrent layers get their own treatment (`attention`, `recurrent`).

What a reader may rely on: every group offered here was tried on a copy of the network first. After removing units from
it the network ran and gave outputs of the same shape; for heads and hidden units the outputs also were those of the
network in which the same units are silent. What failed, or is not ours to change, is in `left` with the reason.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..protocol import Left
from . import attention
from .following import Call, CannotFollow, dependency_graph, followed_groups, tensors_of
from .linears import ordinary_linears
from .protecting import is_protected
from .recurrent import RecurrentLayer, find_recurrent

Kind = Literal["channels", "neurons", "heads", "hidden units"]

UNTOUCHED = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.MultiheadAttention)
"""A group with one of these has a width that the whole network shares: it stays."""


EXACT = 1e-4
"""Relative difference up to which two outputs count as the same: rounding of a deep network is about 1e-6."""


KEEPS_HEADS = "PyTorch's MultiheadAttention cannot have fewer heads: its heads must fill its whole width"


class CannotPrune(Exception):
    """Nothing of this network can be removed; the text is the user's sentence."""


@dataclasses.dataclass
class Group:
    """Units that can be removed from one layer, with all that hangs on them."""

    name: str
    """The layer that makes them, by its path in the module."""
    kind: Kind
    width: int
    """How many units there are now."""
    members: tuple[str, ...]
    """All layers that change with it."""
    original: int = 0
    """How many there were before anything was removed."""
    root: nn.Module | None = None
    root_name: str = ""
    """The path of the layer that it was followed from."""
    heads: attention.Heads | None = None
    recurrent: RecurrentLayer | None = None


class PrunableNetwork:
    """A module (CPU, eval) with its groups. `remove` changes the module in place."""

    def __init__(
        self,
        module: nn.Module,
        call: Call,
        protect: Sequence[str] = (),
        recurrent: list[RecurrentLayer] | None = None,
        known: Sequence[Group] | None = None,
        on_probe: Callable[[int, int, str], None] = lambda done, total, layer: None,
    ) -> None:
        """`protect`: name patterns (`head`, `blocks.0.*`) of layers to leave alone, with all that lies within them.

        `known` are the groups of the network that this one is a copy of: they alone are followed, and not tried again.
        `recurrent` spares the search for their readers; without it `on_probe(done, total, layer)` is told how far that
        is, which takes a forward pass a hidden unit, and may raise to stop.
        Raises CannotPrune when the network cannot be followed at all.
        """
        self.module, self.call = module, call
        self.left: list[Left] = []
        ordinary_linears(module)
        self._frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        self._names = {layer: name for name, layer in module.named_modules()}
        if recurrent is None:
            recurrent = list(find_recurrent(module, call, self.left, on_probe))
        self._recurrent = recurrent
        self._roots = None if known is None else {module.get_submodule(group.root_name) for group in known}
        for name, layer in module.named_modules():
            if isinstance(layer, nn.MultiheadAttention):
                self.left.append(Left(name=name, reason=KEEPS_HEADS))
        self._graph = self._trace(bool(recurrent))
        followed = self._without_shared_counts(list(self._graph_groups()))
        groups = [*followed, *(self._recurrent_group(layer) for layer in recurrent)]
        self.groups: list[Group] = []
        tied = tied_layers(module)
        for group in groups:
            shared = next((member for member in group.members if member in tied), None)
            if any(is_protected(member, protect) for member in group.members):
                self.left.append(Left(name=group.name, reason="protected"))
            elif shared is not None:  # a cut would give one of the two a tensor of its own
                self.left.append(Left(name=group.name, reason=f"{shared} has weights in common with {tied[shared]}"))
            else:
                group.original = group.width
                self.groups.append(group)
        if known is not None:
            originals = {group.name: group.original for group in known}
            self.groups = [group for group in self.groups if group.name in originals]
            for group in self.groups:
                group.original = originals[group.name]
            return
        self._keep_what_works()
        if not self.groups:
            reasons = "; ".join(f"{left.name}: {left.reason}" for left in self.left[:3])
            raise CannotPrune(f"No layer of this network can be made narrower ({reasons or 'none has channels'}).")

    def group(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)

    def dependents(self, group: Group, units: Sequence[int]) -> Any:
        """Torch-Pruning's group for removing these units (not for recurrent layers and packed heads)."""
        import torch_pruning as tp

        if group.heads is not None:
            return self._graph.get_pruning_group(
                group.heads.output, tp.prune_linear_in_channels, group.heads.columns(units)
            )
        assert group.root is not None
        prune = self._graph.get_pruner_of_module(group.root).prune_out_channels
        return self._graph.get_pruning_group(group.root, prune, list(units))

    def copy(self) -> PrunableNetwork:
        """The same network and groups again, to try something on."""
        module, recurrent = copy.deepcopy((self.module, self._recurrent))
        return PrunableNetwork(module, self.call, recurrent=recurrent, known=self.groups)

    def remove(self, group: Group, units: Sequence[Sequence[int]]) -> None:
        """Take units out, for good. At least one must stay.

        `units`: one list, or for a recurrent layer one per cell, all of one length. Indices count the units as they
        are now; those of other groups stay valid.
        """
        count = len(set(units[0]))
        if not count:
            return
        if count >= group.width:
            raise ValueError(f"{group.name} has {group.width} units: at least one must stay")
        if group.recurrent is not None:
            group.recurrent.remove(units)
        elif group.heads is not None and group.heads.packed is not None:
            group.heads.remove_packed(units[0])
        else:
            self.dependents(group, sorted(units[0])).prune()
        if group.heads is not None:
            group.heads.shrink(count)
        group.width -= count
        self._freeze()

    def remove_least(self, group: Group, scores: torch.Tensor, count: int) -> None:
        """Take out the `count` units with the lowest scores; `scores`: (1 or cells, width)."""
        if count > 0:
            self.remove(group, scores.argsort(dim=1)[:, :count].tolist())

    # --- finding groups

    def _trace(self, has_recurrent: bool) -> Any:
        """The dependency graph; None where it fails and recurrent layers are all there is to prune."""
        for parameter in self.module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # layers are followed along their gradients
        try:
            return dependency_graph(self.module, self.call)
        except CannotFollow as error:
            if has_recurrent:
                return None
            raise CannotPrune(f"Torch-Pruning cannot follow this network's layers ({error}).") from error
        finally:
            self._freeze()

    def _freeze(self) -> None:
        """What the user froze, frozen again: a cut makes new parameters, which are not."""
        for name, parameter in self.module.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(False)

    def _graph_groups(self) -> Iterator[Group]:
        import torch_pruning as tp

        if self._graph is None:
            return
        final = self._output_layers()
        for found in followed_groups(self._graph, self.module, self._roots, self._endless):
            layers = [item.dep.target.module for item in found]
            narrower = {
                item.dep.target.module for item in found if self._graph.is_out_channel_pruning_fn(item.dep.handler)
            }
            root = found[0].dep.target.module
            name = self._names[root]
            members = tuple(dict.fromkeys(self._names[layer] for layer in layers if layer in self._names))
            reason = self._why_not(layers, narrower & final)
            if reason:
                self.left.append(Left(name=name, reason=reason))
                continue
            owner = attention.find_owner(name, self.module)
            heads = attention.heads_of(self.module, owner, found) if owner is not None else None
            if isinstance(heads, str):
                self.left.append(Left(name=name, reason=heads))
                continue
            if heads is not None:
                one = self._graph.get_pruning_group(heads.output, tp.prune_linear_in_channels, heads.columns([0]))
                heads.packed = attention.packed_projection(heads, one)
                place = owner or self._names[heads.output]
                yield Group(place, "heads", heads.count, members, root=root, root_name=name, heads=heads)
                continue
            kind: Kind = "neurons" if isinstance(root, nn.Linear) else "channels"
            yield Group(name, kind, len(found[0].idxs), members, root=root, root_name=name)

    def _without_shared_counts(self, groups: list[Group]) -> list[Group]:
        """Without attentions whose number of heads another one has, too: one alone could not lose any."""
        owners = collections.Counter(group.heads.owner for group in groups if group.heads is not None)
        for group in groups:
            if group.heads is not None and owners[group.heads.owner] > 1:
                self.left.append(Left(name=group.root_name, reason="it shares its number of heads with another one"))
        return [group for group in groups if group.heads is None or owners[group.heads.owner] == 1]

    def _endless(self, layer: nn.Module) -> None:
        self.left.append(Left(name=self._names[layer], reason="Torch-Pruning finds no end following what hangs on it"))

    def _why_not(self, layers: list[Any], final: set[Any]) -> str | None:
        """Why a group as a whole is not offered; None when it may be. `final`: its layers that make the output."""
        import torch_pruning as tp

        if final or any(isinstance(layer, tp.ops._OutputOp) for layer in layers):
            return "its width is the model's output"
        if any(isinstance(layer, (nn.Parameter, *UNTOUCHED)) for layer in layers):
            return "its width is shared by the whole network (normalisation, embeddings or attention)"
        if any(isinstance(layer, nn.RNNBase) for layer in layers):
            return "a recurrent layer hangs on it"
        for layer in layers:
            if isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups < layer.out_channels:
                return "a grouped convolution hangs on it"
        return None

    def _output_layers(self) -> set[nn.Module]:
        """Layers whose output tensor is one of the model's outputs."""
        made: dict[int, nn.Module] = {}
        kept = []

        def note(layer: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                made[id(output)] = layer
                kept.append(output)  # alive until the end, else another tensor may get its id

        hooks = [layer.register_forward_hook(note) for layer in self.module.modules() if not list(layer.children())]
        with torch.no_grad():
            outputs = tensors_of(self.call(self.module))
        for hook in hooks:
            hook.remove()
        return {made[id(tensor)] for tensor in outputs if id(tensor) in made}

    def _recurrent_group(self, layer: RecurrentLayer) -> Group:
        members = (layer.name, *(self._names[consumer] for consumer in layer.consumers))
        return Group(
            name=layer.name, kind="hidden units", width=layer.layer.hidden_size, members=members, recurrent=layer
        )

    # --- trying them out

    def _keep_what_works(self) -> None:
        """Try groups together on a copy, one by one where that fails; move those that fail to `left`.

        Heads and hidden units apart from the rest: only for them can the outputs be foretold.
        """
        exact = [group for group in self.groups if group.heads is not None or group.recurrent is not None]
        failed = []
        for together in (exact, [group for group in self.groups if group not in exact]):
            if together and self._failure([group.name for group in together]) is not None:
                for group in together:
                    reason = self._failure([group.name])
                    if reason is not None:
                        self.left.append(Left(name=group.name, reason=reason))
                        failed.append(group.name)
        self.groups = [group for group in self.groups if group.name not in failed]

    def _failure(self, names: list[str]) -> str | None:
        """What goes wrong when a unit of each of these groups is removed; None when nothing does."""
        silent, pruned = copy.deepcopy(self.module), self.copy()
        exact = True
        for name in names:
            group = pruned.group(name)
            if group.width < 2:
                return "it has a single unit"
            if group.heads is not None:
                attention.silence(silent.get_submodule(pruned._names[group.heads.output]), group.heads, [0])
            elif group.recurrent is not None:
                group.recurrent.silence(silent.get_submodule(name), [0])
            else:
                exact = False
            try:
                pruned.remove(group, [[0]] * (group.recurrent.cells if group.recurrent else 1))
            except Exception as error:
                return f"its units cannot be removed ({type(error).__name__}: {error})"[:200]
        try:
            with torch.no_grad():
                before, after = tensors_of(self.call(silent)), tensors_of(self.call(pruned.module))
        except Exception as error:
            return f"the network does not run without some of its units ({type(error).__name__}: {error})"[:200]
        if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
            return "its width is the model's output"
        if exact and not all(_equal(a, b) for a, b in zip(before, after)):
            return "the network does more with these units than could be followed"
        return None


def tied_layers(module: nn.Module) -> dict[str, str]:
    """Layers that hold a parameter which another layer holds, too (tied weights) → one such other layer."""
    holders: dict[nn.Parameter, list[str]] = {}
    for name, layer in module.named_modules():
        for parameter in {id(one): one for one in layer.parameters(recurse=False)}.values():
            holders.setdefault(parameter, []).append(name)
    several = [names for names in holders.values() if len(names) > 1]
    return {name: next(other for other in names if other != name) for names in several for name in names}


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Up to the rounding of float32 in another order."""
    one, other = one.double(), other.double()
    return float((one - other).norm()) <= EXACT * max(float(one.norm()), 1e-6)
