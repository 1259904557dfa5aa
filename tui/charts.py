"""Small charts out of characters: history as filled braille, one live column, bars, and intervals on a log scale.

Pure functions from numbers to text; colours are the pane's business. A history is cut into columns of whole time
buckets that are aligned to the clock, so a finished column never changes and scrolls only when the next one is full.
None is a gap: unknown is not 0, which is drawn as a thin line.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

BLOCKS = " ▁▂▃▄▅▆▇█"
"""Eighths of a cell, from the bottom."""

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
"""One frame a tick: it shows that the screen lives, and costs one cell."""

_LEFT = (0x00, 0x40, 0x44, 0x46, 0x47)
_RIGHT = (0x00, 0x80, 0xA0, 0xB0, 0xB8)
"""Braille dots of a filled column of 0 to 4 dots: left and right half of a cell."""

S = TypeVar("S")


def bucket_seconds(window: float, cells: int) -> float:
    """Length of a dot column so that `window` seconds fit into `cells` (two dots each), in steps of half a second."""
    return max(math.ceil(window / max(2 * cells, 1) * 2) / 2, 0.5)


def bucketed(
    samples: Sequence[S],
    time: Callable[[S], float],
    value: Callable[[S], float | None],
    end: float,
    step: float,
    count: int,
) -> list[float | None]:
    """The largest value in each of the `count` buckets before `end` (a multiple of `step`), oldest first.

    The largest and not the mean, so that a short spike is not averaged away. A bucket without a sample is None.
    """
    found: list[float | None] = [None] * count
    first = end - count * step
    for sample in samples:
        position = math.floor((time(sample) - first) / step)
        if 0 <= position < count:
            new = value(sample)
            old = found[position]
            if new is not None and (old is None or new > old):
                found[position] = new
    return _bridge(found)


def history(values: Sequence[float | None], rows: int) -> list[str]:
    """Values between 0 and 1, two a cell, as `rows` lines of filled braille from top to bottom."""
    levels = [None if value is None else max(1, round(min(max(value, 0.0), 1.0) * rows * 4)) for value in values]
    if len(levels) % 2:
        levels.insert(0, None)
    lines = []
    for row in range(rows - 1, -1, -1):
        floor = row * 4
        cells = []
        for left, right in zip(levels[::2], levels[1::2]):
            code = _LEFT[_within(left, floor)] | _RIGHT[_within(right, floor)]
            cells.append(chr(0x2800 + code) if code else " ")
        lines.append("".join(cells))
    return lines


def column(value: float | None, rows: int) -> list[str]:
    """One value between 0 and 1 as a single solid column of `rows` cells, top to bottom."""
    if value is None:
        return [" "] * rows
    eighths = max(1, round(min(max(value, 0.0), 1.0) * rows * 8))
    return [BLOCKS[min(max(eighths - row * 8, 0), 8)] for row in range(rows - 1, -1, -1)]


def sparkbar(values: Sequence[float | None]) -> str:
    """One cell for each value between 0 and 1 (CPU cores)."""
    return "".join("·" if value is None else BLOCKS[1 + round(min(max(value, 0.0), 1.0) * 7)] for value in values)


def progress(share: float | None, width: int) -> tuple[str, str]:
    """(done, rest) of a progress bar of `width` cells, with half-cell steps. Unknown: no bar, only the track."""
    halves = round((share or 0.0) * width * 2)
    done = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    return done, "─" * (width - len(done))


class LogScale:
    """Ratios on a logarithmic axis: 0.5× and 2× are equally far from 1×. Always includes 1."""

    def __init__(self, low: float, high: float, width: int) -> None:
        low, high = min(low, 1.0), max(high, 1.0)
        if high / low < 2:
            high = low * 2
        self._low, self._span, self._width = math.log(low), math.log(high) - math.log(low), width

    def cell(self, ratio: float) -> int:
        """The cell a ratio falls into."""
        place = (math.log(max(ratio, 1e-6)) - self._low) / self._span
        return min(max(round(place * (self._width - 1)), 0), self._width - 1)


def interval_bar(ratio: float, low: float, high: float, scale: LogScale, width: int) -> list[tuple[str, str]]:
    """A speed-up as a bar from 1× to the ratio, with its interval: [(text, "bar" | "interval" | "point" | "track")].

    `│` marks 1×, `━` the gain (or loss), `─` the rest of the confidence interval, `┿` the measured ratio.
    """
    one, point = scale.cell(1.0), scale.cell(ratio)
    left, right = scale.cell(low), scale.cell(high)
    cells: list[tuple[str, str]] = []
    for x in range(width):
        inside = left <= x <= right
        if x == point:
            kind = ("┿" if left < x or x < right else "━", "point")
            if point == one:
                kind = ("┿" if left < right else "│", "point")
        elif x == one:
            kind = ("┼", "interval") if inside else ("│", "track")
        elif inside:
            kind = ("─", "interval")
        elif min(one, point) < x < max(one, point):
            kind = ("━", "bar")
        else:
            kind = (" ", "track")
        if cells and cells[-1][1] == kind[1]:
            cells[-1] = (cells[-1][0] + kind[0], kind[1])
        else:
            cells.append(kind)
    return cells


def _within(level: int | None, floor: int) -> int:
    """How many of a cell's four dots a level fills above `floor`."""
    return 0 if level is None else min(max(level - floor, 0), 4)


def _bridge(values: list[float | None]) -> list[float | None]:
    """Fill a single empty bucket between two full ones: sampling and buckets beat against each other."""
    for position in range(1, len(values) - 1):
        before, after = values[position - 1], values[position + 1]
        if values[position] is None and before is not None and after is not None:
            values[position] = max(before, after)
    return values
