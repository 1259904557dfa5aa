"""Checkpoints: a training job that was killed or cancelled goes on where it stopped when it is run again.

A checkpoint belongs to the work and not to the job: its directory is named by a hash of the technique, its parameters,
the source variant's files and the seed, so that the same step run again finds it, and nothing else does.
It lies in `<session>/checkpoints/<key>/` and is removed when the work is done.

Every file is written beside its place, synced, and renamed: a file that is there is whole. What cannot be unpickled
(another version of PyTorch, a changed class) counts as absent and is removed; where memory or the disk fails, the error
passes and the file stays, for it is good once they work again. Modules are pickles of our own, in a directory only the
user can write to; states are loaded with `weights_only`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ..context import JobContext, LoadedVariant


class Checkpoints:
    """The checkpoint directory of one piece of work."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keep a state of tensors and plain values under a name, in place of an older one."""
        self._write(name, state)

    def load(self, name: str) -> dict[str, Any] | None:
        """The state kept under a name, on the CPU; None when there is none."""
        return self._read(name, weights_only=True)

    def save_module(self, name: str, module: torch.nn.Module) -> None:
        """Keep a whole module, structure included: pruning changes it between the stages of one job."""
        self._write(name, module)

    def load_module(self, name: str) -> torch.nn.Module | None:
        return self._read(name, weights_only=False)

    def forget(self, *names: str) -> None:
        for name in names:
            (self.directory / f"{name}.pt").unlink(missing_ok=True)

    def remove(self) -> None:
        """The work is done: nothing of it is needed any more."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write(self, name: str, value: Any) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self.directory / f"{name}.pt.{os.getpid()}"
        try:
            with open(draft, "wb") as file:
                torch.save(value, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.directory / f"{name}.pt")
        finally:
            draft.unlink(missing_ok=True)

    def _read(self, name: str, weights_only: bool) -> Any:
        path = self.directory / f"{name}.pt"
        try:
            return torch.load(path, map_location="cpu", weights_only=weights_only)
        except FileNotFoundError:
            return None
        except (MemoryError, OSError):
            raise
        except Exception as error:  # torch.load raises whatever pickle, zipfile or a changed class raise
            if "can't allocate memory" in str(error):  # torch's allocator has no exception of its own for it
                raise
            path.unlink(missing_ok=True)
            return None


def checkpoints_for(job: JobContext, technique: str, parameters: dict[str, Any], source: LoadedVariant) -> Checkpoints:
    """Where this technique with these parameters on this variant keeps its checkpoints."""
    work = {
        "technique": technique,
        "parameters": parameters,
        "model": job.spec.source.sha256,
        "source": [source.record.id, *(file.sha256 for file in source.record.files)],
        "seed": job.spec.seed,
    }
    key = hashlib.sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()[:20]
    return Checkpoints(Path(job.spec.session_directory) / "checkpoints" / key)
