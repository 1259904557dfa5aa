"""Curves as lines of braille dots with a scale at the left and epochs below: pure functions from numbers to lines.

        ⢣
    2.0 ⠘⡄                                 each cell is 2 × 4 dots
        ⠀⠱⡀⢀
    0.0 ⠀⠀⠈⠊⠒⠤⠤⣀⣀
    epochs 0     1     2     3     4     5

What a reader may rely on: the x axis is the whole training from the start, so a curve grows to the right and never
scrolls; a finished column stays as it is until the scale changes, and the scale has round ends, so that this is rare.
Every column shows the lowest and the highest value that fell into it.
"""

import math
from collections.abc import Sequence

from .curves import Bucket, Course
from .lines import Line, Span
from .text import fit

LABEL = 7
"""Cells for the scale, left of a chart."""

LEFT_DOTS = (0x40, 0x04, 0x02, 0x01)
RIGHT_DOTS = (0x80, 0x20, 0x10, 0x08)
"""A braille cell's dots from the bottom up."""


def _cell(left: int, right: int) -> str:
    """The character with these dots in its two columns, bit 0 the lowest."""
    code = sum(dot for bit, dot in enumerate(LEFT_DOTS) if left >> bit & 1)
    code += sum(dot for bit, dot in enumerate(RIGHT_DOTS) if right >> bit & 1)
    return chr(0x2800 + code) if code else " "


CELLS = [[_cell(left, right) for right in range(16)] for left in range(16)]
"""Every cell by its two columns: a chart is drawn once a second beside a training that wants the processor."""

Ends = tuple[float, float]
"""Lowest and highest value of a scale."""


def scale_of(values: Sequence[float], most: float | None = None) -> Ends:
    """Round ends around the values, at least a small span apart; the upper one is at most `most`."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    step = nice((high - low) / 4 or max(abs(high), 1e-6) / 20)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    if most is not None:
        high = min(high, most)
    return (low, high) if high > low else (low - step, high)


def nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, … (at any power of ten) that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * (1 - 1e-9))


def columns(buckets: Sequence[Bucket], total: int, count: int) -> list[Ends | None]:
    """Lowest and highest value in each of `count` dot columns over steps 0 to `total`; None where there is none.

    Between columns with values a straight line is drawn, and a column reaches to where the one before it ended, so
    that the curve hangs together.
    """
    found: list[Ends | None] = [None] * count
    before: tuple[int, float] | None = None
    for bucket in buckets:
        x = min(round(bucket.step / max(total, 1) * (count - 1)), count - 1)
        low, high = bucket.low, bucket.high
        if before is not None:
            start, value = before
            slope = (bucket.last - value) / (x - start) if x > start else 0.0
            # Each column in between is drawn from its left edge to its right one: no gap, however steep the line.
            for between in range(start + 1, x):
                ends = (value + slope * (between - start - 0.5), value + slope * (between - start + 0.5))
                found[between] = (min(ends), max(ends))
            if x > start:
                near = value + slope * (x - start - 0.5)
                low, high = min(low, near), max(high, near)
                old = found[start]
                assert old is not None
                next_to = value + slope * 0.5
                found[start] = (min(old[0], next_to), max(old[1], next_to))
        old = found[x]
        found[x] = (low, high) if old is None else (min(old[0], low), max(old[1], high))
        before = (x, bucket.last)
    return found


def braille(found: Sequence[Ends | None], rows: int, scale: Ends) -> list[str]:
    """The columns, two a cell, as `rows` lines from top to bottom."""
    filled = [0 if one is None else _dots(level(one[0], rows, scale), level(one[1], rows, scale)) for one in found]
    if len(filled) % 2:
        filled.append(0)
    pairs = list(zip(filled[::2], filled[1::2]))
    return [
        "".join([CELLS[left >> shift & 15][right >> shift & 15] for left, right in pairs])
        for shift in range(4 * (rows - 1), -1, -4)
    ]


def _dots(low: int, high: int) -> int:
    """A column filled between two dot rows, bit n for row n."""
    return (2 << high) - (1 << low)


def level(value: float, rows: int, scale: Ends) -> int:
    """The dot row (0: lowest) that a value falls on."""
    low, high = scale
    return min(max(round((value - low) / (high - low) * (rows * 4 - 1)), 0), rows * 4 - 1)


def chart(
    buckets: Sequence[Bucket],
    course: Course,
    width: int,
    rows: int,
    role: str,
    limit: float | None = None,
    percent: bool = False,
) -> list[Line]:
    """The curve in `rows` lines of `width` cells, its scale at the left; `limit` is a dashed line across it."""
    values = [end for bucket in buckets for end in (bucket.low, bucket.high)]
    scale = scale_of(values + ([limit] if limit is not None else []), 1.0 if percent else None)
    cells = max(width - LABEL, 2)
    drawn = braille(columns(buckets, course.total, cells * 2), rows, scale)
    limit_row = rows - 1 - level(limit, rows, scale) // 4 if limit is not None else None
    labels = {0: scale[1], rows - 1: scale[0]} if rows > 1 else {0: scale[1]}
    lines: list[Line] = []
    for row, text in enumerate(drawn):
        label = _label(labels[row], scale, percent) if row in labels else ""
        label_role = "muted"
        if row == limit_row and limit is not None:
            label, label_role = _label(limit, scale, percent), "limit"
        spans: list[Span] = [(fit(label, LABEL - 1, "right") + " ", label_role)]
        lines.append((*spans, *(_dashed(text, role) if row == limit_row else [(text, role)])))
    return lines


def axis(course: Course, width: int) -> Line:
    """Epochs under a chart (steps where the job does not say how long an epoch is), as many numbers as fit."""
    cells = max(width - LABEL, 2)
    per, unit = (course.steps_per_epoch, "epochs") if course.steps_per_epoch else (1.0, "steps")
    units = course.total / per
    every = max(nice(units * (len(f"{units:.0f}") + 2) / cells), 1.0 if units >= 2 else 0.1)
    text = [" "] * cells
    for number in range(int(units / every + 1e-9) + 1):
        shown = f"{number * every:g}"
        at = min(round(number * every / units * (cells - 1)), cells - len(shown))
        text[at : at + len(shown)] = shown
    return ((fit(unit, LABEL), "muted"), ("".join(text), "muted"))


def _dashed(text: str, role: str) -> list[Span]:
    """A row of the curve with the limit's line wherever there is no curve."""
    spans: list[Span] = []
    for character in text:
        span = ("╌", "limit") if character == " " else (character, role)
        if spans and spans[-1][1] == span[1]:
            spans[-1] = (spans[-1][0] + span[0], span[1])
        else:
            spans.append(span)
    return spans


def _label(value: float, scale: Ends, percent: bool) -> str:
    """A number on the scale with as many decimals as its span needs."""
    span = scale[1] - scale[0]
    if percent:
        return f"{value * 100:.{1 if span < 0.1 else 0}f} %"
    decimals = min(max(1 - math.floor(math.log10(span)), 0), 4) if span < 20 else 0
    text = f"{value:.{decimals}f}"
    return text if len(text) < LABEL else f"{value:.1e}"
