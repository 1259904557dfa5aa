"""The engine at its door: who gets in, what a bad or slow client can do (nothing to the others), when it ends."""

import asyncio
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from engines import becomes, children, end, ended_job, is_gone, model_that, open_model, until, write_model

from engine import protocol
from engine.client import EngineError, connect
from engine.client.starting import MAIN
from engine.paths import listed_sessions, read_record
from engine.protocol import (
    FRAME_HEADER,
    MAX_FRAME_BYTES,
    Failed,
    Hello,
    Reply,
    SetOptions,
    StopEngine,
    TelemetrySampled,
    encode_frame,
)

HELLO = Hello(protocol=protocol.PROTOCOL, oldest_protocol=protocol.OLDEST_PROTOCOL, version="0", client="test")


class RawClient:
    """A client that says exactly what it is told to, and reads only when it is told to."""

    def __init__(self, session: Path) -> None:
        record = read_record(session)
        assert record is not None
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(record.socket)

    def say(self, *parts: bytes) -> "RawClient":
        self.socket.sendall(b"".join(parts))
        return self

    def hear(self):
        """The next message, None when the engine has closed the connection."""
        header = self._exactly(FRAME_HEADER.size)
        if header is None:
            return None
        return protocol.decode_engine_message(self._exactly(*FRAME_HEADER.unpack(header)))

    def _exactly(self, length: int) -> bytes | None:
        data = b""
        while len(data) < length:
            try:
                piece = self.socket.recv(length - len(data))
            except ConnectionResetError:
                return None
            if not piece:
                return None
            data += piece
        return data


@pytest.fixture
async def client(shared_session):
    connected = await connect(shared_session, client="test")
    yield connected
    await connected.aclose()


# --- the door --------------------------------------------------------------------------------------


async def test_the_socket_is_the_users_alone(client, shared_session):
    record = read_record(shared_session)
    assert record is not None
    for path, mode in ((Path(record.socket), 0o600), (Path(record.socket).parent, 0o700)):
        assert stat.S_IMODE(path.lstat().st_mode) == mode
        assert path.lstat().st_uid == os.getuid()


def test_another_user_gets_no_further_than_the_door_even_when_every_mode_is_wide_open(as_root, monkeypatch):
    place = Path(tempfile.mkdtemp(prefix="trimtab-test-"))
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    session = place / "m.trimtab"
    try:
        asyncio.run(_start(session))
        record = read_record(session)
        assert record is not None
        assert _heard_by_another_user(record.socket) == "PermissionError"
        socket_path = Path(record.socket)
        for path in (place, *(place / "state").rglob("*"), place / "state"):
            path.chmod(0o777)
        assert stat.S_IMODE(socket_path.lstat().st_mode) == 0o777
        assert "belongs to another user" in _heard_by_another_user(record.socket)
    finally:
        end(session)
        shutil.rmtree(place)


async def _start(session: Path) -> None:
    await (await connect(session, client="test")).aclose()


def _heard_by_another_user(path: str) -> str:
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
        "try:\n    s.connect(sys.argv[1]); print(s.recv(65536))\nexcept OSError as e: print(type(e).__name__)"
    )
    ran = subprocess.run([sys.executable, "-S", "-c", code, path], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


async def test_whoever_says_nothing_is_shown_out(client, shared_session, monkeypatch):
    silent = RawClient(shared_session)
    refused = await asyncio.to_thread(silent.hear)
    assert "No greeting" in refused.reason
    assert await asyncio.to_thread(silent.hear) is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (FRAME_HEADER.pack(MAX_FRAME_BYTES + 1), "over the limit"),
        (FRAME_HEADER.pack(5) + b"\xc1\xc1\xc1\xc1\xc1", "cannot be understood"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "over the limit"),
        (encode_frame(StopEngine(request=1)), "must be a greeting"),
    ],
)
async def test_what_is_no_greeting_closes_that_connection_and_no_other(client, shared_session, said, words):
    raw = RawClient(shared_session).say(said)
    refused = await asyncio.to_thread(raw.hear)
    assert words in refused.reason
    assert await asyncio.to_thread(raw.hear) is None
    await client.request(SetOptions(request=0, accuracy_limit=0.01))


@pytest.mark.parametrize("said", [FRAME_HEADER.pack(2**32 - 1), FRAME_HEADER.pack(3) + b"\xc1\xc1\xc1"])
async def test_a_malformed_frame_later_closes_that_connection_and_no_other(client, shared_session, said):
    raw = RawClient(shared_session).say(encode_frame(HELLO), said)
    messages = [await asyncio.to_thread(raw.hear) for _ in range(4)]
    assert messages[-1] is None
    await client.request(SetOptions(request=0, accuracy_limit=0.01))


