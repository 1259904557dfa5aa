"""What two networks hold on the way to their answers, matched while the smaller one learns.

In the manner of FitNets (Romero et al. 2015): the features before the output layer, and if wanted the outputs of the
blocks in between. Blocks are the layers of the most common class in the `nn.Sequential`s and `nn.ModuleList`s of a
network, in the order they are called; where both networks return `hidden_states` (Hugging Face, `output_hidden_states`)
it is those. Of a deeper teacher an even selection is matched, the last among it (Sun et al. 2019, "Patient Knowledge
Distillation"). Where widths differ a linear projection, trained along, leads from the student's to the teacher's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..models import ModelError
from ..models.tensors import tensors_by_path

Forward = Callable[[nn.Module], Any]
"""Calls a network with a sample batch."""

HIDDEN = "hidden_states"


@dataclasses.dataclass
class Site:
    """A place in both networks whose values are to be alike."""

    name: str
    axis: int
    """Of the channels: the one along which the values are normalised, and projected."""
    projection: nn.Module


class FeatureMatching:
    """Watches both networks from the first to `close()`; `loss()` is about their latest calls."""

    def __init__(self, student: nn.Module, teacher: nn.Module, forward: Forward, blocks: bool) -> None:
        """`blocks`: match what lies in between, too. Raises ModelError when there is nothing that can be matched."""
        self._hooks: list[Any] = []
        self._held: dict[tuple[str, str], torch.Tensor] = {}
        self.sites: list[Site] = []
        try:
            ends = [self._watch_end(role, net, forward) for role, net in (("student", student), ("teacher", teacher))]
            names = [] if not blocks else self._watch_blocks(student, teacher, forward)
            if all(ends):
                names.append("the features before the output layer")
            elif not blocks:
                raise ModelError(
                    "Feature matching needs a linear output layer in both networks: set feature_weight = 0, or "
                    "features = blocks."
                )
            with torch.no_grad():
                forward(student)
                forward(teacher)
            self.sites = [self._site(name) for name in names]
        except BaseException:
            self.close()
            raise

    @property
    def trained_modules(self) -> list[nn.Module]:
        """The projections."""
        return [site.projection for site in self.sites]

    def loss(self) -> torch.Tensor:
        """Mean squared distance of the normalised features over all sites: 0 for the same direction, at most 4."""
        return torch.stack([self._distance(site) for site in self.sites]).mean()

    def close(self) -> None:
        """Take the hooks off both networks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _distance(self, site: Site) -> torch.Tensor:
        ours, theirs = (self._held[role, site.name].float().movedim(site.axis, -1) for role in ("student", "teacher"))
        ours = F.normalize(site.projection(ours), dim=-1)
        return (ours - F.normalize(theirs, dim=-1)).square().sum(-1).mean()

    def _site(self, name: str) -> Site:
        ours, theirs = self._held["student", name], self._held["teacher", name]
        differing = [axis for axis, (a, b) in enumerate(zip(ours.shape, theirs.shape)) if a != b]
        if ours.ndim != theirs.ndim or len(differing) > 1 or 0 in differing:
            raise ModelError(
                f"Features cannot be matched at {name}: the student has {tuple(ours.shape[1:])} a sample there, the "
                f"teacher {tuple(theirs.shape[1:])}. Set features = last, or feature_weight = 0."
            )
        axis = differing[0] if differing else 1 if ours.ndim == 4 else ours.ndim - 1
        narrow, wide = ours.shape[axis], theirs.shape[axis]
        return Site(name, axis, nn.Linear(narrow, wide).to(ours.device) if narrow != wide else nn.Identity())

    def _watch_end(self, role: str, module: nn.Module, forward: Forward) -> bool:
        """Hold what the output layer reads; False where there is none."""
        layer = output_layer(module, forward)
        if layer is None:
            return False

        def keep(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._held[role, "the features before the output layer"] = inputs[0] if inputs else named["input"]

        self._hooks.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
        return True

    def _watch_blocks(self, student: nn.Module, teacher: nn.Module, forward: Forward) -> list[str]:
        """Hold what the blocks give; the names of the sites."""
        with torch.no_grad():
            states = [_hidden_states(forward(module)) for module in (student, teacher)]
        if all(states):
            counts = [len(state) - 1 for state in states]  # the first are the embeddings
            found: list[list[nn.Module]] = []
        else:
            of_teacher = blocks_of(teacher, forward)
            found = [blocks_of(student, forward, type(of_teacher[0]) if of_teacher else None), of_teacher]
            counts = [len(blocks) for blocks in found]
        mine, whole = counts
        if not 0 < mine <= whole:
            raise ModelError(
                "Blocks can be matched where the student has some and no more than the teacher; here it has "
                f"{mine} and the teacher {whole}. Set features = last."
            )
        names = []
        for index in range(mine):
            places = (index, round((index + 1) * whole / mine) - 1)
            name = f"block {places[0]} (of the teacher: {places[1]})"
            names.append(name)
            for which, (role, module) in enumerate((("student", student), ("teacher", teacher))):
                if found:
                    self._hold(role, name, found[which][places[which]], _first)
                else:
                    self._hold(role, name, module, functools.partial(_hidden_state, places[which] + 1))
        return names

    def _hold(self, role: str, name: str, module: nn.Module, part: Callable[[Any], torch.Tensor | None]) -> None:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            value = part(output)
            if value is not None:
                self._held[role, name] = value

        self._hooks.append(module.register_forward_hook(keep))


def output_layer(module: nn.Module, forward: Forward) -> nn.Linear | None:
    """The linear layer called last; None when there is none."""
    layers: list[nn.Module] = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    last = next(reversed(_called(layers, module, forward)), None)
    return last if isinstance(last, nn.Linear) else None


def blocks_of(module: nn.Module, forward: Forward, kind: type | None = None) -> list[nn.Module]:
    """The blocks in the order they are called: of this class if there are any, else of the most common one."""
    stacks = [stack for stack in module.modules() if isinstance(stack, nn.Sequential | nn.ModuleList)]
    candidates = [child for stack in stacks for child in stack if any(True for _ in child.children())]
    called = [block for block, output in _called(candidates, module, forward).items() if _first(output) is not None]
    kinds = Counter(type(block) for block in called)
    if not kinds:
        return []
    wanted = kind if kind in kinds else kinds.most_common(1)[0][0]
    return [block for block in called if type(block) is wanted]


def _called(layers: list[nn.Module], module: nn.Module, forward: Forward) -> dict[nn.Module, Any]:
    """Those of the layers that one call of the network calls, in the order of their last calls, with their outputs."""
    outputs: dict[nn.Module, Any] = {}

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        outputs.pop(layer, None)
        outputs[layer] = output

    hooks = [layer.register_forward_hook(note) for layer in dict.fromkeys(layers)]
    try:
        with torch.no_grad():
            forward(module)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _first(output: Any) -> torch.Tensor | None:
    """The first float tensor of what a block gives: some give their attention, too."""
    return next((tensor for tensor in tensors_by_path(output).values() if tensor.is_floating_point()), None)


def _hidden_state(index: int, outputs: Any) -> torch.Tensor:
    return _hidden_states(outputs)[index]


def _hidden_states(outputs: Any) -> list[torch.Tensor]:
    """The hidden states that a network returns beside its answer, the embeddings first; empty where it returns none."""
    return [tensor for path, tensor in tensors_by_path(outputs).items() if path and path[0] == HIDDEN]
