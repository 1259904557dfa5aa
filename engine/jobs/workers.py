"""Workers as the engine sees them: started through the fork server, talked to over a socket, reported when they end.

    servers = ForkServer(log=…)
    worker = await servers.start_worker(spec, log_path)     # 5–20 ms once the fork server is warm
    message = await worker.receive()                        # WorkerMessage, None at the end of the conversation
    exit = await worker.wait()                              # how it ended; its process group is gone by then

What one may rely on: cancelling `start_worker` before the fork leaves nothing behind; a worker always gets an `Exit`,
also when the fork server itself was killed; and nothing a worker sends can do more than end its own conversation.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from ..client.starting import MAIN
from ..fork_server import (
    PACKET_BYTES,
    Fork,
    Forked,
    NotForked,
    Ready,
    Signal,
    decode_report,
    encode,
)
from ..protocol import (
    FRAME_HEADER,
    MAX_FRAME_BYTES,
    JobSpec,
    Steer,
    WorkerMessage,
    decode_worker_message,
    encode_frame,
)


class WorkerNotStarted(Exception):
    """No worker could be forked; the text is the user's sentence."""


class Garbled(Exception):
    """The worker sent what is no message; the text says what was wrong with it."""


class Exit(Struct, frozen=True, kw_only=True):
    """How a worker ended."""

    signal: int | None = None
    """The signal that killed it, None if it exited."""
    code: int | None = None
    """Its exit status, None if a signal killed it or nobody knows."""
    peak_bytes: int | None = None
    """Its largest resident memory."""
    lost: bool = False
    """The fork server died and took it along."""


