"""Which files beside the model file it needs: its own modules, its weights, the data that it read when it was opened.

For an export, which carries them along. Found are the modules that came from the model file's folder, the files there
that Python opened for reading (`open`, `torch.load`, `numpy.load`), and those whose names stand in a Python file's
text, which native code may read (safetensors). Not found is what it reads only later under a name made up as it runs.
"""

import ast
import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..protocol import MAX_MODEL_FILES


class Neighbours:
    """Listens from now on to what this process opens. There is no end to it: make one only in a worker."""

    def __init__(self, model_file: Path, session: Path) -> None:
        self.model_file = Path(os.path.abspath(model_file))
        self.folder = self.model_file.parent
        self._folders = _both(self.folder)
        package, library = Path(__file__).parents[1], Path(sysconfig.get_paths()["stdlib"])
        self._not_theirs = tuple(name for place in (session, package, library) for name in _both(place))
        self._read: dict[str, None] = {}
        sys.addaudithook(self._hear)

    def found(self) -> tuple[str, ...]:
        """Paths relative to the model file's folder: what is imported first, then what it names, then what it read."""
        modules = [str(file) for one in list(sys.modules.values()) if (file := getattr(one, "__file__", None))]
        named = self._named() if self.model_file.suffix == ".py" else ()
        needed = [inner for path in [*modules, *named] if (inner := self._relative(path)) is not None]
        return tuple(dict.fromkeys([*needed, *self._read]))[:MAX_MODEL_FILES]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: whatever it raised would be raised out of the user's `open`."""
        if event != "open" or len(self._read) >= MAX_MODEL_FILES:
            return
        with contextlib.suppress(TypeError, ValueError, OSError):  # an open file's number, a NUL, no folder to be in
            if arguments[2] & os.O_ACCMODE == os.O_RDONLY:
                inner = self._relative(os.path.abspath(os.fsdecode(arguments[0])))
                if inner is not None:
                    self._read[inner] = None

    def _named(self) -> Iterator[str]:
        """Files that strings of the model file name: in its folder, or in a folder that another string names."""
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            tree = ast.parse(self.model_file.read_bytes())
            words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            names = sorted(word for word in words if isinstance(word, str) and word.strip(" ./") and "\n" not in word)
            folders = [self.folder, *(self.folder / name for name in names if _is(name, self.folder, os.path.isdir))]
            yield from (
                os.path.join(folder, name) for folder in folders for name in names if _is(name, folder, os.path.isfile)
            )

    def _relative(self, path: str) -> str | None:
        """The path within the folder, if it is a file of the user's there."""
        for folder in self._folders:
            if not path.startswith(f"{folder}{os.sep}") or path == os.path.join(folder, self.model_file.name):
                continue
            inner = os.path.relpath(path, folder)
            parts = Path(inner).parts
            hidden = any(part.startswith(".") or part in ("__pycache__", "site-packages") for part in parts)
            theirs = not any(path.startswith(f"{place}{os.sep}") for place in self._not_theirs)
            if theirs and not hidden and os.path.isfile(path):
                return inner
        return None


def _both(place: Path) -> tuple[str, str]:
    """A directory as it is written and as it really lies."""
    return (os.path.abspath(place), os.path.realpath(place))


def _is(name: str, folder: Path, what: Any) -> bool:
    try:
        return bool(what(os.path.join(folder, name)))
    except ValueError:  # a NUL in it
        return False
