"""A search over load tests: each of its tests in a line as it ends, and the front of throughput against tail latency.

    batch  wait  ×      /s  p99 ms                 p99 ms, over throughput
       32     2  2     812    8.92 ✓ ★ best          60  ·        ●
       16     2  1     640    4.10 ✓ ◆ knee              ·   ●──●╯ ★ best 32, 2 ms, ×2
        1     0  1     151    7.02 ✓ ● front          4 ●───●◆ knee 16, 2 ms, ×1
                                                        0        500        1000 /s

Pure functions; a search that still runs is drawn from the tests it has stored, one that has ended from its findings.
"""

import itertools
import math
from typing import NamedTuple

from engine.protocol import LoadPoint, LoadSearch, LoadSettings, LoadTest

from .. import figures
from ..lines import Line, Span
from ..loads import Found, batching
from ..plots import LABEL, LEFT_DOTS, RIGHT_DOTS, nice
from ..table import Row
from ..text import clean, fit, width_of
from .load_lines import Scale, round_down, round_up

VERDICTS = {"PASS": ("✓", "good"), "FAIL": ("✗", "bad"), "UNCLEAR": ("?", "warn"), None: ("·", "muted")}

PURPOSES = {"capacity": "capacity", "confirmation": "again", "probe": "", "point": "", "run": ""}
"""What a test is for, where its line does not show it."""


class Spot(NamedTuple):
    """A test in the chart."""

    rate: float
    p99: float
    mark: str
    role: str
    name: str = ""


def rows(found: Found, kind: str) -> list[Row]:
    """A line for each test, oldest first; the keys are the tests' ids."""
    search = found.search
    return [Row(test.id, _row(test, kind, _place(search, test))) for test in found.tests]


def heading(kind: str) -> Line:
    """Above the rows."""
    if kind == "sweep":
        return ((f"{'batch':>5}{'wait':>6}{'×':>3}{'/s':>8}{'p99 ms':>8}", "heading"),)
    return ((f"{'offered':>8}{'done /s':>9}{'p99 ms':>8}  verdict", "heading"),)


def findings(search: LoadSearch) -> list[tuple[str, str]]:
    """(text, role) of what an ended search found, one line each; the sentence first."""
    lines = [(clean(search.sentence, 600), "strong")]
    limit = search.settings.slo_p99_ms
    if search.settings.kind == "rate":
        if search.best_rate_per_s is not None:
            words = f"✓ {figures.per_second(search.best_rate_per_s)}/s keeps p99 under {limit:g} ms"
            if search.p99_at_most_ms is not None:
                words += f" (at most {figures.milliseconds(search.p99_at_most_ms)})"
            if search.confirmed is not None:
                words += f"; {search.confirmed[0]} of {search.confirmed[1]} seeds passed"
            lines.append((words, "good"))
        if search.bracket_high_per_s is not None:
            above = f"{figures.per_second(search.bracket_high_per_s)}/s"
            unclear = search.bracket_verdict == "UNCLEAR"
            lines.append((f"? {above} stayed UNCLEAR", "warn") if unclear else (f"✗ {above} does not", "bad"))
        if search.capacity_per_s is not None:
            most = figures.per_second(search.capacity_per_s)
            alone = search.settings.url is None
            words = f"capacity {most}/s with every copy busy" if alone else f"callers in turn got {most}/s"
            lines.append((words, "muted"))
        return lines
    for position, mark, role, word in (
        (search.recommended, "★", "good", "recommended"),
        (search.knee, "◆", "accent", "knee"),
    ):
        if position is not None and 0 <= position < len(search.points):
            one = search.points[position]
            words = f"{mark} {word}: {settings_in_words(one.settings)}: {figures.per_second(one.achieved_per_s)}/s"
            lines.append((f"{words}, p99 {figures.milliseconds(one.p99_ms)} ms", role))
    return lines


def settings_in_words(settings: LoadSettings) -> str:
    """ "batch 32, wait 2 ms, 2 copies"."""
    copies = f"{settings.instances} cop{'ies' if settings.instances != 1 else 'y'}"
    return f"batch {settings.max_batch_size}, wait {settings.max_wait_ms:g} ms, {copies}"


