"""Curves over time as braille, several in one chart: pure functions from a load test's course to lines of text.

        throughput /s  ━ achieved 398  ┅ offered 400
    500 ⠀⠀⠀⠀⠀┊
        ⣀⡠⠤⠤⠤⠤⠒⠒⠒          each cell is 2 × 4 dots; ┊ is where something was changed
      0     ┊
        0:00     0:10     0:20

What a reader may rely on: a column that is over never changes (until the scale does, whose ends are round), so a chart
that grows to the right changes in its newest column only. A curve that is dotted has every other dot column, so that
two can be told apart without colour; where both are in one cell, the first has its colour.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from .. import figures
from ..lines import Line, Span
from ..loads import LoadCourse
from ..plots import LABEL, LEFT_DOTS, RIGHT_DOTS
from ..text import fit

SERIES: dict[str, Literal["mean", "most"]] = {
    "offered": "mean",
    "achieved": "mean",
    "p50": "mean",
    "p99": "most",
    "queue": "most",
    "cpu": "mean",
    "gpu": "mean",
    "batch": "mean",
    "memory": "most",
    "gpu_memory": "most",
    "power": "mean",
}
"""What a column shows of the points that fall into it: a tail is not averaged away."""

GAP_SECONDS = 1.2
"""Points farther apart than this (and than they themselves last) are not joined: nothing ran in between."""

STEPS = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
"""Round ends of a scale, at any power of ten."""

TIMES = (10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 450, 600, 900, 1200, 1800, 2700, 3600, 5400, 7200, 14400, 28800)
"""Round lengths of a time axis in seconds."""

Levels = tuple[int, int]
"""Lowest and highest dot row of one dot column."""


class Window(NamedTuple):
    """The part of a course that is drawn."""

    start: float
    seconds: float


class Columns:
    """A course sorted into dot columns of `step` seconds; `update` takes in what came since."""

    def __init__(self, course: LoadCourse, step: float) -> None:
        self.course, self.step = course, step
        self._begin()

    def _begin(self) -> None:
        self._generation = self.course.generation
        self._taken = 0
        self._held: dict[str, dict[int, tuple[float, int]]] = {name: {} for name in SERIES}

    def has(self, name: str) -> bool:
        """There is any value of this series."""
        return bool(self._held[name])

    def update(self) -> None:
        if self._generation != self.course.generation:
            self._begin()
        for point in self.course.points[self._taken :]:
            index = int(point.x / self.step)
            for name, how in SERIES.items():
                value = getattr(point, name)
                if value is None:
                    continue
                total, count = self._held[name].get(index, (0.0, 0))
                self._held[name][index] = (
                    (total + value, count + 1) if how == "mean" else (max(total, value) if count else value, 1)
                )
        self._taken = len(self.course.points)

    def values(self, name: str, window: Window, count: int) -> list[float | None]:
        """One value for each of `count` dot columns from the window's start; between neighbours a straight line."""
        first = round(window.start / self.step)
        held = self._held[name]
        span = self.course.points[-1].span if self.course.points else 0.0
        most = max(GAP_SECONDS, 2.5 * span) / self.step + 1
        found: list[float | None] = [None] * count
        before: tuple[int, float] | None = None
        for position in range(count):
            one = held.get(first + position)
            if one is None:
                continue
            value = one[0] / one[1]
            found[position] = value
            if before is not None and 1 < position - before[0] <= most:
                start, old = before
                for between in range(start + 1, position):
                    found[between] = old + (value - old) * (between - start) / (position - start)
            before = (position, value)
        return found


class Scale(NamedTuple):
    """From values to dot rows."""

    low: float
    high: float
    kind: Literal["zero", "share", "log"]

    def level(self, value: float, rows: int) -> int:
        """The dot row (0: lowest) of a value."""
        if self.kind == "log":
            share = math.log(max(value, 1e-9) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(round(share * (rows * 4 - 1)), 0), rows * 4 - 1)

    def label(self, value: float) -> str:
        """A value beside the chart, in at most `LABEL` - 1 cells."""
        if self.kind == "share":
            return figures.percent(value)
        return figures.milliseconds(value) if self.kind == "log" and value < 1 else figures.count(value)


class Curve(NamedTuple):
    """One line of a chart, and what its title says of it."""

    values: Sequence[float | None]
    role: str
    name: str
    shown: str
    """Its newest figure."""
    dotted: bool = False


class Chart(NamedTuple):
    """What stands in one chart; the first curve lies in front."""

    title: str
    kind: Literal["zero", "share", "log"]
    curves: tuple[Curve, ...]
    limit: float | None = None


def round_up(value: float) -> float:
    """The next round number that is not below a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in STEPS if power * step >= value * (1 - 1e-9))


def round_down(value: float) -> float:
    """The next round number that is not above a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(power * step for step in STEPS if power * step <= value * (1 + 1e-9))


def scale_of(chart: Chart) -> Scale:
    """Round ends around all that the chart shows."""
    if chart.kind == "share":
        return Scale(0.0, 1.0, "share")
    known = [value for curve in chart.curves for value in curve.values if value is not None]
    if chart.limit is not None:
        known.append(chart.limit)
    if chart.kind == "zero":
        return Scale(0.0, round_up(max(max(known, default=0.0), 1.0)), "zero")
    positive = [value for value in known if value > 1e-6] or [1.0]
    low, high = round_down(min(positive)), round_up(max(positive) * 1.001)
    return Scale(low, high if high >= 2 * low else 2 * low, "log")


