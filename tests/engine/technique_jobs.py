"""Runs a technique on a tiny model through the real classes: model file, variants, job context. No engine."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from engine.context import JobContext, LoadedVariant
from engine.models import open_model
from engine.protocol import FileRecord, JobSpec, ModelSource, Processor, RunTechnique, Variant
from engine.techniques import find_technique, parse_parameters

VNNI = Processor(
    name="test", features=("avx2", "avx512", "vnni"), physical_cores=2, logical_cores=2, memory_bytes=1 << 33
)

MODEL_FILE = """
import torch
from torch import nn

{body}

def load_model():
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():  # statistics that a trained model would have
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()

def example_input(batch_size):
    return {example}

def calibration_data():
    torch.manual_seed(1)
    return [(example_input(16), None) for _ in range(4)]
"""

CONVOLUTIONAL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.stem(image)
        x = torch.relu(x + self.pointwise(torch.relu(self.depthwise(x))))
        return self.head(self.pool(x).flatten(1))
"""

UNEVEN = """
class Net(nn.Module):
    '''Channels of the first layer differ by a factor of 30,000, and the next layer takes it back.'''

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 6)
        torch.manual_seed(3)
        sizes = torch.logspace(-2, 2.5, 8)
        with torch.no_grad():
            self.first.weight *= sizes[:, None, None, None]
            self.first.bias *= sizes
            self.second.weight /= sizes[None, :, None, None]

    def forward(self, image):
        return self.head(torch.relu(self.second(torch.relu(self.first(image)))).amax((2, 3)))
"""

TRANSFORMER = """
class Net(nn.Module):
    def __init__(self, width=32, words=200):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 64, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 4)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(dim=1))
"""

NORM_BEHIND = """
class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.inner, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x + nn.functional.gelu(self.inner(x), approximate="tanh")).mean(dim=1)
"""

RECURRENT = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.{kind}(12, 24, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 3)

    def forward(self, rows):
        return self.head(self.recurrent(rows)[0].mean(dim=1))
"""

IMAGE, TOKENS, ROWS = (
    "torch.rand(batch_size, 3, 12, 12)",
    "torch.randint(0, 200, (batch_size, 10))",
    ("torch.randn(batch_size, 7, 12)"),
)


def open_python(directory: Path, body: str, example: str) -> LoadedVariant:
    """The baseline of a model file with this `Net` and this example input."""
    path = directory / "net.py"
    path.write_text(textwrap.dedent(MODEL_FILE).format(body=textwrap.dedent(body), example=example))
    return open_baseline(ModelSource(path=str(path), kind="python", sha256=""), directory)


def open_baseline(source: ModelSource, directory: Path) -> LoadedVariant:
    """The baseline of any model source."""
    model = open_model(source)
    draft = model.write_baseline(directory / "baseline")
    record = Variant(
        id="baseline",
        name="baseline",
        parent=None,
        technique=None,
        parameters={},
        format=draft.format,
        files=tuple(FileRecord(path=name, sha256="", size_bytes=0) for name in draft.files),
        size_bytes=0,
        created=0.0,
        target="this-machine",
        processor="",
    )
    return LoadedVariant(record, directory / "baseline", model)


@dataclasses.dataclass
class Run:
    """What a technique gave: its variants, loaded, and the messages it sent."""

    variants: list[LoadedVariant]
    messages: list[Any]
    files: list[Any]
    """The technique's own result, one `VariantFiles` for each variant."""


def run_technique(
    source: LoadedVariant,
    tag: str,
    directory: Path,
    target: str = "this-machine",
    processor: Processor = VNNI,
    **parameters: Any,
) -> Run:
    """Run the technique as a worker does. Raises what it raises."""
    work = directory / f"{tag}-{len(list(directory.iterdir()))}"
    work.mkdir()
    spec = JobSpec(
        job="job",
        task=RunTechnique(technique=tag, parameters=parameters, source=source.record.id, target=target),
        source=source.model.source,
        variants={},
        baseline="baseline",
        session_directory=str(directory),
        work_directory=str(work),
        device="cpu",
        processor=processor,
        threads=1,
    )
    messages: list[Any] = []
    job = JobContext(spec, source.model, messages.append)
    made = find_technique(tag).function(source, parse_parameters(tag, parameters), job)
    loaded = []
    for files in made:
        record = Variant(
            id=tag,
            name=f"{tag}/{files.label}" if files.label else tag,
            parent=source.record.id,
            technique=tag,
            parameters=parameters,
            format=files.format,
            files=tuple(FileRecord(path=path.name, sha256="", size_bytes=path.stat().st_size) for path in files.files),
            size_bytes=sum(path.stat().st_size for path in files.files),
            created=0.0,
            target=files.target or "",
            processor="",
            changed=files.changed,
            portable=files.portable,
        )
        loaded.append(LoadedVariant(record, work, source.model))
    return Run(loaded, messages, made)


def apply(source: LoadedVariant, tag: str, directory: Path, **options: Any) -> LoadedVariant:
    """The first variant a technique gives."""
    return run_technique(source, tag, directory, **options).variants[0]


def cosine(first: LoadedVariant, second: LoadedVariant, batch_size: int = 5) -> float:
    """Cosine between the outputs of two ONNX variants on inputs neither was calibrated on."""
    from engine.graphs.verification import compare_outputs, run_graph

    batch = first.model.example(batch_size, seed=99)
    return compare_outputs(run_graph(first.path, [batch]), run_graph(second.path, [batch])).cosine


def operators(variant: LoadedVariant) -> dict[str, int]:
    """How many nodes of each kind ONNX Runtime runs for a variant."""
    from collections import Counter

    from engine.graphs.verification import executed_graph

    return Counter(node.op_type for node in executed_graph(variant.path).node)


def random_graph_input(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
