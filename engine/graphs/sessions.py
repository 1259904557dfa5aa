"""ONNX Runtime's CPU provider on graphs of any size, and the graph as it rewrites it.

One protobuf message holds at most 2 GiB: a larger graph reaches ONNX Runtime through files and comes back through them.
The weights of an optimised graph are always written anew beside it: ONNX Runtime would otherwise keep pointing at the
source's own file of weights from another directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime

from .onnx_graph import is_large, load_graph, save_graph

WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"


def open_session(
    model: onnx.ModelProto | Path, options: onnxruntime.SessionOptions, unwanted: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    """A session of the graph. `unwanted`: names of ONNX Runtime's optimisers to leave out."""
    with tempfile.TemporaryDirectory() as directory:
        source: str | bytes
        if isinstance(model, Path):
            source = str(model)
        elif is_large(model):
            source = str(save_graph(model, Path(directory) / "model.onnx")[0])
        else:
            source = model.SerializeToString()
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(unwanted)
        )


def rewritten(
    model: onnx.ModelProto | Path,
    level: onnxruntime.GraphOptimizationLevel,
    unwanted: Sequence[str] = (),
    weights: bool = True,
) -> onnx.ModelProto:
    """The graph as ONNX Runtime leaves it at this level of optimisation; without `weights` only its nodes count."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry(WEIGHTS_FILE, "optimized.data")
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        open_session(model, options, unwanted)
        return load_graph(path) if weights else onnx.load(path, load_external_data=False)
