"""The sensitivity scan: how much accuracy each layer costs when it alone is made narrower.

Every prunable group is cut at several ratios on a copy, everything else left whole, and judged without fine-tuning on
a part of the held-out training data. The result is the heat map of the dashboard, and what the "sensitivity" scope
distributes its pruning by.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .network import PrunableNetwork
from .widths import Curve, Scores

RATIOS = (0.25, 0.5, 0.75, 0.9)
"""Shares of units removed."""


def scan(
    network: PrunableNetwork,
    scores: Scores,
    accuracy: Callable[[nn.Module], float],
    on_step: Callable[[int, int, str], None],
    ratios: tuple[float, ...] = RATIOS,
) -> dict[str, Any]:
    """`{"accuracy": whole, "ratios": […], "layers": [{"name", "kind", "width", "accuracy": […]}]}`, fractions.

    `on_step(done, total, layer)` is called before each trial and may raise to stop. The network is not changed.
    """
    result: dict[str, Any] = {"accuracy": accuracy(network.module), "ratios": list(ratios), "layers": []}
    total = len(network.groups) * len(ratios)
    for position, group in enumerate(network.groups):
        row = []
        for index, ratio in enumerate(ratios):
            on_step(position * len(ratios) + index, total, group.name)
            twin = network.copy()
            count = min(group.width - 1, round(ratio * group.width))
            twin.remove_least(twin.group(group.name), scores[group.name], count)
            row.append(accuracy(twin.module))
        result["layers"].append({"name": group.name, "kind": group.kind, "width": group.width, "accuracy": row})
    return result


def curves(scanned: dict[str, Any]) -> dict[str, Curve]:
    """What a scan says each group loses: made to rise, since noise can let a stronger cut look better."""
    found = {}
    for layer in scanned["layers"]:
        worst, curve = 0.0, []
        for ratio, value in zip(scanned["ratios"], layer["accuracy"]):
            worst = max(worst, scanned["accuracy"] - value)
            curve.append((ratio, worst))
        found[layer["name"]] = curve
    return found


def write_scan(scanned: dict[str, Any], path: Path) -> Path:
    """As JSON, for the dashboard's heat map."""
    path.write_text(json.dumps(scanned, indent=1))
    return path
