"""The fork server: a process with torch already imported, from which every worker is forked in milliseconds.

Importing torch takes seconds, so the engine does it once, here, and never in its own process. What one may rely on:
- One thread when it forks. OpenBLAS stops its threads around a fork; onnxruntime keeps one from import on, so it is
  not preloaded (its import costs a worker 40 ms). CUDA is never touched here: a forked CUDA context cannot be used.
- The engine dies: its socket closes, this process kills every worker's process group and ends. This process dies:
  the kernel kills the workers (PR_SET_PDEATHSIG). So no worker outlives its engine.
- A worker that ends leaves nothing behind: while it is still a zombie, so that its process group's number cannot be
  another's, whatever is left of the group is killed; only then is it reaped and reported.

The conversation with the engine (`engine/workers.py`) is one packet a message over a SOCK_SEQPACKET pair.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback

import msgspec
from msgspec import Struct

PACKET_BYTES = 4096
"""Longer than any message here; paths and job specifications do not travel this way."""

PRELOADED = ("ctypes", "numpy", "torch", "onnx", "safetensors.torch", "torch._dynamo", "torch.onnx", "onnxscript")
"""What workers need and what is safe to hold across a fork; the exporter's half costs 2 s of the 4 s this takes."""

PRELOADED_OWN = (
    "worker",
    "models",
    "models.datasets",
    "models.importing",
    "models.scoring",
    "techniques.onnx_conversion",
    "techniques.quantization",
    "graphs.onnx_graph",
    "graphs.exporting",
    "measurements.latency",
    "measurements.accuracy",
    "runtimes.pytorch",
)
"""Our own modules that workers use; none of them imports onnxruntime at its top."""


class Fork(Struct, frozen=True, tag="fork"):
    """Engine: start a worker. Two descriptors come with it: the job's socket and the job's log."""

    key: int


class Signal(Struct, frozen=True, tag="signal"):
    """Engine: send a signal to a worker's process group. Nothing happens if it has ended."""

    key: int
    number: int


class Ready(Struct, frozen=True, tag="ready"):
    """Fork server: everything is imported; `threads` is 1 unless a preloaded package misbehaves."""

    seconds: float
    threads: int


class Forked(Struct, frozen=True, tag="forked"):
    """Fork server: the worker lives; `pid` is its process id and its process group."""

    key: int
    pid: int


class NotForked(Struct, frozen=True, tag="not-forked"):
    """Fork server: the system gave no process (memory, process limit)."""

    key: int
    error: str


class Exited(Struct, frozen=True, tag="exited"):
    """Fork server: the worker ended and was reaped, its group with it."""

    key: int
    status: int
    """As wait() gives it: see os.waitstatus_to_exitcode."""
    peak_bytes: int
    """Its largest resident memory."""


Request = Fork | Signal
Report = Ready | Forked | NotForked | Exited

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_report = msgspec.msgpack.Decoder(Report).decode

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """`fork-server DESCRIPTOR`: serve the engine on this inherited socket until it closes."""
    engine = socket.socket(fileno=int(arguments[0]))
    # Until the loop below runs, nothing would notice that the engine died: let the kernel end us.
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.monotonic()
    _preload()
    _fork_once()
    gc.collect()
    # Objects that exist now are never freed: moving them out of the collector's sight keeps their pages shared.
    gc.freeze()
    threads = len(os.listdir("/proc/self/task"))
    engine.send(encode(Ready(seconds=time.monotonic() - started, threads=threads)))
    _Server(engine).run()


def _preload() -> None:
    """Import what workers need. What is missing or broken here will fail in the worker, with its sentence."""
    package = __name__.rpartition(".")[0]
    for name in (*PRELOADED, *(f"{package}.{own}" for own in PRELOADED_OWN)):
        try:
            importlib.import_module(name)
        except Exception:
            print(f"fork server: {name} is not preloaded:", file=sys.stderr)
            traceback.print_exc()
    if "onnxruntime" in sys.modules:
        print("fork server: onnxruntime was imported although its thread is not safe across a fork", file=sys.stderr)


def _fork_once() -> None:
    """Fork a child that ends at once: OpenBLAS stops the thread it started on import, and starts it when used."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when the thread that created it ends."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


class _Server:
    """Forks on request, reaps, and ends with the engine."""

    def __init__(self, engine: socket.socket) -> None:
        self.engine = engine
        self.workers: dict[int, int] = {}
        """Process id → the engine's key for it."""
        self.pid = os.getpid()
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Until the engine's end of the socket closes (or SIGTERM: the engine died or the machine shuts down)."""
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        poller = select.poll()
        poller.register(self.engine, select.POLLIN)
        poller.register(self.wake_read, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake_read, 4096)
            self._reap()
            if self.engine.fileno() in ready:
                self._serve()

    def _serve(self) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self.engine, PACKET_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            packet, descriptors = b"", []
        if not packet:
            self._end()
        match decode_request(packet):
            case Fork(key=key):
                self._fork(key, *descriptors)
            case Signal(key=key, number=number):
                for pid, owner in self.workers.items():
                    if owner == key:
                        _kill_group(pid, number)

    def _fork(self, key: int, job: int, log: int) -> None:
        # A SIGTERM between fork and the child's own handlers would run our handler in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            pid = os.fork()
        except OSError as error:
            pid = -1
            self._report(NotForked(key=key, error=error.strerror or str(error)))
        if pid == 0:
            self._become_worker(job, log)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        os.close(job)
        os.close(log)
        if pid > 0:
            self.workers[pid] = key
            self._report(Forked(key=key, pid=pid))

    def _become_worker(self, job: int, log: int) -> None:
        """In the child: leave everything of the server's behind, then be the worker. Never returns."""
        status = 70  # EX_SOFTWARE, should what follows fail before the worker can speak for itself
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            die_with_parent(signal.SIGKILL)
            if os.getppid() != self.pid:
                return
            for descriptor in (self.engine.detach(), self.wake_read, self.wake_write):
                os.close(descriptor)
            for stream in (1, 2):
                os.dup2(log, stream)
            os.close(log)
            for text in (sys.stdout, sys.stderr):
                text.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
            raise_oom_score()
            from .worker import work

            status = work(socket.socket(fileno=job))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            # Not sys.exit: the server's exit handlers are not the worker's to run.
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            _kill_group(ended.si_pid, signal.SIGKILL)
            pid, status, usage = os.wait4(ended.si_pid, 0)
            key = self.workers.pop(pid, None)
            if key is not None:
                self._report(Exited(key=key, status=status, peak_bytes=usage.ru_maxrss * 1024))

    def _report(self, report: Report) -> None:
        try:
            self.engine.send(encode(report))
        except OSError:
            self._end()

    def _end(self) -> None:
        for pid in self.workers:
            _kill_group(pid, signal.SIGKILL)
        os._exit(0)


def _kill_group(pid: int, number: int) -> None:
    """Signal a worker that is not reaped yet, with all it started; alone if it has not made its group yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)


def raise_oom_score() -> None:
    """When memory runs out, the kernel is to take the worker and not the engine or the user's shell."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("600")
