"""Training on several devices of this machine: one process for each, watched over by the worker.

In the manner of `torchrun`, the worker trains nothing itself: it writes down what is to be trained, starts a process
for every device (`rank`), passes on what the first says, and takes the trained weights over. So it can always hear a
cancel, and see which process failed and why, while the processes wait for each other in native code.

What one may rely on: no rank outlives the worker (the kernel kills them) nor this call; an error in any of them ends
all, and is raised here with its reason and its rank; a cancelled training leaves the checkpoint that one process would.
They find each other through a file, and talk over the loopback interface only.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from ..context import JobCancelled
from ..models import ModelError
from ..protocol import (
    FRAME_HEADER,
    Finished,
    GaveUp,
    Logged,
    MetricReported,
    Progressed,
    WorkerMessage,
    decode_worker_message,
    encode_frame,
)
from .course import Course
from .data import TrainingData
from .plan import Outcome, Plan
from .teacher import Teaching

MAIN = Path(__file__).resolve().parents[1] / "__main__.py"
"""Runs the engine's processes, whatever its package is called here."""

POLITE_SECONDS = 0.9
"""How long a cancelled training may take to save its checkpoint; the engine kills the whole group after 1.2."""

ECHO_SECONDS = 3.0
"""How long to wait, once one rank has failed, for another to say why: the first may only have lost its peer."""

ECHOES = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "processgroup")
"""Words of an error that another rank's end has caused."""

ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
"""Nothing listens outside this machine, and nobody is told that no parameter went unused. The user's own come first."""


def train_in_parallel(
    module: nn.Module,
    data: TrainingData,
    plan: Plan,
    course: Course,
    stage: str,
    teaching: Teaching | None,
    after_step: Callable[[], None] | None,
) -> Outcome | None:
    """`train`, by a process on each of the job's devices. `module` gets the trained weights.

    None, after a line in the log, when the network cannot be sent to other processes. Raises as `train` does.
    """
    job = course.job
    directory = job.work / "ranks"
    directory.mkdir()
    try:
        try:
            torch.save(_task(module, data, plan, course, stage, teaching, after_step), directory / "task.pt")
        except Exception as error:  # pickling runs the user's code, and raises what that raises
            job.log(f"Trains on {job.spec.device} alone: the network cannot be sent to other processes ({error}).")
            return None
        with _Crew(course, directory) as crew:
            crew.relay()
        result = torch.load(directory / "result.pt", map_location="cpu", weights_only=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    module.load_state_dict(result["state"])
    module.eval()
    course.step, course.points = result["step"], [tuple(point) for point in result["points"]]
    if teaching is not None:
        teaching.cached = result["cached"]
    return Outcome(**result["outcome"])


def _task(
    module: nn.Module,
    data: TrainingData,
    plan: Plan,
    course: Course,
    stage: str,
    teaching: Teaching | None,
    after_step: Callable[[], None] | None,
) -> dict[str, Any]:
    """All that a rank needs beside the job, in one pickle: `after_step` and `module` stay the same object there."""
    return {
        "module": module.cpu(),
        "after_step": after_step,
        "teaching": teaching and (teaching.teacher.cpu(), *teaching.settings),
        "plan": plan,
        "stage": stage,
        "samples": data.samples,
        "seed": data.seed,
        "total_steps": course.total_steps,
        "step": course.step,
        "points": course.points,
        "checkpoints": course.checkpoints and str(course.checkpoints.directory),
    }


class _Crew:
    """The processes of one training."""

    def __init__(self, course: Course, directory: Path) -> None:
        self.job, self.directory = course.job, directory
        self.devices = self.job.spec.devices
        self.heard: queue.Queue[tuple[int, WorkerMessage | None]] = queue.Queue()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> _Crew:
        try:
            for rank in range(len(self.devices)):
                self._start(rank)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and issubclass(kind, JobCancelled):
            # The first rank saves its checkpoint between two steps; the others must go on until it has.
            self.processes[0].send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[0].wait(POLITE_SECONDS)
        self._kill()

    def relay(self) -> None:
        """Pass on what the first rank says until all have finished. Raises ModelError when one fails."""
        self.job.log(f"Training on {', '.join(self.devices)}: {len(self.devices)} processes.")
        finished: set[int] = set()
        while len(finished) < len(self.devices):
            for rank, message in self._messages():
                if isinstance(message, Finished):
                    finished.add(rank)
                elif isinstance(message, GaveUp):
                    raise self._failure(rank, message)
                elif message is None and rank not in finished:
                    raise self._failure(rank, None)
                elif rank == 0 and isinstance(message, Progressed | MetricReported | Logged):
                    self.job.send(message)
            if self.job.cancelled:
                raise JobCancelled

    def _start(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        self.sockets.append(ours)
        spec = msgspec.structs.replace(
            self.job.spec, threads=max(1, self.job.spec.threads // len(self.devices)), device=self.devices[rank]
        )
        package = __name__.partition(".")[0]
        with theirs:
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-P", os.fspath(MAIN), "rank"),
                        *(package, str(os.getpid()), str(theirs.fileno()), str(rank), os.fspath(self.directory)),
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=None if rank == 0 else subprocess.DEVNULL,  # a user's print is wanted once
                    env=ENVIRONMENT | os.environ,
                )
            )
        threading.Thread(target=self._listen, args=(rank, ours), name=f"rank {rank}", daemon=True).start()
        ours.sendall(encode_frame(spec))

    def _listen(self, rank: int, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, msgspec.MsgspecError), connection.makefile("rb") as stream:
            while len(header := stream.read(FRAME_HEADER.size)) == FRAME_HEADER.size:
                self.heard.put((rank, decode_worker_message(stream.read(FRAME_HEADER.unpack(header)[0]))))
        self.heard.put((rank, None))

    def _messages(self) -> Iterator[tuple[int, WorkerMessage | None]]:
        with contextlib.suppress(queue.Empty):
            yield self.heard.get(timeout=0.1)

    def _failure(self, rank: int, said: GaveUp | None) -> ModelError:
        """The error that began it: not that of a rank which only lost the one that failed."""
        reports = [(rank, said)]
        deadline = time.monotonic() + ECHO_SECONDS
        while _is_echo(reports[-1][1]) and time.monotonic() < deadline:
            for rank, message in self._messages():
                if isinstance(message, GaveUp) or message is None:
                    reports.append((rank, message))
        rank, said = min(reports, key=lambda report: _is_echo(report[1]))
        place = f"training process {rank} of {len(self.devices)} ({self.devices[rank]})"
        if said is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[rank].wait(ECHO_SECONDS)
            code = self.processes[rank].poll()
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
            return ModelError(f"The {place} {how} in the middle of its work: see the log.")
        if said.detail:
            self.job.log(said.detail)
        error = ModelError(f"{said.reason.rstrip('.')} (in {place}).")
        if said.cause == "out-of-memory":
            error.__cause__ = MemoryError(said.reason)
        return error

    def _kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()
        for connection in self.sockets:
            connection.close()


def _is_echo(said: GaveUp | None) -> bool:
    """This report may tell of another rank's end: it is about the connection, or it is none."""
    return said is None or any(word in said.reason.lower() for word in ECHOES)
