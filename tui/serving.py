"""`trimtab serve VARIANT`: have the session's engine serve a variant, say where, and stay until Ctrl-C.

The server is a job of the engine's. Ctrl-C (or SIGTERM) has it answer what it accepted and end: exit status 0. A
second one cancels it. When this process is killed or its terminal closes the server goes on; the dashboard or
`trimtab stop --cancel-jobs` ends it. Exit status 1: it could not serve; 130: it was cancelled.

With --json one object goes to standard output as soon as the server listens.
"""

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import sys
import time
from pathlib import Path

import msgspec

from engine.client import EngineClient, EngineError
from engine.protocol import (
    CancelJob,
    Cancelled,
    Failed,
    Job,
    JobAccepted,
    ModelInfo,
    Queued,
    Running,
    ServeSettings,
    ServeVariant,
    StopServing,
    Succeeded,
    TensorSpec,
)

from .headless import CANCELLED, attached, print_result
from .progress import printable
from .sessions import UsageError

TELL_SECONDS = 10.0
"""Between two lines on how it goes where standard error is no terminal."""

SHORT_ROW = 48
"""An input with so many numbers is written out in the example; a larger one is made by a line of Python."""

OPEN_AXIS = 8
"""How long the example makes an axis that the model leaves open."""

OPTIONS = (
    "host", "port", "grpc_port", "max_batch_size", "max_wait_ms", "wait", "preferred_batch_sizes", "priority_levels",
    "instances", "max_queue_size", "timeout_ms", "max_request_bytes",
)  # fmt: skip
"""Of the command line, named as in `ServeSettings`; None leaves its default."""


async def serve(session: Path, options: argparse.Namespace) -> int:
    """`trimtab serve VARIANT`. Returns the exit status."""
    async with attached(session) as client:
        try:
            accepted = await client.request(
                ServeVariant(
                    request=0,
                    variant=options.variant,
                    settings=settings_of(options),
                    runtime=options.runtime,
                    device=options.device,
                )
            )
        except EngineError as error:
            raise UsageError(str(error)) from None
        assert isinstance(accepted, JobAccepted)
        job = await _until_ended(client, accepted.job, options)
        if isinstance(job.state, Failed):
            if not job.urls:
                raise EngineError(job.state.reason)
            # Standard output has its one object already.
            print(f"trimtab: {printable(job.state.reason)}", file=sys.stderr)
            return 1
        if isinstance(job.state, Succeeded) and not options.quiet:
            print(printable(job.state.summary), file=sys.stderr)
        return CANCELLED if isinstance(job.state, Cancelled) else 0


def settings_of(options: argparse.Namespace) -> ServeSettings:
    """The options given, checked. Raises UsageError."""
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    try:
        return msgspec.convert(given, ServeSettings)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        option = where.rstrip("`").partition("[")[0].replace("_", "-")
        raise UsageError(f"--{option}: {what[0].lower()}{what[1:]}.") from None


async def _until_ended(client: EngineClient, job: Job, options: argparse.Namespace) -> Job:
    """Show the server until its job ends; Ctrl-C stops it, a second one cancels it."""
    teller = _Teller(options.quiet)
    interrupts = 0
    asked: set[asyncio.Task[object]] = set()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        teller.say("Stopping: what was accepted is answered first…" if interrupts == 1 else "Cancelling…")
        asked.add(asyncio.create_task(_end(client, job.id, cancel=interrupts > 1)))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    announced = False
    try:
        current = _find(client, job)
        events = client.events()
        while not current.is_done:
            if current.urls and not announced:
                announced = True
                _announce(client, current, options)
            teller.show(current)
            try:
                await anext(events)
            except StopAsyncIteration:
                lost = Failed(started=None, finished=time.time(), reason="The engine ended, and the server with it.")
                return msgspec.structs.replace(current, state=lost)
            current = _find(client, job)
        return current
    finally:
        teller.clear()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _end(client: EngineClient, job: str, cancel: bool) -> None:
    """Ask for its end. A server that does not run yet cannot stop, only be cancelled."""
    if not cancel:
        with contextlib.suppress(EngineError):
            await client.request(StopServing(request=0, job=job))
            return
    # It may have ended meanwhile, which its state tells.
    with contextlib.suppress(EngineError):
        await client.request(CancelJob(request=0, job=job))


