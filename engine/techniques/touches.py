"""Parameters for the rewrites that only serve speed (`engine/graphs/touches.py`), for the techniques that try them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

Residuals = Annotated[
    Literal["kept", "separate"],
    Meta(description="let ONNX Runtime fuse residual additions with normalisations, or keep the two apart"),
]
Masks = Annotated[
    Literal["kept", "raised"],
    Meta(description="leave attention masks as low as they are, or raise them to −60, where no exponential underflows"),
]

PARAMETERS = {"residuals": Residuals, "masks": Masks}


def touches_asked_for(parameters: Any) -> tuple[str, ...]:
    """Names of the rewrites that a technique's parameters ask for."""
    return tuple(name for name in PARAMETERS if getattr(parameters, name) != "kept")


def pinned_touches(done: Collection[str]) -> dict[str, str]:
    """The parameters that give exactly these rewrites."""
    return {name: get_args(get_args(kind)[0])[name in done] for name, kind in PARAMETERS.items()}
