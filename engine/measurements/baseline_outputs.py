"""The baseline's outputs on the test data, computed once per session and kept for the next variants.

Batch by batch with a hash of the inputs: outputs are used again only for exactly the same samples in the same
batch, so data that comes in another order is simply computed anew. The file lies under the session's `cache`
directory; losing it costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import numpy as np

from ..context import JobContext, LoadedVariant
from ..models import Arrays
from ..runtimes import Runner, load

LARGEST_CACHE_BYTES = 256 * 2**20
"""Outputs beyond this (dense predictions on many images) are computed each time."""


class BaselineOutputs:
    """Outputs of the baseline in its own runtime, batch after batch."""

    def __init__(self, job: JobContext, baseline: LoadedVariant, batch_size: int) -> None:
        self.job, self.baseline = job, baseline
        key = "|".join(
            (
                *(file.sha256 for file in baseline.record.files),
                job.model.own_runtime,
                job.spec.device,
                str(batch_size),
                ",".join(job.spec.processor.features),
            )
        )
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.path = Path(job.spec.session_directory) / "cache" / f"baseline-outputs-{name}.npz"
        self.old = _read(self.path)
        self.new: dict[str, np.ndarray] = {}
        self.bytes = 0
        self.computed = False
        self._runner: Runner | None = None

    @property
    def expected_samples(self) -> int | None:
        """How many samples the whole test data had the last time."""
        return int(self.old["samples"]) if "samples" in self.old else None

    def runner(self) -> Runner:
        """The baseline in its own runtime; loaded when it is first needed."""
        if self._runner is None:
            own = self.job.model.own_runtime
            self._runner = load(self.baseline, own, self.job.spec.device, self.job.spec.threads)
        return self._runner

    def outputs(self, position: int, inputs: Arrays) -> Arrays:
        """What the baseline gives for batch number `position` with these inputs."""
        digest = _digest(inputs)
        outputs = self._remembered(position, digest)
        if outputs is None:
            outputs = self.runner().run(inputs)
            self.computed = True
        if self.bytes <= LARGEST_CACHE_BYTES:
            self.new[f"{position}/digest"] = digest
            for name, array in outputs.items():
                self.new[f"{position}/out/{name}"] = array
                self.bytes += array.nbytes
        return outputs

    def keep(self, samples: int | None) -> None:
        """Store what was computed; `samples`: how many the whole test data has (None: only a part was run)."""
        if samples is None or not self.computed or self.bytes > LARGEST_CACHE_BYTES:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f".{uuid.uuid4().hex}.npz")
            np.savez(beside, samples=np.int64(samples), **self.new)  # type: ignore[arg-type]
            os.replace(beside, self.path)
        except OSError as error:  # a full disk must not cost the measurement
            self.job.log(f"The baseline's outputs were not kept: {error}")

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def _remembered(self, position: int, digest: np.ndarray) -> Arrays | None:
        stored = self.old.get(f"{position}/digest")
        if stored is None or not np.array_equal(stored, digest):
            return None
        prefix = f"{position}/out/"
        return {key.removeprefix(prefix): array for key, array in self.old.items() if key.startswith(prefix)}


def _digest(inputs: Arrays) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The stored arrays, or nothing if there is no readable file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # absent, or cut short by a kill: it is only a cache
        return {}
