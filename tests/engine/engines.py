"""Drives real engines: model files that do what a test needs, waiting for conditions, looking at processes."""

import asyncio
import contextlib
import os
import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from engine.client import EngineClient
from engine.paths import is_alive, read_record, start_ticks
from engine.protocol import Job, OpenModel, RecipeRun, RunAccepted, Running, Snapshot

PATIENCE = 90.0
"""Seconds that a test waits for something that takes one or two on a quiet machine."""

GOOD_MODEL = """
    import torch

    def load_model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()

    def example_input(batch_size):
        return torch.linspace(-1, 1, batch_size * 4).reshape(batch_size, 4)
"""


def write_model(directory: Path, code: str = GOOD_MODEL, name: str = "model.py") -> Path:
    """A model file with this code."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(textwrap.dedent(code))
    return path


def model_that(directory: Path, statement: str) -> Path:
    """A model file whose load_model() does `statement`."""
    code = f"import os, signal, sys, time\n\ndef load_model():\n    {statement}\n\ndef example_input(n):\n    pass\n"
    return write_model(directory, code)


async def open_model(client: EngineClient, path: Path, measure: bool = False) -> RecipeRun:
    """Ask for a model to be opened."""
    accepted = await client.request(OpenModel(request=0, path=str(path), measure=measure))
    assert isinstance(accepted, RunAccepted)
    return accepted.run


async def until(client: EngineClient, condition: Callable[[Snapshot], bool], seconds: float = PATIENCE) -> Snapshot:
    """Follow the engine until its state meets the condition; the failure shows the jobs."""
    events = client.events()
    try:
        async with asyncio.timeout(seconds):
            while not condition(client.state):
                await anext(events)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:.0f} s in vain; jobs: {client.state.jobs}") from None
    except StopAsyncIteration:
        raise AssertionError("the engine ended") from None
    finally:
        await events.aclose()
    return client.state


async def job_of(
    client: EngineClient, run: RecipeRun, condition: Callable[[Job], bool] = lambda job: True, kind: str | None = None
) -> Job:
    """The newest job of a run, once there is one and it meets the condition.

    In a run of several jobs name the kind: the end of one and the start of the next may be seen as one change.
    """

    def newest(state: Snapshot) -> Job | None:
        jobs = (job for job in reversed(state.jobs) if job.recipe_run == run.id and kind in (None, job.kind))
        return next(jobs, None)

    state = await until(client, lambda state: (job := newest(state)) is not None and condition(job))
    found = newest(state)
    assert found is not None
    return found


async def ended_job(client: EngineClient, path: Path) -> Job:
    """Open a model and wait for the end of the job that opens it."""
    return await job_of(client, await open_model(client, path), lambda job: job.is_done)


def worker_pid(job: Job) -> int | None:
    """The worker's process id, None while there is none."""
    return job.state.pid if isinstance(job.state, Running) else None


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


async def becomes(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """The same beside a running client."""
    await asyncio.to_thread(wait_until, condition, seconds)


def is_gone(pid: int) -> bool:
    """No such process, or a zombie that its parent has not looked at."""
    return start_ticks(pid) is None


def group_is_gone(pgid: int) -> bool:
    """No process of this group runs."""
    return all(is_gone(pid) for pid in processes() if _group(pid) == pgid)


def processes() -> list[int]:
    """All process ids."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    found = []
    for other in processes():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(other)
    return found


def _group(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getpgid(pid)
    return None


def end(session: Path, number: int = signal.SIGKILL) -> None:
    """End the session's engine if it has one, and wait for that."""
    record = read_record(session)
    if record is not None and is_alive(record):
        os.kill(record.pid, number)
        wait_until(lambda: is_gone(record.pid))
