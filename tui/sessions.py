"""Which session a command is about.

The rule (the same for every command): `--session DIR` if given; else `<model stem>.trimtab` in the current
directory when a model or a recipe is named; else the only `*.trimtab` here.
"""

import tomllib
from pathlib import Path

SUFFIX = ".trimtab"


class UsageError(Exception):
    """The command line cannot be understood or read; the text is the user's sentence (exit status 2)."""


def session_for_model(model: str | None, chosen: str | None) -> Path:
    """The session directory for a model file (which need not exist yet as a session)."""
    if chosen is not None:
        return Path(chosen).absolute()
    if model is None:
        return only_session_here()
    path = Path(model)
    if path.is_dir():
        raise UsageError(f"{model} is a directory. Name a model file: a .py, .onnx or .pt.")
    if not path.exists():
        raise UsageError(f"There is no file {model}.")
    return Path.cwd() / f"{path.stem}{SUFFIX}"


def session_for_recipe(recipe: str, chosen: str | None, model: str | None = None) -> Path:
    """The session directory for a recipe: named after the model that the recipe names."""
    path = Path(recipe)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the recipe {recipe}: {getattr(error, 'strerror', None) or error}.") from None
    if chosen is not None:
        return Path(chosen).absolute()
    if model is not None:
        return session_for_model(model, None)
    try:
        named = tomllib.loads(text).get("model")
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{recipe} is not valid TOML: {error}.") from None
    if not isinstance(named, str):
        raise UsageError(f'{recipe} names no model: add a line like model = "residual_cnn.py".')
    return Path.cwd() / f"{Path(named).stem}{SUFFIX}"


def only_session_here() -> Path:
    """The one session in the current directory; UsageError that lists them if there is none or several."""
    found = sorted(path for path in Path.cwd().glob(f"*{SUFFIX}") if path.is_dir())
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError("There is no session here. Name a model (trimtab open MODEL) or a session (--session DIR).")
    names = ", ".join(path.name for path in found)
    raise UsageError(f"There are several sessions here: {names}. Choose one with --session DIR.")
