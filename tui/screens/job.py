"""One job on the whole screen: the curves of its training, if it trains, above its whole log. Both grow while it runs.

A job that has ended shows the same from the engine's history.
"""

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Static

from engine.protocol import Job, ReadLog, Snapshot, Text

from ..actions import Action
from ..curves import is_training
from ..lines import LineView
from ..panes.jobs import job_line
from ..panes.log import LogPane
from ..panes.training import TrainingPane
from ..view import View
from .help import HelpScreen

if TYPE_CHECKING:
    from ..app import TrimtabApp

ACTIONS = (
    Action("divide", "v", "divide", "Curves and log, the curves alone, the log alone (where there are curves).", "Job"),
    Action("dismiss", "escape,q,L,enter", "back", "Leave the job; it goes on.", "Job"),
)
"""For the help."""

KEYS = "? help   esc back   ↑ ↓ scroll   drag selects, ctrl+c copies"

DIVISIONS = ("", "-charts-only", "-log-only")
"""What `v` goes through: both, the curves alone, the log alone."""


UNHEARD_SECONDS = 5.0
"""The log is read again after this even if nobody said that it grew: a slow client may not be told."""


class JobScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,L,enter", "dismiss", show=False),
        Binding("v", "divide", show=False),
        Binding("question_mark", "help", show=False),
    ]

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        self._offset = 0
        self._reading = False
        self._read_when: object = None
        """What was known of the job when its log was read last."""
        self._read_at = 0.0
        self._division = 0

    @property
    def trimtab(self) -> "TrimtabApp":
        return cast("TrimtabApp", self.app)

    def compose(self) -> ComposeResult:
        yield LineView(id="job")
        yield TrainingPane(id="charts")
        yield LogPane(id="whole-log")
        yield Static(KEYS, id="log-keys")

    def on_mount(self) -> None:
        pane = self.query_one(LogPane)
        pane.start(self._job.title, number="")
        pane.focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self.trimtab.paint)

    def show(self, snapshot: Snapshot, view: View) -> None:
        if not self.query("#log-keys"):
            return  # not composed yet
        job = next((job for job in snapshot.jobs if job.id == self._job.id), self._job)
        self.query_one("#job", LineView).set_lines([job_line(job, self.size.width, view.now)])
        training = is_training(job)
        if training != self.has_class("-training"):
            self.set_class(training, "-training")
            self.query_one("#log-keys", Static).update(f"v curves or log   {KEYS}" if training else KEYS)
            self.call_after_refresh(self.trimtab.paint)
        if training:
            self.trimtab.want_curves(job)
            self.query_one(TrainingPane).show(job, snapshot, view)
        known = (self.trimtab.connection.log_news.get(job.id, 0), type(job.state), view.link_since)
        if not self._reading and (known != self._read_when or view.now - self._read_at >= UNHEARD_SECONDS):
            self._reading, self._read_when, self._read_at = True, known, view.now
            self.run_worker(self._read(), group="log")

    def action_help(self) -> None:
        self.trimtab.push_screen(HelpScreen(self.trimtab.main.situation(), ACTIONS))

    def action_divide(self) -> None:
        """Both, the curves alone, or the log alone."""
        self._division = (self._division + 1) % len(DIVISIONS)
        for number, name in enumerate(DIVISIONS):
            if name:
                self.set_class(number == self._division, name)
        self.call_after_refresh(self.trimtab.paint)

    async def _read(self) -> None:
        """All that the engine has beyond what is shown."""
        try:
            while True:
                reply = await self.trimtab.ask(ReadLog(request=0, job=self._job.id, offset=self._offset), quiet=True)
                if not isinstance(reply, Text) or reply.next_offset <= self._offset:
                    return
                self._offset = reply.next_offset
                self.query_one(LogPane).feed(reply.text)
        finally:
            self._reading = False
