"""Drives the dashboard in a test as a user would: press, look, wait until something is seen. Never sleeps blindly."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import scenes
from textual.pilot import Pilot

from engine.protocol import Snapshot
from tui.app import TrimtabApp

PATIENCE_SECONDS = 15.0
"""How long something may take on a machine that is busy with other things."""


class Dashboard:
    """A running dashboard and its hand-made engine."""

    def __init__(self, app: TrimtabApp, pilot: Pilot[Any], patience: float = PATIENCE_SECONDS) -> None:
        self.app = app
        self._patience = patience
        self.pilot = pilot
        self.engine: scenes.SceneEngine = app.engine  # type: ignore[attr-defined]

    @property
    def text(self) -> str:
        """What the terminal shows."""
        return scenes.text_of(self.app)

    async def press(self, *keys: str) -> None:
        """Press keys, each after the one before was dealt with."""
        for key in keys:
            await self.pilot.press(key)
            await self.pilot.pause()

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.press(*("space" if character == " " else character for character in text))

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition."""
        end = time.monotonic() + self._patience
        while not condition():
            assert time.monotonic() < end, f"{what} did not come about; the screen:\n{self.text}"
            await asyncio.sleep(0.02)
            await self.pilot.pause()

    async def sees(self, *texts: str) -> None:
        """Wait until all of these are on the screen."""
        await self.until(lambda: all(text in self.text for text in texts), f"seeing {texts}")

    async def sees_not(self, *texts: str) -> None:
        """Wait until none of these is on the screen."""
        await self.until(lambda: not any(text in self.text for text in texts), f"not seeing {texts}")

    async def asked(self, command: type) -> Any:
        """Wait until the engine was given such a command; the newest one."""
        await self.until(lambda: any(isinstance(one, command) for one in self.engine.asked), f"{command.__name__}")
        return [one for one in self.engine.asked if isinstance(one, command)][-1]


@contextlib.asynccontextmanager
async def dashboard(
    snapshot: Snapshot | None = None,
    answers: dict[type, Any] | None = None,
    size: tuple[int, int] = (100, 30),
    **options: Any,
) -> AsyncIterator[Dashboard]:
    """The dashboard on a scene, connected and painted."""
    snapshot = scenes.work() if snapshot is None else snapshot
    app = scenes.app_of(snapshot, answers, **options)
    async with app.run_test(size=size, notifications=True) as pilot:
        driven = Dashboard(app, pilot)
        await driven.until(lambda: app.connection.link == "connected" and app.main.query("#variants"), "connecting")
        app.paint()
        await pilot.pause()
        yield driven
