"""Attaching: the engine is started when there is none, once however many ask, and is found again after its end."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from engines import becomes, is_gone, model_that, open_model, until, write_model

from engine.client import EngineError, EngineGone, EngineNotRunning, connect, fold, known_sessions
from engine.paths import read_record
from engine.protocol import OpenModel, Running, SetOptions, Snapshot, StopEngine, TelemetrySampled


async def test_clients_that_start_the_engine_together_meet_at_one(session):
    clients = await asyncio.gather(*(connect(session, client="test") for _ in range(6)))
    assert len({client.welcome.boot_id for client in clients}) == 1
    for client in clients:
        await client.aclose()


async def test_without_leave_to_start_it_is_an_error_that_says_so(session):
    with pytest.raises(EngineNotRunning, match="No engine is running"):
        await connect(session, start=False)


async def test_an_engine_that_cannot_start_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be kept"):
        await connect(tmp_path / "file")


async def test_the_engine_is_nobodys_child_and_keeps_the_environment(session, monkeypatch):
    monkeypatch.setenv("MODEL_ZOO", "/srv/zoo")
    client = await connect(session, client="test")
    status = Path(f"/proc/{client.welcome.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(status[1]) != os.getpid()
    assert b"MODEL_ZOO=/srv/zoo" in Path(f"/proc/{client.welcome.pid}/environ").read_bytes().split(b"\0")
    await client.aclose()


async def test_events_fold_to_what_a_newcomer_is_sent(session, tmp_path):
    """A client that followed everything and one that attaches at the end see the same."""
    client = await connect(session, client="test")
    folded = client.state
    events = client.events()
    run = await open_model(client, write_model(tmp_path))
    await client.request(SetOptions(request=0, accuracy_limit=0.03))
    await until(client, lambda state: any(one.id == run.id and one.finished for one in state.runs))
    while folded.seq < client.state.seq:
        event = await anext(events)
        folded = event if isinstance(event, Snapshot) else fold(folded, event)
    newcomer = await connect(session, client="test")
    for name in Snapshot.__struct_fields__:
        if name not in ("telemetry", "seq"):
            assert getattr(folded, name) == getattr(newcomer.state, name), name
    assert newcomer.state.options.accuracy_limit == 0.03
    await client.aclose()
    await newcomer.aclose()


async def test_charts_are_full_for_who_attaches_later(session):
    client = await connect(session, client="test", telemetry_hz=2)
    events = client.events()
    for _ in range(3):
        while not isinstance(await anext(events), TelemetrySampled):
            pass
    late = await connect(session, client="test")
    assert len(late.state.telemetry) >= 3
    await client.aclose()
    await late.aclose()


async def test_when_the_engine_dies_requests_and_events_end_and_reconnect_brings_a_new_one(session, tmp_path):
    client = await connect(session, client="test")
    events = client.events()
    waiting = asyncio.create_task(_drain(events))
    pid = client.welcome.pid
    os.kill(pid, signal.SIGSTOP)
    asking = asyncio.create_task(client.request(SetOptions(request=0, accuracy_limit=0.5)))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineGone):
        await asking
    await asyncio.wait_for(waiting, 20)
    assert not client.connected
    with pytest.raises(EngineGone):
        await client.request(SetOptions(request=0, accuracy_limit=0.5))
    await client.reconnect()
    assert client.welcome.pid != pid
    await client.request(SetOptions(request=0, accuracy_limit=0.25))
    await until(client, lambda state: state.options.accuracy_limit == 0.25)
    await client.aclose()


async def _drain(events) -> None:
    async for _ in events:
        pass


async def test_an_engine_that_hangs_is_named(session, monkeypatch):
    client = await connect(session, client="test")
    await client.aclose()
    os.kill(client.welcome.pid, signal.SIGSTOP)
    monkeypatch.setattr("engine.client.client.HANDSHAKE_SECONDS", 0.3)
    with pytest.raises(EngineError, match=rf"process {client.welcome.pid}\) does not answer"):
        await connect(session, client="test")


async def test_starting_right_after_stopping_waits_for_the_old_one_to_let_go(session):
    client = await connect(session, client="test")
    for _ in range(3):
        old = client.welcome.boot_id
        await client.request(StopEngine(request=0))
        await client.reconnect()
        assert client.welcome.boot_id != old
    await client.aclose()


async def test_a_reader_that_falls_behind_gets_the_newest_state_instead(session, monkeypatch):
    monkeypatch.setattr("engine.client.client.MAX_WAITING_EVENTS", 10)
    client = await connect(session, client="test")
    events = client.events()
    for number in range(25):
        await client.request(SetOptions(request=0, accuracy_limit=number / 100))
    await events.aclose()
    seen = [event async for event in events]
    assert seen == []
    behind = client.events()
    for number in range(25):
        await client.request(SetOptions(request=0, accuracy_limit=number / 100))
    first = await anext(behind)
    assert isinstance(first, Snapshot)
    assert first.options.accuracy_limit > 0
    await client.aclose()


async def test_the_list_shows_what_runs_where(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "never-opened.trimtab").mkdir()
    client = await connect(session, client="test")
    await open_model(client, model_that(tmp_path / "code", "time.sleep(60)"))
    await until(client, lambda state: any(isinstance(job.state, Running) for job in state.jobs))
    rows = {row.directory: row for row in await known_sessions()}
    here = str(session.resolve())
    assert (rows[here].running, rows[here].pid, rows[here].running_jobs) == (True, client.welcome.pid, 1)
    assert not rows[str((tmp_path / "never-opened.trimtab").resolve())].running
    os.kill(client.welcome.pid, signal.SIGKILL)
    await becomes(lambda: is_gone(client.welcome.pid))
    rows = {row.directory: row for row in await known_sessions()}
    assert not rows[here].running
    await client.aclose()


async def test_the_engine_survives_the_client_and_its_terminal(session, tmp_path):
    """A client in a session of its own, as an SSH login is; the whole of it is hung up while a job runs."""
    go = tmp_path / "go"
    model = model_that(
        tmp_path, f"\n    while not os.path.exists({str(go)!r}): time.sleep(0.02)\n    raise ValueError('to its end')"
    )
    code = (
        "import asyncio, sys\nfrom engine.client import connect\nfrom engine.protocol import OpenModel\n"
        "async def main():\n    client = await connect(sys.argv[1])\n"
        "    await client.request(OpenModel(request=0, path=sys.argv[2]))\n    print('asked', flush=True)\n"
        "    await client.wait_closed()\nasyncio.run(main())"
    )
    login = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code, session, model], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert login.stdout is not None
    assert await asyncio.to_thread(login.stdout.readline) == "asked\n"
    os.killpg(login.pid, signal.SIGHUP)
    login.communicate()
    client = await connect(session, start=False, client="test")
    state = await until(client, lambda state: any(getattr(job.state, "pid", None) for job in state.jobs))
    go.touch()
    state = await until(client, lambda state: state.jobs[-1].is_done)
    assert "to its end" in state.jobs[-1].state.reason
    await client.aclose()


FAKE_SYSTEMD_RUN = """#!/bin/sh
echo "$@" >> {calls}
[ -e {broken} ] && {{ echo "Failed to connect to bus" >&2; exit 1; }}
while [ "$1" != "--" ]; do shift; done
shift
exec "$@"
"""


@pytest.mark.parametrize("broken", [False, True])
async def test_under_systemd_it_leaves_the_logins_scope_and_without_it_starts_all_the_same(
    session, tmp_path, monkeypatch, broken
):
    calls, marker = tmp_path / "calls", tmp_path / "broken"
    program = tmp_path / "bin" / "systemd-run"
    program.parent.mkdir()
    program.write_text(FAKE_SYSTEMD_RUN.format(calls=calls, broken=marker))
    program.chmod(0o755)
    if broken:
        marker.touch()
    (tmp_path / "runtime" / "systemd").mkdir(parents=True)
    (tmp_path / "runtime" / "systemd" / "private").touch()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    client = await connect(session, client="test")
    assert "--user --scope" in calls.read_text()
    assert (await client.request(SetOptions(request=0, accuracy_limit=0.01))) is not None
    await client.aclose()


async def test_a_session_reached_by_a_link_is_the_same_session(session, tmp_path):
    client = await connect(session, client="test")
    (tmp_path / "link.trimtab").symlink_to(session)
    other = await connect(tmp_path / "link.trimtab", start=False, client="test")
    assert other.welcome.boot_id == client.welcome.boot_id
    await client.aclose()
    await other.aclose()


async def test_another_state_directory_still_finds_the_running_engine(session, tmp_path, monkeypatch):
    client = await connect(session, client="test")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    other = await connect(session, start=False, client="test")
    assert other.welcome.boot_id == client.welcome.boot_id
    assert read_record(session) is not None
    await client.aclose()
    await other.aclose()


async def test_a_command_too_large_to_send_is_an_error_and_no_more(session):
    client = await connect(session, client="test")
    with pytest.raises(EngineError, match="cannot be sent"):
        await client.request(OpenModel(request=0, path="/" + "x" * (17 * 1024 * 1024)))
    await client.request(SetOptions(request=0, accuracy_limit=0.01))
    await client.aclose()
