"""Makes tiny model files and graphs, opens them for real, and builds the job a worker would be given."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.context import JobContext, LoadedVariant
from engine.models import Model, ModelError, file_sha256, open_model
from engine.protocol import FileRecord, InspectModel, JobSpec, ModelSource, Processor, Variant, VariantDraft

PROCESSOR = Processor(name="test", features=("avx2",), physical_cores=1, logical_cores=1, memory_bytes=1 << 33)

CLASSIFIER = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, features):
        return self.body(features)

def load_model():
    return Net()

def example_input(batch_size):
    return torch.randn(batch_size, 6)

def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator)
"""
"""A model file without data; tests append what they need."""

LABELLED = """
def test_data():
    x = samples(300, 1)
    labels = load_model()(x).argmax(dim=1)
    return [(x[i:i + 50], labels[i:i + 50]) for i in range(0, 300, 50)]

def calibration_data():
    return [samples(32, 2)]
"""
"""Labels are the model's own answers: the baseline's accuracy is exactly 1."""


def write(directory: Path, text: str, name: str = "net.py") -> Path:
    """A model file with this text."""
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return path


def opened(path: Path, **said: Any) -> Any:
    """The model file or graph, opened. `said`: further fields of `ModelSource`."""
    kind = {".py": "python", ".onnx": "onnx"}.get(path.suffix, "pickle")
    return open_model(ModelSource(path=str(path), kind=kind, sha256=file_sha256(path), **said))  # type: ignore[arg-type]


def refusal(path: Path, **said: Any) -> str:
    """The sentence with which it is refused, on opening or on reading its data; one line, as a sentence must be."""

    def read_all() -> None:
        for _ in opened(path, **said).test_batches(8):
            pass

    with pytest.raises(ModelError) as caught:
        read_all()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stored(model: Model, draft: VariantDraft, directory: Path, name: str, parent: str | None) -> LoadedVariant:
    """A variant as the session would have it, from a draft whose files lie in `directory`."""
    files = tuple(
        FileRecord(path=file, sha256=file_sha256(directory / file), size_bytes=(directory / file).stat().st_size)
        for file in draft.files
    )
    record = Variant(
        id=name,
        name=name,
        parent=parent,
        technique=None,
        parameters={},
        format=draft.format,
        files=files,
        size_bytes=sum(file.size_bytes for file in files if file.path in draft.deployed_files),
        created=0.0,
        target="this-machine",
        processor="avx2",
    )
    return LoadedVariant(record, directory, model)


def baseline_of(model: Model, directory: Path) -> LoadedVariant:
    """The baseline variant, written and stored."""
    where = directory / "variants" / "baseline"
    return stored(model, model.write_baseline(where), where, "baseline", None)


def job_on(
    baseline: LoadedVariant, directory: Path, on_message: Callable[[Any], None] = lambda message: None
) -> JobContext:
    """A job of one thread in whose session only the baseline is known; add variants to `job.variants`."""
    spec = JobSpec(
        job="job",
        task=InspectModel(),
        source=baseline.model.source,
        variants={"baseline": baseline.record},
        baseline="baseline",
        session_directory=str(directory),
        work_directory=str(directory / "work"),
        device="cpu",
        processor=PROCESSOR,
        threads=1,
    )
    return JobContext(spec, baseline.model, on_message, {"baseline": baseline})


def save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str | None]]],
    outputs: dict[str, tuple[int, list[int | str | None]]],
    constants: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> Path:
    """An `.onnx` file; inputs and outputs as name → (type, axes)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, **options)
    return path


def linear_graph(path: Path, batch: int | str | None = "batch", classes: int = 3, **options: Any) -> Path:
    """x (batch, 6) → scores (batch, classes), with the same weights each time."""
    weight = np.random.default_rng(0).standard_normal((6, classes)).astype(np.float32)
    return save_graph(
        path,
        [helper.make_node("MatMul", ["x", "weight"], ["scores"])],
        {"x": (TensorProto.FLOAT, [batch, 6])},
        {"scores": (TensorProto.FLOAT, [batch, classes])},
        {"weight": weight},
        **options,
    )
