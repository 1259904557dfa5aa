"""Cancelling at any moment, order in the queue, and what a job leaves in the session."""

import asyncio
import time

import pytest
from engines import (
    GOOD_MODEL,
    becomes,
    children,
    ended_job,
    group_is_gone,
    is_gone,
    job_of,
    model_that,
    open_model,
    until,
    worker_pid,
    write_model,
)

from engine.client import EngineClient, EngineError, connect
from engine.paths import read_record
from engine.protocol import CancelJob, Cancelled, Job, Queued, Running, Succeeded

PROMISE_SECONDS = 2.0
"""Cancelling ends a job within this; the tests allow a busy machine some more."""

SLACK_SECONDS = 3.0


async def cancel_and_time(client: EngineClient, job: Job) -> float:
    """Cancel a job and wait for its end; returns how long that took."""
    begun = time.monotonic()
    await client.request(CancelJob(request=0, job=job.id))
    await until(client, lambda state: next(one for one in state.jobs if one.id == job.id).is_done)
    return time.monotonic() - begun


@pytest.mark.parametrize(
    "statement",
    [
        "time.sleep(60)",
        # Native code that ignores signals, as far as Python is concerned.
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); time.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "import ctypes; [ctypes.PyDLL(None).sleep(60) for _ in range(9)]",
        "import subprocess; subprocess.Popen(['sleep', '60']); signal.pause(); time.sleep(60)",
        "\n    while True:\n        try: time.sleep(60)\n        except Exception: pass",
    ],
)
async def test_cancelling_ends_the_worker_and_all_it_started_within_two_seconds(shared_session, tmp_path, statement):
    client = await connect(shared_session, client="test")
    begun = tmp_path / "begun"
    run = await open_model(client, model_that(tmp_path, f"open({str(begun)!r}, 'w').close(); {statement}"))
    job = await job_of(client, run, lambda job: worker_pid(job) is not None)
    pid = worker_pid(job)
    assert pid is not None
    await becomes(begun.exists)
    took = await cancel_and_time(client, job)
    ended = await job_of(client, run)
    assert isinstance(ended.state, Cancelled)
    assert took < PROMISE_SECONDS + SLACK_SECONDS
    assert is_gone(pid)
    await becomes(lambda: group_is_gone(pid))
    await becomes(lambda: not (shared_session / "jobs" / job.id / "work").exists())
    await client.aclose()


async def test_a_job_that_waits_for_the_fork_server_is_cancelled_at_once(session, tmp_path):
    """The very first job waits for torch to be imported; cancelling does not."""
    client = await connect(session, client="test")
    job = await job_of(client, await open_model(client, model_that(tmp_path, "time.sleep(60)")))
    took = await cancel_and_time(client, job)
    assert took < PROMISE_SECONDS
    record = read_record(session)
    assert record is not None
    (fork_server,) = children(record.pid)
    assert children(fork_server) == []
    await client.aclose()


async def test_cancelling_at_random_moments_of_a_start_leaves_no_process(shared_session, tmp_path):
    client = await connect(shared_session, client="test")
    model = model_that(tmp_path, "time.sleep(60)")
    for wait in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1):
        job = await job_of(client, await open_model(client, model))
        await asyncio.sleep(wait)
        await cancel_and_time(client, job)
    record = read_record(shared_session)
    assert record is not None
    (fork_server,) = children(record.pid)
    await becomes(lambda: children(fork_server) == [])
    await client.aclose()


async def test_jobs_on_one_device_queue_and_a_queued_one_is_cancelled_without_ever_starting(shared_session, tmp_path):
    """Two runs that open models take turns; the second job is asked for through the runner's own lock or the queue."""
    client = await connect(shared_session, client="test")
    first = await job_of(client, await open_model(client, model_that(tmp_path, "time.sleep(60)")), is_running)
    second = await open_model(client, model_that(tmp_path / "second", "time.sleep(60)"))
    assert sum(isinstance(job.state, Running) for job in client.state.jobs) == 1
    from engine.protocol import CancelRun

    await client.request(CancelRun(request=0, run=second.id))
    await cancel_and_time(client, first)
    state = await until(client, lambda state: all(run.finished for run in state.runs))
    assert not any(
        isinstance(job.state, Queued | Running) or (job.recipe_run == second.id and job.state.started)
        for job in state.jobs
    )
    await client.aclose()


async def test_cancelling_what_has_ended_says_so(shared_session, tmp_path):
    client = await connect(shared_session, client="test")
    job = await ended_job(client, model_that(tmp_path, "os._exit(1)"))
    with pytest.raises(EngineError, match="ended already"):
        await client.request(CancelJob(request=0, job=job.id))
    with pytest.raises(EngineError, match="no job"):
        await client.request(CancelJob(request=0, job="nonesuch"))
    await client.aclose()


async def test_a_success_is_shown_when_its_files_are_there(session, tmp_path):
    client = await connect(session, client="test")
    job = await ended_job(client, write_model(tmp_path, GOOD_MODEL))
    assert isinstance(job.state, Succeeded)
    (variant,) = client.state.variants
    assert job.state.variants == (variant.id,)
    assert variant.name == "baseline"
    assert variant.parent is None
    for file in variant.files:
        assert (session / "variants" / variant.id / file.path).stat().st_size == file.size_bytes
    await becomes(lambda: not (session / "jobs" / job.id / "work").exists())
    await client.aclose()


def is_running(job: Job) -> bool:
    return worker_pid(job) is not None
