"""A job of the engine that trains in two processes: cancelled, killed, run again, with nothing left behind."""

import os
import signal
from pathlib import Path

import pytest
from engines import becomes, children, group_is_gone, is_gone, job_of, until, worker_pid
from learning_models import CNN_FILE

from engine.client import EngineClient, connect
from engine.protocol import CancelJob, Cancelled, Failed, RunAccepted, RunRecipe, Succeeded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = """
model = "net.py"
device = "cpu,cpu"
batch_sizes = [1]

[[steps]]
technique = "distill"
name = "student"
epochs = {epochs}
learning_rate = 0.002
precision = "float32"
"""


def write(directory: Path, epochs: float) -> Path:
    """The model and the recipe; its path."""
    directory.mkdir(exist_ok=True)
    (directory / "net.py").write_text(CNN_FILE)
    (directory / "recipe.toml").write_text(RECIPE.format(epochs=epochs))
    return directory / "recipe.toml"


async def training(client: EngineClient, recipe: Path):
    """Start the recipe; its training job once it has judged itself for the first time."""
    accepted = await client.request(RunRecipe(request=0, path=str(recipe)))
    assert isinstance(accepted, RunAccepted)
    return await job_of(client, accepted.run, lambda job: job.is_done or "accuracy" in job.metrics, "distill")


async def ended(client: EngineClient, id: str):
    """The job once it has ended."""
    state = await until(client, lambda state: any(job.id == id and job.is_done for job in state.jobs), 300)
    return next(job for job in state.jobs if job.id == id)


async def test_a_cancelled_training_ends_all_its_processes_and_goes_on_when_run_again(session, tmp_path):
    recipe = write(tmp_path / "model", epochs=60)
    client = await connect(session, client="test")
    job = await training(client, recipe)
    worker = worker_pid(job)
    assert worker is not None
    ranks = children(worker)
    assert len(ranks) == 2
    await client.request(CancelJob(request=0, job=job.id))
    assert isinstance((await ended(client, job.id)).state, Cancelled)
    await becomes(lambda: group_is_gone(worker) and all(is_gone(pid) for pid in ranks))
    assert list((session / "checkpoints").iterdir())

    again = await training(client, recipe)
    assert isinstance((await ended(client, again.id)).state, Succeeded)
    log = (session / "jobs" / again.id / "log.txt").read_text()
    assert "Going on from the checkpoint at step" in log
    assert "Training on cpu, cpu: 2 processes." in log
    assert not list((session / "checkpoints").iterdir())
    await client.aclose()


async def test_a_killed_worker_takes_its_training_processes_along(session, tmp_path):
    client = await connect(session, client="test")
    job = await training(client, write(tmp_path / "model", epochs=2000))
    worker = worker_pid(job)
    assert worker is not None
    ranks = children(worker)
    os.kill(worker, signal.SIGKILL)
    assert isinstance((await ended(client, job.id)).state, Failed)
    await becomes(lambda: all(is_gone(pid) for pid in ranks))
    await client.aclose()


async def test_a_killed_training_process_fails_the_job_with_the_reason(session, tmp_path):
    client = await connect(session, client="test")
    job = await training(client, write(tmp_path / "model", epochs=2000))
    worker = worker_pid(job)
    assert worker is not None
    ranks = sorted(children(worker))
    os.kill(ranks[1], signal.SIGKILL)
    state = (await ended(client, job.id)).state
    assert isinstance(state, Failed)
    assert "training process 1 of 2 (cpu) was killed by signal 9" in state.reason
    await becomes(lambda: all(is_gone(pid) for pid in ranks))
    await client.aclose()
