"""The graph that a PyTorch variant would be as ONNX, so that a quantized graph can be compared with it layer by layer.

Quantization-aware training makes an INT8 graph of a module: nothing between them is ONNX. The module is exported and
prepared as quantization prepares it (batch norms and factors folded), so both graphs have the same layers and names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..context import JobContext, LoadedVariant
from ..graphs.exporting import export_module
from ..graphs.onnx_graph import save_graph
from ..graphs.preparation import prepare


def float_twin(job: JobContext, variant: LoadedVariant, inputs: dict[str, np.ndarray]) -> Path:
    """The graph's file, in the job's own directory. Raises what the exporter raises."""
    model: Any = job.model
    args, kwargs = model.torch_args(inputs)
    axes = {
        spec.name: {index: size for index, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in model.inputs
    }
    exported = export_module(variant.module(), args, kwargs, model.input_names, model.output_names, axes)
    raw = save_graph(exported.model, job.work / "exported.onnx")[0]
    return save_graph(prepare(raw, for_static=True, fold=True), job.work / "float.onnx")[0]
