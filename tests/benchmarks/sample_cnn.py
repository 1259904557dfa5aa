"""The sample CNN as an ONNX file and images to send it, for benchmarks that run it outside our own runtimes' code.

Needs the full environment (torch); what it writes needs only ONNX Runtime and numpy.
"""

import hashlib
from pathlib import Path

import numpy as np

from engine.graphs.exporting import export_module
from engine.graphs.onnx_graph import save_graph
from engine.models import open_model
from engine.protocol import ModelSource
from engine.techniques.onnx_conversion import open_axes

REPOSITORY = Path(__file__).resolve().parents[2]

OPSET = 20


def write_sample_cnn(directory: Path, images: int = 64) -> tuple[Path, Path]:
    """(graph, images): `model.onnx` with an open batch axis, `images.npz` with the input's array under its name."""
    source = REPOSITORY / "sample_models" / "residual_cnn.py"
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    model = open_model(ModelSource(path=str(source), kind="python", sha256=sha256))
    args, kwargs = model.torch_args(model.example(2))
    axes = open_axes(model.inputs)
    exported = export_module(model.module(), args, kwargs, model.input_names, model.output_names, axes, OPSET)
    graph = save_graph(exported.model, directory / "model.onnx")[0]
    batches = [inputs for inputs, _ in model.test_batches(batch_size=1, limit=images)]
    np.savez(directory / "images.npz", **{name: np.concatenate([b[name] for b in batches]) for name in batches[0]})
    return graph, directory / "images.npz"
