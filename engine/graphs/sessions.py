"""ONNX Runtime's CPU provider on graphs of any size, and the graph as it rewrites it.

One protobuf message holds at most 2 GiB: a larger graph reaches ONNX Runtime through files and comes back through them.
The weights of an optimised graph are always written anew beside it: ONNX Runtime would otherwise keep pointing at the
source's own file of weights from another directory.

ONNX Runtime crashes while it loads some FP16 graphs on a CPU, unless one of its optimisers is left out; that one speeds
other FP16 graphs up, so it is left out only where it must be (`crashing_optimisers`).
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime

from .onnx_graph import holds_float16, is_large, load_graph, save_graph

WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"

LEAVE_OUT = "optimization.disable_specified_optimizers"
"""Option of a session: names of ONNX Runtime's optimisers to leave out, with semicolons between them."""

ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL

HALF_WEIGHTS = "FuseFp16InitializerToFp32NodeTransformer"
"""Turns FP16 weights of nodes without an FP16 kernel to FP32 once; crashes on some graphs (1.32, CPU)."""


class Crashes(Exception):
    """ONNX Runtime would end this process while it loads the graph."""


def open_session(
    model: onnx.ModelProto | Path, options: onnxruntime.SessionOptions, unwanted: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    """A session of the graph. `unwanted`: names of ONNX Runtime's optimisers to leave out. Raises Crashes."""
    with tempfile.TemporaryDirectory() as directory:
        source: str | bytes
        if isinstance(model, Path):
            source = str(model)
        elif is_large(model) or holds_float16(model):
            source = str(save_graph(model, Path(directory) / "model.onnx")[0])
        else:
            source = model.SerializeToString()
        if isinstance(source, str) and options.graph_optimization_level == ALL:
            unwanted = (*unwanted, *crashing_optimisers(Path(source)))
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(unwanted)
        )


def crashing_optimisers(path: Path) -> tuple[str, ...]:
    """Optimisers that have to be left out so that the CPU provider can load the graph: none but for some in FP16.

    Such graphs are tried in a process of their own, about half a second. Raises Crashes where nothing helps.
    """
    state = path.stat()
    return _crashing_optimisers(str(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _crashing_optimisers(path: str, size: int, changed_ns: int) -> tuple[str, ...]:
    try:
        if not holds_float16(onnx.load(path, load_external_data=False)):
            return ()
    except Exception:  # a file that is no graph: whoever loads it says so
        return ()
    for names in ((), (HALF_WEIGHTS,)):
        if not _crashes(path, names):
            return names
    raise Crashes(f"ONNX Runtime {onnxruntime.__version__} crashes while it loads the graph on a CPU")


def _crashes(path: str, left_out: Sequence[str]) -> bool:
    code = (
        "import sys, onnxruntime; onnxruntime.InferenceSession("
        "sys.argv[1], providers=['CPUExecutionProvider'], disabled_optimizers=sys.argv[2:])"
    )
    tried = subprocess.run([sys.executable, "-c", code, path, *left_out], capture_output=True, check=False)
    return tried.returncode < 0


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
