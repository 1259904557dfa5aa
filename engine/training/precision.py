"""Mixed precision where the device gains by it, with the memory layout that suits it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from ..models.tensors import with_tensors


class Precision:
    """The number format of training and judging.

    "auto": bfloat16 on a GPU that has it (else float16 with loss scaling) and on a processor with AMX (there measured
    2.5 times as fast as float32 on a convolutional network); float32 elsewhere.
    """

    def __init__(self, wanted: str, device: torch.device, features: tuple[str, ...]) -> None:
        self.device = device
        self.dtype = torch.float32
        if wanted == "bfloat16":
            self.dtype = torch.bfloat16
        elif wanted == "auto" and device.type == "cuda":
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        elif wanted == "auto" and "amx-bf16" in features:
            self.dtype = torch.bfloat16

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def widened(self, outputs: Any) -> Any:
        """Outputs in float32: losses lose too much in fewer bits, and some (BCELoss) refuse them."""
        if self.dtype is torch.float32:
            return outputs
        return with_tensors(outputs, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def laid_out(self, inputs: Any) -> Any:
        """Images with the channels last in memory where low precision is used: convolutions want them so there."""
        if self.dtype is not torch.float32 and isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def restore_layout(self, module: nn.Module) -> None:
        """Weights back to the ordinary layout, so that later timings compare like with like."""
        for parameter in module.parameters():
            parameter.grad = None
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
