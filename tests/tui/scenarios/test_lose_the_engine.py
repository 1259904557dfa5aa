"""The engine goes: the screen keeps what it knew, says how old it is, and attaches again."""

import msgspec
import scenes
from driver import dashboard

from engine.client import EngineError
from engine.protocol import EngineStopping


async def test_a_lost_engine_is_announced_and_attached_again() -> None:
    async with dashboard() as seen:
        allowed = []

        async def connect(session_directory: object, start: bool) -> scenes.SceneEngine:
            if not allowed:
                raise EngineError("The engine does not answer.")
            return scenes.SceneEngine(seen.engine.state, scenes.replies())

        seen.app.connection._connect = connect
        seen.engine.vanish()
        await seen.sees("no engine for", "What you see is old. The engine does not answer.", "int8")
        await seen.press("m")
        await seen.sees("The connection to the engine is lost; it is being restored.")
        allowed.append(True)
        await seen.sees_not("What you see is old")
        assert seen.app.connection.link == "connected"


async def test_an_engine_that_was_stopped_on_purpose_is_not_started_behind_the_users_back() -> None:
    async with dashboard() as seen:
        starts = []

        async def connect(session_directory: object, start: bool) -> scenes.SceneEngine:
            starts.append(start)
            if not start:
                raise EngineError("No engine is running.")
            return scenes.SceneEngine(seen.engine.state, scenes.replies())

        seen.app.connection._connect = connect
        seen.engine.push(EngineStopping(seq=0, reason="Stopped by trimtab stop."))
        seen.engine.vanish()
        await seen.sees("Stopped by trimtab stop.", "starts the engine")
        await seen.until(lambda: len(starts) >= 2, "two attempts")
        assert not any(starts)
        await seen.press("r")
        await seen.until(lambda: seen.app.connection.link == "connected", "attaching")


async def test_the_screen_is_painted_before_the_engine_answers() -> None:
    app = scenes.app_of(scenes.work())

    async def never(session_directory: object, start: bool) -> object:
        import asyncio

        await asyncio.Event().wait()
        raise AssertionError

    app.connection._connect = never
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        for _ in range(100):
            await pilot.pause(0.02)
            if "connecting" in scenes.text_of(app):
                break
        assert "Connecting to the engine" in scenes.text_of(app)
        await pilot.press("t")
        await pilot.pause()
        await pilot.pause()
        assert "The engine is starting" in scenes.text_of(app)


async def test_a_notice_of_the_engine_is_shown() -> None:
    snapshot = msgspec.structs.replace(scenes.work(), notices=("The disk is nearly full.",))
    async with dashboard(snapshot) as seen:
        await seen.sees("The disk is nearly full.")
