"""A worker's main: read the job, open the model, do the task, send the outcome, end.

All policy is the engine's. What the engine may rely on: exactly one last message, `Finished` or `GaveUp` with one
readable sentence, unless the process dies first; progress comes about ten times a second at most; whatever the user's
code prints goes to the job's log and can never get into the conversation. SIGTERM cancels: it sets the job's flag,
raises JobCancelled in the main thread, and the worker then dies of that signal, as its status shall tell.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from .context import JobCancelled, JobContext, LoadedVariant, VariantFiles
from .protocol import (
    FRAME_HEADER,
    MAX_FRAME_BYTES,
    ExplainVariant,
    Finished,
    GaveUp,
    InspectModel,
    JobSpec,
    Logged,
    MeasureAccuracy,
    MeasureLatency,
    MeasureProfile,
    Progressed,
    RunTechnique,
    ScanSensitivity,
    Serve,
    Steer,
    Task,
    TestLoad,
    VariantDraft,
    WorkerMessage,
    decode_job_spec,
    decode_steer,
    encode_frame,
)

if TYPE_CHECKING:
    from .models import Model

PROGRESS_SECONDS = 0.25
"""The shortest time between two progress messages."""

MAX_DETAIL = 256 * 1024
"""Characters of a traceback that are sent; a recursion error's can be megabytes."""


def work(engine: socket.socket) -> int:
    """Do the job that comes over `engine`; returns the process's exit status."""
    cancelled = threading.Event()
    _die_politely(cancelled)
    outbox = Outbox(engine)
    try:
        # Before anything is imported or opened: the engine shows the job as running from here on.
        outbox.send(Progressed(done=0, message="starting"))
        spec = read_spec(engine)
        if spec is None:
            return 0
        settle_in(spec)
        outbox.send_last(_perform(spec, outbox, cancelled, functools.partial(_hear, engine)))
    except JobCancelled:
        _end_by(signal.SIGTERM)
    except BaseException as error:
        with contextlib.suppress(JobCancelled):
            outbox.send_last(explain(error))
        if cancelled.is_set():
            _end_by(signal.SIGTERM)
    return 0


def read_spec(engine: socket.socket) -> JobSpec | None:
    """The job; None if the engine closed the conversation before sending one."""
    header = _receive(engine, FRAME_HEADER.size)
    if header is None:
        return None
    (length,) = FRAME_HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"job specification of {length} bytes is over the limit")
    body = _receive(engine, length)
    return None if body is None else decode_job_spec(body)


def _hear(engine: socket.socket, take: Callable[[Steer], None]) -> None:
    """Hand everything the engine says from now on to `take`, in a thread of its own."""

    def listen() -> None:
        with contextlib.suppress(OSError, ValueError):
            while (header := _receive(engine, FRAME_HEADER.size)) is not None:
                (length,) = FRAME_HEADER.unpack(header)
                body = _receive(engine, length) if length <= MAX_FRAME_BYTES else None
                if body is None:
                    return
                take(decode_steer(body))

    threading.Thread(target=listen, name="steering", daemon=True).start()


def _receive(engine: socket.socket, length: int) -> bytes | None:
    received = bytearray()
    while len(received) < length:
        piece = engine.recv(length - len(received))
        if not piece:
            return None
        received += piece
    return bytes(received)


# --- the task --------------------------------------------------------------------------------------


def _perform(spec: JobSpec, outbox: Outbox, cancelled: threading.Event, hear: Callable[..., None]) -> Finished:
    from .models import open_model

    outbox.send(Progressed(done=0, message="opening the model"))
    beside = None
    if isinstance(spec.task, InspectModel) and spec.source.kind != "onnx":  # its weights are the baseline's own files
        from .models.neighbours import Neighbours

        beside = Neighbours(Path(spec.source.path), Path(spec.session_directory))
    model = open_model(spec.source)
    job = JobContext(spec=spec, model=model, send=outbox.send, _cancelled=cancelled)
    for variant in spec.variants.values():
        directory = Path(spec.session_directory) / "variants" / variant.id
        job.variants[variant.id] = LoadedVariant(record=variant, directory=directory, model=model)
    job.hear = hear
    job.measure_latency = functools.partial(_measure_latency, job)
    job.measure_accuracy = functools.partial(_measure_accuracy, job)
    finished = do_task(spec.task, job, model)
    if beside is not None and finished.model is not None:
        found = msgspec.structs.replace(finished.model, files=beside.found())
        finished = msgspec.structs.replace(finished, model=found)
    return finished


