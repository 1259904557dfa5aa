"""What a job is asked for, and what its worker is told: the task with everything it needs to find the rest.

A `JobSpec` names files and variants; the worker opens them itself. Raises SessionError where a job cannot be put in
such words (no model is open, a variant was removed meanwhile).
"""

import os

from msgspec import Struct

from ..devices import devices_of
from ..protocol import (
    ExplainVariant,
    Hardware,
    Job,
    JobSpec,
    MeasureAccuracy,
    MeasureLatency,
    MeasureProfile,
    ModelSource,
    RunTechnique,
    ScanSensitivity,
    Sensitivity,
    Serve,
    Task,
    TestLoad,
    Variant,
)
from ..session import Session, SessionError


class JobRequest(Struct, frozen=True, kw_only=True):
    """All that is needed to run a job."""

    task: Task
    title: str
    kind: str
    """"open-model", a technique's tag, or a measurement's name."""
    variant: str | None = None
    """The id of the variant it works on."""
    device: str = "cpu"
    exclusive: bool | None = None
    """It runs alone. None: as its task needs it, which is alone for measurements."""
    recipe_run: str | None = None
    name: str | None = None
    """What the new variant is to be called; None: the technique's tag."""
    source: ModelSource | None = None
    """The model file; None: the one that is open."""
    limit: float | None = None
    batch_sizes: tuple[int, ...] | None = None
    """None for these two: as the session's options say."""
    threads: int | None = None
    """None: one for each physical core this process may use."""
    seed: int = 0


def specify(session: Session, hardware: Hardware, job: Job, request: JobRequest) -> JobSpec:
    """The job as its worker is told it."""
    source = request.source or (session.model.source if session.model is not None else None)
    if source is None:
        raise SessionError("No model is open in this session.")
    baseline = session.baseline
    devices = devices_of(request.device, len(hardware.gpus)) or (request.device,)
    return JobSpec(
        job=job.id,
        task=request.task,
        source=source,
        variants=_needed_variants(session, request),
        baseline=baseline.id if baseline is not None else None,
        session_directory=os.fspath(session.directory),
        work_directory=os.fspath(session.work_directory(job.id)),
        device=devices[0],
        devices=devices if len(devices) > 1 else (),
        processor=hardware.processor,
        threads=request.threads or usable_cores(hardware),
        limit=request.limit if request.limit is not None else session.options.accuracy_limit,
        batch_sizes=request.batch_sizes or session.options.batch_sizes,
        model=session.model,
        seed=request.seed,
        scan=_newest_scan(session, request),
    )


def usable_cores(hardware: Hardware) -> int:
    """Threads a worker computes with: one a physical core, no more than this process is allowed."""
    return max(1, min(hardware.processor.physical_cores, len(os.sched_getaffinity(0))))


def _needed_variants(session: Session, request: JobRequest) -> dict[str, Variant]:
    """The variant the task names, its parent and the baseline, by id."""
    match request.task:
        case (
            RunTechnique(source=named)
            | MeasureLatency(variant=named)
            | MeasureAccuracy(variant=named)
            | MeasureProfile(variant=named)
            | ScanSensitivity(variant=named)
            | TestLoad(variant=named)
            | Serve(variant=named)
        ):
            chosen = [_present(session, named)]
        case ExplainVariant():
            chosen = [_present(session, request.task.variant), _present(session, request.task.against)]
        case _:
            return {}
    if chosen[0].parent is not None:
        chosen.append(session.variants[chosen[0].parent])
    if session.baseline is not None:
        chosen.append(session.baseline)
    return {variant.id: variant for variant in chosen}


def _newest_scan(session: Session, request: JobRequest) -> Sensitivity | None:
    """The sensitivity scan of the variant that a technique starts from."""
    if not isinstance(request.task, RunTechnique):
        return None
    known = session.measurements.values()
    scans = [one for one in known if isinstance(one, Sensitivity) and one.variant == request.task.source]
    return max(scans, key=lambda one: one.created, default=None)


def _present(session: Session, id: str) -> Variant:
    if id not in session.variants:
        raise SessionError(f"The variant {id} is no longer in the session.")
    return session.variants[id]
