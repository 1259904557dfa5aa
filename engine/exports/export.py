"""Write chosen variants to a directory: their files, the results, the report, the recipe and a copy of the model file.

    <to>/<variant>/…        the variant's files, hashes checked on the way, and a load.py for a PyTorch module
    <to>/results.json  results.csv  report.md  recipe.toml
    <to>/model/…            the model file, what it needs beside it, and its data, when they are small enough to carry

Everything is written to a directory beside and put in place at the end, so an export is there whole or not at all.
Files that exist already are never overwritten unless asked. Blocks (copying, hashing): call it in a thread.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ..hardware import read_processor
from ..protocol import MAX_MODEL_FILES, Exported, ModelInfo, ModelSource, Variant
from ..safety import UnsafePath, clean_text, file_slug, inside
from ..session import Session, SessionError
from ..session.ranking import best_variant
from ..session.variant_files import COPY_BYTES, describe, sha256_of, sync_directory
from . import results
from .loader import LOADER, loader
from .moving import warning_of
from .recipe import recipe_for
from .report import report

CARRY_BYTES = 100_000_000
"""A model file, or its data, that is bigger is not copied; the recipe then names where it is."""


def export_variants(session: Session, variants: Sequence[Variant], to: str | Path, overwrite: bool = False) -> Exported:
    """Export these variants, or the best one and the baseline when none is named.

    Raises SessionError with a sentence: nothing to export, files in the way, a damaged variant, a full disk.
    """
    chosen = list({variant.id: variant for variant in variants}.values()) or _default(session)
    place = Path(to).absolute()
    _check_place(session, place)
    notices = _notices(session, chosen)
    beside = place.parent / f".{file_slug(place.name)}.{os.getpid()}-{time.time_ns()}.tmp"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        try:
            _fill(session, chosen, beside, notices)
            files = sorted(str(path.relative_to(beside)) for path in beside.rglob("*") if path.is_file())
            _put_in_place(beside, place, files, overwrite)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except UnsafePath as error:
        raise SessionError(f"Nothing was exported. {error}") from None
    except OSError as error:
        raise SessionError(f"Nothing was exported. {describe(error, place)}") from error
    return Exported(directory=str(place), files=tuple(files), notices=tuple(notices))


def _default(session: Session) -> list[Variant]:
    baseline = session.baseline
    if baseline is None:
        raise SessionError("There is nothing to export: no model has been opened in this session.")
    best = best_variant(list(session.variants.values()), list(session.measurements.values()), session.options)
    return [baseline] if best is None or best is baseline else [best, baseline]


def _check_place(session: Session, place: Path) -> None:
    own = session.directory.resolve()
    resolved = place.resolve()
    if resolved == own or (resolved.is_relative_to(own) and not resolved.is_relative_to(own / "exports")):
        raise SessionError(f"{clean_text(str(place), 300)} belongs to the session itself: export to another directory.")
    if place.exists() and not place.is_dir():
        raise SessionError(f"{clean_text(str(place), 300)} is a file: name a directory to export to.")


def _notices(session: Session, variants: Sequence[Variant]) -> list[str]:
    """What whoever deploys this should know: a variant made for another class of processor than this machine's."""
    processor, found = read_processor(), []
    for variant in variants:
        if warning := warning_of(session, variant, processor):
            found.append(f"{clean_text(variant.name, 80)}: {warning}")
    return found


def _fill(session: Session, variants: Sequence[Variant], directory: Path, notices: list[str]) -> None:
    model, data = _copy_model(session, directory / "model", notices)
    folders, loaders = {"model"}, []
    for variant in variants:
        folder = file_slug(variant.name)
        while folder.lower() in folders:
            folder = f"{folder}-{variant.id}"
        folders.add(folder.lower())
        _copy_variant(session, variant, directory / folder)
        pickle = variant.files[0].path
        if pickle.endswith(".pt") and session.model is not None:
            _write(directory / folder / LOADER, loader(session.model.source, model, pickle))
            loaders.append(f"{folder}/{LOADER}")
    words = [variant.id for variant in variants]
    for name, format in (("results.json", "json"), ("results.csv", "csv")):
        _write(directory / name, results.render(session, "export", format, variants=words)[0])
    _write(directory / "recipe.toml", recipe_for(session, variants, model=model, data=data))
    _write(directory / "report.md", report(session, variants, read_processor().name, notices, loaders))


