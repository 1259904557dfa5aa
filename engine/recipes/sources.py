"""Which model a user means: the file, what was said about it, and whether the session holds it already.

A model is known by the SHA-256 of its file, not by its path, so it may be moved or copied. Light: nothing is loaded
and none of its code runs.
"""

from pathlib import Path
from typing import Literal

from ..protocol import ModelSource
from ..safety import clean_text
from ..session.variant_files import describe, sha256_of
from .files import RecipeError

_KINDS: dict[str, Literal["python", "onnx", "pickle"]] = {
    ".py": "python",
    ".onnx": "onnx",
    ".pt": "pickle",
    ".pth": "pickle",
    ".pt2": "pickle",
}


def why_not_this_model(path: Path, trusted: bool) -> None:
    """Raises RecipeError with a sentence when the file is not there, is no model, or has to be trusted first."""
    shown = clean_text(str(path), 300)
    if not path.exists():
        raise RecipeError(f"There is no model file {shown}.")
    if not path.is_file():
        raise RecipeError(f"{shown} is not a file.")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise RecipeError(f"{shown} is no model file: Trimtab opens {', '.join(_KINDS)}.")
    if kind == "pickle" and not trusted:
        exported = (path.parent / "load.py").is_file()
        raise RecipeError(
            f"{clean_text(path.name, 100)} is a pickled module: loading it runs code from the file. If you trust it, "
            "open it with --trust" + (", or the load.py beside it, if that was exported with it." if exported else ".")
        )


def source_of(
    path: str,
    data: str | None,
    calibration_data: str | None,
    shapes: dict[str, list[int | str]],
    *,
    trusted: bool = False,
    sha256: str | None = None,
    original: Path | None = None,
) -> ModelSource:
    """The source record of a model file. Reads the whole file to hash it: call it in a thread.

    With `sha256` the file must have that content. `original` is taken instead when it has it: where an exported copy
    came from, there may be files beside it that it needs. Raises RecipeError.
    """
    chosen = Path(path).absolute()
    if original is not None and sha256 is not None and original.is_file() and _hash(original) == sha256:
        chosen = original
    why_not_this_model(chosen, trusted)
    found = _hash(chosen)
    if sha256 is not None and found != sha256.lower():
        raise RecipeError(
            f"{clean_text(chosen.name, 100)} is not the model this recipe was written for: its SHA-256 is "
            f"{found[:12]}… and not {clean_text(sha256[:12], 12)}…. To run the recipe on it anyway: --model PATH."
        )
    for file in (data, calibration_data):
        if file is not None and not Path(file).is_file():
            raise RecipeError(f"There is no data file {clean_text(file, 300)}.")
    return ModelSource(
        path=str(chosen),
        kind=_KINDS[chosen.suffix.lower()],
        sha256=found,
        data=str(Path(data).absolute()) if data else None,
        calibration_data=str(Path(calibration_data).absolute()) if calibration_data else None,
        shapes=shapes,
        trusted=trusted,
    )


def difference(known: ModelSource, wanted: ModelSource) -> str | None:
    """Why this session cannot be used for that model, as a sentence; None when it is the model it holds.

    What the caller left out (data, shapes) is as it was. Hashes data files whose paths differ: call it in a thread.
    """
    name, held = clean_text(Path(wanted.path).name, 100), clean_text(Path(known.path).name, 100)
    if known.sha256 != wanted.sha256:
        if name == held:
            return (
                f"{name} has changed since this session opened it, and its figures would not be comparable. Open it in "
                "a session of its own: --session DIR."
            )
        return f"This session belongs to {held}. Open {name} in a session of its own: --session DIR."
    for what, old, new in (
        ("data", known.data, wanted.data),
        ("calibration data", known.calibration_data, wanted.calibration_data),
    ):
        if new is not None and not _same_file(old, new):
            return f"This session opened {held} with other {what}. Use a session of its own: --session DIR."
    if wanted.shapes and wanted.shapes != known.shapes:
        return f"This session opened {held} with other shapes. Use a session of its own: --session DIR."
    return None


def _same_file(old: str | None, new: str) -> bool:
    if old is None or old == new:
        return old == new
    return Path(old).is_file() and Path(new).is_file() and _hash(Path(old)) == _hash(Path(new))


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise RecipeError(describe(error, path)) from None
