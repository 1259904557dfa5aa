"""A worker killed in the middle of its training: run again, it goes on from the checkpoint, and the curve with it."""

import os
import signal

import pytest
from engines import job_of, until, worker_pid
from learning_models import CNN_FILE

from engine.client import EngineClient, connect
from engine.protocol import Failed, ReadMetrics, RunAccepted, RunRecipe, Succeeded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OFTEN = """
import importlib, time
importlib.import_module("_trimtab_engine.training.loop").CHECKPOINT_SECONDS = 0.2

def loss(outputs, labels):
    time.sleep(0.005)  # long enough to be killed before its end on any machine
    return nn.functional.cross_entropy(outputs, labels)
"""

RECIPE = """
model = "net.py"
batch_sizes = [1]

[[steps]]
technique = "distill"
name = "student"
epochs = 40
learning_rate = 0.002
precision = "float32"
"""


async def start(client: EngineClient, recipe):
    """Run the recipe."""
    accepted = await client.request(RunRecipe(request=0, path=str(recipe)))
    assert isinstance(accepted, RunAccepted)
    return accepted.run


async def curve(client: EngineClient, job, name):
    """The points of a job's curve: (step, value)."""
    history = await client.request(ReadMetrics(request=0, job=job.id))
    return [(point[2], point[1]) for point in history.points if point[0] == name]


async def test_a_worker_killed_in_the_middle_of_training_goes_on_from_its_checkpoint(session, tmp_path):
    (tmp_path / "net.py").write_text(CNN_FILE + OFTEN)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    client = await connect(session, client="test")

    def kept():
        return list((session / "checkpoints").glob("*/training.pt"))

    run = await start(client, recipe)
    job = await job_of(client, run, lambda job: job.is_done or ("accuracy" in job.metrics and bool(kept())), "distill")
    worker = worker_pid(job)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    state = await until(client, lambda state: any(one.id == job.id and one.is_done for one in state.jobs))
    failed = next(one for one in state.jobs if one.id == job.id)
    assert isinstance(failed.state, Failed)
    assert f"goes on from the checkpoint at step {failed.metrics['checkpoint']:.0f}." in failed.state.reason
    before = await curve(client, job, "loss")
    assert kept()

    again = await job_of(client, await start(client, recipe), lambda job: job.is_done, "distill")
    assert isinstance(again.state, Succeeded), again.state
    log = (session / "jobs" / again.id / "log.txt").read_text()
    assert "Going on from the checkpoint at step" in log
    step = int(log.partition("checkpoint at step ")[2].partition(".")[0])
    after = await curve(client, again, "loss")
    assert [point for point in after if point[0] <= step] == [point for point in before if point[0] <= step]
    steps = [step for step, _ in after]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40 * 15
    assert 0 < step < steps[-1]
    assert not kept()
    await client.aclose()
