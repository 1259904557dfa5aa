"""One process of a training on several devices: `… rank PACKAGE PARENT DESCRIPTOR RANK DIRECTORY`; see `parallel`.

It opens the model file as a worker does, joins the others, and runs the one loop. The first rank reports, keeps the
checkpoints and writes the weights; SIGTERM makes it stop between two steps, and the others leave when they are killed.
"""

from __future__ import annotations

import datetime
import os
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from ..context import JobCancelled, JobContext
from ..fork_server import die_with_parent, raise_oom_score
from ..models import open_model
from ..protocol import Finished, JobSpec
from ..worker import Outbox, explain, read_spec, settle_in
from .checkpoints import Checkpoints
from .course import Course
from .data import TrainingData
from .loop import train_as
from .objectives import Objective
from .teacher import Teaching
from .team import Team

PATIENCE = datetime.timedelta(hours=2)
"""How long a rank waits for the others: the first one judges while they wait. A rank that ends is noticed at once."""


def main(arguments: list[str]) -> None:
    """Be a rank."""
    parent, descriptor, rank, directory = *(int(word) for word in arguments[:3]), Path(arguments[3])
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died while torch was imported here
    raise_oom_score()
    cancelled = threading.Event()
    if rank == 0:
        signal.signal(signal.SIGTERM, lambda *_: cancelled.set())
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    outbox = Outbox(connection)
    try:
        spec = read_spec(connection)
        if spec is None:
            return
        settle_in(spec)
        job = JobContext(spec=spec, model=open_model(spec.source), send=outbox.send, _cancelled=cancelled)
        _join(spec, rank, directory)
        _train(job, rank, directory)
        outbox.send_last(Finished())
    except JobCancelled:
        pass
    except BaseException as error:
        outbox.send_last(explain(error))
    sys.stdout.flush()
    os._exit(0)  # the process group's threads would wait for the others


def _join(spec: JobSpec, rank: int, directory: Path) -> None:
    """Meet the other ranks."""
    on_gpus = spec.device.startswith("cuda")
    if on_gpus:
        torch.cuda.set_device(torch.device(spec.device))
    torch.distributed.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=f"file://{directory / 'meeting'}",
        rank=rank,
        world_size=len(spec.devices),
        timeout=PATIENCE,
    )


def _train(job: JobContext, rank: int, directory: Path) -> None:
    task: dict[str, Any] = torch.load(directory / "task.pt", map_location="cpu", weights_only=False)
    data = TrainingData(job.model, task["samples"], task["seed"])
    team = Team(torch.device(job.spec.device), rank, len(job.spec.devices), data.rows)
    checkpoints = Checkpoints(Path(task["checkpoints"])) if task["checkpoints"] else None
    course = Course(job if team.leads else _silent(job), checkpoints, task["total_steps"], told=True)
    if course.resumed(task["stage"]) is None:
        course.step, course.points = task["step"], task["points"]
    teaching = Teaching(*task["teaching"]) if task["teaching"] else None
    module = task["module"]
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of filters with one input: harmless
    outcome = train_as(
        team, module, data, Objective(job.model), task["plan"], course, task["stage"], teaching, task["after_step"]
    )
    if team.leads:
        result = {
            "state": {name: tensor.cpu() for name, tensor in module.state_dict().items()},
            "step": course.step,
            "points": course.points,
            "outcome": {"accuracy": outcome.accuracy, "steps": outcome.steps, "recovered": outcome.recovered},
            "cached": teaching is not None and teaching.cached,
        }
        torch.save(result, directory / "result.pt")


def _silent(job: JobContext) -> JobContext:
    """The same job for a rank that has nothing to say."""
    return JobContext(spec=job.spec, model=job.model, send=lambda message: None, _cancelled=job._cancelled)