def _copy_variant(session: Session, variant: Variant, to: Path) -> None:
    """The variant's files; a byte that is not what was stored stops the export."""
    home = session.directory / "variants" / variant.id
    for record in variant.files:
        target = inside(to, record.path)
        if _copy(inside(home, record.path), target) != record.sha256:
            raise SessionError(
                f"Nothing was exported: {clean_text(record.path, 100)} of {clean_text(variant.name, 80)} has changed "
                "since it was made. Make the variant again."
            )


def _copy_model(session: Session, to: Path, notices: list[str]) -> tuple[str | None, dict[str, str]]:
    """Carry the model file and its data along, if they are small: paths for the recipe, relative to it."""
    if session.model is None:
        return None, {}
    source, model, data = session.model.source, None, {}
    with contextlib.suppress(OSError):
        model = _carry_model(session, source, to, notices)
        if model is not None:
            _carry_neighbours(session.model, to, notices)
    for key, path in (("data", source.data), ("calibration_data", source.calibration_data)):
        with contextlib.suppress(OSError):
            if path is not None and Path(path).stat().st_size <= CARRY_BYTES:
                name = _free(to, Path(path).name)
                _copy(Path(path), to / name)
                data[key] = f"model/{name}"
            elif path is not None:
                notices.append(
                    f"{clean_text(Path(path).name, 80)} is too big to carry along; the recipe says where it is."
                )
    return model, data


def _carry_model(session: Session, source: ModelSource, to: Path, notices: list[str]) -> str | None:
    path, shown = Path(source.path), clean_text(Path(source.path).name, 80)
    if not path.is_file() or sha256_of(path) != source.sha256:
        notices.append(
            f"The model file {shown} is gone or has changed since it was opened, so it was not carried along."
        )
        return None
    baseline = session.baseline
    # An ONNX model may have its weights in files beside it; the baseline holds them all under their right names.
    whole = source.kind == "onnx" and baseline is not None and baseline.files[0].sha256 == source.sha256
    size = sum(file.size_bytes for file in baseline.files) if whole and baseline else path.stat().st_size
    if size > CARRY_BYTES:
        notices.append(f"The model file {shown} is too big to carry along; the recipe says where it is.")
        return None
    if whole and baseline is not None:
        _copy_variant(session, baseline, to)
        return f"model/{baseline.files[0].path}"
    # Its own name, when it is a harmless one: a model file may look at its name, and people look for it.
    name = path.name if path.name == clean_text(path.name) else file_slug(path.stem) + path.suffix
    _copy(path, to / name)
    return f"model/{name}"


def _carry_neighbours(model: ModelInfo, to: Path, notices: list[str]) -> None:
    """Copy what the model file needs beside it, until that is too big; what is missing is named."""
    left, room = [], CARRY_BYTES
    for name in model.files:
        with contextlib.suppress(OSError, UnsafePath):
            path, target = Path(model.source.path).parent / name, inside(to, name)
            if str(path) in (model.source.data, model.source.calibration_data):
                continue  # carried along by another name
            size = path.stat().st_size
            if size <= room:
                if not target.exists():
                    _copy(path, target)
                room -= size
                continue
        left.append(clean_text(name, 80))
    if len(model.files) >= MAX_MODEL_FILES:
        notices.append(
            f"The model file reads {MAX_MODEL_FILES} files beside it or more; only so many were carried along: put its "
            "whole data into the folder model/."
        )
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        notices.append(
            f"The model file needs files beside it that were not carried along ({shown}: gone or too big). Put them "
            "into the folder model/, or what is loaded and trained there is another model."
        )


def _put_in_place(beside: Path, place: Path, files: list[str], overwrite: bool) -> None:
    """Rename the finished export to where it belongs: as a whole when nothing is there, else file by file."""
    if place.exists():
        in_the_way = [name for name in files if os.path.lexists(inside(place, name))]
        if in_the_way and not overwrite:
            shown = ", ".join(clean_text(name, 60) for name in in_the_way[:5])
            raise SessionError(
                f"{clean_text(str(place), 300)} holds {shown} already: choose another directory, or allow overwriting "
                "(--overwrite)."
            )
        for name in files:
            target = inside(place, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(beside / name, target)
        sync_directory(place)
    else:
        beside.rename(place)
    sync_directory(place.parent)


def _copy(source: Path, target: Path) -> str:
    """Copy a file and return the SHA-256 of what was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(COPY_BYTES):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _free(directory: Path, name: str) -> str:
    """A harmless name for a file that is not taken in the directory."""
    stem, suffix = file_slug(Path(name).stem), Path(name).suffix if Path(name).suffix.isascii() else ""
    candidate, number = f"{stem}{suffix}", 1
    while (directory / candidate).exists():
        number += 1
        candidate = f"{stem}-{number}{suffix}"
    return candidate
