"""Serving as a job of a real engine: it listens, others wait for it or run beside it, and it ends when asked to."""

import asyncio
import json
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from engines import becomes, is_gone, job_of, open_model, until, worker_pid
from opened_models import linear_graph

from engine.client import EngineClient, EngineError, connect
from engine.protocol import (
    CancelJob,
    Cancelled,
    Failed,
    Job,
    JobAccepted,
    LoadSettings,
    LoadTest,
    MeasureVariant,
    Queued,
    ReadLog,
    RunAccepted,
    RunLoadTest,
    Running,
    ServeSettings,
    ServeVariant,
    StopServing,
    Succeeded,
    Text,
)

pytestmark = pytest.mark.timeout(300)

ANYWHERE = ServeSettings(port=0, max_batch_size=4, max_wait_ms=1.0)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_graph(tmp_path_factory.mktemp("graph") / "linear.onnx")


async def opened(session: Path, graph: Path) -> EngineClient:
    client = await connect(session, client="test")
    if not client.state.variants:
        await job_of(client, await open_model(client, graph), lambda job: job.is_done)
        await until(client, lambda state: all(run.finished for run in state.runs))
    return client


async def serve(client: EngineClient, settings: ServeSettings = ANYWHERE) -> Job:
    """The job, once it listens or has ended."""
    accepted = await client.request(ServeVariant(request=0, variant="baseline", settings=settings))
    assert isinstance(accepted, JobAccepted)
    return await changed(client, accepted.job, lambda job: bool(job.urls) or job.is_done)


async def changed(client: EngineClient, job: Job, condition: Any) -> Job:
    def found(state: Any) -> Job:
        return next(one for one in state.jobs if one.id == job.id)

    return found(await until(client, lambda state: condition(found(state))))


def predict(url: str) -> list[list[float]]:
    body = json.dumps({"inputs": {"x": [[1, 0, 0, 0, 0, 0]]}}).encode()
    with urllib.request.urlopen(f"{url}/predict", body, timeout=20) as answer:
        return json.load(answer)["outputs"]["scores"]


