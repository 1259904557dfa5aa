"""Entry of the engine's processes: `python -P …/engine/__main__.py server DIRECTORY` or `fork-server DESCRIPTOR`.

Run by path, never with `-m`, and the package is loaded from this file's own folder under the private name
`_trimtab_engine`. Users' repositories often hold an `engine.py` of their own: whatever lies in the current directory,
beside the model file or on PYTHONPATH, our imports (all relative) find ours, and `import engine` in the user's code
finds theirs.
"""

import importlib.util
import os
import sys
from types import ModuleType

PRIVATE_NAME = "_trimtab_engine"
"""The name this package has in our processes."""


def load_package(name: str = PRIVATE_NAME) -> ModuleType:
    """This folder's package, imported under this name."""
    folder = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


def main(arguments: list[str]) -> None:
    """Become the process that the first argument names."""
    if "--detach" in arguments and os.fork():
        # The engine must be nobody's child: its starter may live for weeks and would have to reap it.
        os._exit(0)
    role, *rest = arguments
    # What a rank is sent was pickled under the name that the package has in the process that started it.
    name = load_package(rest.pop(0) if role == "rank" else PRIVATE_NAME).__name__
    if role == "server":
        importlib.import_module(f"{name}.server.server").main(rest)
    elif role == "fork-server":
        importlib.import_module(f"{name}.fork_server").main(rest)
    elif role == "rank":
        importlib.import_module(f"{name}.training.rank").main(rest)
    else:
        raise SystemExit(f"unknown role {role!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
