"""How wide each layer shall be: by a ratio, or by searching for the least pruning that meets a budget.

Widths are dictionaries: name of a group → units to keep. They are rounded to multiples that hardware likes, at least
one multiple stays, a layer that is to stay as it is or has less than a multiple keeps its width, and heads are never
rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from .network import CannotPrune, Group, PrunableNetwork


class OverBudget(CannotPrune):
    """Even the strongest pruning costs more than the budget; `least` is what it costs."""

    def __init__(self, least: float, budget: float) -> None:
        super().__init__(f"the budget of {budget:.4g} cannot be met: the strongest pruning still costs {least:.4g}.")
        self.least = least


Scores = dict[str, torch.Tensor]
"""Group → scores of its units, (1 or cells, width), mean 1 (see `importance`)."""

Curve = list[tuple[float, float]]
"""(share removed, accuracy lost) of one group, by rising share; see `sensitivity`."""

Scope = Literal["layer", "global", "sensitivity"]

STRONGEST = 0.95
"""A search never removes a larger share than this."""

SLACK = 1e-6
"""Units that a width computed with fractions may be too large by."""

SEARCH_STEPS = 12
"""Halvings of the interval: 0.95 / 2^12 is far below one channel."""


def widths_at(
    strength: float,
    groups: list[Group],
    scores: Scores,
    scope: Scope,
    round_to: int,
    curves: dict[str, Curve] | None = None,
) -> dict[str, int]:
    """Widths for a strength from 0 (nothing goes) to 1.

    - "layer": this share of every group's original units goes;
    - "global": this share of all units goes, wherever their scores are lowest;
    - "sensitivity": from each group goes as much as costs no more accuracy alone than strength × the worst loss seen.
    """
    if scope == "global":
        keep = _by_rank(strength, groups, scores)
    elif scope == "sensitivity":
        assert curves is not None
        worst = max((loss for curve in curves.values() for _, loss in curve), default=0.0)
        keep = {
            group.name: (1 - _largest_share(curves[group.name], strength * max(worst, 1e-6))) * group.original
            for group in groups
        }
    else:
        keep = {group.name: (1 - strength) * group.original for group in groups}
    least = scope == "sensitivity"
    return {group.name: rounded(keep[group.name], group, round_to, least) for group in groups}


def rounded(keep: float, group: Group, round_to: int, at_least: bool = False) -> int:
    """What is nearest to `keep` of all multiples of `round_to` (one at least) and the present width.

    The present width counts whether it is a multiple or not: a layer that is to stay stays, and so does one of less
    than a multiple. `at_least`: round up, so that no more goes than was said.
    """
    if keep >= group.width:
        return group.width
    if group.kind == "heads" or round_to <= 1:
        return min(group.width, max(1, math.ceil(keep - SLACK) if at_least else round(keep)))
    multiple = max(1, math.ceil(keep / round_to - SLACK) if at_least else round(keep / round_to)) * round_to
    return group.width if multiple > group.width or group.width - keep < abs(multiple - keep) else multiple


def shrink(network: PrunableNetwork, widths: dict[str, int], scores: Scores) -> None:
    """Remove the units with the lowest scores until every group has its width."""
    for group in network.groups:
        network.remove_least(group, scores[group.name], group.width - widths.get(group.name, group.width))


def search(
    network: PrunableNetwork,
    budget: float,
    cost: Callable[[torch.nn.Module], float],
    widths_of: Callable[[float], dict[str, int]],
    scores: Scores,
    on_try: Callable[[float, float], None] = lambda strength, cost: None,
) -> tuple[float, dict[str, int]]:
    """The weakest strength, with its widths, whose network costs at most `budget` (in the unit of `cost`).

    Raises OverBudget when even the strongest pruning costs more.
    """
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def cost_at(strength: float) -> float:
        widths = widths_of(strength)
        key = tuple(sorted(widths.items()))
        if key not in known:
            twin = network.copy()
            shrink(twin, widths, scores)
            known[key] = cost(twin.module)
            on_try(strength, known[key])
        return known[key]

    low, high = 0.0, STRONGEST
    least = cost_at(high)
    if least > budget:
        raise OverBudget(least, budget)
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        if cost_at(middle) <= budget:
            high = middle
        else:
            low = middle
    return high, widths_of(high)


def _by_rank(strength: float, groups: list[Group], scores: Scores) -> dict[str, float]:
    """Without the units with the lowest scores, `strength` of all original ones. No group loses over 90 %."""
    ranked = {group.name: scores[group.name].mean(0) for group in groups}
    gone_already = sum(group.original - group.width for group in groups)
    remove = round(strength * sum(group.original for group in groups)) - gone_already
    every = torch.cat([ranked[group.name] for group in groups])
    going = torch.zeros(len(every), dtype=torch.bool)
    going[every.argsort(stable=True)[: max(0, remove)]] = True  # by place: of equal scores no more go than asked
    parts = going.split([len(ranked[group.name]) for group in groups])
    return {group.name: max(float((~part).sum()), 0.1 * group.original) for group, part in zip(groups, parts)}


def _largest_share(curve: Curve, allowed: float) -> float:
    """The largest share whose loss, read off the curve with straight lines between its points, is allowed."""
    share, before = 0.0, (0.0, 0.0)
    for point in curve:
        if point[1] <= allowed:
            share = point[0]
        else:
            rise = point[1] - before[1]
            if before[1] <= allowed and rise > 0:
                share = max(share, before[0] + (point[0] - before[0]) * (allowed - before[1]) / rise)
            break
        before = point
    return min(share, STRONGEST)