async def test_it_listens_says_so_and_ends_when_it_is_asked_to(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        job = await serve(client)
        assert job.kind == "serve"
        assert job.title == f"Serve baseline on {job.urls[0]}"
        assert [url.partition(":")[0] for url in job.urls] == ["http", "grpc"]
        assert len((await asyncio.to_thread(predict, job.urls[0]))[0]) == 3
        await changed(client, job, lambda job: " 1 served" in job.state.message)
        assert isinstance(await client.request(StopServing(request=0, job=job.id)), object)
        ended = await changed(client, job, lambda job: job.is_done)
        assert isinstance(ended.state, Succeeded)
        assert ended.state.summary.startswith("Served 1 requests in ")
        with pytest.raises(OSError):
            await asyncio.to_thread(predict, job.urls[0])
        with pytest.raises(EngineError, match="has ended already"):
            await client.request(StopServing(request=0, job=job.id))
    finally:
        await client.aclose()


async def test_cancelling_answers_what_was_accepted_and_ends_the_process(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        job = await serve(client)
        job = await changed(client, job, lambda job: worker_pid(job) is not None)
        pid = worker_pid(job)
        assert pid is not None
        await client.request(CancelJob(request=0, job=job.id))
        ended = await changed(client, job, lambda job: job.is_done)
        assert isinstance(ended.state, Cancelled)
        await becomes(lambda: is_gone(pid))
    finally:
        await client.aclose()


async def test_a_measurement_waits_for_the_server_and_says_for_which(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        server = await serve(client)
        measuring = MeasureVariant(request=0, variant="baseline", kinds=("latency",), batch_sizes=(1,))
        accepted = await client.request(measuring)
        assert isinstance(accepted, RunAccepted)
        waiting = await job_of(client, accepted.run, lambda job: job.state != Queued())
        assert waiting.state == Queued(waiting_for=f"Serve baseline on {server.urls[0]}")
        await client.request(StopServing(request=0, job=server.id))
        started = await job_of(client, accepted.run, lambda job: isinstance(job.state, Running))
        await client.request(CancelJob(request=0, job=started.id))
        await job_of(client, accepted.run, lambda job: job.is_done)
    finally:
        await client.aclose()


async def test_a_load_test_runs_against_a_server_of_the_same_session(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        server = await serve(client)
        blocked = await client.request(MeasureVariant(request=0, variant="baseline", kinds=("latency",)))
        assert isinstance(blocked, RunAccepted)
        for url in server.urls:
            settings = LoadSettings(url=url, concurrency=4, seconds=1.0, warm_up_seconds=0.2)
            accepted = await client.request(RunLoadTest(request=0, variant="baseline", settings=settings))
            assert isinstance(accepted, RunAccepted)
            job = await job_of(client, accepted.run, lambda job: job.is_done)
            assert isinstance(job.state, Succeeded), job
            found = next(one for one in client.state.measurements if one.id in job.state.measurements)
            assert isinstance(found, LoadTest)
            assert found.conditions.runtime.startswith("trimtab over ")
            assert found.summary.completed > 10
            assert found.summary.failed == found.summary.rejected == 0
            assert found.summary.compute_ms["mean"] > 0
            assert max(map(int, found.summary.batch_sizes)) <= 4
        assert isinstance((await changed(client, server, lambda job: True)).state, Running)
        waiting = await job_of(client, blocked.run, lambda job: isinstance(job.state, Queued))
        await client.request(CancelJob(request=0, job=waiting.id))
        await client.request(StopServing(request=0, job=server.id))
        await changed(client, server, lambda job: job.is_done)
    finally:
        await client.aclose()


async def test_a_load_test_on_a_server_that_is_not_there_fails_with_the_reason(
    shared_session: Path, graph: Path
) -> None:
    client = await opened(shared_session, graph)
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            settings = LoadSettings(url=url, rate=10, seconds=1.0, warm_up_seconds=0.0)
            accepted = await client.request(RunLoadTest(request=0, variant="baseline", settings=settings))
            assert isinstance(accepted, RunAccepted)
            job = await job_of(client, accepted.run, lambda job: job.is_done)
        assert isinstance(job.state, Failed)
        assert job.state.cause == "refused"
        assert "cannot be reached" in job.state.reason
    finally:
        await client.aclose()


async def test_a_taken_port_is_a_sentence(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            job = await serve(client, ServeSettings(port=port))
            assert isinstance(job.state, Failed)
            assert job.state.reason == (
                f"Port {port} on 127.0.0.1 is taken: choose another with --port, or --port 0 for a free one."
            )
            job = await serve(client, ServeSettings(port=0, grpc_port=port))
            assert isinstance(job.state, Failed)
            assert "choose another with --grpc-port" in job.state.reason
    finally:
        await client.aclose()


async def test_an_address_of_another_machine_is_refused(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        job = await serve(client, ServeSettings(port=0, host="192.0.2.7"))
        assert isinstance(job.state, Failed)
        assert "Cannot listen on 192.0.2.7" in job.state.reason
    finally:
        await client.aclose()


async def test_listening_to_the_whole_network_is_said_in_the_log(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        job = await serve(client, ServeSettings(port=0, host="0.0.0.0"))
        await client.request(StopServing(request=0, job=job.id))
        await changed(client, job, lambda job: job.is_done)
        log = await client.request(ReadLog(request=0, job=job.id))
        assert isinstance(log, Text)
        assert "whoever can reach this machine can use the model" in log.text
    finally:
        await client.aclose()


async def test_two_servers_run_beside_each_other(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        first, second = await serve(client), await serve(client)
        assert first.urls != second.urls
        for job in (first, second):
            assert isinstance((await changed(client, job, lambda job: True)).state, Running)
            await client.request(StopServing(request=0, job=job.id))
        for job in (first, second):
            await changed(client, job, lambda job: job.is_done)
    finally:
        await client.aclose()


async def test_what_cannot_be_served_is_refused_before_a_worker_runs(shared_session: Path, graph: Path) -> None:
    client = await opened(shared_session, graph)
    try:
        for command, words in (
            (ServeVariant(request=0, variant="nothing"), "nothing"),
            (ServeVariant(request=0, variant="baseline", runtime="pytorch"), "pytorch cannot run baseline"),
            (ServeVariant(request=0, variant="baseline", runtime="warp"), "no runtime warp"),
            (ServeVariant(request=0, variant="baseline", device="cuda:7"), "no device cuda:7"),
            (StopServing(request=0, job="none"), "no job none"),
        ):
            with pytest.raises(EngineError, match=words):
                await client.request(command)
    finally:
        await client.aclose()


@pytest.mark.slow
async def test_a_server_dies_with_its_engine(session: Path, graph: Path) -> None:
    client = await opened(session, graph)
    job = await serve(client)
    pid = worker_pid(await changed(client, job, lambda job: worker_pid(job) is not None))
    assert pid is not None
    from engine.paths import read_record

    record = read_record(session)
    assert record is not None
    os.kill(record.pid, 9)
    await client.aclose()
    await becomes(lambda: is_gone(pid))
