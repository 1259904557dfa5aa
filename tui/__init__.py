"""The client: the `trimtab` command line and the dashboard. Of the engine it knows the client and the protocol only.

Many PyTorch repositories have an `engine.py`, and some put themselves on PYTHONPATH: the package beside this one is
loaded by its place, so that `import engine` is ours here whatever the path says. (Workers use a private name.)
"""

import importlib.util
import sys
from pathlib import Path

_ENGINE = Path(__file__).resolve().parent.parent / "engine"

if "engine" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "engine", _ENGINE / "__init__.py", submodule_search_locations=[str(_ENGINE)]
    )
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["engine"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["engine"])
