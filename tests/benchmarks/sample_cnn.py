"""The sample CNN as an ONNX file and images to send it, for benchmarks that run it without our runtimes.

Written by a process of its own (`python sample_cnn.py DIRECTORY`), so that PyTorch and its hundred thousand objects are
not in the one that measures.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]

IMAGES = 64

OPSET = 20


def write_sample_cnn(directory: Path) -> tuple[Path, Path]:
    """(graph, images): `model.onnx` with an open batch axis, `images.npz` with the input's array under its name."""
    subprocess.run([sys.executable, __file__, directory], check=True, stdout=subprocess.DEVNULL)
    return directory / "model.onnx", directory / "images.npz"


def write(directory: Path) -> None:
    """What the process of its own does."""
    sys.path.insert(0, str(REPOSITORY))
    from engine.graphs.exporting import export_module
    from engine.graphs.onnx_graph import save_graph
    from engine.models import open_model
    from engine.protocol import ModelSource
    from engine.techniques.onnx_conversion import open_axes

    source = REPOSITORY / "sample_models" / "residual_cnn.py"
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    model = open_model(ModelSource(path=str(source), kind="python", sha256=sha256))
    args, kwargs = model.torch_args(model.example(2))
    axes = open_axes(model.inputs)
    exported = export_module(model.module(), args, kwargs, model.input_names, model.output_names, axes, OPSET)
    save_graph(exported.model, directory / "model.onnx")
    batches = [inputs for inputs, _ in model.test_batches(batch_size=1, limit=IMAGES)]
    np.savez(directory / "images.npz", **{name: np.concatenate([b[name] for b in batches]) for name in batches[0]})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
