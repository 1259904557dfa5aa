"""The chain engine → fork server → workers: fast to start, and no link outlives the one before it."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import pytest_asyncio
from engines import becomes, children, group_is_gone, is_gone, job_of, model_that, open_model, worker_pid

from engine.client import EngineClient, connect
from engine.hardware import read_processor
from engine.jobs.workers import ForkServer
from engine.protocol import Failed, InspectModel, JobSpec, ModelSource


async def sleeping_job(client: EngineClient, tmp_path: Path) -> tuple[int, int]:
    """A job that sleeps, with a child of its own: (worker's process id, fork server's)."""
    begun = tmp_path / "begun"
    statement = (
        f"import subprocess; subprocess.Popen(['sleep', '300']); open({str(begun)!r}, 'w').close(); time.sleep(300)"
    )
    run = await open_model(client, model_that(tmp_path, statement))
    job = await job_of(client, run, lambda job: worker_pid(job) is not None)
    await becomes(begun.exists)
    pid = worker_pid(job)
    assert pid is not None
    (fork_server,) = children(client.welcome.pid)
    return pid, fork_server


async def test_when_the_fork_server_is_killed_its_jobs_fail_and_the_next_one_works(shared_session, tmp_path):
    client = await connect(shared_session, client="test")
    worker, fork_server = await sleeping_job(client, tmp_path)
    os.kill(fork_server, signal.SIGKILL)
    job = await job_of(client, client.state.runs[-1], lambda job: job.is_done)
    assert isinstance(job.state, Failed)
    assert "process that starts workers died" in job.state.reason
    await becomes(lambda: group_is_gone(worker))
    worker, other = await sleeping_job(client, tmp_path / "next")
    assert other != fork_server
    os.kill(worker, signal.SIGKILL)  # or it would keep the queue of the shared session busy
    await job_of(client, client.state.runs[-1], lambda job: job.is_done)
    await client.aclose()


async def test_a_worker_that_is_killed_fails_alone(shared_session, tmp_path):
    client = await connect(shared_session, client="test")
    worker, fork_server = await sleeping_job(client, tmp_path)
    os.kill(worker, signal.SIGKILL)
    job = await job_of(client, client.state.runs[-1], lambda job: job.is_done)
    assert isinstance(job.state, Failed)
    assert job.state.cause == "signal"
    await becomes(lambda: group_is_gone(worker))
    assert children(client.welcome.pid) == [fork_server]
    await client.aclose()


async def test_when_the_engine_is_killed_everything_under_it_dies(shared_session, tmp_path):
    client = await connect(shared_session, client="test")
    worker, fork_server = await sleeping_job(client, tmp_path)
    os.kill(client.welcome.pid, signal.SIGKILL)
    await becomes(lambda: is_gone(fork_server))
    await becomes(lambda: group_is_gone(worker))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory):
    """A fork server without an engine around it; it says what it has to say into `log_path`."""
    log_path = tmp_path_factory.mktemp("fork-server") / "log.txt"
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT)
    server = ForkServer(log)
    server.log_path = log_path
    yield server
    server.stop()
    await server.stopped()
    os.close(log)


def spec_for(tmp_path: Path) -> JobSpec:
    model = model_that(tmp_path, "time.sleep(300)")
    return JobSpec(
        job="j",
        task=InspectModel(),
        source=ModelSource(path=str(model), kind="python", sha256="0"),
        variants={},
        baseline=None,
        session_directory=str(tmp_path),
        work_directory=str(tmp_path),
        device="cpu",
        processor=read_processor(),
        threads=1,
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_once_warm_a_worker_speaks_within_milliseconds(servers, tmp_path):
    """The promise is 50 ms on a quiet machine (tests/benchmarks/bench_job_start.py measures it); here a rough guard."""
    ready = await servers.ready()
    assert ready.threads == 1
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        worker = await servers.start_worker(spec_for(tmp_path), tmp_path / "log.txt")
        assert await worker.receive() is not None
        times.append(time.perf_counter() - begun)
        worker.signal(signal.SIGKILL)
        assert (await worker.wait()).signal == signal.SIGKILL
        worker.close()
    assert min(times) < 0.5, times


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_heavy_is_missing_from_the_fork_server(servers):
    await servers.ready()
    assert "not preloaded" not in servers.log_path.read_text()
    assert "not safe across a fork" not in servers.log_path.read_text()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_start_that_is_given_up_leaves_no_worker(servers, tmp_path):
    await servers.ready()
    for wait in (0.0, 0.001, 0.003, 0.01):
        starting = asyncio.create_task(servers.start_worker(spec_for(tmp_path), tmp_path / "log.txt"))
        await asyncio.sleep(wait)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
        else:
            starting.result().signal(signal.SIGKILL)
            starting.result().close()
    assert servers.pid is not None
    await becomes(lambda: children(servers.pid) == [])
