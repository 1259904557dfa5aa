"""An exported PyTorch module is loaded without Trimtab, and what its model file needs is there."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from opened_models import opened, refusal
from session_makers import add_variant, make_model

from engine.exports import export_variants
from engine.models import file_sha256
from engine.models.importing import module_name
from engine.models.torch_model import save_module
from engine.protocol import MAX_MODEL_FILES, ModelSource, VariantDraft
from engine.recipes.files import RecipeError
from engine.recipes.sources import why_not_this_model
from engine.session import Session

MODEL = """
from pathlib import Path

import torch
from layers import Net  # its own neighbour

HERE = Path(__file__).parent

class Tagger(Net):
    pass

def load_model():
    module = Tagger()
    module.load_state_dict(torch.load(HERE / "weights" / ("tag" + "ger.pth")))
    return module

def example_input(batch_size):
    return torch.ones(batch_size, 6)

def test_data():
    with open(HERE / "labels.txt") as file:
        return [(torch.ones(4, 6), torch.tensor([int(line) for line in file]))]

LATER = "native.safetensors"
"""
LAYERS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(6, 3)
    def forward(self, x):
        return self.fc(x)
"""
PLAIN = """
import sys
sys.path.insert(0, {folder!r})
from load import load_model
import load, torch
print(load_model()(load.example_input(2)).tolist())
assert not any(name.partition(".")[0] in ("engine", "_trimtab_engine") for name in sys.modules)
"""
OPENING = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from opened_models import opened
from engine.models.neighbours import Neighbours
path = Path({path!r})
beside = Neighbours(path, path.parent / "s")
opened(path).info()
print(json.dumps(beside.found()))
"""


def python(text: str, folder: Path) -> str:
    """What a fresh process prints that runs this text, with nothing of ours on its path."""
    command = [sys.executable, "-I", "-c", text]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tagger(tmp_path):
    """The model file, in a folder with what it needs and what it does not."""
    import torch

    folder = tmp_path / "work"
    for name in ("weights", "s", ".cache"):
        (folder / name).mkdir(parents=True)
    (folder / "tagger.py").write_text(MODEL)
    (folder / "layers.py").write_text(LAYERS)
    (folder / "labels.txt").write_text("0\n1\n2\n0\n")
    (folder / "native.safetensors").write_bytes(b"read by native code")
    (folder / "unrelated.txt").write_text("not read")
    torch.save(torch.nn.ModuleDict({"fc": torch.nn.Linear(6, 3)}).state_dict(), folder / "weights/tagger.pth")
    return folder / "tagger.py"


def found_beside(model: Path) -> list[str]:
    tests, root = Path(__file__).parent, Path(__file__).parents[2]
    return json.loads(python(OPENING.format(root=str(root), tests=str(tests), path=str(model)), model.parent))


def test_what_a_model_file_needs_beside_it_is_found_when_it_is_opened(tagger):
    assert set(found_beside(tagger)) == {"layers.py", "native.safetensors", "weights/tagger.pth", "labels.txt"}


@pytest.fixture
def session(tagger, tmp_path):
    """A session of it, with a pruned variant (the module as it was)."""
    opening = opened(tagger)
    source = ModelSource(path=str(tagger), kind="python", sha256=file_sha256(tagger))
    held = Session.open(tmp_path / "held")
    held.set_model(msgspec.structs.replace(make_model(), source=source, files=tuple(found_beside(tagger))))
    base = add_variant(held, "baseline")
    id = held.new_id()
    work = held.work_directory(id)
    save_module(opening.module(), work / "model.pt")
    draft = VariantDraft(label=None, format="pytorch", files=("model.pt",), deployed_files=("model.pt",))
    files = held.store_files(id, draft, work)
    pruned = add_variant(held, "pruned", base, id=id, files=files, format="pytorch", technique="prune-structured")
    yield held, pruned, opening
    held.close()


def test_an_exported_module_loads_in_a_process_without_trimtab(session, tmp_path):
    held, pruned, opening = session
    exported = export_variants(held, (pruned,), tmp_path / "rel")
    assert "pruned/load.py" in exported.files
    assert {"model/layers.py", "model/labels.txt", "model/weights/tagger.pth"} <= set(exported.files)
    assert "model/unrelated.txt" not in exported.files
    assert exported.notices == ()
    expected = opening.call(opening.module(), opening.example(2))["output"]
    opening.path.parent.rename(tmp_path / "gone")
    printed = python(PLAIN.format(folder=str(tmp_path / "rel/pruned")), tmp_path)
    assert json.loads(printed) == pytest.approx(expected)
    report = (tmp_path / "rel/report.md").read_text()
    assert "`load_model()` of `pruned/load.py`" in report


def test_an_exported_module_opens_as_a_model_with_the_data_of_its_model_file(session, tmp_path):
    held, pruned, opening = session
    export_variants(held, (pruned,), tmp_path / "rel")
    model = opened(tmp_path / "rel/pruned/load.py")
    assert model.labelled
    assert model.offers == ("test_data",)
    assert model.call(model.module(), model.example(2))["output"] == pytest.approx(
        opening.call(opening.module(), opening.example(2))["output"]
    )


def test_the_bare_pickle_of_an_export_says_what_to_open_instead(session, tmp_path, monkeypatch):
    held, pruned, opening = session
    export_variants(held, (pruned,), tmp_path / "rel")
    monkeypatch.delitem(sys.modules, module_name(opening.path))
    np.savez(tmp_path / "data.npz", x=np.ones((4, 6), np.float32))
    sentence = refusal(tmp_path / "rel/pruned/model.pt", trusted=True, data=str(tmp_path / "data.npz"))
    assert "open the load.py beside it" in sentence
    with pytest.raises(RecipeError, match=r"or the load\.py beside it"):
        why_not_this_model(tmp_path / "rel/pruned/model.pt", trusted=False)


def test_what_cannot_be_carried_along_is_named(session, tmp_path):
    held, pruned, opening = session
    (opening.path.parent / "weights/tagger.pth").unlink()
    exported = export_variants(held, (pruned,), tmp_path / "rel")
    (notice,) = exported.notices
    assert "weights/tagger.pth" in notice
    assert "weights/tagger.pth" in (tmp_path / "rel/report.md").read_text()


def test_of_a_whole_data_set_only_so_much_is_carried_and_it_says_so(session, tmp_path):
    held, pruned, opening = session
    many = tuple(f"images/{number}.txt" for number in range(MAX_MODEL_FILES))
    (opening.path.parent / "images").mkdir()
    for name in many:
        (opening.path.parent / name).write_text("0")
    held.set_model(msgspec.structs.replace(held.model, files=many))
    exported = export_variants(held, (pruned,), tmp_path / "rel")
    assert {f"model/{name}" for name in many} < set(exported.files)
    assert "256 files beside it or more" in " ".join(exported.notices)


def test_what_is_found_while_opening_is_bounded(tagger):
    (tagger.parent / "images").mkdir()
    for number in range(300):
        (tagger.parent / f"images/{number}").write_text("0")
    text = tagger.read_text() + "\nfor number in range(300):\n    open(HERE / 'images' / str(number)).read()\n"
    tagger.write_text(text)
    found = found_beside(tagger)
    assert len(found) == MAX_MODEL_FILES
    assert {"layers.py", "native.safetensors"} <= set(found)