def _in_short(settings: LoadSettings) -> str:
    """The same where there is little room: "32, 2 ms, ×2"."""
    return f"{settings.max_batch_size}, {settings.max_wait_ms:g} ms, ×{settings.instances}"


def spots(found: Found) -> tuple[list[Spot], list[int]]:
    """The tests as points of a chart, and which of them the front joins, in order."""
    search = found.search
    if search is None:
        return [one for test in found.tests if (one := _spot(test.as_point())) is not None], []
    placed = [_spot(point, search, number) for number, point in enumerate(search.points)]
    at = {number: len([one for one in placed[:number] if one is not None]) for number in range(len(placed))}
    front = [at[number] for number in search.front if 0 <= number < len(placed) and placed[number] is not None]
    return [one for one in placed if one is not None], front


def scatter(found: Found, limit: float | None, width: int, height: int) -> list[Line]:
    """Throughput to the right, p99 upwards (logarithmic), the front as a line, the knee and the best point named."""
    points, front = spots(found)
    if not points:
        ended = found.search is not None
        return [(("No test that counts has figures to draw." if ended else "The first test is under way.", "muted"),)]
    rows, cells = max(height - 2, 3), max(width - LABEL, 10)
    values = [one.p99 for one in points] + ([limit] if limit else [])
    low, high = round_down(min(values)), round_up(max(values) * 1.001)
    scale = Scale(low, max(high, 2 * low), "log")
    most = round_up(max(one.rate for one in points) * 1.02)

    def place(spot: Spot) -> tuple[int, int]:
        return min(round(spot.rate / most * (cells * 2 - 1)), cells * 2 - 1), scale.level(spot.p99, rows)

    grid = [[" "] * cells for _ in range(rows)]
    roles = [[""] * cells for _ in range(rows)]
    if limit:
        y = rows - 1 - scale.level(limit, rows) // 4
        for x in range(cells):
            grid[y][x], roles[y][x] = "╌", "limit"
    _join(grid, roles, [place(points[number]) for number in front])
    names: list[tuple[int, int, Spot]] = []
    for spot in sorted(points, key=lambda one: bool(one.name)):
        x, y = place(spot)
        x, y = x // 2, rows - 1 - y // 4
        grid[y][x], roles[y][x] = spot.mark, spot.role
        if spot.name:
            names.append((x, y, spot))
    for x, y, spot in names:
        _name(grid, roles, x, y, spot)
    lines: list[Line] = [(("p99 ms, over throughput", "heading"), (f"   limit {limit:g}" if limit else "", "limit"))]
    labels = {0: scale.high, rows - 1: scale.low}
    for y in range(rows):
        spans: list[Span] = [(fit(scale.label(labels[y]) if y in labels else "", LABEL - 1, "right") + " ", "muted")]
        for text, role in zip(grid[y], roles[y]):
            if len(spans) > 1 and spans[-1][1] == role:
                spans[-1] = (spans[-1][0] + text, role)
            else:
                spans.append((text, role))
        lines.append(tuple(spans))
    return [*lines, _axis(most, cells)]


def _axis(most: float, cells: int) -> Line:
    """Requests a second under the chart."""
    text = [" "] * cells
    every = nice(most * 9 / cells)
    for number in range(int(most / every + 1e-9) + 1):
        shown = figures.per_second(every * number)
        at = min(round(number * every / most * (cells - 1)), cells - len(shown))
        text[at : at + len(shown)] = shown
    return ((fit("/s", LABEL - 1, "right") + " ", "muted"), ("".join(text), "muted"))


def _join(grid: list[list[str]], roles: list[list[str]], places: list[tuple[int, int]]) -> None:
    """Draw straight lines from dot to dot."""
    rows = len(grid)
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for number in range(steps + 1):
            x, y = round(x0 + (x1 - x0) * number / steps), round(y0 + (y1 - y0) * number / steps)
            row, cell = rows - 1 - y // 4, x // 2
            dot = (LEFT_DOTS if x % 2 == 0 else RIGHT_DOTS)[y % 4]
            old = ord(grid[row][cell]) - 0x2800
            grid[row][cell] = chr(0x2800 + (dot | (old if 0 <= old < 256 else 0)))
            roles[row][cell] = "chart"


