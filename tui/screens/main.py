"""The main screen: what was tried, what is best, what runs, what the hardware does. Everything else opens from here.

It owns the user's choices (batch size, order, filter, the chosen variant and job), draws all panes from one snapshot,
and turns keys into actions of the registry. What an action does is in `tui/commands.py`.
"""

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import Input, Static

from engine.protocol import Job, ReadLog, Running, Snapshot, Text

from ..actions import ACTIONS, Situation, action_named
from ..comparison import variant_named
from ..panes.advice import AdvicePane
from ..panes.footer import FooterPane
from ..panes.hardware import HardwarePane
from ..panes.header import HeaderPane
from ..panes.jobs import JobsPane
from ..panes.log import LogPane
from ..panes.variants import VariantsPane
from ..table import LineTable
from ..view import View

if TYPE_CHECKING:
    from ..app import TrimtabApp

LOG_SECONDS = 0.9
"""A growing log is read at most this often: what scrolls faster is read by nobody, but sent to the terminal."""

PANES = {"1": "variants", "2": "jobs", "3": "hardware", "4": "log"}
"""Number key → widget id."""


class MainScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(action.key, f"act('{action.id}')", action.label, show=False, id=action.id) for action in ACTIONS),
        Binding("escape", "back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._log_job: str | None = None
        self._log_offset = 0
        self._reading_log = False
        self._log_read = 0.0
        self._log_heard = 0

    def compose(self) -> ComposeResult:
        yield HeaderPane(id="header")
        yield VariantsPane(id="variants")
        with Container(id="lower"):
            with Container(id="left"):
                yield JobsPane(id="jobs")
                yield LogPane(id="log")
            yield HardwarePane(id="hardware")
        yield Input(placeholder="part of a name or technique; Enter keeps, Esc clears", id="filter", compact=True)
        yield AdvicePane(id="advice")
        yield FooterPane(id="footer")
        yield Static("This terminal is too small for the dashboard: at least 60×15 cells are needed.", id="too-small")

    def on_mount(self) -> None:
        self.query_one("#filter", Input).cursor_blink = False
        self.query_one(LogPane).start("the running job's log appears here")
        self.query_one(VariantsPane).focus()

    # --- drawing: everything from one snapshot -----------------------------------------------------

    def show(self, snapshot: Snapshot, view: View) -> None:
        """Draw all panes that are in sight. A resize can ask for it before they are mounted."""
        if not self.query(FooterPane):
            return
        with self.app.batch_update():
            for pane in (HeaderPane, VariantsPane, JobsPane, HardwarePane, AdvicePane):
                widget = self.query_one(pane)
                if widget.is_on_screen:
                    widget.show(snapshot, view)  # type: ignore[attr-defined]
            self._follow_job(snapshot)
            self.query_one(FooterPane).show(self.situation())
        if self._log_heard != self._log_news() and view.now - self._log_read >= LOG_SECONDS:
            self._fetch_log()

    def on_resize(self) -> None:
        self.call_after_refresh(self.trimtab.paint)

    def _follow_job(self, snapshot: Snapshot) -> None:
        """While the user is not among the jobs, their cursor (and so the log) stays with the job that runs."""
        jobs = self.query_one(JobsPane)
        running = next((job for job in snapshot.jobs if isinstance(job.state, Running)), None)
        if running is not None:
            self.trimtab.want_curves(running)
        if running is not None and not jobs.has_focus and jobs.key != running.id:
            jobs.select(running.id)

    # --- the situation and the actions ---------------------------------------------------------------

    @property
    def trimtab(self) -> "TrimtabApp":
        return cast("TrimtabApp", self.app)

    def situation(self) -> Situation:
        """What is chosen, and the state of things: decides which actions are available."""
        connection = self.trimtab.connection
        variant = variant_named(connection.snapshot, self.query_one(VariantsPane).key)
        return Situation(connection.snapshot, connection.link, variant, self.chosen_job())

    def chosen_job(self) -> Job | None:
        """The job under the cursor of the jobs pane."""
        key = self.query_one(JobsPane).key
        return next((job for job in self.trimtab.connection.snapshot.jobs if job.id == key), None)

    def act(self, id: str) -> None:
        """Do an action, or say why it is not available."""
        reason = action_named(id).reason(self.situation())
        if reason is not None:
            self.trimtab.say(reason, severity="warning")
            return
        from .. import commands

        self.run_worker(getattr(commands, id)(self.trimtab), group=f"action-{id}", exclusive=True)

    def action_act(self, id: str) -> None:
        self.act(id)

    def action_back(self) -> None:
        """Esc: leave the filter, then the filled screen."""
        self.close_filter(clear=True)
        self.zoom(None)

    @on(FooterPane.Pressed)
    def _footer_pressed(self, message: FooterPane.Pressed) -> None:
        self.act(message.id)

    @on(LineTable.Chosen, "#variants")
    def _variant_chosen(self) -> None:
        self.act("show_details")

    @on(LineTable.Chosen, "#jobs")
    def _job_chosen(self) -> None:
        self.act("show_log")

    @on(LineTable.Highlighted)
    def _highlighted(self, message: LineTable.Highlighted) -> None:
        if message.table.id == "jobs":
            self._show_log_of(self.chosen_job())
        self.query_one(FooterPane).show(self.situation())

    # --- panes: focus, fill the screen, filter -------------------------------------------------------

    def go_to(self, number: str) -> None:
        """Focus a pane; when it has the focus already, let it fill the screen, or shrink it again."""
        pane = self.query_one(f"#{PANES[number]}")
        if pane.has_focus or not pane.is_on_screen or not pane.size:
            self.zoom(None if pane.has_class("-zoomed") else PANES[number])
        elif self.has_class("-zoom"):
            self.zoom(PANES[number])
        pane.focus()

    def zoom(self, id: str | None) -> None:
        """Let one pane fill the screen; None: all of them again."""
        for name in PANES.values():
            self.query_one(f"#{name}").set_class(name == id, "-zoomed")
        self.set_class(id is not None, "-zoom")
        self.set_class(id in ("jobs", "log"), "-zoom-left")
        self.set_class(id == "variants", "-zoom-upper")
        self.call_after_refresh(self.trimtab.paint)

    def open_filter(self) -> None:
        """Show the filter's input."""
        self.add_class("-filtering")
        self.query_one("#filter", Input).focus()

    def close_filter(self, clear: bool) -> None:
        """Hide the filter's input; `clear` also forgets the filter."""
        if clear:
            self.query_one("#filter", Input).value = ""
        if self.has_class("-filtering"):
            self.remove_class("-filtering")
            self.query_one(VariantsPane).focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, message: Input.Changed) -> None:
        self.trimtab.choose(filter=message.value)

    @on(Input.Submitted, "#filter")
    def _filter_kept(self) -> None:
        self.close_filter(clear=False)

    # --- the log of the chosen job -------------------------------------------------------------------

    def _show_log_of(self, job: Job | None) -> None:
        id = job.id if job else None
        if id == self._log_job:
            return
        self._log_job, self._log_offset = id, 0
        self.query_one(LogPane).start(job.title or job.kind if job else "")
        if id is not None:
            self._fetch_log()

    def _log_news(self) -> int:
        """Changes when the shown job's log has grown."""
        return self.trimtab.connection.log_news.get(self._log_job or "", 0)

    def _fetch_log(self) -> None:
        if not self._reading_log:
            self._log_read = self.trimtab.clock()
            self.run_worker(self._read_log(), group="log")

    async def _read_log(self) -> None:
        """Take in what the engine has of the log beyond what is shown."""
        self._reading_log = True
        try:
            while (job := self._log_job) is not None:
                self._log_heard = self._log_news()
                result: Any = await self.trimtab.ask(ReadLog(request=0, job=job, offset=self._log_offset), quiet=True)
                if job != self._log_job:
                    continue
                if not isinstance(result, Text) or result.next_offset <= self._log_offset:
                    return
                self._log_offset = result.next_offset
                self.query_one(LogPane).feed(result.text)
        finally:
            self._reading_log = False
