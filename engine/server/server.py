"""The engine: one process per session directory, the only writer of the session.

It holds the session's lock for life, listens on a socket that only its user can reach, runs the queue and the
recipes, and tells every client what happens. It never imports torch, onnx, onnxruntime or numpy, and it never waits
for a client or a worker, so it answers while a job burns every core. Without a client and without a job it ends after
ten minutes (its fork server earlier); attaching starts it again, and nothing is lost in between.
"""

import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import msgspec

from .. import __version__
from ..client.starting import START_LOCKED, START_READY
from ..jobs import Jobs
from ..jobs.workers import ForkServer
from ..paths import (
    LOG_NAME,
    EngineRecord,
    SessionLocked,
    UnsafeDirectory,
    listening_socket,
    lock_session,
    machine_boot,
    remember_session,
    remove_record,
    start_ticks,
    write_record,
)
from ..protocol import (
    OLDEST_PROTOCOL,
    PROTOCOL,
    Command,
    EngineEvent,
    EngineStopping,
    JobChanged,
    ModelOpened,
    NoticeGiven,
    Reply,
    Snapshot,
    TelemetrySample,
    TelemetrySampled,
    Welcome,
    encode_frame,
)
from ..recipes import RecipeRunner
from ..session import Session, SessionError
from ..telemetry import Telemetry, read_hardware
from . import commands
from .connections import Closed, Connection
from .sampling import JOB_HZ, Sampler

IDLE_SECONDS = 600.0
"""Without client and job, the engine ends after this. TRIMTAB_IDLE_SECONDS overrides it."""

FORK_SERVER_IDLE_SECONDS = 180.0
"""Without a job or a command, the fork server (300 MB with torch) ends after this."""

HOUSEKEEPING_SECONDS = 2.0
"""How often idleness, the socket file and the session directory are looked at."""

LOG_BYTES = 1024 * 1024
"""The engine's log is rotated at this size; two older ones are kept."""

EXIT_LOCKED = 75
"""Exit status when another engine holds the session (EX_TEMPFAIL: trying again may work)."""

log = logging.getLogger("trimtab.engine")


