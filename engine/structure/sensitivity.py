"""The sensitivity scan: how much accuracy each layer costs when it alone is made narrower.

Every prunable group is cut at several ratios on a copy, everything else left whole, and judged without fine-tuning on
a part of the held-out training data. A trial is what pruning would do: widths are rounded as it rounds them, and batch
normalisation is measured anew, on a few batches. The result is the heat map of the dashboard, and what the
"sensitivity" scope distributes its pruning by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..protocol import Sensitivity
from .network import Group, PrunableNetwork
from .widths import Curve, Scores, rounded

RATIOS = (0.25, 0.5, 0.75, 0.9)
"""Shares of units removed."""

TRIAL_BATCHES = 4
"""Training batches that a trial's batch normalisation is measured on: pruning takes more, a scan has many trials."""


def scan(
    network: PrunableNetwork,
    scores: Scores,
    accuracy: Callable[[nn.Module], float],
    on_step: Callable[[int, int, str], None],
    ratios: tuple[float, ...] = RATIOS,
    round_to: int = 1,
    settle: Callable[[nn.Module], None] = lambda module: None,
    macs: Callable[[nn.Module], int | None] = lambda module: None,
) -> dict[str, Any]:
    """`{"accuracy": whole, "ratios": […], "layers": [{"name", "kind", "width", "kept": […], "accuracy": […]}]}`.

    Accuracies are fractions; beside each stands under "macs" what `macs` counts for that network. `kept` are the units
    left at each ratio, rounded to multiples of `round_to`. Ratios that come to one width are tried once, and the whole
    width is not tried again. `settle` is called with every trial's module before it is judged, `on_step(done, total,
    layer)` before each ratio; it may raise to stop. The network is not changed.
    """
    whole = accuracy(network.module), macs(network.module)
    result: dict[str, Any] = {"accuracy": whole[0], "macs": whole[1], "ratios": list(ratios), "layers": []}
    total = len(network.groups) * len(ratios)
    for position, group in enumerate(network.groups):
        kept = [rounded((1 - ratio) * group.width, group, round_to) for ratio in ratios]
        found = {group.width: whole}
        for index, width in enumerate(kept):
            on_step(position * len(ratios) + index, total, group.name)
            if width not in found:
                twin = network.copy()
                twin.remove_least(twin.group(group.name), scores[group.name], group.width - width)
                settle(twin.module)
                found[width] = accuracy(twin.module), macs(twin.module)
        layer = {"name": group.name, "kind": group.kind, "width": group.width, "kept": kept}
        layer["accuracy"], layer["macs"] = ([found[width][i] for width in kept] for i in range(2))
        result["layers"].append(layer)
    return result


def as_scan(known: Sensitivity, groups: Sequence[Group]) -> dict[str, Any] | None:
    """A recorded scan as `scan` gives it, of these groups; None where it is one of other layers or widths."""
    layers = {layer.name: layer for layer in known.layers}
    if any(group.name not in layers or layers[group.name].width != group.width for group in groups):
        return None
    chosen = [layers[group.name] for group in groups]
    return {
        "accuracy": known.accuracy,
        "ratios": list(known.ratios),
        "layers": [
            {"name": layer.name, "kind": layer.kind, "width": layer.width, "accuracy": list(layer.accuracy)}
            | ({"kept": list(layer.kept)} if layer.kept else {})
            for layer in chosen
        ],
    }


def curves(scanned: dict[str, Any]) -> dict[str, Curve]:
    """What a scan says each group loses: made to rise, since noise can let a stronger cut look better."""
    found = {}
    for layer in scanned["layers"]:
        worst, curve = 0.0, []
        kept = layer.get("kept")
        shares = [1 - width / layer["width"] for width in kept] if kept else scanned["ratios"]
        for share, value in zip(shares, layer["accuracy"]):
            worst = max(worst, scanned["accuracy"] - value)
            curve.append((share, worst))
        found[layer["name"]] = curve
    return found


def write_scan(scanned: dict[str, Any], path: Path) -> Path:
    """As JSON, for the dashboard's heat map."""
    path.write_text(json.dumps(scanned, indent=1))
    return path
