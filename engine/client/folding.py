"""Keep a snapshot up to date: `fold(snapshot, event)` is the snapshot after the event.

Pure, and the one definition of what an event means: the client folds what it receives, and a test folds a whole
history and compares with the snapshot that the engine sends to someone who attaches at the end.
"""

from typing import Any, TypeVar

import msgspec

from ..protocol import (
    EngineEvent,
    JobChanged,
    MeasurementAdded,
    MetricRecorded,
    ModelOpened,
    NoticeGiven,
    OptionsChanged,
    RunChanged,
    Snapshot,
    TelemetrySampled,
    VariantAdded,
    VariantRemoved,
)

TELEMETRY_SECONDS = 120.0
"""How much of the machine's recent past a snapshot holds: what the live charts show."""

R = TypeVar("R", bound=Any)


def fold(snapshot: Snapshot, event: EngineEvent) -> Snapshot:
    """The snapshot after `event`. Lines of a job's log are not part of it and change only `seq`."""
    changes: dict[str, Any] = {"seq": event.seq}
    match event:
        case ModelOpened():
            changes["model"] = event.model
        case OptionsChanged():
            changes["options"] = event.options
        case VariantAdded():
            changes["variants"] = put(snapshot.variants, event.variant)
        case VariantRemoved():
            changes["variants"] = tuple(one for one in snapshot.variants if one.id != event.variant)
            changes["measurements"] = tuple(one for one in snapshot.measurements if one.variant != event.variant)
        case MeasurementAdded():
            changes["measurements"] = put(snapshot.measurements, event.measurement)
        case JobChanged():
            changes["jobs"] = put(snapshot.jobs, event.job)
        case RunChanged():
            changes["runs"] = put(snapshot.runs, event.run)
        case MetricRecorded():
            changes["jobs"] = tuple(
                msgspec.structs.replace(job, metrics={**job.metrics, event.name: event.value})
                if job.id == event.job
                else job
                for job in snapshot.jobs
            )
        case TelemetrySampled():
            oldest = event.sample.time - TELEMETRY_SECONDS
            kept = tuple(sample for sample in snapshot.telemetry if sample.time >= oldest)
            changes["telemetry"] = (*kept, event.sample)
        case NoticeGiven():
            if event.text not in snapshot.notices:
                changes["notices"] = (*snapshot.notices, event.text)
    return msgspec.structs.replace(snapshot, **changes)


def put(records: tuple[R, ...], record: R) -> tuple[R, ...]:
    """`records` with `record` in the place of the one with the same id, or at the end."""
    for index in range(len(records) - 1, -1, -1):
        if records[index].id == record.id:
            return (*records[:index], record, *records[index + 1 :])
    return (*records, record)
