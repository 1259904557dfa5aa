"""Tiny model files that can be trained in seconds, and jobs to train them in, for the tests of training and pruning."""

import hashlib
import textwrap
from pathlib import Path

import torch

from engine.context import JobContext, LoadedVariant
from engine.hardware import read_processor
from engine.models import Model, open_model
from engine.protocol import FileRecord, JobSpec, ModelSource, RunTechnique, Variant

DATA = """
import torch
from torch import nn

def samples(count, seed):
    '''Images (n, 1, 8, 8) of noise; the label says which quarter is brighter.'''
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=random)
    images = torch.randn(count, 1, 8, 8, generator=random)
    for label in range(4):
        top, left = divmod(label, 2)
        images[labels == label, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 0.6
    return images, labels

def batches(count, seed, size=64):
    images, labels = samples(count, seed)
    return [(images[i : i + size], labels[i : i + size]) for i in range(0, count, size)]

def example_input(batch_size):
    return samples(batch_size, 9)[0]

def train_data():
    return batches(1024, 1)

def test_data():
    return batches(512, 2)
"""

CNN = """
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)

class Net(nn.Module):
    def __init__(self, width=16, depth=2):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * width, 4)

    def forward(self, images):
        return self.head(self.pool(self.blocks(self.stem(images))).flatten(1))
"""

TRANSFORMER = """
class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

class Net(nn.Module):
    def __init__(self, width=32, depth=2, heads=4):
        super().__init__()
        self.patches = nn.Linear(4, width)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, images):
        x = self.patches(images.reshape(-1, 16, 4)) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))
"""

RECURRENT = """
class Net(nn.Module):
    def __init__(self, hidden=16, layers=2):
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 4)

    def forward(self, images):
        states, _ = self.lstm(images[:, 0])
        return self.head(states.mean(1))
"""

LOAD = """
def load_model():
    torch.manual_seed(0)
    return Net()

def student_model():
    torch.manual_seed(1)
    return Net(8, 1)
"""

CNN_FILE = DATA + CNN + LOAD
TRANSFORMER_FILE = DATA + TRANSFORMER + LOAD
RECURRENT_FILE = DATA + RECURRENT + LOAD


def open_text(directory: Path, text: str, name: str = "net.py") -> Model:
    """A model file with this text, opened. One thread from now on: tiny networks only lose by more."""
    torch.set_num_threads(1)
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return open_model(ModelSource(path=str(path), kind="python", sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def make_job(model: Model, directory: Path, technique: str = "test", parameters: dict | None = None):
    """(job, messages): a job whose messages land in a list; the session is `directory`."""
    messages: list = []
    work = directory / "work"
    work.mkdir(exist_ok=True)
    spec = JobSpec(
        job="job",
        task=RunTechnique(technique=technique, parameters=parameters or {}, source="base", target="this-machine"),
        source=model.source,
        variants={},
        baseline="base",
        session_directory=str(directory),
        work_directory=str(work),
        device="cpu",
        processor=read_processor(),
        threads=1,
    )
    return JobContext(spec=spec, model=model, send=messages.append), messages


def baseline(model: Model, directory: Path) -> LoadedVariant:
    """The model's baseline variant, written to disk."""
    draft = model.write_baseline(directory / "baseline")
    return _variant(model, directory / "baseline", draft.files, "base", "baseline", draft.macs, draft.parameter_count)


def adopted(model: Model, directory: Path, files, name: str = "derived") -> LoadedVariant:
    """What a technique made (`VariantFiles`), as the engine would store it."""
    names = tuple(path.name for path in files.files)
    return _variant(model, directory / "work", names, name, name, files.macs, files.parameter_count)


def _variant(model, directory, names, id, name, macs, count) -> LoadedVariant:
    records = tuple(
        FileRecord(
            path=file,
            sha256=hashlib.sha256((directory / file).read_bytes()).hexdigest(),
            size_bytes=(directory / file).stat().st_size,
        )
        for file in names
    )
    record = Variant(
        id=id,
        name=name,
        parent=None,
        technique=None,
        parameters={},
        format="pytorch",
        files=records,
        size_bytes=records[0].size_bytes,
        created=0.0,
        target="this-machine",
        processor="",
        macs=macs,
        parameter_count=count,
    )
    return LoadedVariant(record=record, directory=directory, model=model)


def points(messages: list, name: str) -> list[tuple[int, float]]:
    """The curve of one metric: (step, value)."""
    return [(m.step, m.value) for m in messages if getattr(m, "name", None) == name]
