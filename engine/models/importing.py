"""Imports a user's Python model file so that its own imports reach its own modules.

The file's folder comes first on `sys.path` and stays there (imports inside functions happen later). The file
itself gets a private name made from its contents, so a pickled class of it is found again in any worker that
opened the same file, and two model files never mix.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..context import JobCancelled
from ..protocol.records import model_module
from .model import ModelError

PASSED_ON = (ModelError, JobCancelled, MemoryError, torch.OutOfMemoryError)
"""Never turned into another sentence: they have one, or the worker says it better."""


def module_name(path: Path) -> str:
    """The private module name of this file's present contents."""
    return model_module(hashlib.sha256(path.read_bytes()).hexdigest())


def put_folder_first(path: Path) -> None:
    """Make the folder of the file the first place where imports look."""
    folder = str(path.resolve().parent)
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


def import_model_file(path: Path) -> ModuleType:
    """The file as a module. Raises ModelError naming the line at which it fails."""
    put_folder_first(path)
    name = module_name(path)
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ModelError(f"{path.name} is not a Python file.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # before it runs: dataclasses and pickles look their module up there
    try:
        run_user_code(path, "importing it", specification.loader.exec_module, module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def run_user_code(path: Path, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call `function`; whatever it raises becomes a ModelError that says where in the user's files.

    `what` names the call ("load_model()"). SystemExit counts as an error: a model file must not end the worker.
    """
    try:
        return function(*arguments, **named)
    except PASSED_ON:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{path.name}: {what} failed{where(error, path)}: {in_one_line(error)}") from error


def where(error: BaseException, path: Path) -> str:
    """ " at net.py line 12": the last place in the user's own folder that the error passed; "" if there is none."""
    folder = path.resolve().parent
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {Path(error.filename).name} line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_absolute() and folder in file.resolve().parents and "site-packages" not in file.parts:
            inside = "" if frame.name == "<module>" else f" in {frame.name}"
            return f" at {file.name} line {frame.lineno}{inside}"
    return ""


def in_one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as "ValueError: text", one line, cut to `limit` characters."""
    if isinstance(error, SyntaxError):
        text = error.msg
    else:
        text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"
