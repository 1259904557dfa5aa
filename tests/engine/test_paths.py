"""Where engines are found: sockets in directories that are ours alone, a lock for life, a record of who it is."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine import paths


def record(**changes: object) -> paths.EngineRecord:
    facts: dict = {
        "pid": os.getpid(),
        "start_ticks": paths.start_ticks(os.getpid()),
        "machine_boot": paths.machine_boot(),
        "boot_id": "b",
        "protocol": 1,
        "oldest_protocol": 1,
        "version": "0",
        "python": sys.executable,
        "socket": "/nowhere",
        "started": 0.0,
    }
    return paths.EngineRecord(**(facts | changes))


def test_the_socket_and_its_directory_are_closed_to_others_from_the_first_moment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    previous = os.umask(0)
    try:
        listener, path = paths.listening_socket(tmp_path / "a.trimtab")
    finally:
        os.umask(previous)
    with listener:
        assert path.parent == tmp_path / "trimtab" / "run"
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700


def test_a_state_directory_too_long_for_a_socket_falls_back_to_a_short_private_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("long" * 30)))
    listener, path = paths.listening_socket(tmp_path / "a.trimtab")
    with listener:
        assert path.parent == Path(f"/tmp/trimtab-{os.getuid()}")
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
        assert path in paths.connectable_sockets(tmp_path / "a.trimtab")
    path.unlink()


def test_a_file_where_the_state_directory_should_be_falls_back_too(tmp_path, monkeypatch):
    (tmp_path / "trimtab").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    listener, path = paths.listening_socket(tmp_path / "a.trimtab")
    with listener:
        assert path.parent == Path(f"/tmp/trimtab-{os.getuid()}")
    path.unlink()


def test_a_link_in_place_of_the_socket_directory_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(paths.UnsafeDirectory, match="not a directory"):
        paths.private_directory(tmp_path / "run")


def test_a_directory_open_to_others_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o770)
    with pytest.raises(paths.UnsafeDirectory, match="chmod 700"):
        paths.private_directory(tmp_path / "run")


def test_another_users_directory_is_refused(tmp_path, as_root):
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", 12345, 12345)
    with pytest.raises(paths.UnsafeDirectory, match="belongs to user 12345"):
        paths.private_directory(tmp_path / "run")


def test_a_client_does_not_follow_a_record_into_a_directory_that_is_not_ours(tmp_path):
    session = tmp_path / "a.trimtab"
    session.mkdir()
    open_to_all = tmp_path / "trap"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as trap:
        trap.bind(str(open_to_all / "x.sock"))
        paths.write_record(session, record(socket=str(open_to_all / "x.sock")))
        assert open_to_all / "x.sock" not in paths.connectable_sockets(session)


def test_every_spelling_of_a_directory_has_the_same_key(tmp_path):
    (tmp_path / "a.trimtab").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a.trimtab")
    assert paths.session_key(tmp_path / "link") == paths.session_key(tmp_path / "x" / ".." / "a.trimtab")


def test_the_lock_holds_until_its_process_ends_and_no_longer(tmp_path):
    code = (
        "import sys, pathlib; from engine.paths import lock_session\n"
        "lock_session(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(paths.SessionLocked, match="already open in another engine"):
        paths.lock_session(tmp_path)
    holder.kill()
    holder.communicate()
    os.close(paths.lock_session(tmp_path))


def test_a_recycled_process_id_is_not_taken_for_the_engine():
    assert paths.is_alive(record())
    assert not paths.is_alive(record(start_ticks=1))
    assert not paths.is_alive(record(machine_boot="another boot"))


def test_an_unreadable_record_is_no_record(tmp_path):
    assert paths.read_record(tmp_path) is None
    (tmp_path / paths.RECORD_NAME).write_text('{"pid": "half')
    assert paths.read_record(tmp_path) is None


def test_the_list_of_sessions_forgets_directories_that_are_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert paths.listed_sessions() == []
    for name in ("a.trimtab", "b.trimtab"):
        (tmp_path / name).mkdir()
        paths.remember_session(tmp_path / name)
    paths.remember_session(tmp_path / "a.trimtab", model="resnet")
    (tmp_path / "b.trimtab").rmdir()
    assert paths.listed_sessions() == [
        paths.ListedSession(directory=str((tmp_path / "a.trimtab").resolve()), model="resnet")
    ]
    paths.forget_session(tmp_path / "a.trimtab")
    assert paths.listed_sessions() == []


def test_sessions_here_are_the_trimtab_directories(tmp_path):
    (tmp_path / "b.trimtab").mkdir()
    (tmp_path / "a.trimtab").mkdir()
    (tmp_path / "c.trimtab").write_text("a file")
    (tmp_path / "d").mkdir()
    assert [path.name for path in paths.sessions_in(tmp_path)] == ["a.trimtab", "b.trimtab"]
