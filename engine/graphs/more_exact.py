"""A second, more exact graph beside one that is near enough already, where a few nodes make most of the error.

When every node can be rounded within the limit, nothing has to be searched. But where rounding two or three nodes
costs most of the exactness and saves hardly any time, users want that choice too. Nodes are looked at one by one, on
few samples and for a bounded time; then the worst of them together, one, two, four, …, until the signal-to-noise
ratio is clearly better. What that costs is measured, never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .sensitivity import Batch, Found, Judge, noise_by_node
from .static_recipe import Quantizer
from .timing import time_in_turns

CLEARLY_DB = 3.0
"""Half of the noise gone: from here on the second graph is worth having."""

MOST_SLOWER = 0.15
"""Share of its time that the more exact graph may be slower by."""

MOST_NODES = 0.25
"""Share of the nodes that may be in float; beyond it no few nodes are to blame."""

TAKES_OVER = 1.05
"""Speed from which on a graph that is more exact as well leaves nothing to choose."""

FEW_SAMPLES = 32
LOOKING_SECONDS = 20.0
TIMING_SECONDS = 1.0

Watch = Callable[[float, str], None]


def more_exact(
    quantizer: Quantizer, judge: Judge, plain: Found, feed: Batch | None, limit: float, threads: int, watch: Watch
) -> tuple[Found | None, str]:
    """(the more exact graph or None, what was found, in a sentence). `feed`: inputs to time with; None: do not.

    Where it is even faster it has no label: it is to take the plain graph's place.
    """
    order, looked = _worst_first(quantizer, judge, watch)
    before, most = plain.answers.difference.sqnr_db, max(1, int(MOST_NODES * len(order)))
    best, count = 0.0, 1
    while count <= min(most, len(order)):
        watch(0.75, f"{count} of {len(order)} nodes in float")
        names = tuple(order[:count])
        result = quantizer.quantize(names)
        if not result.touched:
            break
        answers = judge.answers(result.model)
        gain = answers.difference.sqnr_db - before
        best, count = max(best, gain), 2 * count
        if gain < CLEARLY_DB:
            continue
        within, slower = answers.within(limit), plain.for_speed
        found = Found("exact", result, (*plain.in_float, *names), answers, within, slower)
        told = f"{len(names)} of {looked} left in float gain {gain:.1f} dB"
        if feed is None:
            return found, f"{told}; what that costs was not measured, because the target is not this processor."
        speed = time_in_turns(
            [plain.result.model, result.model],
            [feed],
            threads,
            lambda share: watch(0.8 + 0.2 * share, "timing what leaving nodes in float costs"),
            TIMING_SECONDS,
        )[1]
        if speed < 1 - MOST_SLOWER:
            return None, f"{told}, but run at {speed:.2f}× the speed: no second variant is made."
        if speed > TAKES_OVER:
            found = dataclasses.replace(found, label=None)
            return found, f"{told} at {speed:.2f}× the speed: quantizing them brought nothing, so they stay in float."
        return found, f"{told} at {speed:.2f}× the speed."
    return (
        None,
        f"No few nodes make most of the error: up to {most} of {looked} in float gain {best:.1f} dB.",
    )


def _worst_first(quantizer: Quantizer, judge: Judge, watch: Watch) -> tuple[list[str], str]:
    """(nodes, the one that makes most noise first; how many were looked at, in words)."""
    names = quantizer.candidates()
    noise = noise_by_node(quantizer, judge.on_fewer(FEW_SAMPLES), names, watch, LOOKING_SECONDS)
    looked = f"{len(names)} nodes" if len(noise) == len(names) else f"{len(names)} nodes ({len(noise)} looked at)"
    return sorted(noise, key=lambda name: -noise[name]), looked
