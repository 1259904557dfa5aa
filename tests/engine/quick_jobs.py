"""A queue for tests of recipes: jobs end at once, without a worker, but what they make is stored for real."""

import asyncio

import msgspec
from session_makers import add_accuracy, add_latency, make_model

from engine.protocol import (
    Cancelled,
    Changed,
    Conditions,
    Failed,
    Hardware,
    InspectModel,
    Job,
    MeasureAccuracy,
    MeasureLatency,
    Processor,
    Running,
    RunTechnique,
    Succeeded,
    Variant,
    VariantDraft,
)
from engine.session import Session, SessionError

PROCESSOR = Processor(
    name="Test CPU", features=("avx2", "vnni"), physical_cores=2, logical_cores=2, memory_bytes=8 << 30
)


class QuickJobs:
    """What `engine.jobs.Jobs` is to a recipe. `drops` and `failures` say what becomes of a variant or a kind of job."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.hardware = Hardware(hostname="test", processor=PROCESSOR)
        self.closed = False
        self.ran = []
        """(kind, name of the variant it worked on) of every job."""
        self.requests = []
        self.drops = {}
        self.failures = {}
        self.labels = {}
        """Step name → labels of further variants it makes."""
        self.blocked_on = None
        """A kind of job that runs until it is cancelled."""
        self.started = asyncio.Event()
        self._cancelled = {}

    async def run(self, request) -> Job:
        if self.closed:
            raise SessionError("The engine is ending.")
        session = self.session
        worked_on = session.variants[request.variant].name if request.variant else ""
        self.ran.append((request.kind, worked_on))
        self.requests.append(request)
        job = Job(
            id=session.new_id(),
            kind=request.kind,
            title=request.title,
            created=1.0,
            state=Running(started=1.0),
            variant=request.variant,
            recipe_run=request.recipe_run,
            device=request.device,
        )
        self._cancelled[job.id] = asyncio.Event()
        if request.kind == self.blocked_on:
            await self._wait(job)
            state = Cancelled(started=1.0, finished=2.0)
        elif failure := self.failures.get(request.name or request.kind) or self.failures.get(worked_on):
            state = failure
        else:
            state = self._do(job, request)
        job = msgspec.structs.replace(job, state=state)
        session.put_job(job)
        await asyncio.sleep(0)
        return job

    def cancel(self, id):
        self._cancelled[id].set()
        return True

    async def _wait(self, job):
        self.session.put_job(job)
        self.started.set()
        await self._cancelled[job.id].wait()

    def _do(self, job, request):
        session, made, measured = self.session, [], []
        match request.task:
            case InspectModel():
                model = make_model()
                session.set_model(msgspec.structs.replace(model, source=request.source))
                made = [self._store(job, None, request, None)]
            case RunTechnique():
                labels = [None, *self.labels.get(request.name, ())]
                made = [self._store(job, session.variants[request.task.source], request, label) for label in labels]
            case MeasureAccuracy(variant=id, runtime=runtime):
                variant = session.variants[id]
                drop = self.drops.get(variant.name, 0.0)
                where = conditions(runtime, request.device)
                measured = [add_accuracy(session, variant, drop, conditions=where).id]
            case MeasureLatency(variant=id, runtime=runtime, batch_sizes=sizes):
                where = conditions(runtime, request.device)
                measured = [
                    add_latency(session, session.variants[id], 2.0, batch_size=size, conditions=where).id
                    for size in sizes
                ]
        return Succeeded(started=1.0, finished=2.0, variants=tuple(made), measurements=tuple(measured))

    def _store(self, job, source, request, label):
        session = self.session
        id, work = session.new_id(), session.work_directory(job.id)
        technique = request.task.technique if source else None
        format = "pytorch" if source is None else "onnx"
        (work / "file").write_bytes(id.encode())
        draft = VariantDraft(label=label, format=format, files=("file",), deployed_files=("file",))
        name = request.name or "baseline"
        variant = Variant(
            id=id,
            name=session.unique_name(f"{name}/{label}" if label else name),
            parent=source.id if source else None,
            technique=technique,
            parameters=request.task.parameters if source else {},
            format=format,
            files=session.store_files(id, draft, work),
            size_bytes=8,
            created=1.0,
            target=request.task.target if source else "cpu-vnni",
            processor="avx2,vnni",
            changed=Changed(summary="all of it") if source else None,
            job=job.id,
        )
        session.add_variant(variant)
        return id


def conditions(runtime, device):
    return Conditions(runtime=runtime, device=device, processor="avx2,vnni", threads=2)


def failed(reason, cause="error"):
    return Failed(started=1.0, finished=2.0, reason=reason, cause=cause)
