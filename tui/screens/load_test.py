"""A load test, live or from its history: charts on one time axis, figures, batch sizes, and the knobs while it runs.

     Load test  int8  poisson 400/s
     ▶ measuring  0:12 of 0:30  ━━━━━━━━╸───────────  0:18 left
     ┌ charts ───────────────────────────────┐ figures of this moment, or of the finished test;
     │ throughput, latency, queue, …         │ a search: its tests, one line each
     └───────────────────────────────────────┘ batch sizes, what was changed
     - rate 400/s +   b batch 32 B   w wait 10 ms W   i copies 1 I   space pause
     s stop & keep  x cancel  o overlay  z zoom  …

It is opened for a job, or for a run whose job the engine has yet to make. What is drawn comes from the snapshot and
from the ticks that the connection collects, so it can be left and opened again at any time, for finished tests too.
"""

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen

from engine.protocol import (
    CancelJob,
    Job,
    LoadKnobs,
    LoadSettings,
    LoadTest,
    Queued,
    Running,
    Snapshot,
    SteerLoad,
    Variant,
)

from ..actions import Situation
from ..comparison import variant_named
from ..lines import Line, LineView
from ..load_actions import LOAD_ACTIONS, LOAD_FOOTER
from ..loads import Found, LoadCourse, decisive, found_by, knobs_of, load_jobs, with_knobs
from ..panes import load_figures, load_search, load_status
from ..panes.footer import FooterPane
from ..panes.load_charts import Drawn, LoadChartsPane
from ..panes.load_figures import LoadFiguresPane
from ..panes.load_knobs import LoadKnobsPane, given, overlaid, still_asked, turned
from ..table import LineTable
from ..text import clean
from ..view import View

if TYPE_CHECKING:
    from ..app import TrimtabApp

ZOOMS = (None, 60.0, 15.0)
"""What `z` goes through: seconds that are drawn; None: the whole test."""


