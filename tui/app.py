"""The dashboard as an application: it connects, picks screens and themes, and paints. Nothing else.

Start-up order matters: the first paint needs neither the engine nor any screen but the main one, so both come after.
A tick (2 Hz, 1 Hz while a job runs) and urgent events paint; a paint draws the active screen from one immutable
snapshot (`show`).
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from textual.app import App
from textual.binding import BindingType
from textual.screen import Screen

from engine.protocol import Command, Job, LoadSettings, OpenModel, Result, Running

from .connection import TELEMETRY_HZ, Connect, Connection, NotConnected
from .curves import is_training
from .palette import ActionProvider
from .screens.main import MainScreen
from .terminal import leave_when_terminal_goes, over_network
from .text import content
from .theme import THEMES, VARIABLE_DEFAULTS, choose_theme
from .view import View, batch_sizes, default_batch_size

HERE = Path(__file__).parent

URGENT_SECONDS = 0.03
"""An urgent event is painted this much later, so that a burst of them is painted once."""


class TrimtabApp(App[None]):
    """The dashboard of one session.

    `open_model` is sent to the engine once it is there. `connect` and `clock` are for tests and screenshots.
    """

    TITLE = "trimtab"
    CSS_PATH = [HERE / "app.tcss", HERE / "screens/main.tcss", HERE / "panes/panes.tcss", HERE / "panes/load_test.tcss"]
    HORIZONTAL_BREAKPOINTS = [
        (0, "-too-narrow"),
        (60, "-narrow"),
        (100, "-normal"),
        (150, "-wide"),
    ]
    VERTICAL_BREAKPOINTS = [
        (0, "-too-low"),
        (15, "-short"),
        (28, "-medium"),
        (44, "-tall"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = []
    COMMANDS = {ActionProvider}
    COMMAND_PALETTE_BINDING = "ctrl+p"
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self,
        session_directory: Path | str,
        open_model: OpenModel | None = None,
        *,
        connect: Connect | None = None,
        clock: Callable[[], float] = time.time,
        theme: str | None = None,
    ) -> None:
        chosen = theme or choose_theme()
        # With NO_COLOR Textual would turn colours to greys, which our ANSI theme does not have: no colours at all.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        for one in THEMES:
            self.register_theme(one)
        self.theme = chosen if chosen in self.available_themes else THEMES[0].name
        if over_network():
            self.animation_level = "none"
        self.clock = clock
        self.session_directory = Path(session_directory)
        self.main = MainScreen()
        self.connection = Connection(self.session_directory, self._changed, clock, connect)
        self._open_model = open_model
        self._choices: dict[str, Any] = {"batch_size": None, "sort": "tree", "filter": ""}
        self.last_load: LoadSettings | None = None
        """What the next load test's form begins with."""
        self._painting = False
        self._ticks = 0
        self._reading: set[str] = set()
        self.filled: dict[tuple[str, str], dict[str, Any]] = {}
        """What was applied last, by variant and technique: a job that was stopped is run again from the same form."""

    def get_default_screen(self) -> Screen[None]:
        return self.main

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return VARIABLE_DEFAULTS

    def on_mount(self) -> None:
        leave_when_terminal_goes()
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        self.paint()
        self.run_worker(self.connection.follow(self._attached), group="connection", exit_on_error=True)
        self.set_interval(1 / TELEMETRY_HZ, self._tick)

    def _tick(self) -> None:
        """Paint at every other tick while a job runs: it wants the cores, and on few of them each paint stops all of
        a model's threads (they wait for the one that gave way). What the user or the engine changes is painted at once.
        """
        self._ticks += 1
        busy = any(isinstance(job.state, Running) for job in self.connection.snapshot.jobs)
        if not busy or self._ticks % 2 == 0:
            self.paint()

    async def _attached(self) -> None:
        """The engine is there for the first time: open the model that was asked for, or ask for one."""
        if self._open_model is not None:
            from . import commands

            self.run_worker(commands.send_open_model(self, self._open_model), group="open")
        elif self.connection.snapshot.model is None and not self.connection.snapshot.jobs:
            self.main.act("open_model")

    # --- painting --------------------------------------------------------------------------------------

    def view(self) -> View:
        """The moment, the link and the user's choices."""
        connection = self.connection
        choices = dict(self._choices)
        offered = batch_sizes(connection.snapshot)
        if choices["batch_size"] not in offered:
            choices["batch_size"] = default_batch_size(connection.snapshot)
        return View(
            now=self.clock(),
            link=connection.link,
            link_since=connection.since,
            link_reason=connection.reason,
            session=self.session_directory.stem,
            curves=connection.curves,
            **choices,
        )

    def choose(self, **choices: Any) -> None:
        """Change the batch size, the order or the filter."""
        self._choices.update(choices)
        self.paint()

    def paint(self) -> None:
        """Draw the active screen, and what is seen behind a dialog."""
        self._painting = False
        if not self.is_running:
            return  # a last tick while the screens are being taken apart
        for screen in reversed(self.screen_stack):
            show = getattr(screen, "show", None)
            if show is not None and screen.is_mounted:
                show(self.connection.snapshot, self.view())
            if not screen.is_modal:
                break

    def _changed(self, urgent: bool) -> None:
        if urgent and not self._painting and self.is_running:
            self._painting = True
            self.set_timer(URGENT_SECONDS, self.paint)

    def want_curves(self, job: Job) -> None:
        """Have a training job's history read, unless it is known."""
        known = self.connection.curves.get(job.id)
        if job.id in self._reading or (known is not None and known.complete):
            return
        if is_training(job) and self.connection.link == "connected":
            self._reading.add(job.id)
            self.run_worker(self._read_curves(job.id), group="curves")

    async def _read_curves(self, job: str) -> None:
        from engine.client import EngineError

        try:
            await self.connection.read_curves(job)
            self.paint()
        except (EngineError, NotConnected):
            pass  # the curves are whole again after the next attachment
        finally:
            self._reading.discard(job)

    # --- talking ---------------------------------------------------------------------------------------

    async def ask(self, command: Command, quiet: bool = False) -> Result | None:
        """Send a command; what went wrong is told to the user in the engine's words, and None comes back."""
        from engine.client import EngineError

        try:
            return await self.connection.request(command)
        except (EngineError, NotConnected) as error:
            if not quiet:
                self.say(str(error), severity="error")
            return None

    def say(self, text: str, severity: Literal["information", "warning", "error"] = "information") -> None:
        """A toast. The text may hold foreign words: it is cleaned and never read as markup."""
        self.notify(content(text, limit=600).plain, severity=severity, markup=False)

    async def action_quit(self) -> None:
        self.main.act("quit")
