"""Which layers the user wants left alone: names or patterns of names, each standing for all that lies within it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn


def is_protected(layer: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern (`head`, `blocks.0`, `blocks.*.conv1`) matches the layer or a module around it."""
    parts = layer.split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(name, pattern) for name in around for pattern in patterns)


def unmatched(module: nn.Module, patterns: Sequence[str]) -> str | None:
    """A sentence about a pattern that matches no layer: a typing error would leave its layer unprotected. None: all do.

    `module`: the network as the user wrote it.
    """
    layers = {name: layer for name, layer in module.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
            some = [name for name, layer in layers.items() if not list(layer.children())]
            called = ", ".join(some[:3]) + (", …" if len(some) > 3 else "")
            return (
                f"protect names {pattern!r}, which matches no layer of this network (its layers are called {called})."
            )
    return None
