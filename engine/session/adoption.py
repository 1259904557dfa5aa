"""Take what a worker made into the session: drafts become variants, measurements get their ids.

The order is the promise: files are hashed and stored, then the variant's record, then the measurements, and only when
all of it is kept does the caller show the job as succeeded.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..protocol import (
    EngineEvent,
    FileRecord,
    Finished,
    InspectModel,
    Job,
    MeasurementAdded,
    ModelOpened,
    Processor,
    RunTechnique,
    Succeeded,
    Task,
    Variant,
    VariantAdded,
    VariantDraft,
)
from ..targets import resolve_target
from ..techniques import find_technique
from .session import Session

BASELINE_NAME = "baseline"
"""The first variant of every session."""

_COMPLEXITIES = ("low", "medium", "high")


async def adopt(
    session: Session,
    job: Job,
    task: Task,
    name: str | None,
    finished: Finished,
    processor: Processor,
    started: float,
    publish: Callable[[EngineEvent], None],
) -> Succeeded:
    """Keep everything `finished` brought and return the state to show. Raises SessionError when the disk says no.

    Cancelled while files are still copied, it keeps nothing of them.
    """
    stored = await _store_files(session, job, finished)
    # From here on nothing waits: either all of it is kept or an error says what could not be.
    if finished.model is not None:
        session.set_model(finished.model)
        publish(ModelOpened(seq=0, model=finished.model))
    variants = []
    for id, draft, records in stored:
        variant = _variant(session, id, job, task, name, draft, records, processor, started)
        session.add_variant(variant)
        publish(VariantAdded(seq=0, variant=variant))
        variants.append(id)
    measurements = []
    for measured in finished.measurements:
        measurement = msgspec.structs.replace(measured, id=session.new_id(), job=job.id)
        session.add_measurement(measurement)
        publish(MeasurementAdded(seq=0, measurement=measurement))
        measurements.append(measurement.id)
    return Succeeded(
        started=started,
        finished=time.time(),
        variants=tuple(variants),
        measurements=tuple(measurements),
        summary=finished.summary,
    )


async def _store_files(
    session: Session, job: Job, finished: Finished
) -> list[tuple[str, VariantDraft, tuple[FileRecord, ...]]]:
    """Every draft's files in a place of their own, hashed. All of them or, after an error, none."""
    work = session.work_directory(job.id)
    drafts = [(session.new_id(), draft) for draft in finished.variants]

    def store() -> list[tuple[str, VariantDraft, tuple[FileRecord, ...]]]:
        return [(id, draft, session.store_files(id, draft, work)) for id, draft in drafts]

    def discard(storing: asyncio.Future[Any]) -> None:
        storing.exception()  # whoever waited has it, or nobody wants it any more
        for id, _ in drafts:
            session.discard_files(id)

    storing = asyncio.ensure_future(asyncio.to_thread(store))
    try:
        return await asyncio.shield(storing)
    except BaseException:
        # A thread cannot be stopped: when it has come to its end, what it wrote goes.
        storing.add_done_callback(discard)
        raise


def _variant(
    session: Session,
    id: str,
    job: Job,
    task: Task,
    name: str | None,
    draft: VariantDraft,
    records: tuple[FileRecord, ...],
    processor: Processor,
    started: float,
) -> Variant:
    """The record of a draft whose files are stored."""
    parent = technique = None
    parameters = draft.parameters or {}
    requested: dict[str, Any] | None = None
    target = "this-machine"
    complexity = "low"
    if isinstance(task, RunTechnique):
        source = session.variants[task.source]
        parent, technique, target = source.id, task.technique, task.target
        parameters = draft.parameters if draft.parameters is not None else task.parameters
        requested = task.parameters if parameters != task.parameters else None
        own = find_technique(technique).complexity
        complexity = max(own, source.complexity, key=_COMPLEXITIES.index)
    wanted = name or (BASELINE_NAME if isinstance(task, InspectModel) else technique or job.kind)
    deployed = set(draft.deployed_files)
    return Variant(
        id=id,
        name=session.unique_name(f"{wanted}/{draft.label}" if draft.label else wanted),
        parent=parent,
        technique=technique,
        parameters=parameters,
        format=draft.format,
        files=records,
        size_bytes=sum(record.size_bytes for record in records if record.path in deployed),
        created=time.time(),
        target=resolve_target(draft.target or target, processor).name,
        processor=",".join(processor.features),
        changed=draft.changed,
        parameter_count=draft.parameter_count,
        macs=draft.macs,
        complexity=complexity,  # type: ignore[arg-type]
        portable=draft.portable,
        seconds=time.time() - started,
        job=job.id,
        requested=requested,
        requested_target=resolve_target(target, processor).name if draft.target else None,
    )
