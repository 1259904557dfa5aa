"""Students derived from a teacher: the same network, narrower and shallower, starting from the teacher's weights.

Shallower: of a stack of like blocks (an `nn.Sequential` or `nn.ModuleList` whose neighbours are of one class and keep
the shape of what goes through them) an even selection stays, the first and the last among it. Narrower: the least
important units of every group go, as in structured pruning. Either way what stays keeps its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..protocol import Left
from .importance import squares, unit_scores
from .network import Call, CannotPrune, PrunableNetwork, tensors_of
from .widths import shrink, widths_at


def derive(
    teacher: nn.Module, call: Call, width: float, depth: float, protect: Sequence[str] = (), round_to: int = 8
) -> tuple[nn.Module, list[str], list[Left]]:
    """(a student, what was done to get it, what stays as wide as it was and why).

    `width` and `depth`: shares of the teacher's that stay, up to 1.

    The teacher is not changed. Raises CannotPrune when it cannot be made smaller in the way that was asked.
    """
    student, done, left = copy.deepcopy(teacher), [], []
    if depth < 1:
        dropped = drop_blocks(student, call, depth)
        if not dropped and width >= 1:
            raise CannotPrune("it has no stack of like blocks of which some could go: lower student_width instead.")
        done += [f"without {name}" for name in dropped]
    if width < 1:
        network = PrunableNetwork(student, call, protect)
        scores = {group.name: unit_scores(network, group, "l2", squares) for group in network.groups}
        widths = widths_at(1 - width, network.groups, scores, "layer", round_to)
        before = {group.name: group.width for group in network.groups}
        shrink(network, widths, scores)
        done += [f"{name} {before[name]}→{now}" for name, now in widths.items() if now != before[name]]
        left = network.left
    if not done:
        raise CannotPrune(
            "a student as wide and as deep as the teacher is no student: lower student_width or student_depth."
        )
    return student, done, left


def drop_blocks(module: nn.Module, call: Call, depth: float) -> list[str]:
    """Take blocks out of every stack in place, so that about `depth` of each run of like blocks stays; their names.

    A run from which blocks cannot go without changing the shape of the output is left whole.
    """
    dropped: list[str] = []
    with torch.no_grad():
        expected = [tensor.shape for tensor in tensors_of(call(module))]
    for path, parent, run in _runs(module, call):
        kept = max(1, round(depth * len(run)))
        stay = {run[0]} if kept == 1 else {run[round(i * (len(run) - 1) / (kept - 1))] for i in range(kept)}
        gone = [index for index in run if index not in stay]
        if not gone:
            continue
        children = list(parent)
        without = [child for index, child in enumerate(children) if index not in gone]
        _refill(parent, without)
        try:
            with torch.no_grad():
                same = [tensor.shape for tensor in tensors_of(call(module))] == expected
        except Exception:  # whatever the user's forward raises when a block is missing
            same = False
        if same:
            dropped += [f"{path}.{index}" for index in gone]
        else:
            _refill(parent, children)
    return dropped


def _runs(module: nn.Module, call: Call) -> list[tuple[str, Any, list[int]]]:
    """(path, stack, indices of neighbours of one class that keep the shape of their input), outermost stacks only."""
    kept_shape: dict[nn.Module, bool] = {}

    def note(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given, made = tensors_of(inputs), tensors_of(output)
        kept_shape[block] = bool(given and made and given[0].shape == made[0].shape)

    stacks = {path: m for path, m in module.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)}
    hooks = [child.register_forward_hook(note) for stack in stacks.values() for child in stack]
    try:
        with torch.no_grad():
            call(module)
    finally:
        for hook in hooks:
            hook.remove()
    runs: list[tuple[str, Any, list[int]]] = []
    for path, stack in stacks.items():
        if any(path.startswith(outer + ".") for outer, _, _ in runs):
            continue
        for run in reversed(_like_neighbours(list(stack), kept_shape)):  # from the back: earlier indices stay valid
            runs.append((path, stack, run))
    return runs


def _like_neighbours(blocks: list[nn.Module], kept_shape: dict[nn.Module, bool]) -> list[list[int]]:
    runs: list[list[int]] = []
    for index, block in enumerate(blocks):
        like = kept_shape.get(block, False) and any(True for _ in block.parameters())
        if like and runs and runs[-1][-1] == index - 1 and type(blocks[index - 1]) is type(block):
            runs[-1].append(index)
        elif like:
            runs.append([index])
    return [run for run in runs if len(run) > 1 and list(blocks[run[0]].children())]


def _refill(stack: Any, children: list[nn.Module]) -> None:
    """Put these children in a Sequential or ModuleList, numbered from 0."""
    for name in list(stack._modules):
        del stack._modules[name]
    for index, child in enumerate(children):
        stack._modules[str(index)] = child