class Worker:
    """One worker process. Made by `ForkServer.start_worker`."""

    def __init__(self, server: "ForkServer", key: int) -> None:
        self.pid: int | None = None
        self.forked = asyncio.get_running_loop().create_future()
        self._server = server
        self._key = key
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def receive(self) -> WorkerMessage | None:
        """The worker's next message; None once it closed the conversation. Raises Garbled."""
        try:
            header = await self._reader.readexactly(FRAME_HEADER.size)
            (length,) = FRAME_HEADER.unpack(header)
            if length > MAX_FRAME_BYTES:
                raise Garbled(f"a message of {length} bytes, over the limit")
            return decode_worker_message(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except msgspec.MsgspecError as error:
            raise Garbled(str(error)) from None

    def send(self, message: Steer) -> None:
        """Say something to a running worker; nothing happens if it has ended."""
        if not self.ended and not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    async def wait(self) -> Exit:
        """How it ended, once it has, it is reaped and its process group killed."""
        return await asyncio.shield(self._exit)

    @property
    def ended(self) -> bool:
        """It is gone."""
        return self._exit.done()

    def signal(self, number: int) -> None:
        """Signal its whole process group. Nothing happens if it has ended."""
        if not self.ended:
            self._server._send(Signal(key=self._key, number=number))

    def close(self) -> None:
        """Close the conversation; the worker may still be running."""
        self._writer.close()


class ForkServer:
    """The engine's side of the fork server: starts it when needed, ends it when idle."""

    def __init__(self, log: int) -> None:
        self._log = log
        """Descriptor for what the fork server itself says."""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready: asyncio.Future[Ready] | None = None
        self._workers: dict[int, Worker] = {}
        self._keys = 0
        self.last_used = time.monotonic()
        """When a worker was last started or ended, or someone asked to have it warm."""

    @property
    def running(self) -> bool:
        """There is a fork server process, warm or warming."""
        return self._socket is not None

    @property
    def pid(self) -> int | None:
        """The fork server's process id, None when there is none."""
        return self._process.pid if self._process is not None else None

    def idle_seconds(self) -> float:
        """How long it has been there for nothing; 0 while it has workers or does not run."""
        return 0.0 if self._socket is None or self._workers else time.monotonic() - self.last_used

    def warm(self) -> None:
        """Have it ready soon: called when a job is likely."""
        self.last_used = time.monotonic()
        if self._socket is None:
            self._start()

    async def ready(self) -> Ready:
        """Wait until it can fork. Raises WorkerNotStarted if it ends instead."""
        self.warm()
        assert self._ready is not None
        return await asyncio.shield(self._ready)

    async def start_worker(self, spec: JobSpec, log_path: Path) -> Worker:
        """Fork a worker, give it its job, send its output to `log_path`. Raises WorkerNotStarted."""
        frame = encode_frame(spec)
        await self.ready()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._keys += 1
                worker = self._workers[self._keys] = Worker(self, self._keys)
                self._send(Fork(key=self._keys), [theirs.fileno(), log])
            finally:
                os.close(log)
            # The connection owns a duplicate of `ours` from here on.
            worker._reader, worker._writer = await asyncio.open_unix_connection(sock=ours.dup())
        worker._writer.write(frame)
        try:
            worker.pid = await worker.forked
        except BaseException:
            worker.signal(signal.SIGKILL)
            worker.close()
            raise
        return worker

    def stop(self) -> None:
        """End it, and with it every worker it still has. Returns at once; see `stopped`."""
        if self._socket is not None:
            self._lost("the engine is ending")

    async def stopped(self) -> None:
        """Wait until the last fork server process is gone."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        environment = dict(os.environ)
        # OpenMP reads this when it is loaded, which is in the fork server. Threads that spin after a parallel region
        # rob the other arm of a comparison; with this many turns they spin 0.05 ms instead of 5 ms at the same speed.
        # (OMP_WAIT_POLICY=PASSIVE stops them too, but makes convolutions twice as slow: torch 2.13, two cores.)
        environment.setdefault("GOMP_SPINCOUNT", "10000")
        # torch.cuda.is_available() must not initialise CUDA before the fork.
        environment.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        # PyTorch's profiler tells of each start and stop on standard error at its default level, 5: no news to a user.
        environment.setdefault("KINETO_LOG_LEVEL", "6")
        with theirs:
            # From the engine's main thread: the kernel's parent-death signal is tied to the creating thread.
            self._process = subprocess.Popen(
                [sys.executable, "-P", os.fspath(MAIN), "fork-server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                start_new_session=True,
            )
        self._socket = ours
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(ours.fileno(), self._receive)

    def _send(self, request: Fork | Signal, descriptors: list[int] | None = None) -> None:
        if self._socket is None:
            raise WorkerNotStarted("The fork server has ended.")
        try:
            socket.send_fds(self._socket, [encode(request)], descriptors or [])
        except OSError as error:
            self._lost(error.strerror or str(error))
            if isinstance(request, Fork):
                raise WorkerNotStarted(f"The fork server cannot be reached: {error.strerror}.") from None

    def _receive(self) -> None:
        """Take in one report."""
        assert self._socket is not None
        try:
            packet = self._socket.recv(PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._lost("it ended")
            return
        report = decode_report(packet)
        if isinstance(report, Ready):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(report)
            return
        worker = self._workers.get(report.key)
        if worker is None:
            return
        if isinstance(report, Forked):
            worker.pid = report.pid
            if not worker.forked.done():
                worker.forked.set_result(report.pid)
        elif isinstance(report, NotForked):
            self._settle(worker, Exit(lost=True))
            if not worker.forked.done():
                worker.forked.set_exception(WorkerNotStarted(f"The system gave no process: {report.error}."))
        else:
            number = os.waitstatus_to_exitcode(report.status)
            ended = Exit(
                signal=-number if number < 0 else None,
                code=number if number >= 0 else None,
                peak_bytes=report.peak_bytes,
            )
            self._settle(worker, ended)

    def _settle(self, worker: Worker, ended: Exit) -> None:
        self._workers.pop(worker._key, None)
        self.last_used = time.monotonic()
        if not worker._exit.done():
            worker._exit.set_result(ended)

    def _lost(self, why: str) -> None:
        """The fork server is gone or to go: so are its workers."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                WorkerNotStarted(f"The process that starts workers failed ({why}): see engine.log.")
            )
            self._ready.exception()  # nobody may be waiting: that is no error of its own
        for worker in list(self._workers.values()):
            if worker.pid is not None:
                # The kernel kills the workers themselves; this is for what they started.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(worker.pid, signal.SIGKILL)
            if not worker.forked.done():
                worker.forked.set_exception(WorkerNotStarted("The process that starts workers died."))
                worker.forked.exception()
            self._settle(worker, Exit(lost=True))
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