class Engine:
    """A session with its clients, its queue and its recipes."""

    def __init__(self, session: Session, lock: int) -> None:
        self.session = session
        self.boot_id = uuid.uuid4().hex
        self.hardware = read_hardware()
        self.workers = ForkServer(log=2)
        self.jobs = Jobs(session, self.hardware, self.workers, self.publish)
        self.recipes = RecipeRunner(session, self.jobs, self.publish)
        self.sampler = Sampler(Telemetry(), self._wanted_hz, self._running_job, self._sampled)
        self._lock = lock
        self._seq = 0
        self._connections: set[Connection] = set()
        self._stopping = asyncio.Event()
        self._why = ""
        self._listener: asyncio.Server
        self._socket_path: Path
        self._heard = time.monotonic()
        self._notices_given = len(session.notices)
        self._idle_seconds = float(os.environ.get("TRIMTAB_IDLE_SECONDS", IDLE_SECONDS))
        self._fork_server_idle = min(FORK_SERVER_IDLE_SECONDS, self._idle_seconds / 2)

    # --- life --------------------------------------------------------------------------------------

    async def run(self, ready: "asyncio.Future[None] | None" = None) -> None:
        """Listen, and return when the engine has ended in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, f"It received {signal.Signals(number).name}.")
        for sample in self.session.telemetry(time.time() - 120):
            self.sampler.keep(sample)
        await self._listen()
        self._write_record()
        with contextlib.suppress(OSError):
            self._remember()
        log.info("engine %s of %s listens on %s", __version__, self.session.directory, self._socket_path)
        if ready is not None:
            ready.set_result(None)
        background = [asyncio.create_task(self.sampler.run()), asyncio.create_task(self._keep_house())]
        await self._stopping.wait()
        log.info("ending: %s", self._why)
        self._listener.close()
        self.publish(EngineStopping(seq=0, reason=self._why))
        await self.jobs.close()
        for task in background:
            task.cancel()
        await self._part()
        self.workers.stop()
        self.session.close()
        remove_record(self.session.directory)
        self._socket_path.unlink(missing_ok=True)
        await self.workers.stopped()

    def stop(self, why: str) -> None:
        """End in order: jobs are cancelled, everything is kept, clients are told why."""
        if not self._stopping.is_set():
            self._why = why
            self._stopping.set()

    def heard(self) -> None:
        """Someone used the engine: idleness counts from now."""
        self._heard = time.monotonic()

    async def _listen(self) -> None:
        listener, self._socket_path = listening_socket(self.session.directory)
        self._listener = await asyncio.start_unix_server(self._welcome, sock=listener)

    def _write_record(self) -> None:
        record = EngineRecord(
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()) or 0,
            machine_boot=machine_boot(),
            boot_id=self.boot_id,
            protocol=PROTOCOL,
            oldest_protocol=OLDEST_PROTOCOL,
            version=__version__,
            python=sys.executable,
            socket=os.fspath(self._socket_path),
            started=time.time(),
        )
        with contextlib.suppress(OSError):
            write_record(self.session.directory, record)

    def _remember(self) -> None:
        model = self.session.model
        remember_session(self.session.directory, model.name if model is not None else None)

    async def _keep_house(self) -> None:
        """Notice idleness, a swept socket file, a removed session directory, and notices from the store."""
        interval = min(HOUSEKEEPING_SECONDS, self._fork_server_idle / 2)
        while True:
            await asyncio.sleep(interval)
            self._tell_notices()
            if self._connections or not self.jobs.idle:
                self.heard()
            if time.monotonic() - self._heard > self._idle_seconds:
                self.stop(f"No client and no job for {self._idle_seconds:.0f} s.")
            if self.workers.idle_seconds() > self._fork_server_idle and self.jobs.idle:
                self.workers.stop()
            if not self._holds_directory():
                self.stop("The session directory was removed.")
            elif not self._socket_path.exists():
                # /tmp is swept by age; clients that are connected notice nothing.
                log.warning("the socket %s was removed; listening anew", self._socket_path)
                self._listener.close()
                with contextlib.suppress(OSError, UnsafeDirectory):
                    await self._listen()
                    self._write_record()

    def _holds_directory(self) -> bool:
        """The lock we hold still belongs to a file: nobody deleted the session under us."""
        return os.fstat(self._lock).st_nlink > 0

    async def _part(self) -> None:
        """Give every client a second to take its last events, then close."""
        connections = list(self._connections)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(connection.flush() for connection in connections), return_exceptions=True)
        for connection in connections:
            connection.abort()

    # --- clients -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything a client draws, as of the newest event."""
        session = self.session
        return Snapshot(
            seq=self._seq,
            session=os.fspath(session.directory),
            hardware=self.hardware,
            options=session.options,
            model=session.model,
            variants=tuple(session.variants.values()),
            measurements=tuple(session.measurements.values()),
            jobs=tuple(session.jobs.values()),
            runs=tuple(session.runs.values()),
            telemetry=tuple(self.sampler.recent),
            notices=tuple(session.notices),
        )

    def publish(self, event: EngineEvent) -> None:
        """Give an event its number and send it to every client. Never waits."""
        self._seq += 1
        numbered = msgspec.structs.replace(event, seq=self._seq)
        if isinstance(event, ModelOpened):
            with contextlib.suppress(OSError):
                self._remember()
        if self._connections:
            frame = encode_frame(numbered)
            for connection in self._connections:
                connection.offer(numbered, frame)
        if isinstance(event, JobChanged):
            self.sampler.wake()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from its first byte to its last."""
        connection = Connection(reader, writer, self.snapshot, self._answer)
        reason = ""
        try:
            await connection.greet(
                Welcome(
                    protocol=PROTOCOL,
                    version=__version__,
                    boot_id=self.boot_id,
                    pid=os.getpid(),
                    session=os.fspath(self.session.directory),
                    python=sys.executable,
                )
            )
            self._connections.add(connection)
            self.heard()
            self.sampler.wake()
            if connection.kind == "dashboard":
                # A person looks at it: a job is likely, and the first should not wait for torch.
                self.workers.warm()
            await connection.serve()
        except Closed as error:
            reason = str(error)
            log.info("closed a connection: %s", reason)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(connection)
            self.sampler.wake()
            await connection.close(reason)

    async def _answer(self, connection: Connection, command: Command) -> Reply:
        return await commands.answer(self, connection, command)

    def _tell_notices(self) -> None:
        """The store notes what the user should know; here it becomes an event."""
        for text in self.session.notices[self._notices_given :]:
            self.publish(NoticeGiven(seq=0, text=text))
        self._notices_given = len(self.session.notices)

    # --- telemetry ---------------------------------------------------------------------------------

    def _wanted_hz(self) -> float:
        watched = max((connection.telemetry_hz for connection in self._connections), default=0.0)
        return max(watched, JOB_HZ if self.jobs.running else 0.0)

    def _running_job(self) -> str | None:
        running = self.jobs.running
        return running[0] if running else None

    def _sampled(self, sample: TelemetrySample) -> None:
        self.session.record_telemetry(sample)
        self.publish(TelemetrySampled(seq=0, sample=sample))


# --- the process -----------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """`server DIRECTORY [--detach]`: be the engine of this session. The first line on standard output is its word.

    That line is "ready", or one sentence; after it, output goes to engine.log in the session directory.
    """
    directory = Path(arguments[0]).absolute()
    with contextlib.suppress(PermissionError):
        os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_session(directory)
        _log_to(directory / LOG_NAME)
        session = Session.open(directory)
    except SessionLocked as error:
        _say(START_LOCKED + str(error))
        sys.exit(EXIT_LOCKED)
    except (SessionError, UnsafeDirectory) as error:
        _say(str(error))
        sys.exit(1)
    except OSError as error:
        _say(f"The session cannot be kept in {directory}: {error.strerror or error}.")
        sys.exit(1)
    # The user may remove or unmount what was the current directory of whoever started us.
    os.chdir("/")
    try:
        asyncio.run(_live(session, lock, directory / LOG_NAME))
    except Exception as error:
        log.exception("the engine failed")
        _say(f"The engine failed: {type(error).__name__}: {error}.")
        sys.exit(1)


async def _live(session: Session, lock: int, log_path: Path) -> None:
    engine = Engine(session, lock)
    ready = asyncio.get_running_loop().create_future()

    def announce(_: "asyncio.Future[None]") -> None:
        _say(START_READY)
        _redirect_output(log_path)

    ready.add_done_callback(announce)
    await engine.run(ready)


def _say(line: str) -> None:
    """One line for whoever started us; they may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, (" ".join(line.split()) + "\n").encode())


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _redirect_output(path: Path) -> None:
    """From here on, what this process and its fork server print goes to the log; the starter's pipe closes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