def _name(grid: list[list[str]], roles: list[list[str]], x: int, y: int, spot: Spot) -> None:
    """The name beside its mark, on the side where there is room for it; it never covers another mark."""
    cells, text = len(grid[0]), f" {spot.name} "
    width = width_of(text)
    for start in (x + 1, x - width):
        taken = grid[y][max(start, 0) : start + width]
        if start >= 0 and start + width <= cells and not any(one in "●★◆✗?·" for one in taken):
            grid[y][start : start + width] = text
            roles[y][start : start + width] = [spot.role] * width
            return


def _spot(point: LoadPoint, search: LoadSearch | None = None, number: int = -1) -> Spot | None:
    if point.p99_ms is None or point.p99_ms <= 0:
        return None
    mark, role = VERDICTS[point.verdict]
    mark = "●" if point.verdict == "PASS" else mark
    name = ""
    if search is not None and search.settings.kind == "sweep":
        if number in search.front:
            mark, role = "●", "chart"
        if number == search.knee:
            mark, role, name = "◆", "accent", f"knee {_in_short(point.settings)}"
        if number == search.recommended:
            mark, role = "★", "good-strong"
            name = f"{'best and knee' if number == search.knee else 'best'} {_in_short(point.settings)}"
    return Spot(point.achieved_per_s, point.p99_ms, mark, role, name)


def _place(search: LoadSearch | None, test: LoadTest) -> tuple[str, str]:
    """(word, role) of what an ended search made of a test."""
    if search is None:
        return "", ""
    if search.settings.kind == "rate":
        at_best = search.best_rate_per_s is not None and test.settings.rate is not None
        near = at_best and math.isclose(test.settings.rate or 0, search.best_rate_per_s or 0, rel_tol=1e-6)
        return ("★", "good-strong") if near else ("", "")
    for position, word, role in ((search.recommended, "★ best", "good-strong"), (search.knee, "◆ knee", "accent")):
        if position is not None and _same(search.points[position].settings, test.settings):
            return word, role
    on_front = any(_same(search.points[number].settings, test.settings) for number in search.front)
    return ("● front", "chart") if on_front else ("", "")


def _same(one: LoadSettings, other: LoadSettings) -> bool:
    """The same test of a sweep: the same batching under the same load."""
    return batching(one) == batching(other) and (one.rate, one.concurrency) == (other.rate, other.concurrency)


def _row(test: LoadTest, kind: str, place: tuple[str, str]) -> Line:
    summary, settings = test.summary, test.settings
    p99 = summary.latency_ms.get("p99")
    tail = f"{figures.milliseconds(p99.value if p99 else None):>8}"
    mark, role = VERDICTS[test.verdict]
    verdict = f"  {mark} {test.verdict}" if test.verdict else ""
    if test.word == "INVALID":
        mark, verdict, role = "✗", "  ✗ INVALID", "bad"
    if kind == "sweep":
        text = f"{settings.max_batch_size:>5}{settings.max_wait_ms:>6g}{settings.instances:>3}"
        text += f"{figures.per_second(summary.achieved_per_s):>8}"
        mark = mark if test.word else " "
        return ((text, ""), (tail, "strong"), (f" {mark}", role), (" " + place[0], place[1]))
    offered = figures.per_second(settings.rate) if settings.rate is not None else f"{settings.concurrency} callers"
    if settings.offline:
        offered = "most"
    words = "saturated" if test.saturated else PURPOSES[test.purpose]
    return (
        (f"{offered:>8}{figures.per_second(summary.achieved_per_s):>9}", ""),
        (tail, "strong"),
        (verdict, role),
        (f"  {place[0]}" if place[0] else "", place[1]),
        (f"  {words}" if words else "", "muted"),
    )
