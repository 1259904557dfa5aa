"""A sensitivity scan as data for a heat map: where it comes from, how hot a cell is, and what a choice of cells means.

Pure functions of the engine's records. Ratios are shares of a layer's units that are removed, drops are fractions of
accuracy against the whole network on the same held-out training data, without fine-tuning.
"""

import json
from collections.abc import Mapping
from typing import Any

from engine.protocol import Conditions, LayerSensitivity, Sensitivity, Snapshot, Variant

from .comparison import measured

SHADES = "·░▒▓█"
"""How hot a cell is, readable without colour: from harmless to ruinous."""

STEPS = (0.25, 1.0, 3.0, 10.0)
"""Drops, in accuracy limits, up to which a cell has each of the first four shades."""

MULTIPLE = 8
"""Widths that a scan does not record were multiples of this, as structured pruning keeps them unless told otherwise."""

FEWEST_SAMPLES = 5
"""A drop of so many samples is more than chance; a limit below that is finer than what the scan can tell."""

Choice = Mapping[str, int]
"""Layer → index of the chosen ratio."""


def scan_of(snapshot: Snapshot, variant: Variant) -> Sensitivity | None:
    """The newest scan of a variant: a measurement, or what pruning it has recorded on its way."""
    known = measured(snapshot.measurements).get(variant.id, ())
    scan = next((one for one in known if isinstance(one, Sensitivity)), None)
    if scan is not None:
        return scan
    children = [one for one in snapshot.variants if one.parent == variant.id and one.changed is not None]
    for child in sorted(children, key=lambda one: -one.created):
        assert child.changed is not None
        text = child.changed.figures.get("sensitivity")
        if isinstance(text, str) and (found := _recorded(text, variant, child)) is not None:
            return found
    return None


def _recorded(text: str, variant: Variant, child: Variant) -> Sensitivity | None:
    """What `prune-structured` recorded, as the measurement it might have been; None if it cannot be read."""
    try:
        content: Any = json.loads(text)
        ratios = tuple(float(ratio) for ratio in content["ratios"])
        layers = tuple(
            LayerSensitivity(
                name=str(one["name"]),
                kind=str(one["kind"]),
                width=int(one["width"]),
                accuracy=tuple(float(value) for value in one["accuracy"]),
                kept=tuple(int(units) for units in one.get("kept", ())),
            )
            for one in content["layers"]
        )
        whole = float(content["accuracy"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not layers or any(len(one.accuracy) != len(ratios) or len(one.kept) not in (0, len(ratios)) for one in layers):
        return None
    return Sensitivity(
        id=f"{child.id}-scan",
        variant=variant.id,
        job=child.job or "",
        created=child.created,
        conditions=Conditions(runtime="pytorch", device="cpu", processor=child.processor),
        accuracy=whole,
        samples=0,
        ratios=ratios,
        layers=layers,
    )


def drop(scan: Sensitivity, layer: LayerSensitivity, at: int) -> float:
    """What the layer costs at the ratio of this index."""
    return scan.accuracy - layer.accuracy[at]


def heat(value: float, limit: float) -> int:
    """0 (harmless) to 4 (ruinous), by how many accuracy limits are lost."""
    unit = max(limit, 1e-4)
    return sum(value > step * unit for step in STEPS)


def too_coarse(scan: Sensitivity, limit: float) -> str | None:
    """A sentence for a scan of too few samples to tell cells within the limit from others; None if it can tell."""
    if not scan.samples or scan.samples * limit >= FEWEST_SAMPLES:
        return None
    return f"{scan.samples:,} samples are too few for this limit: one is {100 / scan.samples:.2f} points."


def kept(scan: Sensitivity, layer: LayerSensitivity, at: int) -> int:
    """Units that stayed at the ratio of this index, as recorded; else rounded as structured pruning rounds them.

    That is to the nearest of the multiples and the present width; heads are not rounded to multiples.
    """
    if layer.kept:
        return layer.kept[at]
    keep = (1 - scan.ratios[at]) * layer.width
    if layer.kind == "heads":
        return min(layer.width, max(1, round(keep)))
    multiple = max(1, round(keep / MULTIPLE)) * MULTIPLE
    return layer.width if multiple > layer.width or layer.width - keep < abs(multiple - keep) else multiple


def within(scan: Sensitivity, limit: float) -> dict[str, int]:
    """For every layer the strongest cut up to which it alone never costs more than the limit."""
    found = {}
    for layer in scan.layers:
        for at in range(len(scan.ratios)):
            if drop(scan, layer, at) > limit:
                break
            if kept(scan, layer, at) < layer.width:
                found[layer.name] = at
    return found


def widths(scan: Sensitivity, choice: Choice) -> list[str]:
    """The choice as `prune-structured` takes it: "layer=units to keep"; what rounding leaves whole is left out."""
    entries = []
    for layer in scan.layers:
        if layer.name in choice:
            keep = kept(scan, layer, choice[layer.name])
            if keep < layer.width:
                entries.append(f"{layer.name}={keep}")
    return entries


def nothing_goes(scan: Sensitivity, choice: Choice) -> str:
    """Why a choice comes to nothing: its layers are rounded to the width that they have."""
    layers = [layer for layer in scan.layers if layer.name in choice]
    parts = [f"all {layer.width} {layer.kind} of {layer.name} stay" for layer in layers[:2]]
    rest = f", and {len(layers) - 2} more layers" if len(layers) > 2 else ""
    to = "whole heads" if all(layer.kind == "heads" for layer in layers) else "what pruning leaves"
    return f"Rounded to {to}, {' and '.join(parts)}{rest}: choose a stronger cut."


def saving(scan: Sensitivity, layer: LayerSensitivity, at: int) -> float | None:
    """Share of the whole network's multiply-adds that this cut alone saves; None where they were not counted."""
    count = layer.macs[at] if at < len(layer.macs) else None
    return 1 - count / scan.macs if count is not None and scan.macs else None
