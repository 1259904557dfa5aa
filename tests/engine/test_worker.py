"""Whatever a worker does, only its own job fails, and says why. Real workers, real model files that misbehave."""

import asyncio
import os
import signal
import textwrap
from pathlib import Path

import pytest
from engines import (
    GOOD_MODEL,
    PATIENCE,
    children,
    ended_job,
    group_is_gone,
    job_of,
    model_that,
    open_model,
    until,
    write_model,
)

from engine.client import connect
from engine.paths import read_record
from engine.protocol import Failed, ReadLog, Succeeded, Text


async def failure_of(session: Path, model: Path) -> tuple[Failed, str]:
    """How opening this model fails, and the job's log."""
    client = await connect(session, client="test")
    job = await ended_job(client, model)
    log = await client.request(ReadLog(request=0, job=job.id))
    await client.aclose()
    assert isinstance(job.state, Failed), job.state
    assert isinstance(log, Text)
    return job.state, log.text


@pytest.mark.parametrize(
    ("statement", "words", "cause"),
    [
        ("raise ValueError('no such weights: lite.pt')", "no such weights: lite.pt", "error"),
        ("os._exit(3)", "exited with status 3 without a result", "error"),
        ("sys.exit('enough')", "enough", "error"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9 (SIGKILL), sender unknown", "signal"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", "signal 15 (SIGTERM), sender unknown", "signal"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11 (SIGSEGV), a crash in native code", "signal"),
        ("import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried 2 GiB')", "memory", "out-of-memory"),
        ("raise MemoryError", "memory", "out-of-memory"),
        ("import torch; torch.empty(1 << 50)", "memory", "out-of-memory"),
    ],
)
async def test_a_job_that_fails_says_why(shared_session, tmp_path, statement, words, cause):
    failed, _ = await failure_of(shared_session, model_that(tmp_path, statement))
    assert words in failed.reason
    assert failed.cause == cause


async def test_what_the_users_code_printed_is_in_the_log_and_its_last_line_in_the_reason(shared_session, tmp_path):
    model = model_that(tmp_path, "print('step 41: loss is nan'); os._exit(4)")
    failed, log = await failure_of(shared_session, model)
    assert "step 41: loss is nan" in log
    assert "step 41: loss is nan" in failed.reason


async def test_the_log_has_the_users_traceback(shared_session, tmp_path):
    _, log = await failure_of(shared_session, model_that(tmp_path, "raise KeyError('layer7.weight')"))
    assert "load_model" in log
    assert "layer7.weight" in log


async def test_noise_on_the_conversation_ends_the_job_and_not_the_engine(shared_session, tmp_path):
    noise = (
        "[os.write(int(fd), b'\\xff' * 64) for fd in os.listdir('/proc/self/fd')"
        " if os.path.exists(f'/proc/self/fd/{fd}') or"
        " os.readlink(f'/proc/self/fd/{fd}').startswith('socket')]; time.sleep(30)"
    )
    noise = noise.replace("os.path.exists(f'/proc/self/fd/{fd}') or", "os.path.lexists(f'/proc/self/fd/{fd}') and")
    failed, _ = await failure_of(shared_session, model_that(tmp_path, noise))
    assert "cannot be understood" in failed.reason


async def test_what_a_worker_started_does_not_outlive_it(shared_session, tmp_path):
    left = tmp_path / "left"
    model = model_that(
        tmp_path,
        "import subprocess; p = subprocess.Popen(['sleep', '300']);"
        f" open({str(left)!r}, 'w').write(str(os.getpid())); os._exit(5)",
    )
    await failure_of(shared_session, model)
    assert group_is_gone(int(left.read_text()))


async def test_the_work_directory_is_gone_after_a_failure(shared_session, tmp_path):
    client = await connect(shared_session, client="test")
    job = await ended_job(client, model_that(tmp_path, "os._exit(6)"))
    work = shared_session / "jobs" / job.id / "work"
    from engines import becomes

    await becomes(lambda: not work.exists())
    await client.aclose()


async def test_workers_are_the_first_to_go_when_memory_runs_out(shared_session, tmp_path):
    score = tmp_path / "score"
    copy = f"open({str(score)!r}, 'w').write(open('/proc/self/oom_score_adj').read()); os._exit(7)"
    await failure_of(shared_session, model_that(tmp_path, copy))
    record = read_record(shared_session)
    assert record is not None
    assert int(score.read_text()) > int(Path(f"/proc/{record.pid}/oom_score_adj").read_text())


async def test_the_fork_server_is_single_threaded_and_workers_compute_with_threads(shared_session, tmp_path):
    said = tmp_path / "threads"
    ask = (
        "import torch; torch.randn(400, 400) @ torch.randn(400, 400);"
        f" open({str(said)!r}, 'w').write(f'{{torch.get_num_threads()}} {{os.getppid()}}'); os._exit(8)"
    )
    await failure_of(shared_session, model_that(tmp_path, ask))
    threads, fork_server = (int(word) for word in said.read_text().split())
    assert threads >= 1
    assert len(os.listdir(f"/proc/{fork_server}/task")) == 1
    record = read_record(shared_session)
    assert record is not None
    assert children(record.pid) == [fork_server]


async def test_lines_and_progress_stream_while_the_job_runs(shared_session, tmp_path):
    client = await connect(shared_session, client="test")
    go = tmp_path / "go"
    model = model_that(
        tmp_path, f"print('warming up')\n    while not os.path.exists({str(go)!r}): time.sleep(0.02)\n    os._exit(9)"
    )
    events = client.events()
    run = await open_model(client, model)
    async with asyncio.timeout(PATIENCE):
        while "warming up" not in str(getattr(await anext(events), "lines", "")):
            pass
    job = await job_of(client, run)
    assert "opening the model" in str(job.state)
    go.touch()
    await until(client, lambda state: all(job.is_done for job in state.jobs))
    await client.aclose()


THEIRS = """
assert engine.train_one_epoch() == "their engine"
assert tui.NAME == "their tui"
"""


async def test_a_repository_with_an_engine_and_a_tui_of_its_own_gets_its_own(session, tmp_path, monkeypatch):
    """Many PyTorch repositories have an engine.py; theirs is found, at the top and deferred, and ours still works."""
    repository = tmp_path / "repository"
    write_model(repository, "def train_one_epoch():\n    return 'their engine'\n", "engine.py")
    write_model(repository, "NAME = 'their tui'\n", "tui.py")
    check = "import engine, tui\n" + THEIRS
    deferred = "\ndef load_model():\n" + textwrap.indent(check, "    ")
    model = write_model(repository, check + textwrap.dedent(GOOD_MODEL).replace("\ndef load_model():\n", deferred, 1))
    # Where a user would be, with the import path a repository's own instructions often ask for.
    monkeypatch.chdir(repository)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    client = await connect(session, client="test")
    job = await ended_job(client, model)
    assert isinstance(job.state, Succeeded), job.state
    await client.aclose()


async def test_a_job_starts_in_an_ordinary_signal_state(shared_session, tmp_path):
    """SIGHUP stays ignored (no terminal), SIGINT and SIGCHLD are the user's to use."""
    said = tmp_path / "signals"
    names = (signal.SIGINT, signal.SIGCHLD)
    ask = (
        f"open({str(said)!r}, 'w').write(' '.join(str(signal.getsignal(n)) for n in {tuple(map(int, names))}));"
        " os._exit(8)"
    )
    await failure_of(shared_session, model_that(tmp_path, ask))
    assert said.read_text().split() == ["0", "0"] or "SIG_DFL" in said.read_text()


async def test_opening_a_model_tells_which_files_beside_it_it_needs(session, tmp_path):
    (tmp_path / "sizes.txt").write_text("8")
    model = write_model(tmp_path, f"SIZE = int(open('sizes.txt').read())\n{textwrap.dedent(GOOD_MODEL)}")
    client = await connect(session, client="test")
    job = await ended_job(client, model)
    assert isinstance(job.state, Succeeded), job.state
    assert client.state.model.files == ("sizes.txt",)
    await client.aclose()
