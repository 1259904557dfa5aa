"""Quitting with a job at work asks what shall become of it."""

import msgspec
import scenes
from driver import dashboard

from engine.protocol import CancelJob


async def test_stay_is_the_way_back() -> None:
    async with dashboard() as seen:
        await seen.press("q")
        await seen.sees("A job is running", "quantize-static on onnx", "leave it running")
        await seen.press("s")
        await seen.sees_not("A job is running")
        assert seen.app.is_running


async def test_leave_it_running_ends_the_dashboard_and_not_the_job() -> None:
    async with dashboard() as seen:
        await seen.press("q")
        await seen.sees("A job is running")
        await seen.press("l")
        await seen.until(lambda: seen.app._exit, "leaving")
        assert not any(isinstance(one, CancelJob) for one in seen.engine.asked)


async def test_cancel_and_quit_cancels_all_that_is_unfinished() -> None:
    async with dashboard() as seen:
        await seen.press("q")
        await seen.sees("A job is running")
        await seen.press("x")
        await seen.until(lambda: seen.app._exit, "leaving")
        assert {one.job for one in seen.engine.asked if isinstance(one, CancelJob)} == {"j4", "j5"}


async def test_without_a_job_it_simply_ends() -> None:
    quiet = msgspec.structs.replace(scenes.work(), jobs=scenes.JOBS[:4])
    async with dashboard(quiet) as seen:
        await seen.press("q")
        await seen.until(lambda: seen.app._exit, "leaving")


async def test_a_tick_that_comes_while_the_screens_are_taken_apart_draws_nothing(monkeypatch) -> None:
    ticks = []
    async with dashboard() as seen:
        await seen.press("home", "h")
        await seen.sees("Layers")
        app, close = seen.app, seen.app._close_all

        async def close_with_a_late_tick() -> None:
            await app.screen.query("*").remove()
            app.paint()
            ticks.append(True)
            await close()

        monkeypatch.setattr(app, "_close_all", close_with_a_late_tick)
    assert ticks
