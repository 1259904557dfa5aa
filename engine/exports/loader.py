"""The `load.py` beside an exported PyTorch module: what its pickle needs, without Trimtab.

The pickle finds the user's classes under the private name that `models/importing.py` gives their file, so the file is
imported under that name first. The loader is a model file itself: `trimtab open <variant>/load.py` opens the module
with the data, loss and accuracy of the file it was made from.
"""

from pathlib import Path

from ..protocol import ModelSource
from ..protocol.records import model_module
from ..safety import file_slug

LOADER = "load.py"
"""What it is called."""

_PYTHON = '''\
"""Loads {pickle}, which Trimtab made from {shown}, without Trimtab.

    from load import load_model
    module = load_model()

It runs code of both files. `trimtab open` opens this file as a model file, with all that {shown} offers.
"""

import importlib.util
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
MODEL_FILE = {model_file}
NAME = {module_name!r}  # what the pickle calls the model file, to find its classes


def _import_model_file():
    if NAME not in sys.modules:
        sys.path.insert(0, str(MODEL_FILE.parent))
        specification = importlib.util.spec_from_file_location(NAME, MODEL_FILE)
        sys.modules[NAME] = importlib.util.module_from_spec(specification)
        try:
            specification.loader.exec_module(sys.modules[NAME])
        except BaseException:
            del sys.modules[NAME]
            raise
    return sys.modules[NAME]


_model_file = _import_model_file()


def load_model():
    return torch.load(HERE / {pickle!r}, map_location="cpu", weights_only=False).eval()


def __getattr__(name):  # all else is the model file's: example inputs, data, loss, accuracy
    return getattr(_model_file, name)
'''

_PICKLE = '''\
"""Loads {pickle}, which Trimtab made from {shown}, without Trimtab.

    from load import load_model
    module = load_model()

It runs code of the file.
"""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
MODEL_FILE = {model_file}
sys.path.insert(0, str(MODEL_FILE.parent))  # where the classes of the module may lie


def load_model():
    return torch.load(HERE / {pickle!r}, map_location="cpu", weights_only=False).eval()
'''


def loader(source: ModelSource, model: str | None, pickle: str) -> str:
    """The text of `load.py` for the module in `pickle`, which lies beside it.

    `model` is the copy of the model file, relative to the export; None: it was not carried, so it is where it was.
    """
    model_file = f"Path({source.path!r})" if model is None else f"HERE.parent / {model!r}"
    path = Path(source.path)
    return (_PYTHON if source.kind == "python" else _PICKLE).format(
        pickle=pickle,
        shown=file_slug(path.stem) + path.suffix,
        model_file=model_file,
        module_name=model_module(source.sha256),
    )