async def test_a_client_of_another_protocol_is_told_what_to_do(client, shared_session):
    later = msgspec.structs.replace(HELLO, protocol=99, oldest_protocol=98, version="9.0")
    refused = await asyncio.to_thread(RawClient(shared_session).say(encode_frame(later)).hear)
    assert f"kill {client.welcome.pid}" in refused.reason
    assert "9.0" in refused.reason
    assert sys.executable in refused.reason


async def test_a_newer_client_that_still_speaks_ours_gets_in_and_its_new_commands_get_answers(client, shared_session):
    later = msgspec.structs.replace(HELLO, protocol=99, oldest_protocol=1, subscribe=False)
    unknown = msgspec.msgpack.encode({"type": "dance", "request": 41})
    raw = RawClient(shared_session).say(encode_frame(later), FRAME_HEADER.pack(len(unknown)), unknown)
    welcome = await asyncio.to_thread(raw.hear)
    assert welcome.protocol == protocol.PROTOCOL
    reply = await asyncio.to_thread(raw.hear)
    assert isinstance(reply, Reply)
    assert reply.request == 41
    assert "does not understand" in (reply.error or "")
    raw.say(encode_frame(SetOptions(request=42, accuracy_limit=0.01)))
    assert (await asyncio.to_thread(raw.hear)).error is None


async def test_a_client_that_reads_nothing_holds_up_nobody_and_gets_a_fresh_snapshot(client, shared_session):
    stuck = RawClient(shared_session).say(encode_frame(HELLO))
    heavy = tuple(range(1, 60_000))
    for _ in range(60):
        await client.request(SetOptions(request=0, batch_sizes=heavy))
    await client.request(SetOptions(request=0, batch_sizes=(1, 8)))
    final = client.state

    def catch_up() -> list:
        messages = []
        while not messages or getattr(messages[-1], "seq", -1) < final.seq:
            messages.append(stuck.hear())
        return messages

    messages = await asyncio.to_thread(catch_up)
    snapshots = [message for message in messages if isinstance(message, protocol.Snapshot)]
    assert len(snapshots) == 2, "one to begin with, one in place of what was missed"
    assert len(messages) < 60
    sequence = [message.seq for message in messages if not isinstance(message, protocol.Welcome)]
    assert sequence == sorted(sequence)
    state = snapshots[-1]
    for message in messages[messages.index(state) + 1 :]:
        from engine.client import fold

        state = fold(state, message)
    assert state.options.batch_sizes == (1, 8)


async def test_telemetry_comes_at_the_rate_a_client_asks_for_and_to_nobody_else(client, shared_session):
    watcher = await connect(shared_session, client="test", telemetry_hz=2.0)
    mine, theirs = client.events(), watcher.events()
    for _ in range(3):
        while not isinstance(await anext(theirs), TelemetrySampled):
            pass
    assert len(watcher.state.telemetry) >= 3
    assert 0 <= (watcher.state.telemetry[-1].cpu or 0) <= 1
    await client.request(SetOptions(request=0, accuracy_limit=0.01))
    assert not isinstance(await anext(mine), TelemetrySampled)
    await watcher.aclose()


async def test_what_a_command_cannot_do_is_a_sentence(client):
    for command, words in (
        (SetOptions(request=0, accuracy_limit=1.5), "fraction"),
        (SetOptions(request=0, batch_sizes=(0,)), "batch size"),
        (SetOptions(request=0, runtimes=("abacus",)), "no runtime abacus"),
        (SetOptions(request=0, target="moon"), "no target moon"),
        (SetOptions(request=0, device="gpu"), "no device gpu"),
        (protocol.OpenModel(request=0, path="model.py"), "whole path"),
        (protocol.RunRecipe(request=0, path="/nowhere/recipe.toml"), "recipe"),
        (protocol.ApplyTechnique(request=0, technique="export-onnx", source="baseline"), "model"),
        (protocol.DeleteVariant(request=0, variant="none"), "no variant"),
        (protocol.CancelRun(request=0, run="none"), "no run"),
        (protocol.ReadLog(request=0, job="../../etc"), "no job"),
        (protocol.GetRecipe(request=0, variant="none"), "no variant"),
    ):
        with pytest.raises(EngineError, match=words):
            await client.request(command)


async def test_the_log_of_the_engine_itself_can_be_read(client):
    text = await client.request(protocol.ReadLog(request=0))
    assert "listens on" in text.text


# --- one engine a session --------------------------------------------------------------------------


