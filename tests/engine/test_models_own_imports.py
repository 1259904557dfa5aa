"""A user's own `engine.py`, `tui.py` and `utils.py` beside the model file are imported as theirs.

Run in a process of its own that loads our package under its private name, as a worker does.
"""

import json
import subprocess
import sys
from pathlib import Path

import engine

WORKER = """
import importlib.util, json, sys
from pathlib import Path
root = Path({package!r})
specification = importlib.util.spec_from_file_location(
    "_trimtab_engine", root / "__init__.py", submodule_search_locations=[str(root)])
sys.modules["_trimtab_engine"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(sys.modules["_trimtab_engine"])
from _trimtab_engine.models.torch_model import load_saved_module, save_module
from _trimtab_engine.models import file_sha256, open_model
from _trimtab_engine.protocol import ModelSource

path = Path({path!r})
model = open_model(ModelSource(path=str(path), kind="python", sha256=""))
save_module(model.module(), path.parent / "saved.pt")
module = load_saved_module(path.parent / "saved.pt", file_sha256(path.parent / "saved.pt"))
print(json.dumps(model.call(module, model.example(1))["output"].tolist()))
"""

MODEL = """
import torch
import utils
from engine import ONE
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        from tui import HUNDRED
        return x + ONE + utils.TEN + HUNDRED + self.weight
def load_model(): return Net()
def example_input(batch_size): return torch.zeros(batch_size, 1)
"""


def test_the_users_modules_win_over_ours(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("ONE = 1\n")
    (tmp_path / "utils.py").write_text("TEN = 10\n")
    (tmp_path / "tui.py").write_text("HUNDRED = 100\n")
    (tmp_path / "net.py").write_text(MODEL)
    package = Path(engine.__file__).parent
    code = WORKER.format(package=str(package), path=str(tmp_path / "net.py"))

    done = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[111.0]]