def _refuse_unchanged(source: LoadedVariant, made: list[VariantFiles]) -> None:
    """No variant is its parent under another name: raises Refusal for an ONNX graph that computes exactly the same."""
    if source.record.format != "onnx":
        return
    from .graphs.fingerprint import fingerprint
    from .graphs.onnx_graph import load_graph
    from .techniques import Refusal

    parent = fingerprint(load_graph(source.path))
    for files in made:
        if files.format == "onnx" and fingerprint(load_graph(files.files[0])) == parent:
            raise Refusal(f"Nothing was changed: the graph that came out is that of {source.record.name}.")


def do_task(task: Task, job: JobContext, model: Model) -> Finished:
    """The task's outcome. Raises what it raises; `explain` puts that in words."""
    match task:
        case InspectModel():
            draft = model.write_baseline(job.work)
            return Finished(variants=(draft,), model=model.info())
        case RunTechnique():
            from .techniques import find_technique, parse_parameters

            chosen = find_technique(task.technique)
            parameters = parse_parameters(task.technique, task.parameters)
            made = chosen.function(job.variants[task.source], parameters, job)
            if not made:
                raise RuntimeError(f"{task.technique} ended without a variant and without a reason")
            _refuse_unchanged(job.variants[task.source], made)
            drafts = tuple(draft_of(files, job.work) for files in made)
            return Finished(variants=drafts, summary=made[0].changed.summary)
        case MeasureLatency():
            latencies = job.measure_latency(job.variants[task.variant], task.runtime, task.batch_sizes)
            return Finished(measurements=tuple(latencies))
        case MeasureAccuracy():
            accuracy = job.measure_accuracy(job.variants[task.variant], task.runtime, task.limit)
            return Finished(measurements=(accuracy,), summary=accuracy.sentence)
        case MeasureProfile():
            from .measurements.profiling import measure_profile

            profile = measure_profile(job, job.variants[task.variant], task.runtime, task.batch_size)
            return Finished(measurements=(profile,), summary=profile.sentence)
        case ExplainVariant():
            from .measurements.explaining import explain_variant

            explanation = explain_variant(job, task)
            return Finished(measurements=(explanation,), summary=explanation.cause)
        case ScanSensitivity():
            from .measurements.sensitivity import scan_sensitivity

            scanned = scan_sensitivity(job, job.variants[task.variant])
            return Finished(measurements=(scanned,), summary=scanned.sentence)
        case TestLoad():
            from .measurements.load_test.running import run_task

            found, sentence = run_task(job, task)
            return Finished(measurements=found, summary=sentence)
        case Serve():
            from .serving.job import serve_variant

            return Finished(summary=serve_variant(job, task))


def _measure_latency(job: JobContext, *arguments: Any, **options: Any) -> Any:
    from .measurements.latency import measure_latency

    return measure_latency(job, *arguments, **options)


def _measure_accuracy(job: JobContext, *arguments: Any, **options: Any) -> Any:
    from .measurements.accuracy import measure_accuracy

    return measure_accuracy(job, *arguments, **options)


def draft_of(files: VariantFiles, work: Path) -> VariantDraft:
    """What a technique made, as the engine is told of it: paths relative to the work directory."""

    def relative(paths: list[Path]) -> tuple[str, ...]:
        return tuple(os.fspath((work / path).relative_to(work)) for path in paths)

    return VariantDraft(
        label=files.label,
        format=files.format,
        files=relative(files.files),
        deployed_files=relative(files.deployed if files.deployed is not None else files.files),
        changed=files.changed,
        parameters=files.parameters,
        parameter_count=files.parameter_count,
        macs=files.macs,
        portable=files.portable,
        target=files.target,
    )


def settle_in(spec: JobSpec) -> None:
    """Make this process what the job expects: its folder, its import path, its threads, its seed."""
    folder = os.path.dirname(os.path.abspath(spec.source.path))
    if os.path.isdir(folder):
        # As if the user had run the model file from where it lies: its neighbours import, relative data opens.
        os.chdir(folder)
        sys.path.insert(0, folder)
    sys.argv = [spec.source.path]
    random.seed(spec.seed)
    import numpy as np
    import torch

    np.random.seed(spec.seed % 2**32)
    torch.manual_seed(spec.seed)
    torch.set_num_threads(max(1, spec.threads))


