"""The whole log of a job on the whole screen; it goes on growing while the job runs."""

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Static

from engine.protocol import Job, ReadLog, Snapshot, Text

from ..lines import LineView
from ..panes.jobs import job_line
from ..panes.log import LogPane
from ..view import View

if TYPE_CHECKING:
    from ..app import TrimtabApp


class LogScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,L,enter", "dismiss", show=False)]

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        self._offset = 0
        self._reading = False

    def compose(self) -> ComposeResult:
        yield LineView(id="job")
        yield LogPane(id="whole-log")
        yield Static("esc back   ↑ ↓ scroll   drag selects, ctrl+c copies", id="log-keys")

    def on_mount(self) -> None:
        pane = self.query_one(LogPane)
        pane.start(self._job.title, number="")
        pane.focus()

    def show(self, snapshot: Snapshot, view: View) -> None:
        job = next((job for job in snapshot.jobs if job.id == self._job.id), self._job)
        self.query_one(LineView).set_lines([job_line(job, self.size.width, view.now)])
        if not self._reading:
            self._reading = True
            self.run_worker(self._read(), group="log")

    async def _read(self) -> None:
        """All that the engine has beyond what is shown."""
        app = cast("TrimtabApp", self.app)
        try:
            while True:
                reply = await app.ask(ReadLog(request=0, job=self._job.id, offset=self._offset), quiet=True)
                if not isinstance(reply, Text) or reply.next_offset <= self._offset:
                    return
                self._offset = reply.next_offset
                self.query_one(LogPane).feed(reply.text)
        finally:
            self._reading = False