def _find(client: EngineClient, job: Job) -> Job:
    return next((known for known in client.state.jobs if known.id == job.id), job)


# --- what is shown -----------------------------------------------------------------------------------


def _announce(client: EngineClient, job: Job, options: argparse.Namespace) -> None:
    """Where it listens, and a call to try it with."""
    variant = next((one for one in client.state.variants if one.id == job.variant), None)
    name = variant.name if variant is not None else ""
    url, grpc_url = job.urls[0], next(iter(job.urls[1:]), None)
    if options.json:
        known = {"id": job.variant, "name": name}
        print_result(
            json.dumps({"schema": "trimtab/serve/1", "url": url, "grpc_url": grpc_url, "variant": known, "job": job.id})
        )
    else:
        print_result(f"Serving {printable(name)} at {url}" + (f" and {grpc_url}" if grpc_url else ""))
        print_result(f"Metrics: {url}/metrics. Try it:\n  {curl_example(url, client.state.model)}")


def curl_example(url: str, model: ModelInfo | None) -> str:
    """A command that sends one row of zeros."""
    reachable = url.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")
    if model is None:
        return f"curl {reachable}/v2"
    rows = [spec for spec in model.inputs if "batch" in spec.shape] or list(model.inputs)
    shapes = {spec.name: row_shape(spec) for spec in rows}
    zeros = {spec.name: _zero(spec) for spec in rows}
    if all(_size(shape) <= SHORT_ROW for shape in shapes.values()):
        inputs = {name: _filled(shape, zeros[name]) for name, shape in shapes.items()}
        return f"curl {reachable}/predict -d {shlex.quote(json.dumps({'inputs': inputs}))}"
    made = ", ".join(f"{name!r}: z({shape}, {zeros[name]!r})" for name, shape in shapes.items())
    code = (
        "import json; z = lambda s, v: [z(s[1:], v) for _ in range(s[0])] if s else v; "
        f"print(json.dumps({{'inputs': {{{made}}}}}))"
    )
    return f"python3 -c {shlex.quote(code)} | curl {reachable}/predict -d @-"


def row_shape(spec: TensorSpec) -> list[int]:
    """One row, rows first: a model without an open axis for them takes the rows it was made with."""
    if "batch" not in spec.shape:
        return [size if isinstance(size, int) else OPEN_AXIS for size in spec.shape]
    left = list(spec.shape)
    left.remove("batch")
    return [1, *(size if isinstance(size, int) else OPEN_AXIS for size in left)]


def _zero(spec: TensorSpec) -> bool | int | float:
    return False if spec.dtype == "bool" else 0 if "int" in spec.dtype else 0.0


def _size(shape: list[int]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _filled(shape: list[int], value: object) -> object:
    return [_filled(shape[1:], value) for _ in range(shape[0])] if shape else value


class _Teller:
    """How it goes, on standard error: a line that is rewritten on a terminal, now and then a line elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._drawn = ""
        self._last = -TELL_SECONDS

    def show(self, job: Job) -> None:
        words = ""
        if isinstance(job.state, Queued) and job.state.waiting_for:
            words = f"waiting for {job.state.waiting_for}"
        elif isinstance(job.state, Running):
            words = job.state.message
        words = printable(words)
        if self._quiet or not words or words == self._drawn:
            return
        if self._terminal:
            self.clear()
            sys.stderr.write(words[:78])
            sys.stderr.flush()
            self._drawn = words
        elif time.monotonic() - self._last >= TELL_SECONDS or isinstance(job.state, Queued):
            self._last = time.monotonic()
            self._drawn = words
            print(words, file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        if not self._quiet:
            self.clear()
            print(sentence, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._drawn and self._terminal:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._drawn = ""
