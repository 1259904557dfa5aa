"""A session survives kills, full disks and damaged files: what was shown as done is there, nothing is half there."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from session_makers import add_accuracy, add_latency, add_variant, is_whole, make_model

from engine.protocol import Job, Queued
from engine.session import Session, SessionError

HERE = Path(__file__).parent


def seeded(directory: Path) -> Path:
    """A session with a baseline and one measured variant, closed."""
    session = Session.open(directory)
    session.set_model(make_model())
    base = add_variant(session, "baseline")
    add_latency(session, add_variant(session, "int8", base), 2.0)
    session.close()
    return directory


def work_on(directory: Path, say) -> None:
    """A life of a session: each thing is announced once the session has said that it is done."""
    session = Session.open(directory)
    base = session.resolve("baseline")
    new = add_variant(session, "new", base)
    say(f"variant {new.id}")
    say(f"measurement {add_latency(session, new, 3.0).id}")
    doomed = add_variant(session, "doomed", new)
    session.delete_variant(doomed.id)
    say(f"deleted {doomed.id}")
    session.close()


def killed_at_line(directory: Path, line: int, log: Path) -> bool:
    """Do `work_on` in a forked child that dies at its n-th executed line of the engine; False when it got through."""
    child = os.fork()
    if child == 0:
        try:
            announced = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            count = 0

            def trace(frame, event, _):
                nonlocal count
                if "/engine/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
                    return None
                if event == "line":
                    count += 1
                    if count == line:
                        os._exit(9)
                return trace

            sys.settrace(trace)
            work_on(directory, lambda text: os.write(announced, text.encode() + b"\n"))
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), "the work itself failed"
    return status == 9


def what_is_lost(session: Session, announced: list[str]) -> list[str]:
    lost = is_whole(session)
    for line in announced:
        what, id = line.split()
        there = {"variant": id in session.variants, "measurement": id in session.measurements}
        there["deleted"] = id not in session.variants
        if not there[what]:
            lost.append(line)
    return lost


def check_every_line(tmp_path: Path, step: int) -> int:
    seed = seeded(tmp_path / "seed")
    line = 1
    while True:
        directory, log = tmp_path / f"s{line}", tmp_path / f"log{line}"
        shutil.copytree(seed, directory)
        died = killed_at_line(directory, line, log)
        session = Session.open(directory)
        assert what_is_lost(session, log.read_text().splitlines()) == [], f"killed at line {line}"
        assert session.notices == [], f"killed at line {line}"
        add_variant(session, "after", session.resolve("baseline"))
        session.close()
        shutil.rmtree(directory)
        if not died:
            return line
        line += step


def test_a_kill_at_many_instructions_loses_nothing_that_was_shown(tmp_path):
    assert check_every_line(tmp_path, step=61) > 300


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_every_instruction_loses_nothing_that_was_shown(tmp_path):
    assert check_every_line(tmp_path, step=1) > 300


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[2])
from session_makers import add_variant, add_latency
from engine.session import Session
session = Session.open(sys.argv[1])
base = session.baseline or add_variant(session, "baseline")
print("ready", flush=True)
while True:
    variant = add_variant(session, "v", base, content=b"x" * 100_000)
    print("variant", variant.id, flush=True)
    print("measurement", add_latency(session, variant, 2.0).id, flush=True)
    session.set_options(session.options)
"""


def test_sigkill_at_random_moments_loses_nothing_that_was_shown(tmp_path):
    directory, announced = tmp_path / "s", []
    for round in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, directory, HERE], stdout=subprocess.PIPE, text=True, cwd=HERE.parent.parent
        )
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(round + 1)]
        time.sleep(0.003 * round)  # Not waiting for anything: the moment of death is the random part.
        process.send_signal(signal.SIGKILL)
        lines += process.communicate()[0].splitlines(keepends=True)
        announced += [line.strip() for line in lines if line.endswith("\n")]
        session = Session.open(directory)
        assert what_is_lost(session, announced) == []
        session.close()
    assert len(announced) > 6


def test_a_full_disk_while_files_are_stored_leaves_nothing_behind(tmp_path, monkeypatch):
    session = Session.open(tmp_path / "s")
    base = add_variant(session, "baseline")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("engine.session.variant_files.os.fsync", full)
        with pytest.raises(SessionError, match="no room left on the disk"):
            add_variant(session, "int8", base)
    assert is_whole(session) == []
    assert add_variant(session, "int8", base).name == "int8"


