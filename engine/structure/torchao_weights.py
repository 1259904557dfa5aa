"""A module's weights as INT8 or INT4 for those who deploy PyTorch: linear layers by torchao, recurrent ones by PyTorch.

torchao replaces the weights of `nn.Linear` by tensors of its own classes, which torch.compile turns into kernels; the
modules stay what they are. GRU and LSTM go through `torch.ao.quantization.quantize_dynamic` (CPUs only; PyTorch means
to remove it one day, so it is looked for). Everything else stays float and is named with the reason.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

Kind = Literal["int8-dynamic", "int8-weights", "int4-weights"]

LEAST_WIDTH = 16
"""Inputs or outputs of a linear layer below which there is nothing to gain."""

OWN_CLASSES = ("torchao.", "torch.ao.nn.quantized")
"""Modules whose tensors and layers are quantized already."""


class CannotQuantize(Exception):
    """Nothing was quantized; the text says why, as the rest of a sentence."""


@dataclasses.dataclass
class Quantized:
    """What was changed in the module, in place."""

    touched: list[str] = dataclasses.field(default_factory=list)
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    quantized_elements: int = 0
    total_elements: int = 0

    @property
    def share(self) -> float:
        return self.quantized_elements / self.total_elements if self.total_elements else 0.0


def quantize_module(
    module: nn.Module, kind: Kind, group_size: int, on_cpu: bool, excluded: Collection[str] = ()
) -> Quantized:
    """Quantize in place. `group_size`: weights that share a scale, for INT4.

    Raises CannotQuantize when no layer could be.
    """
    result = Quantized(total_elements=sum(one.numel() for one in module.parameters()))
    recurrent: dict[str, int] = {}
    for name, layer in module.named_modules():
        own = sum(one.numel() for one in layer.parameters(recurse=False))
        if not own:
            continue
        if name in excluded:
            result.left[name] = "kept in float on request"
        elif isinstance(layer, nn.Linear):
            _linear(module, name, layer, kind, group_size, on_cpu, result)
        elif isinstance(layer, (nn.GRU, nn.LSTM)) and kind == "int8-dynamic":
            why = _why_not_recurrent(name, layer, on_cpu)
            if why:
                result.left[name] = why
            else:
                recurrent[name] = own
        elif any(one.ndim > 1 for one in layer.parameters(recurse=False)):
            result.left[name] = f"torchao quantizes linear layers, and this is {type(layer).__name__}"
    if recurrent:
        torch.ao.quantization.quantize_dynamic(module, set(recurrent), dtype=torch.qint8, inplace=True)
        result.touched += recurrent
        result.quantized_elements += sum(recurrent.values())
    if not result.touched:
        reasons = list(dict.fromkeys(result.left.values()))
        raise CannotQuantize("; ".join(reasons[:3]) or "it has no linear layer")
    for layer in module.modules():
        layer.__dict__.pop("extra_repr", None)  # torchao puts a partial there, which cannot be pickled
    return result


def is_quantized(module: nn.Module) -> bool:
    """Whether any layer or weight went through one of these before."""
    tensors = (type(one).__module__ for one in module.parameters())
    layers = (type(one).__module__ for one in module.modules())
    return any(name.startswith(OWN_CLASSES) for name in (*tensors, *layers))


def _linear(
    module: nn.Module, name: str, layer: nn.Linear, kind: Kind, group_size: int, on_cpu: bool, result: Quantized
) -> None:
    from torchao.quantization import quantize_

    inner, outputs = layer.in_features, layer.out_features
    if min(inner, outputs) < LEAST_WIDTH:
        result.left[name] = f"{inner} × {outputs} weights are too few to gain by"
        return
    if kind == "int4-weights" and inner % group_size:
        result.left[name] = f"{inner} inputs are no multiple of the block of {group_size}"
        return
    count = layer.weight.numel()
    config = _config(kind, group_size, on_cpu)
    try:
        quantize_(module, config, filter_fn=lambda found, path: found is layer)
    except Exception as error:  # each kernel has its own demands, and says so in its own class of error
        result.left[name] = f"torchao refused it: {str(error).strip().splitlines()[0][:120]}"
        return
    if type(layer.weight).__module__.startswith(OWN_CLASSES):
        result.touched.append(name)
        result.quantized_elements += count
    else:
        result.left[name] = "torchao has no kernel for its shape"


def _config(kind: Kind, group_size: int, on_cpu: bool) -> Any:
    """torchao's configuration. INT4 has a packing for each device, and that for CPUs moved between its versions."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it tells about kernels for GPUs that are not here
    from torchao import quantization

    if kind == "int8-weights":
        return quantization.Int8WeightOnlyConfig()
    if kind == "int8-dynamic":
        return quantization.Int8DynamicActivationInt8WeightConfig()
    if not on_cpu:
        return quantization.Int4WeightOnlyConfig(group_size=group_size, int4_packing_format="tile_packed_to_4d")
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError:
        return quantization.Int4WeightOnlyConfig(group_size=group_size, int4_packing_format="opaque")
    return PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False)


def _why_not_recurrent(name: str, layer: nn.GRU | nn.LSTM, on_cpu: bool) -> str:
    if not on_cpu:
        return f"PyTorch quantizes a {type(layer).__name__} on CPUs only"
    if not hasattr(torch.ao.quantization, "quantize_dynamic"):
        return f"this PyTorch can no longer quantize a {type(layer).__name__}"
    if not name:
        return "the model is this layer and nothing else: put it into a module"
    if getattr(layer, "proj_size", 0):
        return "PyTorch does not quantize an LSTM with projections"
    return ""
