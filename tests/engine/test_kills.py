"""SIGKILL to the worker, the engine and the client at random moments of a recipe; nothing shown as done is lost.

The moments are drawn over the time an undisturbed run takes, with a seed that is printed on failure. After each kill:
all that a client was shown is there with matching hashes, nothing is half there, no process is left, and the same
recipe runs to its end.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from engines import becomes, children, group_is_gone, is_gone, until, worker_pid
from kills import WATCHER, Shown, clear, find, is_whole, run_to_its_end, start, write_recipe

from engine.client import EngineClient, connect
from engine.protocol import FRAME_HEADER, RunChanged, decode_engine_message

KILLS = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def moments():
    """Draws when to kill; the seed is in the failure's output."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments: {seed}")
    return random.Random(seed)


async def prepared(session: Path, recipe: Path) -> tuple[EngineClient, float]:
    """A session in which the recipe ran once, cleared again; and the seconds its steps take."""
    client = await connect(session, client="test")
    await run_to_its_end(client, recipe)
    await clear(client)
    begun = time.monotonic()
    await run_to_its_end(client, recipe)
    seconds = time.monotonic() - begun
    await clear(client)
    return client, seconds


async def test_a_killed_worker_costs_its_own_job_and_nothing_else(session, tmp_path, moments):
    recipe = write_recipe(tmp_path / "model")
    client, seconds = await prepared(session, recipe)
    (fork_server,) = children(client.welcome.pid)
    hits = 0
    for _ in range(KILLS):
        shown = Shown()
        following = asyncio.create_task(shown.follow(client))
        run = await start(client, recipe)
        await asyncio.sleep(moments.uniform(0, seconds))
        killed = [pid for job in client.state.jobs if (pid := worker_pid(job)) is not None]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        hits += bool(killed)
        state = await until(client, lambda state, run=run: find(state, run).finished is not None)
        assert all(group_is_gone(pid) for pid in killed)
        shown.is_kept_in(state)
        await is_whole(session, state)
        assert children(client.welcome.pid) == [fork_server]
        await run_to_its_end(client, recipe)
        following.cancel()
        await clear(client)
    assert hits, "no kill met a running worker"
    await client.aclose()


async def test_a_killed_engine_loses_nothing_that_was_shown(session, tmp_path, moments):
    recipe = write_recipe(tmp_path / "model")
    seconds = 8.0
    for number in range(KILLS):
        # The first kill falls into the opening of the model, in a session without anything.
        client = await connect(session, client="test")
        shown = Shown()
        following = asyncio.create_task(shown.follow(client))
        await start(client, recipe)
        await asyncio.sleep(moments.uniform(0, 3.0 if number == 0 else seconds))
        tree = [client.welcome.pid, *children(client.welcome.pid)]
        tree += [pid for job in client.state.jobs if (pid := worker_pid(job)) is not None]
        os.kill(client.welcome.pid, signal.SIGKILL)
        await following
        await becomes(lambda tree=tree: all(is_gone(pid) for pid in tree))
        await client.reconnect()
        shown.is_kept_in(client.state)
        await is_whole(session, client.state)
        begun = time.monotonic()
        await run_to_its_end(client, recipe)
        if number == 0:
            await clear(client)
            begun = time.monotonic()
            await run_to_its_end(client, recipe)
            seconds = time.monotonic() - begun
        await clear(client)
        await client.aclose()


async def test_a_killed_client_changes_nothing(session, tmp_path, moments):
    recipe = write_recipe(tmp_path / "model")
    client, seconds = await prepared(session, recipe)
    for _ in range(KILLS):
        watcher = await asyncio.create_subprocess_exec(*WATCHER, session, recipe, stdout=subprocess.PIPE)
        assert watcher.stdout is not None
        first = await next_event(watcher.stdout)
        assert isinstance(first, RunChanged)
        await asyncio.sleep(moments.uniform(0, seconds))
        watcher.kill()
        shown = Shown()
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                shown.take(await next_event(watcher.stdout))
        await watcher.wait()
        newcomer = await connect(session, start=False, client="test")
        assert newcomer.welcome.boot_id == client.welcome.boot_id
        shown.is_kept_in(newcomer.state)
        state = await until(newcomer, lambda state, run=first.run: find(state, run).finished is not None)
        ended = find(state, first.run)
        assert [step.status for step in ended.steps] == ["succeeded"] * 3, ended
        shown.is_kept_in(state)
        await is_whole(session, state)
        await newcomer.aclose()
        await clear(client)
    await client.aclose()


async def next_event(reader: asyncio.StreamReader) -> object:
    """What the watching client saw next. Raises IncompleteReadError where it was cut off."""
    (length,) = FRAME_HEADER.unpack(await reader.readexactly(FRAME_HEADER.size))
    return decode_engine_message(await reader.readexactly(length))