def test_a_full_disk_does_not_stop_the_session_from_saying_so(tmp_path):
    session = Session.open(tmp_path / "s")
    base = add_variant(session, "baseline")
    pages = session.store._open.execute("PRAGMA page_count").fetchone()[0]
    session.store._open.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    big = Job(id="a1", kind="x", title="x" * 100_000, created=1.0, state=Queued())
    session.put_job(big)
    assert session.jobs["a1"] == big
    assert "no room left" in session.notices[0]
    assert not (tmp_path / "s" / "reserve").exists()
    with pytest.raises(SessionError, match="free some space"):
        add_latency(session, base, 1.0, conditions=session.baseline and _large_conditions())
    session.store._open.execute("PRAGMA max_page_count = 1000000").fetchone()
    session.set_options(session.options)
    session.close()
    assert "a1" in Session.open(tmp_path / "s").jobs


def _large_conditions():
    from engine.protocol import Conditions

    return Conditions(runtime="pytorch", device="cpu", processor="", notes=("n" * 100_000,))


def test_a_damaged_database_is_kept_and_rebuilt_from_the_variants(tmp_path):
    directory = seeded(tmp_path / "s")
    before = Session.open(directory)
    variants, measurements, model = before.variants, before.measurements, before.model
    before.close()
    (directory / "session.db").write_bytes(b"garbage" * 1000)
    session = Session.open(directory)
    assert session.variants == variants
    assert session.measurements == measurements
    assert session.model == model
    assert "rebuilt" in session.notices[0]
    assert list(directory.glob("session.db.damaged-*"))
    session.close()
    assert Session.open(directory).notices == []


def test_a_database_with_a_torn_page_is_noticed(tmp_path):
    directory = seeded(tmp_path / "s")
    database = directory / "session.db"
    content = bytearray(database.read_bytes())
    content[4096 * 2 : 4096 * 3] = os.urandom(4096)
    database.write_bytes(content)
    session = Session.open(directory)
    assert len(session.variants) == 2
    assert "rebuilt" in session.notices[0]


def test_a_lost_database_is_rebuilt(tmp_path):
    directory = seeded(tmp_path / "s")
    (directory / "session.db").unlink()
    session = Session.open(directory)
    assert len(session.variants) == 2
    assert len(session.measurements) == 1
    assert session.model == make_model()


def test_a_truncated_manifest_is_written_again_or_left_out_but_never_deleted(tmp_path):
    directory = seeded(tmp_path / "s")
    manifest = next(p for p in directory.glob("variants/*/manifest.json") if b'"int8"' in p.read_bytes())
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:50])
    session = Session.open(directory)
    assert [v.name for v in session.variants.values()] == ["baseline", "int8"]
    session.close()
    manifest.write_bytes(whole[:50])
    (directory / "session.db").unlink()
    session = Session.open(directory)
    assert [v.name for v in session.variants.values()] == ["baseline"]
    assert any("left out" in notice for notice in session.notices)
    session.close()
    manifest.write_bytes(whole)
    assert [v.name for v in Session.open(directory).variants.values()] == ["baseline", "int8"]


def test_a_variant_whose_file_is_gone_is_left_out_and_comes_back_with_it(tmp_path):
    directory = seeded(tmp_path / "s")
    session = Session.open(directory)
    child = add_variant(session, "child", session.resolve("int8"))
    session.close()
    graph = directory / "variants" / session.resolve("int8").id / "model.onnx"
    graph.rename(tmp_path / "away")
    session = Session.open(directory)
    assert [v.name for v in session.variants.values()] == ["baseline"]
    assert any("int8" in n and "model.onnx is missing" in n for n in session.notices)
    assert any("child" in n and "made from is gone" in n for n in session.notices)
    session.close()
    (tmp_path / "away").rename(graph)
    session = Session.open(directory)
    assert child.id in session.variants
    assert len(session.measurements) == 1
    assert session.notices == []


def test_a_changed_byte_is_found_when_everything_is_verified(tmp_path):
    directory = seeded(tmp_path / "s")
    session = Session.open(directory)
    file = directory / "variants" / session.resolve("int8").id / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(b"weighty")
    assert [s for s in session.verify() if "int8" in s and "content" in s]


def test_a_session_of_a_newer_version_is_refused_with_what_to_do(tmp_path):
    session = Session.open(tmp_path / "s")
    session.store._open.execute("UPDATE schema_version SET version = 99")
    session.close()
    with pytest.raises(SessionError, match="Upgrade Trimtab"):
        Session.open(tmp_path / "s")


def test_a_row_that_cannot_be_read_costs_only_itself(tmp_path):
    session = Session.open(tmp_path / "s")
    base = add_variant(session, "baseline")
    add_accuracy(session, base, 0.0)
    session.store._open.execute("UPDATE records SET body = x'c1' WHERE kind = 'measurement'")
    session.store._open.execute("UPDATE records SET body = x'c1' WHERE kind = 'variant'")
    session.close()
    again = Session.open(tmp_path / "s")
    assert list(again.variants) == [base.id]
    assert again.measurements == {}
    assert "not shown: 1" in again.notices[0]