# --- how it ends -----------------------------------------------------------------------------------


def explain(error: BaseException) -> GaveUp:
    """An exception as the user is told of it: one sentence, and the traceback for the log where it helps.

    Sentences that our own code wrote for the user come without a traceback.
    """
    from .models import ModelError
    from .runtimes import RuntimeUnavailable
    from .techniques import Refusal

    detail = "".join(traceback.format_exception(error))[-MAX_DETAIL:]
    if isinstance(error, Refusal | RuntimeUnavailable):
        return GaveUp(reason=str(error), cause="refused")
    out_of_memory = _is_out_of_memory(error)
    if isinstance(error, ModelError):
        # The user's own code may stand behind it: where it raised is what they need to mend it.
        behind = detail if error.__cause__ is not None else ""
        return GaveUp(reason=str(error), detail=behind, cause="out-of-memory" if out_of_memory else "error")
    if out_of_memory:
        what = "the GPU" if "CUDA" in str(error) else "the machine"
        first = _first_line(error)
        return GaveUp(reason=f"There was not enough memory on {what}: {first}", detail=detail, cause="out-of-memory")
    if isinstance(error, SystemExit):
        return GaveUp(reason=f"The model's code ended the process (exit status {error.code}).", detail=detail)
    return GaveUp(reason=_first_line(error), detail=detail)


def _is_out_of_memory(error: BaseException) -> bool:
    """The error, or the one that it was raised from, is about memory."""
    torch = sys.modules.get("torch")
    kinds = (MemoryError, torch.OutOfMemoryError) if torch is not None else (MemoryError,)
    # torch's CPU allocator and ONNX Runtime have no exception of their own for it.
    signs = ("can't allocate memory", "Failed to allocate memory")
    if isinstance(error, kinds) or any(sign in str(error) for sign in signs):
        return True
    return error.__cause__ is not None and _is_out_of_memory(error.__cause__)


def _first_line(error: BaseException) -> str:
    """`ValueError: what it says`, first line only."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else "no message"
    return f"{type(error).__name__}: {line[:500]}"


def _die_politely(cancelled: threading.Event) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        if not cancelled.is_set():
            cancelled.set()
            raise JobCancelled

    signal.signal(signal.SIGTERM, stop)


def _end_by(number: int) -> NoReturn:
    """Die of the signal, so that the status tells what ended us."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


# --- messages --------------------------------------------------------------------------------------


class Outbox:
    """Sends messages to the engine, from any thread; thins progress without ever losing the newest.

    A progress message that comes too soon waits for its time in a thread of its own, which sleeps while there is
    none: a job that then works for minutes without a word still shows the last thing it said.
    """

    def __init__(self, engine: socket.socket) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: Progressed | None = None
        self._due = threading.Event()
        self._last = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    def send(self, message: WorkerMessage) -> None:
        """Send one message; lines for the log go to this process's output, which is the log."""
        if isinstance(message, Logged):
            print(message.text, flush=True)
            return
        with self._lock:
            if self._closed:
                return
            if isinstance(message, Progressed):
                if time.monotonic() - self._last < PROGRESS_SECONDS and self._last:
                    self._postpone(message)
                    return
                self._last = time.monotonic()
                self._waiting = None
            self._write(encode_frame(message))

    def send_last(self, message: Finished | GaveUp) -> None:
        """Send the outcome; whatever is sent after it is dropped."""
        frame = encode_frame(message)
        with self._lock:
            if not self._closed:
                self._closed = True
                self._waiting = None
                self._write(frame)

    def _postpone(self, message: Progressed) -> None:
        idle = self._waiting is None
        self._waiting = message
        if idle:
            if self._thread is None:
                self._thread = threading.Thread(target=self._catch_up, name="progress", daemon=True)
                self._thread.start()
            self._due.set()

    def _catch_up(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            time.sleep(max(0.0, self._last + PROGRESS_SECONDS - time.monotonic()))
            with self._lock:
                message, self._waiting = self._waiting, None
                if message is not None and not self._closed:
                    self._last = time.monotonic()
                    self._write(encode_frame(message))

    def _write(self, frame: bytes) -> None:
        # The engine's death is the kernel's to announce (PR_SET_PDEATHSIG), not an error of the job.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._engine.sendall(frame)