def draw(chart: Chart, width: int, rows: int, lines_at: Sequence[int]) -> list[Line]:
    """The title, then `rows` lines of `width` cells; `lines_at` are the cells where something was changed."""
    cells = max(width - LABEL, 2)
    scale = scale_of(chart)
    codes, roles = [[0] * cells for _ in range(rows)], [[""] * cells for _ in range(rows)]
    for curve in chart.curves:
        values = curve.values
        if curve.dotted:
            values = [one if one is not None else other for one, other in zip(values[::2], values[1::2])]
        levels = _levels(values, rows, scale)
        for x in range(cells):
            left, right = (levels[x], None) if curve.dotted else (levels[2 * x], levels[2 * x + 1])
            if left is None and right is None:
                continue
            for y, code in enumerate(_dots(left, right, rows)):
                if code:
                    codes[y][x] |= code
                    roles[y][x] = roles[y][x] or curve.role
    limit_row = rows - 1 - scale.level(chart.limit, rows) // 4 if chart.limit is not None else None
    labels = {0: scale.high, rows - 1: scale.low} if rows > 1 else {0: scale.high}
    lines = [title(chart)]
    for y in range(rows):
        label, role = (scale.label(labels[y]), "muted") if y in labels else ("", "muted")
        if y == limit_row and chart.limit is not None:
            label, role = scale.label(chart.limit), "limit"
        spans: list[Span] = [(fit(label, LABEL - 1, "right") + " ", role)]
        for x in range(cells):
            code = codes[y][x]
            if code:
                _append(spans, chr(0x2800 + code), roles[y][x])
            elif x in lines_at:
                _append(spans, "┊", "faint")
            elif y == limit_row:
                _append(spans, "╌", "limit")
            else:
                _append(spans, " ", "")
        lines.append(tuple(spans))
    return lines


def title(chart: Chart) -> Line:
    """What is drawn, by which line, and where each stands now."""
    spans: list[Span] = [(f"{chart.title} ", "heading")]
    for curve in reversed(chart.curves):
        spans.append((f" {'┅' if curve.dotted else '━'} ", curve.role))
        spans.append((f"{curve.name} " if curve.name else "", "muted"))
        spans.append((fit(curve.shown, 7), "strong"))
    if chart.limit is not None:
        spans.append((f"limit {chart.limit:g}", "limit"))
    return tuple(spans)


def axis(window: Window, width: int, lines_at: Sequence[int] = ()) -> Line:
    """Minutes and seconds under the charts, with a triangle where something was changed."""
    cells = max(width - LABEL, 2)
    every = next((one for one in (1, 2, 5, *TIMES) if one / window.seconds * cells >= 9), TIMES[-1])
    text = [" "] * cells
    number = math.ceil(window.start / every - 1e-9)
    while number * every <= window.start + window.seconds + 1e-9:
        shown = clock(number * every)
        at = round((number * every - window.start) / window.seconds * (cells - 1))
        at = min(at, cells - len(shown))
        if not any(at - 1 <= x <= at + len(shown) for x in lines_at):
            text[at : at + len(shown)] = shown
        number += 1
    for x in lines_at:
        text[x] = "▲"
    return ((" " * LABEL, ""), ("".join(text), "muted"))


def clock(seconds: float) -> str:
    """A moment of a test: 0:07, 12:40, 1:02:03."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def whole_window(now: float, planned: float | None) -> Window:
    """All of a test: its planned length, and the next round one when it takes longer."""
    if planned is not None and now <= planned:
        return Window(0.0, planned)
    return Window(0.0, float(next((one for one in TIMES if one >= now), math.ceil(now / 3600) * 3600)))


def page(now: float, seconds: float) -> Window:
    """The newest part of a course, turned on by a quarter whenever it is full: what one reads does not run away."""
    quarter = seconds / 4
    return Window(max(math.ceil((now - seconds) / quarter - 1e-9), 0) * quarter, seconds)


def _levels(values: Sequence[float | None], rows: int, scale: Scale) -> list[Levels | None]:
    """Dot rows of each dot column, reaching to where the column before it was."""
    found: list[Levels | None] = []
    before: int | None = None
    for value in values:
        if value is None:
            found.append(None)
            before = None
            continue
        here = scale.level(value, rows)
        low = here if before is None or before >= here else before + 1
        high = here if before is None or before <= here else before - 1
        found.append((low, high))
        before = here
    return found


@lru_cache(maxsize=32768)
def _dots(left: Levels | None, right: Levels | None, rows: int) -> tuple[int, ...]:
    """Braille bits of one column of cells from top to bottom."""
    codes = []
    for row in range(rows - 1, -1, -1):
        code = 0
        for one, dots in ((left, LEFT_DOTS), (right, RIGHT_DOTS)):
            if one is not None:
                code |= sum(dot for height, dot in enumerate(dots, row * 4) if one[0] <= height <= one[1])
        codes.append(code)
    return tuple(codes)


def _append(spans: list[Span], text: str, role: str) -> None:
    """Add a character; neighbours of one role are one span (the label stays by itself)."""
    if len(spans) > 1 and spans[-1][1] == role:
        spans[-1] = (spans[-1][0] + text, role)
    else:
        spans.append((text, role))
