"""The queue of jobs: each waits for its device, runs in a worker of its own, and ends in exactly one of three ways.

    job = jobs.submit(JobRequest(task=…, title="Export to ONNX", kind="export-onnx", variant=id))
    job = await jobs.run(request)          # the same, and waits for the end: Succeeded, Failed or Cancelled

What one may rely on: a job is shown as succeeded only when everything it made is stored; whatever a worker does, only
its own job fails, with a sentence; cancelling ends the worker's whole process group within two seconds (SIGTERM, then
SIGKILL) and removes its work directory. Runs in the engine's event loop.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..protocol import (
    Cancelled,
    EngineEvent,
    ExplainVariant,
    Failed,
    Finished,
    GaveUp,
    Hardware,
    Job,
    JobChanged,
    JobLogged,
    JobState,
    Listening,
    LoadSettings,
    LoadTicked,
    Logged,
    MeasurementAdded,
    MetricRecorded,
    MetricReported,
    Progressed,
    Queued,
    Running,
    Serve,
    Steer,
    Succeeded,
    TestLoad,
    Ticked,
    Took,
    WorkerMessage,
)
from ..session import Session, SessionError
from ..session.adoption import adopt
from ..session.disk import disk_is_short
from ..session.variant_files import describe
from .causes import MemoryWitness, explain_death
from .leases import claim_of, startable
from .logs import LogFollower, append, last_line
from .specifying import JobRequest, specify
from .supervision import accompany, unless
from .workers import ForkServer, Garbled, Worker, WorkerNotStarted

log = logging.getLogger("trimtab.jobs")


class Jobs:
    """The queue of one session. `publish` takes events, whose `seq` it fills in."""

    def __init__(
        self, session: Session, hardware: Hardware, workers: ForkServer, publish: Callable[[EngineEvent], None]
    ) -> None:
        self.session = session
        self.hardware = hardware
        self.workers = workers
        self._publish = publish
        self._entries: dict[str, _Entry] = {}
        """Jobs that have not ended, in the order they were asked for."""
        self._leftovers: set[asyncio.Task[Any]] = set()
        self.closed = False

    @property
    def idle(self) -> bool:
        """No job is queued or running."""
        return not self._entries

    @property
    def running(self) -> list[str]:
        """The ids of the jobs that have a worker now."""
        return [id for id, entry in self._entries.items() if entry.task is not None]

    def submit(self, request: JobRequest) -> Job:
        """Queue a job. It starts when its device is free."""
        job = Job(
            id=self.session.new_id(),
            kind=request.kind,
            title=request.title,
            created=time.time(),
            state=Queued(),
            variant=request.variant,
            against=request.task.against if isinstance(request.task, ExplainVariant) else None,
            recipe_run=request.recipe_run,
            device=request.device,
        )
        entry = self._entries[job.id] = _Entry(job, request, LogFollower(self.session.log_path(job.id)))
        self._show(entry)
        if self.closed:
            self._end(entry, Cancelled(started=None, finished=time.time()))
        else:
            self.workers.warm()
            self._start_what_can()
        return entry.job

    async def run(self, request: JobRequest) -> Job:
        """Queue a job and wait for its end. If the waiting is cancelled, so is the job."""
        entry = self._entries.get(self.submit(request).id)
        if entry is None:
            raise SessionError("The engine is ending.")
        try:
            return await asyncio.shield(entry.ended)
        except asyncio.CancelledError:
            self.cancel(entry.job.id)
            raise

    def cancel(self, id: str) -> bool:
        """Stop a queued or running job; False if it has ended already. Its end is an event of its own."""
        entry = self._entries.get(id)
        if entry is None:
            return False
        entry.cancel.set()
        if entry.task is None:
            self._end(entry, Cancelled(started=None, finished=time.time()))
        elif isinstance(entry.job.state, Running):
            self._change(entry, msgspec.structs.replace(entry.job.state, cancelling=True), durable=False)
        return True

    def steer(self, id: str, message: Steer) -> None:
        """Turn a running load test's knobs. Raises SessionError when there is nothing to turn."""
        self._tell(id, TestLoad, "load test", message)

    def stop_serving(self, id: str) -> None:
        """Have a server answer what it accepted and end. Raises SessionError when it is none."""
        self._tell(id, Serve, "server", Steer(stop=True))

    def _tell(self, id: str, kind: type, what: str, message: Steer) -> None:
        entry = self._entries.get(id)
        if entry is None:
            raise SessionError(f"The {what} has ended already.")
        if not isinstance(entry.request.task, kind):
            raise SessionError(f"{entry.job.title} is no {what}.")
        if entry.worker is None:
            raise SessionError(f"The {what} has not started yet.")
        entry.worker.send(message)

    def load_of(self, id: str) -> LoadSettings | None:
        """What an unfinished load test is asked to do; None for every other job."""
        entry = self._entries.get(id)
        return entry.request.task.settings if entry and isinstance(entry.request.task, TestLoad) else None

    async def close(self) -> None:
        """Cancel everything and wait until every worker is gone. No job can be submitted afterwards."""
        self.closed = True
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for id in list(self._entries):
            self.cancel(id)
        if tasks:
            await asyncio.wait(tasks)
        if self._leftovers:
            await asyncio.wait(self._leftovers)

    # --- the queue ---------------------------------------------------------------------------------

    def _start_what_can(self) -> None:
        running = [entry.claim for entry in self._entries.values() if entry.task is not None]
        waiting = [entry.claim for entry in self._entries.values() if entry.task is None]
        start, blocked = startable(running, waiting)
        for claim in start:
            entry = self._entries[claim.job]
            entry.task = asyncio.create_task(self._run(entry), name=f"job {claim.job}")
        for id, reason in blocked.items():
            entry = self._entries[id]
            if entry.job.state != Queued(waiting_for=reason):
                self._change(entry, Queued(waiting_for=reason), durable=False)

    async def _run(self, entry: "_Entry") -> None:
        """One job from start to end. Never raises: whatever goes wrong is this job's failure."""
        started = time.time()
        try:
            self._change(entry, Running(started=started))
            state = await self._attempt(entry, started)
        except SessionError as error:
            state = Failed(started=started, finished=time.time(), reason=str(error))
        except OSError as error:
            reason = describe(error, self.session.directory)
            state = Failed(started=started, finished=time.time(), reason=reason)
        except Exception as error:
            log.exception("job %s failed inside the engine", entry.job.id)
            reason = f"The engine failed to run this job: {type(error).__name__}: {error} (see engine.log)."
            state = Failed(started=started, finished=time.time(), reason=reason)
        self._tidy(entry)
        self._end(entry, state)

    def _end(self, entry: "_Entry", state: JobState) -> None:
        try:
            self._change(entry, state)
        except SessionError as error:
            # Only a success must be stored to be shown; without that it is none.
            begun = getattr(state, "started", None)
            self._change(entry, Failed(started=begun, finished=time.time(), reason=str(error)))
        self._entries.pop(entry.job.id, None)
        if not entry.ended.done():
            entry.ended.set_result(entry.job)
        self._start_what_can()

    def _tidy(self, entry: "_Entry") -> None:
        """Remove the work directory without making anyone wait for the disk."""
        task = asyncio.create_task(asyncio.to_thread(self.session.discard_work, entry.job.id))
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    # --- one job -----------------------------------------------------------------------------------

    async def _attempt(self, entry: "_Entry", started: float) -> JobState:
        """Run the worker and judge how it ended."""
        path = self.session.log_path(entry.job.id)
        spec = specify(self.session, self.hardware, entry.job, entry.request)
        short = disk_is_short(self.session.directory, sum(variant.size_bytes for variant in spec.variants.values()))
        if short:
            return Failed(started=started, finished=time.time(), reason=short, cause="refused")
        witness = MemoryWitness()
        try:
            worker = await unless(entry.cancel, self.workers.start_worker(spec, path))
        except WorkerNotStarted as error:
            return Failed(started=started, finished=time.time(), reason=str(error), cause="lost")
        if worker is None:
            return Cancelled(started=started, finished=time.time())
        entry.worker = worker
        if isinstance(entry.request.task, TestLoad):
            self.session.record_load(entry.job.id, entry.request.task.settings)
        if isinstance(entry.job.state, Running):
            self._change(entry, msgspec.structs.replace(entry.job.state, pid=worker.pid), durable=False)
        last, ended = await accompany(
            worker, entry.cancel, functools.partial(self._take, entry), functools.partial(self._look_at_log, entry)
        )
        if isinstance(last, Finished):
            adopted = await unless(entry.cancel, self._adopt(entry, last, started))
            return adopted or Cancelled(started=started, finished=time.time())
        if entry.cancel.is_set():
            return Cancelled(started=started, finished=time.time())
        if isinstance(last, GaveUp):
            append(path, f"{last.detail}\n{last.reason}\n" if last.detail else f"{last.reason}\n")
            self._look_at_log(entry, ended=True)
            return Failed(started=started, finished=time.time(), reason=last.reason, cause=last.cause)
        if isinstance(last, Garbled):
            reason = f"The worker sent a message that cannot be understood: {last}."
            return Failed(started=started, finished=time.time(), reason=reason)
        death = explain_death(ended, witness, last_line(path), entry.job.goes_on)
        return Failed(started=started, finished=time.time(), reason=death.reason, cause=death.cause)

    async def _adopt(self, entry: "_Entry", finished: Finished, started: float) -> Succeeded:
        request, processor = entry.request, self.hardware.processor
        return await adopt(
            self.session, entry.job, request.task, request.name, finished, processor, started, self._publish
        )

    def _take(self, entry: "_Entry", message: WorkerMessage) -> None:
        """Progress, a metric or a log line from the worker."""
        job = entry.job
        if isinstance(message, Progressed) and isinstance(job.state, Running):
            state = msgspec.structs.replace(job.state, done=message.done, total=message.total, message=message.message)
            self._change(entry, state, durable=False)
        elif isinstance(message, MetricReported):
            now = time.time()
            entry.job = msgspec.structs.replace(job, metrics={**job.metrics, message.name: message.value})
            self.session.put_job(entry.job, durable=False)
            self.session.record_metric(job.id, message.name, message.value, message.step, now)
            self._publish(
                MetricRecorded(seq=0, job=job.id, name=message.name, value=message.value, step=message.step, time=now)
            )
        elif isinstance(message, Ticked):
            self.session.record_tick(job.id, message.tick)
            self._publish(LoadTicked(seq=0, job=job.id, tick=message.tick))
        elif isinstance(message, Listening) and message.urls:
            # The title as it was may name port 0.
            title = f"{job.title.rpartition(' on ')[0]} on {message.urls[0]}"
            entry.job = msgspec.structs.replace(job, urls=message.urls, title=title)
            entry.claim = claim_of(entry.job, entry.request.task, entry.request.exclusive)
            self._show(entry)
        elif isinstance(message, Took):
            measurement = msgspec.structs.replace(message.measurement, id=self.session.new_id(), job=job.id)
            self.session.add_measurement(measurement)
            self._publish(MeasurementAdded(seq=0, measurement=measurement))
        elif isinstance(message, Logged):
            append(self.session.log_path(job.id), f"{message.text}\n")

    def _look_at_log(self, entry: "_Entry", ended: bool) -> None:
        lines = entry.follower.new_lines(ended)
        if lines:
            self._publish(JobLogged(seq=0, job=entry.job.id, lines=lines))

    def _change(self, entry: "_Entry", state: JobState, durable: bool = True) -> None:
        changed = msgspec.structs.replace(entry.job, state=state)
        self.session.put_job(changed, durable=durable)
        entry.job = changed
        self._publish(JobChanged(seq=0, job=changed))

    def _show(self, entry: "_Entry") -> None:
        self._change(entry, entry.job.state)


class _Entry:
    """A job that has not ended."""

    def __init__(self, job: Job, request: JobRequest, follower: LogFollower) -> None:
        self.job = job
        self.request = request
        self.cancel = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.worker: Worker | None = None
        self.ended: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self.follower = follower
        self.claim = claim_of(job, request.task, request.exclusive)
