"""The files of variants on disk: `variants/<id>/` with the files and, written last, `manifest.json`.

The manifest is the commit marker and holds the whole record. A directory without one was never finished and is
swept; one with a manifest is a variant, whether the database still knows it or not. So a variant is either whole or
not there, wherever the power failed:

    <id>.tmp/      files being copied, hashed and synced     → swept at the next start
    <id>/          files complete, no manifest               → swept at the next start
    <id>/manifest.json                                       → a variant
    <id>.deleted/  on its way out                            → swept at the next start

Functions here block (hashing, fsync): call them in a thread. Sizes are bytes, hashes SHA-256 in hex.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path

import msgspec

from ..protocol import FileRecord, Measurement, Variant
from ..safety import UnsafePath, clean_text, inside

MANIFEST = "manifest.json"
"""Written last: its presence makes the directory a variant."""

MEASUREMENTS = "measurements.jsonl"
"""Beside it, one measurement a line: from these a lost database is rebuilt."""

MANIFEST_FORMAT = 1
"""A manifest with a higher number was written by a newer Trimtab and is left alone."""

COPY_BYTES = 4 * 1024 * 1024
"""Copied and hashed at a time."""


class Manifest(msgspec.Struct, frozen=True):
    """What `manifest.json` holds."""

    format: int
    variant: Variant


class FilesError(Exception):
    """The files could not be stored or read; the text is a sentence."""


def take(variants: Path, id: str, paths: tuple[str, ...], work: Path) -> tuple[FileRecord, ...]:
    """Copy a finished job's files from its work directory to `variants/<id>/`, hashed and synced; no manifest yet.

    Copied rather than moved: the worker's user code may still hold them open or have linked them elsewhere.
    Raises FilesError for a path that leaves the work directory, a link, anything that is no plain file, or a full
    disk; then nothing is left behind.
    """
    temporary = variants / f"{id}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        records = tuple(_copy(work, path, temporary) for path in dict.fromkeys(paths))
        if not records:
            raise FilesError("The job reported a variant without files.")
        for directory, _, _ in os.walk(temporary):
            sync_directory(Path(directory))
        temporary.rename(variants / id)
        sync_directory(variants)
        return records
    except UnsafePath as error:
        raise FilesError(f"The job reported a file that is not its own. {error}") from None
    except OSError as error:
        raise FilesError(describe(error, variants)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def commit(variants: Path, variant: Variant) -> None:
    """Write the manifest if it is not there. From here on the variant exists. Raises FilesError."""
    directory = variants / variant.id
    if not (directory / MANIFEST).exists():
        body = msgspec.json.format(msgspec.json.encode(Manifest(MANIFEST_FORMAT, variant)), indent=1)
        write_file(directory / MANIFEST, body)


def read_manifest(directory: Path) -> Variant:
    """The record in a variant's manifest. Raises FilesError when there is none, or it is damaged or too new."""
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise FilesError(describe(error, directory)) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise FilesError(f"its {MANIFEST} is damaged ({error})") from None
    if manifest.format > MANIFEST_FORMAT:
        raise FilesError("a newer Trimtab wrote it")
    if manifest.variant.id != directory.name:
        raise FilesError(f"its {MANIFEST} belongs to another variant ({clean_text(manifest.variant.id, 40)})")
    return manifest.variant


def what_is_wrong(directory: Path, variant: Variant, *, hashes: bool = False) -> str | None:
    """Why the directory does not hold this variant's files, in a few words; None when it does.

    Sizes only, unless `hashes`: then every byte is read.
    """
    for record in variant.files:
        shown = clean_text(record.path, 100)
        try:
            path = inside(directory, record.path)
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                return f"{shown} is not a plain file"
            if found.st_size != record.size_bytes:
                return f"{shown} has {found.st_size} bytes instead of {record.size_bytes}"
            if hashes and sha256_of(path) != record.sha256:
                return f"the content of {shown} has changed"
        except FileNotFoundError:
            return f"{shown} is missing"
        except (OSError, UnsafePath) as error:
            return f"{shown} cannot be read ({clean_text(str(error))})"
    return None


def half_deleted(variants: Path) -> list[str]:
    """Ids of variants whose deletion a kill interrupted: to be forgotten before `sweep` removes their traces."""
    return [entry.stem for entry in variants.glob("*.deleted")]


def sweep(variants: Path, known: set[str]) -> list[str]:
    """Remove what a kill left unfinished. Returns the ids of directories that hold a manifest but no known row."""
    orphans = []
    for entry in sorted(variants.iterdir()):
        if not entry.is_dir() or entry.is_symlink():
            continue
        if entry.suffix in (".tmp", ".deleted"):
            shutil.rmtree(entry, ignore_errors=True)
        elif (entry / MANIFEST).exists():
            (entry / f"{MANIFEST}.tmp").unlink(missing_ok=True)
            if entry.name not in known:
                orphans.append(entry.name)
        elif entry.name not in known:
            shutil.rmtree(entry, ignore_errors=True)
    return orphans


def delete(variants: Path, id: str) -> Path:
    """Take the variant out in one step, by renaming; the returned directory is then removed by `shutil.rmtree`."""
    doomed = variants / f"{id}.deleted"
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        (variants / id).rename(doomed)
    sync_directory(variants)
    return doomed


def append_measurement(directory: Path, measurement: Measurement) -> None:
    """Add a line to the variant's journal of measurements. Raises OSError."""
    # The newline comes first too, so that a line cut short by a full disk cannot swallow the next one.
    with (directory / MEASUREMENTS).open("ab") as file:
        file.write(b"\n" + msgspec.json.encode(measurement) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_measurements(directory: Path) -> list[Measurement]:
    """The journal's whole lines; a line that cannot be read is left out."""
    decode = msgspec.json.Decoder(Measurement).decode
    found: list[Measurement] = []
    try:
        lines = (directory / MEASUREMENTS).read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            found.append(decode(line))
    return found


def write_file(path: Path, body: bytes) -> None:
    """Write a file so that it is there whole or not at all: beside its place, synced, renamed. Raises FilesError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FilesError(describe(error, path)) from error


def sync_directory(directory: Path) -> None:
    """Make names in a directory survive a power cut. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(error: OSError, place: Path) -> str:
    """An operating system's error as a sentence with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"There is no room left on the disk that holds {place}: free some space and try again."
    shown = clean_text(str(error.filename or place), 300)
    return f"{shown} cannot be read or written: {error.strerror or error}."


def _copy(work: Path, relative: str, to: Path) -> FileRecord:
    """Copy one file, hashing what is written. The copy is read-only: a variant never changes."""
    source = inside(work, relative)
    target = inside(to, relative)
    if relative in (MANIFEST, MEASUREMENTS):
        raise FilesError(f"The job reported a file called {relative}, which is a name the session keeps for itself.")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as reader:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise FilesError(f"The job reported {clean_text(relative, 100)}, which is not a plain file.")
        with target.open("xb") as writer:
            while block := reader.read(COPY_BYTES):
                digest.update(block)
                writer.write(block)
                size += len(block)
            writer.flush()
            os.fchmod(writer.fileno(), 0o444)
            os.fsync(writer.fileno())
    return FileRecord(path=relative, sha256=digest.hexdigest(), size_bytes=size)
