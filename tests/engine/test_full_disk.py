"""A full disk costs the jobs on it, never the engine: it answers, says what is wrong, and goes on when it can."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import GOOD_MODEL, end, ended_job, write_model

from engine.client import EngineClient, EngineError, connect
from engine.protocol import Failed, SetOptions, Succeeded


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk")
    yield place
    end(place / "m.trimtab")
    subprocess.run(["umount", "-l", place], check=True)


def fill(file: Path) -> None:
    """Take every byte that is left."""
    with file.open("ab", buffering=0) as out:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    out.write(b"x" * size)
            except OSError:
                continue


async def test_a_full_disk_refuses_jobs_and_changes_with_a_sentence_and_all_works_once_there_is_room(
    small_disk, tmp_path
):
    client = await connect(small_disk / "m.trimtab", client="test", telemetry_hz=2)
    filler = small_disk / "filler"
    fill(filler)
    job = await ended_job(client, write_model(tmp_path))
    assert isinstance(job.state, Failed)
    assert "make room" in job.state.reason
    # The store's reserve takes the first changes; it is not endless.
    large = [SetOptions(request=0, batch_sizes=tuple(range(1, 60_000 + number))) for number in range(100)]
    answers = [await _answer(client, command) for command in large]
    assert "free some space" in answers[-1]
    assert client.connected
    filler.unlink()
    await client.request(SetOptions(request=0, batch_sizes=(1, 2)))
    job = await ended_job(client, write_model(tmp_path))
    assert isinstance(job.state, Succeeded), job.state
    await client.aclose()


async def test_a_job_that_fills_the_disk_fails_and_takes_nothing_with_it(small_disk, tmp_path):
    filler = small_disk / "filler"
    greedy = GOOD_MODEL.replace(
        "        torch.manual_seed(0)",
        f"""        out = open({str(filler)!r}, "ab", buffering=0)
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    out.write(b"x" * size)
            except OSError:
                pass
        torch.manual_seed(0)""",
    )
    client = await connect(small_disk / "m.trimtab", client="test")
    job = await ended_job(client, write_model(tmp_path / "greedy", greedy))
    assert isinstance(job.state, Failed), job.state
    assert client.state.variants == ()
    filler.unlink()
    job = await ended_job(client, write_model(tmp_path / "modest"))
    assert isinstance(job.state, Succeeded), job.state
    assert os.listdir(small_disk / "m.trimtab" / "variants") == list(job.state.variants)
    await client.aclose()


async def _answer(client: EngineClient, command: SetOptions) -> str:
    """What the engine has against a command, "" for nothing."""
    try:
        await client.request(command)
    except EngineError as error:
        return str(error)
    return ""
