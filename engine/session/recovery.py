"""Opening a session: what was stored comes back, what a kill left behind is put right, what is old goes.

The rule for variants: the manifest is the truth, the row its index. A variant whose files are not whole, or whose
parent is not there, is left out with a notice and its directory left alone; when the files are put back, the next
start takes it in again, measurements included.
"""

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..protocol import (
    Cancelled,
    Failed,
    Job,
    Measurement,
    ModelInfo,
    Queued,
    RecipeRun,
    Running,
    SessionOptions,
    Variant,
)
from ..safety import clean_text
from . import variant_files
from .store import Row, StoreError

if TYPE_CHECKING:
    from .session import Session

JOBS_KEPT = 1000
"""Finished jobs remembered, newest first; older ones go with their logs and curves."""

RUNS_KEPT = 200
"""Recipe runs remembered."""

LOG_BYTES_KEPT = 256 * 1024 * 1024
"""All job logs together; the oldest go first."""


def recover(session: "Session", *, rebuild: bool) -> None:
    """Fill a session from its directory. `rebuild`: the database is new, so the rest of the directory is all there is.

    Raises StoreError or OSError when the directory cannot be read or written at all.
    """
    for id, record in session.store.read("fact", SessionOptions):
        if id == "options" and record is not None:
            session.options = record
    for id, record in session.store.read("fact", ModelInfo):
        if id == "model":
            session.model = record
    if session.model is None:
        session.model = _model_from_file(session.directory / "model.json")
        if session.model is not None:
            session.put_rows(Row("fact", "model", session.model), vital=False)
    _variants(session)
    _measurements(session, rebuild)
    _jobs_and_runs(session)
    _retire(session)
    if session.history.trouble:
        session.notice(session.history.trouble)
    session.last_id = max([session.store.newest_id(), *session.variants, *session.jobs, ""])


def _variants(session: "Session") -> None:
    """Load every whole variant, parents first; index those that have a manifest but no row."""
    root = session.directory / "variants"
    for id in variant_files.half_deleted(root):
        _forget(session, "variant", id, owned=True)
    rows = dict(session.store.read("variant", Variant))
    found: dict[str, Variant] = {}
    orphans = variant_files.sweep(root, set(rows))
    for id in [*rows, *orphans]:
        record, wrong = rows.get(id), None
        if record is None:
            try:
                record = variant_files.read_manifest(root / id)
            except variant_files.FilesError as error:
                wrong = str(error)
        if record is not None:
            wrong = variant_files.what_is_wrong(root / id, record)
        if wrong is None and record is not None:
            found[id] = record
        else:
            shown = clean_text(record.name, 80) if record is not None else id
            session.notice(f"The variant {shown} was left out: {wrong}. Its directory is variants/{id}.")
    for id in sorted(found):
        _adopt(session, found, id)
    for id in sorted(set(found) - set(session.variants)):
        shown = clean_text(found[id].name, 80)
        session.notice(
            f"The variant {shown} was left out: what it was made from is gone. Its directory is variants/{id}."
        )
    for id, variant in session.variants.items():
        variant_files.commit(root, variant)
        if rows.get(id) is None:
            session.put_rows(Row("variant", id, variant), vital=False)
    for id in set(rows) - set(session.variants):
        _forget(session, "variant", id)


def _adopt(session: "Session", found: dict[str, Variant], id: str) -> None:
    """Take a variant in after its ancestors, if they are all there."""
    line: list[str] = []
    step: str | None = id
    while step is not None and step not in session.variants:
        if step not in found or step in line:
            return
        line.append(step)
        step = found[step].parent
    for one in reversed(line):
        session.variants[one] = found[one]


def _measurements(session: "Session", rebuild: bool) -> None:
    stored = dict(session.store.read("measurement", Measurement))
    if rebuild:
        journals = [
            measurement
            for id in session.variants
            for measurement in variant_files.read_measurements(session.directory / "variants" / id)
            if measurement.variant == id
        ]
        if journals:
            session.put_rows(*(Row("measurement", m.id, m, owner=m.variant) for m in journals), vital=False)
        stored |= {m.id: m for m in journals}
    unreadable = sum(record is None for record in stored.values())
    if unreadable:
        session.notice(f"Measurements that cannot be read and are not shown: {unreadable}.")
    session.measurements = {
        id: stored[id] for id in sorted(stored) if stored[id] is not None and stored[id].variant in session.variants
    }


def _jobs_and_runs(session: "Session") -> None:
    """Load jobs and runs; what was unfinished has ended with its engine."""
    now = time.time()
    changed: list[Row] = []
    for id, job in session.store.read("job", Job):
        if job is None:
            continue
        session.jobs[id] = stopped(job, now)
        if not job.is_done:
            changed.append(Row("job", id, session.jobs[id]))
    for id, run in session.store.read("run", RecipeRun):
        if run is None:
            continue
        session.runs[id] = run if run.finished is not None else ended(run, now)
        if run.finished is None:
            changed.append(Row("run", id, session.runs[id]))
    if changed:
        session.put_rows(*changed, vital=False)


def _retire(session: "Session") -> None:
    """Remove work directories, the oldest jobs and runs, and logs over the limit."""
    for id in sorted(session.jobs)[:-JOBS_KEPT]:
        del session.jobs[id]
        _forget(session, "job", id)
        session.history.forget_job(id)
    for id in sorted(session.runs)[:-RUNS_KEPT]:
        del session.runs[id]
        _forget(session, "run", id)
    kept_bytes = 0
    directories = [entry for entry in (session.directory / "jobs").iterdir() if entry.is_dir()]
    for number, directory in enumerate(sorted(directories, reverse=True)):
        shutil.rmtree(directory / "work", ignore_errors=True)
        kept_bytes += sum(_size(file) for file in directory.iterdir())
        if number >= JOBS_KEPT or kept_bytes > LOG_BYTES_KEPT:
            shutil.rmtree(directory, ignore_errors=True)


def stopped(job: Job, now: float) -> Job:
    """An unfinished job as it must be read after its engine is gone: failed, with the reason."""
    if isinstance(job.state, Running):
        reason = f"The engine stopped while this job ran. {job.goes_on or 'Run it again.'}"
        if job.state.cancelling:
            return msgspec.structs.replace(job, state=Cancelled(started=job.state.started, finished=now))
        state = Failed(started=job.state.started, finished=now, reason=reason, cause="engine-stopped")
        return msgspec.structs.replace(job, state=state)
    if isinstance(job.state, Queued):
        reason = "The engine stopped before this job began. Run it again."
        return msgspec.structs.replace(
            job, state=Failed(started=None, finished=now, reason=reason, cause="engine-stopped")
        )
    return job


def ended(run: RecipeRun, now: float) -> RecipeRun:
    """An unfinished run as it must be read after its engine is gone: its running step failed, the rest skipped."""
    steps = []
    for step in run.steps:
        if step.status == "running":
            step = msgspec.structs.replace(step, status="failed", reason="The engine stopped during this step.")
        elif step.status == "queued":
            step = msgspec.structs.replace(step, status="skipped", reason="The engine stopped before this step.")
        steps.append(step)
    error = "The engine stopped before the run was over. Run it again: what is done is kept."
    return msgspec.structs.replace(run, steps=tuple(steps), finished=now, error=run.error or error)


def _forget(session: "Session", kind: str, id: str, *, owned: bool = False) -> None:
    """Remove a row. On a full disk it stays until the next start, which does no harm."""
    with contextlib.suppress(StoreError):
        session.store.remove(kind, id, owned=owned)


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.lstat().st_size
    return 0


def _model_from_file(path: Path) -> ModelInfo | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelInfo)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