class LoadTestScreen(Screen[None]):
    """See the top of this file. `settings` may be given where they are known before the engine's history is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(action.key, f"act('{action.id}')", action.label, show=False) for action in LOAD_ACTIONS
    ]

    own_actions = LOAD_ACTIONS
    """What the palette lists first while this screen is open."""

    def __init__(self, job: str | None = None, run: str | None = None, settings: LoadSettings | None = None) -> None:
        super().__init__()
        self._job, self._run = job, run
        self._settings = settings
        self._asked: dict[str, Any] = {}
        self._other: LoadTest | None = None
        self._part: tuple[str, LoadCourse] | None = None
        self._reading: set[str] = set()
        self._zoom = 0
        self._first = 0
        self._front: bool | None = None
        self._chosen = False

    def compose(self) -> ComposeResult:
        yield LineView(id="load-title")
        yield LineView(id="load-status")
        with Horizontal(id="load-body"):
            yield LoadChartsPane(id="load-charts")
            with Vertical(id="load-side"):
                yield LineTable(id="load-tests")
                yield LoadFiguresPane(id="load-figures")
        yield LoadKnobsPane(id="load-knobs")
        yield FooterPane(id="load-footer", actions=LOAD_ACTIONS, order=LOAD_FOOTER)

    @on(LineTable.Highlighted)
    @on(LoadChartsPane.Resized)
    def on_resize(self) -> None:
        self.call_after_refresh(self.trimtab.paint)

    # --- what is shown -------------------------------------------------------------------------------

    @property
    def trimtab(self) -> "TrimtabApp":
        return cast("TrimtabApp", self.app)

    @property
    def job(self) -> Job | None:
        """The load test's job; None until the engine has made it."""
        jobs = load_jobs(self.trimtab.connection.snapshot)
        if self._job is None:
            self._job = next((job.id for job in jobs if self._run and job.recipe_run == self._run), None)
        return next((job for job in jobs if job.id == self._job), None)

    @property
    def course(self) -> LoadCourse:
        """Its ticks so far."""
        return self.trimtab.connection.loads.get(self._job or "") or _NOTHING

    @property
    def settings(self) -> LoadSettings | None:
        """What was asked for, as far as that is known."""
        return self.course.settings or self._settings

    @property
    def knobs(self) -> LoadKnobs:
        """Where the knobs stand by the newest tick."""
        newest, settings = self.course.newest, self.settings
        return newest.knobs if newest is not None else knobs_of(settings) if settings is not None else LoadKnobs()

    @property
    def variant(self) -> Variant | None:
        return variant_named(self.trimtab.connection.snapshot, job.variant) if (job := self.job) is not None else None

    def situation(self) -> Situation:
        """Decides which actions are available."""
        connection = self.trimtab.connection
        return Situation(connection.snapshot, connection.link, self.variant, self.job)

    # --- drawing -------------------------------------------------------------------------------------

    def show(self, snapshot: Snapshot, view: View) -> None:
        if not self.query(FooterPane):
            return
        job = self.job
        found = found_by(snapshot, job.id) if job is not None else Found()
        settings = self.settings
        if job is not None and job.id in self.trimtab.connection.loads and self.course.settings is None:
            self.course.settings = settings
        running = job is not None and isinstance(job.state, Running)
        if job is not None and view.link == "connected" and not isinstance(job.state, Queued):
            self._want(job.id)
        self._settle(running)
        searching = settings is not None and settings.kind != "run"
        self.set_class(searching, "-search")
        self.set_class(running and not searching, "-running")
        with self.app.batch_update():
            name = self.variant.name if self.variant is not None else ""
            other = (self._name_of(snapshot, self._other), self._other) if self._other is not None else None
            self.query_one("#load-title", LineView).set_lines([load_status.title(name, settings, self.knobs, other)])
            if job is None:
                lines = load_status.starting(snapshot, self._run, self.size.width)
            else:
                lines = load_status.status(job, self.course, settings, found, view, self.size.width)
            self._show_status(lines)
            self._show_charts(snapshot, running, found)
            self._show_side(snapshot, running, found)
            if settings is not None:
                self.query_one(LoadKnobsPane).show(settings, self.knobs, self._asked)
            self.query_one(FooterPane).show(self.situation())

    def _show_status(self, lines: list[Line]) -> None:
        pane = self.query_one("#load-status", LineView)
        if pane.styles.height is None or pane.styles.height.value != len(lines):
            pane.styles.height = len(lines)
        pane.set_lines(lines)

    def _show_charts(self, snapshot: Snapshot, running: bool, found: Found) -> None:
        pane, settings = self.query_one(LoadChartsPane), self.settings
        limit = settings.slo_p99_ms if settings is not None else None
        front = self._front if self._front is not None else found.search is not None
        if front and found.tests and settings is not None and settings.kind != "run":
            pane.show_lines(load_search.scatter(found, limit, pane.size.width, pane.size.height))
            return
        single = settings is not None and settings.kind == "run"
        other = self._other_course() if self._other is not None else None
        pane.show(
            Drawn(
                course=self.course,
                running=running,
                planned=settings.duration if settings is not None and single else None,
                limit=limit,
                open_loop=settings is None or (settings.concurrency is None and not settings.offline),
                seconds=ZOOMS[self._zoom % len(ZOOMS)],
                first=self._first,
                name=self.variant.name if self.variant else "this",
                test=found.single if not running else None,
                other=other,
                other_test=self._other,
                other_name=self._name_of(snapshot, self._other) if self._other is not None else "",
            )
        )

    def _show_side(self, snapshot: Snapshot, running: bool, found: Found) -> None:
        pane = self.query_one(LoadFiguresPane)
        width, height = pane.room.width, pane.room.height
        table, settings = self.query_one(LineTable), self.settings
        test = found.single
        if settings is not None and settings.kind != "run":
            at_end = table.cursor is None or table.cursor == len(table.keys) - 1
            table.set_rows(load_search.rows(found, settings.kind), [load_search.heading(settings.kind)])
            if running and at_end and found.tests:
                table.select(found.tests[-1].id)
            if found.search is not None and not self._chosen:
                self._chosen = True
                best = decisive(snapshot, found.search)
                table.select(best.id if best is not None else "")
            if not table.has_focus and found.tests:
                table.focus()
            test = next((one for one in found.tests if one.id == table.key), None) if not running else None
        if self._other is not None and test is not None:
            names = (self.variant.name if self.variant else "this", self._name_of(snapshot, self._other))
            pane.set_lines(load_figures.compared(test, self._other, names, width))
        elif test is not None:
            pane.set_lines(load_figures.ended(test, width, height))
        elif running:
            lines = load_figures.live(self.course, width, height)
            if self._other is not None:
                head: Line = ((f"with {self._name_of(snapshot, self._other)}", "accent"),)
                lines = [*lines[:9], head, *load_figures.ended(self._other, width, max(height - 10, 4))]
            pane.set_lines(lines)
        else:
            pane.set_lines(load_figures.live(self.course, width, height) if self.course.points else [])

    # --- history -------------------------------------------------------------------------------------

    def _want(self, job: str) -> None:
        """Have the whole history of a job's ticks read, unless it is known."""
        known = self.trimtab.connection.loads.get(job)
        if job not in self._reading and not (known is not None and known.complete):
            self._reading.add(job)
            self.run_worker(self._read(job), group="load-history")

    async def _read(self, job: str) -> None:
        from engine.client import EngineError

        from ..connection import NotConnected

        try:
            await self.trimtab.connection.read_load(job)
            self.trimtab.paint()
        except (EngineError, NotConnected):
            pass  # it is read again after the next attachment
        finally:
            self._reading.discard(job)

    def _other_course(self) -> LoadCourse | None:
        """The ticks of the run that lies over this one; of a search only those of the chosen test."""
        other = self._other
        assert other is not None
        self._want(other.job)
        course = self.trimtab.connection.loads.get(other.job)
        if course is None or not course.complete or other.search is None:
            return course
        if self._part is None or self._part[0] != other.id:
            self._part = (other.id, course.part(other))
        return self._part[1]

    def _name_of(self, snapshot: Snapshot, test: LoadTest) -> str:
        variant = variant_named(snapshot, test.variant)
        name = clean(variant.name if variant is not None else test.variant, 30)
        return f"{name} before" if self.variant is not None and test.variant == self.variant.id else name

    # --- actions -------------------------------------------------------------------------------------

    def act(self, id: str) -> None:
        """Do an action, or say why it is not available."""
        action = next(one for one in LOAD_ACTIONS if one.id == id)
        reason = action.reason(self.situation())
        if reason is not None:
            self.trimtab.say(reason, severity="warning")
            return
        method = getattr(self, id, None)
        if method is None:
            self._turn(id)
        else:
            # The app's worker: `load_again` leaves this screen, whose own workers end with it.
            self.app.run_worker(method(), group=f"load-{id}", exclusive=True)

    def action_act(self, id: str) -> None:
        self.act(id)

    @on(FooterPane.Pressed)
    @on(LoadKnobsPane.Pressed)
    def _pressed(self, message: FooterPane.Pressed | LoadKnobsPane.Pressed) -> None:
        self.act(message.id)

    def _turn(self, action: str) -> None:
        """Ask for a knob's next position; it is shown in grey until a tick confirms it."""
        settings, job = self.settings, self.job
        if settings is None or job is None:
            self.trimtab.say("What this load test was asked to do is not known yet.", severity="warning")
            return
        wish = turned(settings, overlaid(self.knobs, self._asked), action)
        if isinstance(wish, str):
            self.trimtab.say(wish, severity="warning")
            return
        self._asked = still_asked(self.knobs, self._asked | given(wish))
        self.trimtab.paint()
        self.run_worker(self._steer(job.id, wish), group="steer")

    async def _steer(self, job: str, wish: LoadKnobs) -> None:
        if await self.trimtab.ask(SteerLoad(request=0, job=job, knobs=wish)) is None:
            for name in given(wish):
                self._asked.pop(name, None)
            self.trimtab.paint()

    def _settle(self, running: bool) -> None:
        """Drop what was asked and is so now, and what the worker would not do, with its sentence."""
        course = self.course
        self._asked = still_asked(self.knobs, self._asked) if running else {}
        if course.refused:
            sentence, course.refused = course.refused, ""
            self._asked = {}
            if running:
                self.trimtab.say(f"Not changed: {sentence}", severity="warning")

    async def stop_load(self) -> None:
        job = self.job
        if job is not None and await self.trimtab.ask(SteerLoad(request=0, job=job.id, stop=True)):
            self.trimtab.say("It ends now; what was measured is kept.")

    async def cancel_load(self) -> None:
        from .question import Answer, QuestionScreen

        job = self.job
        assert job is not None
        searching = self.settings is not None and self.settings.kind != "run"
        lost = "Nothing of it is kept (s ends it and keeps what was measured)."
        if searching:
            lost = "Tests that have ended are kept: the same search goes on from there when it is started again."
        text = Content.assemble((clean(job.title, 100), "bold"), f"\n{lost}")
        answers = [Answer("keep", "let it run", "k"), Answer("cancel", "cancel it", "x", dangerous=True)]
        if await self.trimtab.push_screen_wait(QuestionScreen("Cancel this load test?", text, answers)) == "cancel":
            await self.trimtab.ask(CancelJob(request=0, job=job.id))

    async def compare_load(self) -> None:
        """Choose another run to lay over this one."""
        from .load_test_pick import PickLoadScreen

        current = found_by(self.trimtab.connection.snapshot, self._job or "").single
        chosen = await self.trimtab.push_screen_wait(PickLoadScreen(current.id if current else "", self._other))
        if chosen is not None:
            self._other = chosen if isinstance(chosen, LoadTest) else None
            self._part = None
            self.trimtab.paint()

    async def next_chart(self) -> None:
        self._first += 1
        self.trimtab.paint()

    async def zoom_time(self) -> None:
        self._zoom += 1
        self.trimtab.paint()

    async def show_front(self) -> None:
        search = found_by(self.trimtab.connection.snapshot, self._job or "").search
        self._front = not (self._front if self._front is not None else search is not None)
        self.trimtab.paint()

    async def load_again(self) -> None:
        from ..commands import start_load_test

        variant, settings = self.variant, self.settings
        if variant is None:
            self.trimtab.say("Its variant is not in this session any more.", severity="warning")
            return
        now = with_knobs(settings, self.knobs) if settings is not None and settings.kind == "run" else settings
        await start_load_test(self.trimtab, variant, now, instead_of=self)

    async def show_load_log(self) -> None:
        from .job import JobScreen

        job = self.job
        assert job is not None
        await self.trimtab.push_screen(JobScreen(job))

    async def show_load_help(self) -> None:
        from .help import HelpScreen

        await self.trimtab.push_screen(HelpScreen(self.situation(), LOAD_ACTIONS))

    async def leave_load(self) -> None:
        self.dismiss(None)


_NOTHING = LoadCourse()
"""Before the first tick."""
