"""The session directory: everything one model's optimisation has brought, safe against a kill at any instruction.

    session.db        records: options, model, variants, measurements, jobs, runs     (engine/store.py)
    telemetry.db      hardware samples and the curves of jobs; may be lost            (engine/history.py)
    model.json        what the model file offers, once more, for rebuilding session.db
    variants/<id>/    a variant's files and its manifest                              (engine/variant_files.py)
    jobs/<id>/        log.txt, and work/ while the job runs
    exports/          where an export without a directory of its own goes

The engine is the only writer. What a caller may rely on: what a method has stored when it returns survives a kill
and a power cut; a variant in `variants` has all its files; nothing is half there. The dictionaries are the session
as of now: read them freely, change them only through the methods, all from one thread. `store_files` and `verify`
block for long and touch only files: call them in a thread. Failures are SessionError with a sentence.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from ..protocol import (
    FileRecord,
    Job,
    LoadSettings,
    LoadTick,
    Measurement,
    ModelInfo,
    RecipeRun,
    SessionOptions,
    Succeeded,
    TelemetrySample,
    Variant,
    VariantDraft,
)
from ..safety import clean_text
from . import variant_files
from .history import History
from .ranking import best_variant
from .recovery import recover
from .store import Row, Store, StoreCorrupt, StoreError

RESERVED_NAMES = ("best",)
"""Words with a meaning of their own where a variant is asked for."""

_ID_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 8
_ID_EPOCH_MS = 1_735_689_600_000
"""2025-01-01. Ids are milliseconds since then in base 32: sortable, and short until 2059."""


class SessionError(Exception):
    """The session cannot do it; the text is a sentence for the user."""


class Session:
    """One open session. Made by `Session.open`."""

    def __init__(self, directory: Path, store: Store, history: History) -> None:
        self.directory = directory
        self.options = SessionOptions()
        self.model: ModelInfo | None = None
        self.variants: dict[str, Variant] = {}
        """By id, parents before children."""
        self.measurements: dict[str, Measurement] = {}
        self.jobs: dict[str, Job] = {}
        self.runs: dict[str, RecipeRun] = {}
        self.notices: list[str] = []
        """Sentences the user should see, oldest first."""
        self.store = store
        """For this module and `engine/recovery.py` only."""
        self.history = history
        self.last_id = ""
        self._unsaved: dict[tuple[str, str], Row] = {}

    @classmethod
    def open(cls, directory: str | Path) -> "Session":
        """Open or create the session in this directory, and put right whatever a kill or a disk left behind.

        Raises SessionError when the directory cannot be used or a newer Trimtab wrote it.
        """
        place = Path(directory).absolute()
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in ("variants", "jobs", "exports"):
                (place / part).mkdir(exist_ok=True)
        except OSError as error:
            raise SessionError(f"The session cannot be kept in {place}: {error.strerror}.") from None
        notices = []
        try:
            rebuild = not (place / "session.db").exists()
            try:
                store = Store(place / "session.db")
            except StoreCorrupt as error:
                notices.append(_set_aside(place, str(error)))
                store, rebuild = Store(place / "session.db"), True
            session = cls(place, store, History(place / "telemetry.db"))
            session.notices = notices
            try:
                recover(session, rebuild=rebuild)
            except BaseException:
                session.close()
                raise
        except StoreError as error:
            raise SessionError(str(error)) from None
        except (OSError, variant_files.FilesError) as error:
            raise SessionError(f"The session in {place} cannot be opened: {error}") from error
        return session

    # --- facts -------------------------------------------------------------------------------------

    def set_options(self, options: SessionOptions) -> None:
        """Change what the session measures and accepts."""
        self.put_rows(Row("fact", "options", options))
        self.options = options

    def set_model(self, model: ModelInfo) -> None:
        """Keep what the model file offers."""
        try:
            variant_files.write_file(self.directory / "model.json", msgspec.json.encode(model))
        except variant_files.FilesError as error:
            raise SessionError(str(error)) from None
        self.put_rows(Row("fact", "model", model))
        self.model = model

    # --- jobs and runs -----------------------------------------------------------------------------

    def put_job(self, job: Job, durable: bool = True) -> None:
        """Keep a job's state; `durable=False` for progress, which lives in memory only.

        A success that cannot be stored raises SessionError and changes nothing. Any other state is kept in memory,
        with a notice, and stored with the next thing that can be.
        """
        if durable:
            self.put_rows(Row("job", job.id, job), vital=isinstance(job.state, Succeeded))
        self.jobs[job.id] = job

    def put_run(self, run: RecipeRun) -> None:
        """Keep a recipe run's state. Never raises for a full disk (see `put_job`)."""
        self.put_rows(Row("run", run.id, run), vital=False)
        self.runs[run.id] = run

    def job_directory(self, id: str) -> Path:
        """`jobs/<id>/`, which is made if need be."""
        directory = self.directory / "jobs" / _checked(id)
        directory.mkdir(exist_ok=True)
        return directory

    def work_directory(self, id: str) -> Path:
        """`jobs/<id>/work/`: where the job's worker writes. Made if need be."""
        directory = self.job_directory(id) / "work"
        directory.mkdir(exist_ok=True)
        return directory

    def log_path(self, id: str) -> Path:
        """Where the job's log is, or will be."""
        return self.directory / "jobs" / _checked(id) / "log.txt"

    def discard_work(self, id: str) -> None:
        """Remove what a finished job left in its work directory. Blocks while it deletes."""
        shutil.rmtree(self.directory / "jobs" / _checked(id) / "work", ignore_errors=True)

    def discard_files(self, variant_id: str) -> None:
        """Remove stored files that did not become a variant after all."""
        if variant_id not in self.variants:
            shutil.rmtree(self._variants / _checked(variant_id), ignore_errors=True)

    # --- variants and measurements -----------------------------------------------------------------

    def store_files(self, variant_id: str, draft: VariantDraft, work_directory: str | Path) -> tuple[FileRecord, ...]:
        """Copy a draft's files into `variants/<id>/`, hashed and synced. Blocks: call it in a thread.

        Until `add_variant` has been called the files belong to nobody and are swept at the next start. Raises
        SessionError for a path that leaves the work directory, a link, or a full disk; then nothing is left behind.
        """
        try:
            return variant_files.take(self._variants, _checked(variant_id), draft.files, Path(work_directory))
        except variant_files.FilesError as error:
            raise SessionError(str(error)) from error

    def add_variant(self, variant: Variant) -> None:
        """Make stored files a variant: the manifest first, the row after it. Then it exists for good."""
        if variant.parent is not None and variant.parent not in self.variants:
            raise SessionError(f"The variant {clean_text(variant.name, 80)} has a parent that is not in the session.")
        wrong = variant_files.what_is_wrong(self._variants / _checked(variant.id), variant)
        if wrong or not variant.files:
            raise SessionError(
                f"The variant {clean_text(variant.name, 80)} is not stored whole: {wrong or 'no files'}."
            )
        try:
            variant_files.commit(self._variants, variant)
        except variant_files.FilesError as error:
            raise SessionError(str(error)) from error
        # From here on a restart finds it by its manifest, so a row that cannot be written loses nothing.
        self.put_rows(Row("variant", variant.id, variant), vital=False)
        self.variants[variant.id] = variant

    def add_measurement(self, measurement: Measurement) -> None:
        """Keep a measurement, in the variant's journal and in the database."""
        if measurement.variant not in self.variants:
            raise SessionError("The variant that was measured is no longer in the session.")
        try:
            variant_files.append_measurement(self._variants / measurement.variant, measurement)
        except OSError as error:
            raise SessionError(variant_files.describe(error, self.directory)) from error
        self.put_rows(Row("measurement", measurement.id, measurement, owner=measurement.variant))
        self.measurements[measurement.id] = measurement

    def delete_variant(self, id: str) -> None:
        """Remove a variant with its files and measurements.

        Raises SessionError when it is the baseline, when others were made from it, or while a job works on it.
        """
        variant = self.variants.get(id)
        if variant is None:
            raise SessionError(f"There is no variant {clean_text(id, 80)}.")
        shown = clean_text(variant.name, 80)
        children = [clean_text(child.name, 80) for child in self.variants.values() if child.parent == id]
        if variant.parent is None:
            raise SessionError(f"{shown} is the baseline: everything is compared with it, so it stays.")
        if children:
            raise SessionError(f"{shown} has variants made from it: delete {', '.join(children)} first.")
        if busy := [job for job in self.jobs.values() if job.variant == id and not job.is_done]:
            raise SessionError(f"{shown} is in use by the job “{clean_text(busy[0].title, 80)}”: cancel that first.")
        try:
            doomed = variant_files.delete(self._variants, id)
        except OSError as error:
            raise SessionError(variant_files.describe(error, self.directory)) from error
        self._unsaved.pop(("variant", id), None)
        self.measurements = {key: m for key, m in self.measurements.items() if m.variant != id}
        del self.variants[id]
        self._guard(lambda: self.store.remove("variant", id, owned=True))
        shutil.rmtree(doomed, ignore_errors=True)

    def resolve(self, word: str) -> Variant:
        """The variant a user means: a name, an id or the start of one, "baseline", or "best".

        "best" is the fastest that passes the accuracy limit. Raises SessionError with the known names.
        """
        if word == "best":
            best = best_variant(self.variants.values(), self.measurements.values(), self.options)
            if best is None:
                raise SessionError("No variant has been measured yet, so none is the best.")
            return best
        # Of several with one name (in a session that was repaired) the newest is meant.
        for variant in sorted(self.variants.values(), key=lambda v: v.id, reverse=True):
            if variant.name == word:
                return variant
        if word == "baseline" and (root := self.baseline):
            return root
        starts = [variant for id, variant in self.variants.items() if word and id.startswith(word)]
        if len(starts) == 1:
            return starts[0]
        if not self.variants:
            raise SessionError(f"There is no variant {clean_text(word, 80)}: no model has been opened yet.")
        known = ", ".join(clean_text(variant.name, 80) for variant in self.variants.values())
        raise SessionError(f"There is no variant {clean_text(word, 80)}. Known: {known}, best.")

    @property
    def baseline(self) -> Variant | None:
        """The root of the tree; None before a model was opened."""
        return next((variant for variant in self.variants.values() if variant.parent is None), None)

    def verify(self) -> list[str]:
        """Read every byte of every variant: a sentence for each that no longer matches its hashes. Blocks."""
        found = []
        for variant in list(self.variants.values()):
            if wrong := variant_files.what_is_wrong(self._variants / variant.id, variant, hashes=True):
                found.append(f"The files of {clean_text(variant.name, 80)} are damaged: {wrong}.")
        return found

    def new_id(self) -> str:
        """A short id that sorts after every older one of this session."""
        number = max(int(time.time() * 1000) - _ID_EPOCH_MS, _number_of(self.last_id) + 1)
        self.last_id = "".join(_ID_DIGITS[number >> 5 * place & 31] for place in reversed(range(_ID_LENGTH)))
        return self.last_id

    def unique_name(self, wanted: str) -> str:
        """The wanted name, or with "-2", "-3" … when a variant has it already."""
        taken = {variant.name for variant in self.variants.values()} | set(RESERVED_NAMES)
        name = clean_text(wanted, 100).strip() or "variant"
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}-{number}"
        return candidate

    # --- history -----------------------------------------------------------------------------------

    def record_metric(self, job: str, name: str, value: float, step: int, time: float) -> None:
        """Keep a point of a job's curve. Cheap; stored within a second; never raises."""
        self.history.add_point(job, (name, value, step, time))

    def metrics(self, job: str) -> list[tuple[str, float, int, float]]:
        """Every (name, value, step, time) that a job reported, in order."""
        return self.history.points(job)

    def record_load(self, job: str, settings: LoadSettings) -> None:
        """Keep what a load test was asked to do, which a cancelled search's tests do not say. Never raises."""
        self.history.add_load(job, settings)

    def load(self, job: str) -> LoadSettings | None:
        """What a load test was asked to do; None when that is not known."""
        return self.history.load(job)

    def record_tick(self, job: str, tick: LoadTick) -> None:
        """Keep a tick of a load test. Never raises."""
        self.history.add_tick(job, tick)

    def ticks(self, job: str) -> list[LoadTick]:
        """Every tick of a load test, in order."""
        return self.history.ticks(job)

    def record_telemetry(self, sample: TelemetrySample) -> None:
        """Keep a sample of the hardware. Never raises: on a full disk it is dropped."""
        self.history.add_sample(sample)
        if self.history.trouble:
            self.notice(self.history.trouble)

    def telemetry(self, since: float, limit: int = 600) -> list[TelemetrySample]:
        """Samples since a time (seconds since the epoch), at most `limit`, thinned so that peaks and dips stay."""
        return self.history.samples(since, limit)

    def close(self) -> None:
        """Let go of the databases. Not needed for safety, only for tidiness."""
        self._guard(self._retry_unsaved)
        self.history.close()
        self.store.close()

    # --- inside ------------------------------------------------------------------------------------

    @property
    def _variants(self) -> Path:
        return self.directory / "variants"

    def notice(self, sentence: str) -> None:
        """Tell the user once."""
        if sentence not in self.notices:
            self.notices.append(sentence)

    def put_rows(self, *rows: Row, vital: bool = True) -> None:
        """Store rows; what is not vital is kept for later when the store cannot take it now."""
        new = {(row.kind, row.id): row for row in rows}
        try:
            self.store.put(*(self._unsaved | new).values())
            self._unsaved.clear()
        except StoreError as error:
            if vital:
                raise SessionError(str(error)) from error
            self._unsaved |= new
            self.notice(str(error))

    def _retry_unsaved(self) -> None:
        if self._unsaved:
            self.store.put(*self._unsaved.values())
            self._unsaved.clear()

    def _guard(self, action: Any) -> None:
        try:
            action()
        except StoreError as error:
            self.notice(str(error))


def _set_aside(place: Path, why: str) -> str:
    """Move a damaged database out of the way, never delete it; returns the notice."""
    aside = f"session.db.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("-wal", "-shm", ""):
        part = place / f"session.db{suffix}"
        if part.exists():
            part.rename(place / f"{aside}{suffix}")
    return f"{why} It was kept as {aside}; the session was rebuilt from the variants' files, its list of jobs is lost."


def _checked(id: str) -> str:
    """The id, when it has the form of one: it becomes part of a path."""
    if not id or any(digit not in _ID_DIGITS for digit in id):
        raise SessionError(f"{clean_text(id, 40)} is no id of this session.")
    return id


def _number_of(id: str) -> int:
    number = 0
    for digit in id:
        number = number * 32 + _ID_DIGITS.index(digit)
    return number
