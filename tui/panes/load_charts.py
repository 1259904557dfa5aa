"""A load test over time: throughput, latency, queue, batches and processors, one above the other on one time axis.

    throughput /s  ━ achieved 398  ┅ offered 400
    latency ms     ━ p99 8.92      ┅ p50 3.10     limit 20
    queue          ━ waiting 3
    mean batch     ━ rows 6.2
    use            ━ CPU 78 %      ┅ GPU 61 %
    memory GiB     ━ GPU 3.1       ┅ machine 11.4
    GPU power W    ━ 212

The last two, and the use, where they are measured: not of a server on another machine. As many as the height has room
for; the rest come up with a key. With another run laid over it each chart has one curve of either. Textual sends a
changed row from its widget's left edge, so the pane is cut into upright strips, each a widget of its own: a test that
goes on costs the newest strip's cells and not the whole history.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message

from engine.protocol import LoadTest

from .. import figures
from ..lines import Line, LineView, Span
from ..loads import MOMENT_SECONDS, LoadCourse, Point, gibibytes
from ..text import clean, fit, width_of
from .load_figures import mean_batch
from .load_lines import LABEL, Chart, Columns, Curve, Window, axis, draw, page, whole_window

STRIPS = 12
"""Widgets side by side."""

ROWS_MINIMUM = 4
"""A chart has at least so many rows, or there are fewer charts."""


class Drawn(NamedTuple):
    """What the pane is to show."""

    course: LoadCourse
    running: bool
    planned: float | None = None
    """Seconds that a test is to take, without what is still under way then."""
    limit: float | None = None
    """For p99, in milliseconds."""
    open_loop: bool = True
    """Requests are offered at a rate, whatever becomes of them."""
    seconds: float | None = None
    """Only the newest so many; None: all."""
    first: int = 0
    """Which chart stands on top, where there is not room for all."""
    name: str = ""
    test: LoadTest | None = None
    """What was found, once it has ended: its figures stand in the titles then."""
    other: LoadCourse | None = None
    """Another run to lay over it."""
    other_name: str = ""
    other_test: LoadTest | None = None


_NO_COURSE = LoadCourse()
"""In place of one, where only what is drawn beside it matters."""


class LoadChartsPane(Horizontal):
    """See the top of this file."""

    class Resized(Message):
        """There is more or less room (the knobs came or went, a verdict takes two lines): draw again."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns: Columns | None = None
        self._other: Columns | None = None
        self._cut: dict[tuple[Line, tuple[int, ...]], list[Line]] = {}
        self._shown: tuple[object, ...] | None = None
        """What the strips show, short of points within the same second."""

    def compose(self) -> ComposeResult:
        for _ in range(STRIPS):
            yield LineView(classes="strip")

    def on_resize(self) -> None:
        self.post_message(self.Resized())

    def show(self, drawn: Drawn) -> None:
        strips = list(self.query(LineView))
        widths = tuple(strip.size.width for strip in strips)
        if sum(widths) < LABEL + 10 or self.size.height < 4:
            return
        # Once a second, as the figures beside them: on few cores each drawing stops the model's threads meanwhile.
        shown = (
            drawn._replace(course=_NO_COURSE, other=None),
            _state(drawn.course),
            _state(drawn.other),
            widths,
            self.size,
        )
        if shown == self._shown:
            return
        self._shown = shown
        lines = self._lines(drawn, sum(widths), self.size.height)
        fresh = {(line, widths): self._cut.get((line, widths)) or cut(line, widths) for line in lines}
        self._cut = fresh
        for number, strip in enumerate(strips):
            strip.set_lines([fresh[line, widths][number] for line in lines])

    def show_lines(self, lines: list[Line]) -> None:
        """Something else over the whole pane."""
        self._shown = None
        strips = list(self.query(LineView))
        widths = tuple(strip.size.width for strip in strips)
        pieces = [cut(line, widths) for line in lines]
        for number, strip in enumerate(strips):
            strip.set_lines([piece[number] for piece in pieces])

    def _lines(self, drawn: Drawn, width: int, height: int) -> list[Line]:
        window = window_of(drawn)
        cells = width - LABEL
        step = window.seconds / (cells * 2)
        mine = self._columns = _columns(self._columns, drawn.course, step)
        self._other = _columns(self._other, drawn.other, step) if drawn.other is not None else None
        every = charts_of(drawn, mine, self._other, window, cells * 2)
        count = min(max((height - 1) // (ROWS_MINIMUM + 1), 1), len(every))
        if count < len(every):
            every = [every[(drawn.first + number) % len(every)] for number in range(count)]
        spare = height - 1 - 2 * count
        lines_at = marked_cells(drawn, window, cells)
        lines: list[Line] = []
        for number, chart in enumerate(every):
            rows = 1 + spare // count + (number < spare % count)
            lines += draw(chart, width, rows, lines_at)
        return [*lines, axis(window, width, marked_cells(drawn, window, cells, by_user=True))]


def _state(course: LoadCourse | None) -> tuple[int, ...]:
    """Changes when there is something to draw."""
    if course is None:
        return ()
    second = int(course.now / MOMENT_SECONDS) if course.points else -1
    return id(course), course.generation, second, len(course.marks), len(course.starts)


def window_of(drawn: Drawn) -> Window:
    """The seconds that are drawn."""
    now = max(drawn.course.now, drawn.other.now if drawn.other is not None else 0.0)
    if drawn.seconds is not None:
        return page(drawn.course.now, drawn.seconds)
    if drawn.running or not now:
        return whole_window(now, drawn.planned)
    return Window(0.0, max(now, 0.5))


def charts_of(drawn: Drawn, mine: Columns, other: Columns | None, window: Window, count: int) -> list[Chart]:
    """All charts, the most telling first."""
    mine.update()
    now = _now(drawn)
    if other is not None:
        other.update()
        return _compared(drawn, mine, other, window, count)

    def curve(name: str, role: str, shown: str, word: str = "", dotted: bool = False) -> Curve:
        return Curve(mine.values(name, window, count), role, word or name, shown, dotted)

    rate = [curve("achieved", "chart", figures.per_second(now.achieved if now else None))]
    if drawn.open_loop:
        rate.append(curve("offered", "muted", figures.per_second(now.offered if now else None), dotted=True))
    use = [curve("cpu", "chart", figures.percent(now.cpu if now else None), "CPU")]
    if mine.has("gpu"):
        use.insert(0, curve("gpu", "chart-gpu", figures.percent(now.gpu if now else None), "GPU"))
        use[1] = use[1]._replace(dotted=True)
    memory = [curve("memory", "chart", _gib(now.memory if now else None), "machine")]
    if mine.has("gpu_memory"):
        memory[0] = memory[0]._replace(dotted=True)
        memory.insert(0, curve("gpu_memory", "chart-gpu", _gib(now.gpu_memory if now else None), "GPU"))
    measured = []
    if mine.has("cpu") or mine.has("gpu") or not drawn.course.points:
        measured.append(Chart("processors", "share", tuple(use)))
    batches = Chart("batches", "zero", (curve("batch", "good", _rows(now.batch if now else None), "mean rows"),))
    more = []
    if mine.has("memory") or mine.has("gpu_memory"):
        more.append(Chart("memory GiB", "zero", tuple(memory)))
    if mine.has("power"):
        more.append(
            Chart("GPU power W", "zero", (curve("power", "warn", _watts(now.power if now else None), "drawn"),))
        )
    waiting = drawn.course.newest is None or drawn.course.newest.queue_depth is not None
    return [
        Chart("throughput /s", "zero", tuple(rate)),
        Chart(
            "latency ms",
            "log",
            (
                curve("p99", "chart-memory", figures.milliseconds(now.p99 if now else None)),
                curve("p50", "chart-gpu", figures.milliseconds(now.p50 if now else None), dotted=True),
            ),
            drawn.limit,
        ),
        Chart(
            "queue" if waiting else "in flight",
            "zero",
            (curve("queue", "accent", _known(now.queue if now else None), "waiting" if waiting else "sent"),),
        ),
        *measured,
        batches,
        *more,
    ]


def _compared(drawn: Drawn, mine: Columns, other: Columns, window: Window, count: int) -> list[Chart]:
    """One curve of either run in each chart."""
    gpu = mine.has("gpu") and other.has("gpu")
    a = _now(drawn)
    b = figures_of(drawn.other_test) if drawn.other_test is not None else None
    kinds: list[tuple[str, str, Literal["zero", "share", "log"], Callable[[float | None], str]]] = [
        ("achieved /s", "achieved", "zero", figures.per_second),
        ("p99 ms", "p99", "log", figures.milliseconds),
        ("queue", "queue", "zero", _known),
        ("GPU", "gpu", "share", figures.percent) if gpu else ("CPU", "cpu", "share", figures.percent),
        ("mean batch", "batch", "zero", _rows),
    ]
    for title, name in (("GPU memory GiB", "gpu_memory"), ("memory GiB", "memory"), ("GPU power W", "power")):
        if mine.has(name) and other.has(name):
            kinds.append((title, name, "zero", _watts if name == "power" else _gib))
    found = []
    for title, name, kind, written in kinds:
        shown = ["" if one is None else written(getattr(one, name)) for one in (a, b)]
        curves = (
            Curve(mine.values(name, window, count), "chart", clean(drawn.name, 16), shown[0]),
            Curve(other.values(name, window, count), "accent", clean(drawn.other_name, 16), shown[1], dotted=True),
        )
        found.append(Chart(title, kind, curves, drawn.limit if name == "p99" else None))
    return found


def marked_cells(drawn: Drawn, window: Window, cells: int, by_user: bool = False) -> tuple[int, ...]:
    """Cells where something was changed; unless `by_user` also where a warm-up ended or a search's next test began."""
    course = drawn.course
    moments = [mark.x for mark in course.marks]
    if not by_user:
        moments += course.starts[1:]
        if course.settings is not None and course.settings.kind == "run":
            moments.append(course.settings.warm_up_seconds)
    places = [int((moment - window.start) / window.seconds * cells) for moment in moments if moment > window.start]
    return tuple(sorted({place for place in places if 0 <= place < cells}))


def cut(line: Line, widths: tuple[int, ...]) -> list[Line]:
    """The line in pieces of these widths; a wide character on a seam becomes a space."""
    pieces: list[list[Span]] = [[] for _ in widths]
    ends = [sum(widths[: number + 1]) for number in range(len(widths))]
    at, number = 0, 0
    for text, role in line:
        while text and number < len(widths):
            room = ends[number] - at
            if room <= 0:
                number += 1
                continue
            if width_of(text) <= room:
                pieces[number].append((text, role))
                at += width_of(text)
                break
            taken, cells = 0, 0
            while cells + width_of(text[taken]) <= room:
                cells += width_of(text[taken])
                taken += 1
            pieces[number].append((fit(text[:taken], room), role))
            text = text[taken:]
            at += room
    return [tuple(piece) for piece in pieces]


def _now(drawn: Drawn) -> Point | None:
    """What stands in the titles."""
    if drawn.test is not None:
        return figures_of(drawn.test)
    return moment.figures if (moment := drawn.course.moment) is not None else None


def figures_of(test: LoadTest) -> Point:
    """A finished test's figures in the place of those of a moment."""
    summary = test.summary
    tails = {name: one.value for name, one in summary.latency_ms.items()}
    return Point(
        x=0.0,
        span=0.0,
        offered=summary.offered_per_s,
        achieved=summary.achieved_per_s,
        p50=tails.get("p50"),
        p99=tails.get("p99"),
        queue=None,
        cpu=test.use.cpu,
        gpu=test.use.gpu,
        batch=mean_batch(test),
        memory=gibibytes(test.use.memory_bytes),
        gpu_memory=gibibytes(test.use.gpu_memory_bytes),
        power=test.use.power_w,
    )


def _columns(held: Columns | None, course: LoadCourse, step: float) -> Columns:
    """The columns that are there, or new ones where course or step are others."""
    return held if held is not None and held.course is course and held.step == step else Columns(course, step)


def _known(value: float | None) -> str:
    return "" if value is None else figures.count(value)


def _rows(value: float | None) -> str:
    return figures.UNKNOWN if value is None else f"{value:.1f}"


def _gib(value: float | None) -> str:
    return figures.UNKNOWN if value is None else f"{value:.1f}"


def _watts(value: float | None) -> str:
    return figures.UNKNOWN if value is None else f"{value:.0f}"
