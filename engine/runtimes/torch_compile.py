"""torch.compile: a module turned into kernels by inductor, C++ for a CPU and Triton for a GPU.

The first call at each batch size compiles, which takes from ten seconds to minutes; later calls do not. Everything else
is as in eager mode. Compiling happens in this process: inductor's pool of processes would outlive a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch._dynamo.exc
import torch._inductor.config as inductor
import torch._inductor.exc

from ..models import ModelError
from . import RuntimeUnavailable
from . import pytorch as eager

if TYPE_CHECKING:
    from ..context import LoadedVariant

SENTENCE = 200
"""Characters of an error of the compiler that are shown."""


COMPILER_ERRORS = (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError)
"""What goes wrong in torch.compile and not in the model."""


class CompiledRunner(eager.PyTorchRunner):
    """A compiled module on its device. See `Runner`."""

    runtime = "torch-compile"

    def __init__(self, variant: LoadedVariant, device: str, threads: int | None) -> None:
        super().__init__(variant, device, threads)
        inductor.compile_threads = 1
        self.eager_module = self.module
        # a shape of its own for each batch size, as one would deploy it; one for all sizes computes more slowly
        self.module: Any = torch.compile(self.eager_module, dynamic=False)
        self.name = variant.record.name

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._compiled(lambda: super(CompiledRunner, self).run(inputs))

    def bind(self, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
        """Compiles before it returns, so that no call that is timed does."""
        call = super().bind(inputs)
        self._compiled(call)
        return call

    def _compiled(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (*COMPILER_ERRORS, ModelError) as error:
            if isinstance(error, ModelError) and not isinstance(error.__cause__, COMPILER_ERRORS):
                raise
            line = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
            raise RuntimeUnavailable(f"torch.compile cannot compile {self.name}: {line.strip()[:SENTENCE]}") from error

    def close(self) -> None:
        del self.eager_module
        super().close()
        torch._dynamo.reset()


def load(variant: LoadedVariant, device: str = "cpu", threads: int | None = None) -> CompiledRunner:
    """Load a PyTorch variant. Raises RuntimeUnavailable when the device is not there."""
    eager.check_device(variant, device)
    if threads is not None:
        torch.set_num_threads(threads)
    return CompiledRunner(variant, device, threads)