def test_of_engines_started_together_exactly_one_lives(session):
    command = [sys.executable, "-P", str(MAIN), "server", str(session)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        words = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
        assert sorted(word.partition(" ")[0] for word in words) == ["locked:", "locked:", "locked:", "ready"]
        winner = racers[words.index("ready")]
        losers = [racer for racer in racers if racer is not winner]
        assert [loser.wait(30) for loser in losers] == [75, 75, 75]
        record = read_record(session)
        assert record is not None
        assert record.pid == winner.pid
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_a_directory_that_cannot_be_a_session_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    ran = subprocess.run(
        [sys.executable, "-P", str(MAIN), "server", str(tmp_path / "file")], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert "cannot be kept" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr


# --- the end ---------------------------------------------------------------------------------------


async def test_it_stops_in_order_when_asked_and_leaves_nothing_behind(session):
    client = await connect(session, client="test")
    events = client.events()
    pid, record = client.welcome.pid, read_record(session)
    assert record is not None
    await client.request(StopEngine(request=0))
    assert "asked" in [event async for event in events][-1].reason
    await becomes(lambda: is_gone(pid))
    assert not os.path.exists(record.socket)
    assert read_record(session) is None


async def test_with_a_job_running_it_refuses_to_stop_unless_told_to_cancel(session, tmp_path):
    client = await connect(session, client="test")
    await open_model(client, model_that(tmp_path, "time.sleep(60)"))
    await until(client, lambda state: bool(state.jobs))
    with pytest.raises(EngineError, match="would be cancelled"):
        await client.request(StopEngine(request=0))
    tree = children(client.welcome.pid)
    await client.request(StopEngine(request=0, cancel_jobs=True))
    await client.wait_closed()
    await becomes(lambda: all(is_gone(pid) for pid in (client.welcome.pid, *tree)))


async def test_sigterm_cancels_the_jobs_keeps_their_records_and_ends(session, tmp_path):
    client = await connect(session, client="test")
    await open_model(client, model_that(tmp_path, "time.sleep(60)"))
    state = await until(client, lambda state: any(getattr(job.state, "pid", None) for job in state.jobs))
    worker = state.jobs[-1].state.pid
    os.kill(client.welcome.pid, signal.SIGTERM)
    await client.wait_closed()
    await becomes(lambda: is_gone(client.welcome.pid) and is_gone(worker))
    await client.reconnect()
    assert [type(job.state).__name__ for job in client.state.jobs] == ["Cancelled"]
    await client.aclose()


async def test_a_hangup_is_nothing_to_it(session):
    client = await connect(session, client="test")
    os.kill(client.welcome.pid, signal.SIGHUP)
    await client.request(SetOptions(request=0, accuracy_limit=0.02))
    assert os.getsid(client.welcome.pid) != os.getsid(0)
    await client.aclose()


async def test_without_client_and_job_it_ends_its_fork_server_first_and_attaching_brings_all_back(
    session, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRIMTAB_IDLE_SECONDS", "4")
    client = await connect(session, client="test")
    monkeypatch.delenv("TRIMTAB_IDLE_SECONDS")
    pid = client.welcome.pid
    job = await ended_job(client, write_model(tmp_path))
    before = client.state
    assert (str(session.resolve()), "model") in [(one.directory, one.model) for one in listed_sessions()]
    (fork_server,) = children(pid)
    await client.aclose()
    await becomes(lambda: is_gone(fork_server))
    assert not is_gone(pid)
    await becomes(lambda: is_gone(pid))
    await client.reconnect()
    assert client.welcome.pid != pid
    assert client.state.variants == before.variants
    assert [one.state for one in client.state.jobs] == [job.state]
    assert client.state.model == before.model
    await client.aclose()


async def test_an_attached_client_keeps_it_alive(session, monkeypatch):
    monkeypatch.setenv("TRIMTAB_IDLE_SECONDS", "0.5")
    client = await connect(session, client="test", telemetry_hz=2)
    events = client.events()
    for _ in range(5):
        await anext(events)
    await client.request(SetOptions(request=0, accuracy_limit=0.02))
    await client.aclose()
    await becomes(lambda: is_gone(client.welcome.pid))


async def test_jobs_that_were_running_when_it_was_killed_are_failed_with_that_cause(session, tmp_path):
    client = await connect(session, client="test")
    await open_model(client, model_that(tmp_path, "time.sleep(60)"))
    await until(client, lambda state: any(isinstance(job.state, protocol.Running) for job in state.jobs))
    os.kill(client.welcome.pid, signal.SIGKILL)
    await client.wait_closed()
    await client.reconnect()
    (job,) = client.state.jobs
    assert isinstance(job.state, Failed)
    assert job.state.cause == "engine-stopped"
    assert not (session / "jobs" / job.id / "work").exists()
    await client.aclose()


async def test_a_swept_socket_is_put_back_and_a_removed_session_ends_the_engine(session, monkeypatch):
    monkeypatch.setenv("TRIMTAB_IDLE_SECONDS", "2")
    client = await connect(session, client="test")
    record = read_record(session)
    assert record is not None
    os.unlink(record.socket)
    await becomes(lambda: os.path.exists(record.socket))
    other = await connect(session, start=False, client="test")
    assert other.welcome.boot_id == client.welcome.boot_id
    await other.aclose()
    shutil.rmtree(session)
    await becomes(lambda: is_gone(client.welcome.pid))
    await client.aclose()


def test_the_peer_is_known_from_the_kernel():
    from engine.server.connections import peer_uid

    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.getuid()
        assert struct.calcsize("3i") == 12
