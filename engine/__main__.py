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


def load_package() -> ModuleType:
    """This folder's package, imported as `_trimtab_engine`."""
    folder = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location(
        PRIVATE_NAME, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PRIVATE_NAME] = package
    spec.loader.exec_module(package)
    return package


def main(arguments: list[str]) -> None:
    """Become the process that the first argument names."""
    if "--detach" in arguments and os.fork():
        # The engine must be nobody's child: its starter may live for weeks and would have to reap it.
        os._exit(0)
    load_package()
    role, *rest = arguments
    if role == "server":
        importlib.import_module(f"{PRIVATE_NAME}.server.server").main(rest)
    elif role == "fork-server":
        importlib.import_module(f"{PRIVATE_NAME}.fork_server").main(rest)
    else:
        raise SystemExit(f"unknown role {role!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
