"""A load test in figures, beside its charts: this moment while it runs, the verdict with its bounds when it has ended.

    achieved /s     398           ✓ PASS  398/s, p99 8.92 ms, at most 9.41 with 99 % confidence; limit 20 ms
    p99 ms         8.92
    …                             batches, 10 s  mean 9.1
                                   8  61 % ██████████▌
                                  16  30 % █████▎

Pure functions to lines; `LoadFiguresPane` only holds them.
"""

from collections.abc import Mapping

from engine.protocol import LoadTest, Percentile

from .. import figures
from ..lines import Line, LineView, Span
from ..loads import LoadCourse, was_turned
from ..text import clean, fit, wrap
from .load_lines import clock

LABEL = 11
"""Cells for what a figure is."""

PERCENTILES = {"p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "p999": "p99.9"}

EIGHTHS = " ▏▎▍▌▋▊▉█"
"""Eighths of a cell, from the left."""


ALIKE = ("seed", "sweep", "sweep_batch_sizes", "sweep_waits_ms", "sweep_instances")
"""Settings in which two tests may differ and have the same load: another seed is the same load drawn anew."""

BAR_MOST = 24
"""Cells of the longest bar of the histogram; each that changes is three bytes."""


class LoadFiguresPane(LineView):
    """See the top of this file."""


def live(course: LoadCourse, width: int, height: int) -> list[Line]:
    """What happens now, the batch sizes of the last seconds, and what was changed."""
    if (moment := course.moment) is None:
        return [(("Waiting for the first figures…", "muted"),)]
    now, tick = moment.figures, moment.tick
    lines = [
        _now("achieved /s", figures.per_second(now.achieved), "strong"),
        _now("offered /s", figures.per_second(now.offered)),
        _now("p50 ms", figures.milliseconds(now.p50)),
        _now("p99 ms", figures.milliseconds(now.p99), "strong"),
        _now("waiting", figures.count(tick.queue_depth)) if tick.queue_depth is not None else (),
        _now("in flight", figures.count(tick.outstanding)),
        _now("rejected", figures.count(course.rejected), "bad" if course.rejected else ""),
        _now("failed", figures.count(course.failed), "bad" if course.failed else ""),
    ]
    if now.cpu is not None:  # not of a server on another machine
        lines.append(_now("CPU %", percent(now.cpu)))
    if tick.gpu is not None:
        lines.append(_now("GPU %", percent(tick.gpu)))
    if tick.gpu_memory_bytes is not None:
        lines.append(_now("GPU mem GiB", f"{tick.gpu_memory_bytes / 2**30:.1f}"))
    if tick.power_w is not None:
        lines.append(_now("power W", f"{tick.power_w:.0f}"))
    lines = [line for line in lines if line]
    marks = [((f"{clock(mark.x):>6} ", "muted"), (clean(mark.text, 60), "")) for mark in reversed(course.marks[-6:])]
    room = height - len(lines) - (1 + len(marks) if marks else 0)
    lines += histogram(moment.sizes, width, room - 1, "batches, 10 s")
    if marks and height - len(lines) >= 3:
        lines.append((("changed", "heading"),))
        lines += marks
    return lines


def ended(test: LoadTest, width: int, height: int) -> list[Line]:
    """A finished test: every figure that there is room for, the most telling first."""
    summary, use = test.summary, test.use
    lines = [pair("achieved", figures.per_second(summary.achieved_per_s), "/s", "strong")]
    if summary.rows_per_s and abs(summary.rows_per_s - summary.achieved_per_s) > 0.01 * summary.rows_per_s:
        lines.append(pair("samples", figures.per_second(summary.rows_per_s), "/s"))
    lines.append(pair("offered", figures.per_second(summary.offered_per_s), "/s"))
    for name, shown in PERCENTILES.items():
        one = summary.latency_ms.get(name)
        if one is not None:
            lines.append(
                (
                    *pair(shown, figures.milliseconds(one.value), "ms", "strong" if name == "p99" else ""),
                    (" " + _interval(one), "muted"),
                )
            )
    for name, spread in (("queue", summary.queue_ms), ("compute", summary.compute_ms)):
        if spread:
            lines.append(pair(name, figures.milliseconds(spread["mean"]), "ms mean"))
    for name in ("rejected", "failed", "unanswered", "dropped"):
        count = getattr(summary, name)
        if count or name == "rejected":
            lines.append(pair(name, figures.count(count), role="bad" if count else ""))
    if use.cpu is not None:
        lines.append(pair("CPU", percent(use.cpu), "%"))
    if use.gpu is not None:
        lines.append(pair("GPU", percent(use.gpu), "%"))
    if use.gpu_memory_bytes is not None:
        lines.append(pair("GPU memory", f"{use.gpu_memory_bytes / 2**30:.1f}", "GiB"))
    if use.power_w is not None:
        lines.append(pair("power", f"{use.power_w:.0f}", "W"))
    if use.energy_per_1000_requests_j is not None:
        lines.append(pair("energy", figures.number(round(use.energy_per_1000_requests_j, 2)), "J per 1,000"))
    sizes = {int(size): count for size, count in summary.batch_sizes.items()}
    lines += histogram(sizes, width, min(max(height - len(lines) - 1, 3), 12), "batches")
    for mark in test.marks:
        lines.append(((f"{clock(mark.seconds):>6} ", "muted"), (clean(mark.text, 60), "")))
    for note in (*test.notes, *test.conditions.notes):
        lines += [((line, "muted"),) for line in wrap(clean(note, 300), width)]
    return lines


def verdict(test: LoadTest) -> Line:
    """What a finished test says, in one sentence that may have to be broken."""
    summary = test.summary
    p99 = summary.latency_ms.get("p99")
    if test.word == "INVALID":
        return (("✗ INVALID ", "bad-strong"), (clean("; ".join(summary.reasons), 400), "bad"))
    rate = f"{figures.per_second(summary.achieved_per_s)}/s"
    if p99 is None:
        words = f"{rate}, no request was completed"
    elif p99.at_most is not None:
        words = f"{rate}, p99 {figures.milliseconds(p99.value)} ms, at most {figures.milliseconds(p99.at_most)}"
        words += " with 99 % confidence"
    else:
        words = f"{rate}, p99 {figures.milliseconds(p99.value)} ms; a claim about it takes at least "
        words += f"{figures.count(summary.requests_for_p99)} requests"
    if summary.slo_ms is not None:
        words += f"; limit {summary.slo_ms:g} ms"
    missing = summary.not_completed
    turned = was_turned(test)
    head: Span = ("! ", "warn-strong") if missing or turned or test.saturated else ("✓ ", "good-strong")
    if test.verdict is not None:
        mark, role = {"PASS": ("✓", "good"), "FAIL": ("✗", "bad"), "UNCLEAR": ("?", "warn")}[test.verdict]
        head = (f"{mark} {test.verdict} ", f"{role}-strong")
    spans: list[Span] = [head, (words, "")]
    if turned:
        spans.append(("; turned while it ran: the figures mix loads", "warn"))
    if missing:
        of = figures.count(summary.completed + missing)
        spans.append((f"; {figures.count(missing)} of {of} requests were rejected or failed", "warn"))
    if test.saturated:
        spans.append(("; saturated: the backlog grew all the time", "warn"))
    return tuple(spans)


def compared(one: LoadTest, other: LoadTest, names: tuple[str, str], width: int) -> list[Line]:
    """Two finished tests side by side, and the second as a multiple of the first."""
    cell = max((width - LABEL) // 3, 6)
    head = [("", LABEL), (clean(names[0], 40), cell), (clean(names[1], 40), cell)]
    lines: list[Line] = [
        (
            (fit("", LABEL), ""),
            (fit(head[1][0], cell - 1, "right") + " ", "chart"),
            (fit(head[2][0], cell - 1, "right") + " ", "accent"),
            (fit("B/A", cell - 1, "right"), "muted"),
        )
    ]
    rows: list[tuple[str, float | None, float | None, bool]] = [
        ("achieved /s", one.summary.achieved_per_s, other.summary.achieved_per_s, True),
        ("offered /s", one.summary.offered_per_s, other.summary.offered_per_s, True),
    ]
    for name, shown in PERCENTILES.items():
        mine, theirs = one.summary.latency_ms.get(name), other.summary.latency_ms.get(name)
        rows.append((f"{shown} ms", mine.value if mine else None, theirs.value if theirs else None, False))
    for name, first, second in (
        ("queue ms", one.summary.queue_ms, other.summary.queue_ms),
        ("compute ms", one.summary.compute_ms, other.summary.compute_ms),
    ):
        rows.append((name, first.get("mean"), second.get("mean"), False))
    rows.append(("mean batch", mean_batch(one), mean_batch(other), True))
    rows.append(("rejected", one.summary.rejected, other.summary.rejected, False))
    for label, a, b, many in rows:
        if a is None and b is None:
            continue
        written = figures.count if many else figures.milliseconds
        if label == "rejected":
            written = figures.count
        times = figures.ratio(b / a) if a and b is not None else ""
        lines.append(_row(label, written(a), written(b), times, cell))
    lines.append(_row("CPU", figures.percent(one.use.cpu), figures.percent(other.use.cpu), "", cell))
    if one.use.gpu is not None or other.use.gpu is not None:
        lines.append(_row("GPU", figures.percent(one.use.gpu), figures.percent(other.use.gpu), "", cell))
    energy = (one.use.energy_per_1000_requests_j, other.use.energy_per_1000_requests_j)
    if any(value is not None for value in energy):
        joules = [figures.UNKNOWN if value is None else figures.number(round(value, 1)) for value in energy]
        lines.append(_row("J per 1,000", joules[0], joules[1], "", cell))
    lines.append(_row("verdict", _word(one), _word(other), "", cell))
    return [*lines, *_differences(one, other, width)]


def histogram(sizes: Mapping[int, int], width: int, rows: int, title: str) -> list[Line]:
    """How many runs had how many rows; neighbouring sizes share a line where there are more sizes than `rows`."""
    if not sizes or rows < 2:
        return []
    bins = [(size, size, count) for size, count in sorted(sizes.items())]
    while len(bins) > rows:
        doubled: dict[int, tuple[int, int, int]] = {}
        step = 2 if len(bins) <= 2 * rows else 4
        for number, (low, high, count) in enumerate(bins):
            old = doubled.get(number // step)
            doubled[number // step] = (old[0], high, old[2] + count) if old else (low, high, count)
        bins = list(doubled.values())
    whole, most = sum(sizes.values()), max(count for _, _, count in bins)
    mean = sum(size * count for size, count in sizes.items()) / whole
    label = max(len(_bin(low, high)) for low, high, _ in bins)
    room = min(max(width - label - 8, 3), BAR_MOST)
    lines: list[Line] = [
        ((f"{title}", "heading"), (f"  mean {mean:.1f} rows" if width >= 32 else f"  mean {mean:.1f}", "muted"))
    ]
    for low, high, count in bins:
        eighths = max(round(count / most * room * 8), 1)
        bar = "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
        share = count / whole
        words = f"{share * 100:4.0f} %" if share >= 0.005 else "  <1 %"
        lines.append(((f"{_bin(low, high):>{label}}{words} ", "muted"), (fit(bar, room), "good")))
    return lines


def mean_batch(test: LoadTest) -> float | None:
    """Mean rows of a run; None when nothing ran."""
    runs = sum(test.summary.batch_sizes.values())
    return sum(int(size) * count for size, count in test.summary.batch_sizes.items()) / runs if runs else None


def pair(label: str, value: str, unit: str = "", role: str = "") -> Line:
    """One figure: label, number, unit."""
    return ((fit(label, LABEL), "muted"), (f"{value:>7}", role), (f" {unit}", "muted"))


def _now(label: str, value: str, role: str = "") -> Line:
    """The same for figures that change all the time: fewer changes of colour, each of which is 40 bytes."""
    return ((fit(label, LABEL), "muted"), (f"{value:>7}", role))


def percent(value: float | None) -> str:
    return figures.UNKNOWN if value is None else f"{value * 100:.0f}"


def _row(label: str, a: str, b: str, times: str, cell: int) -> Line:
    return (
        (fit(label, LABEL), "muted"),
        (fit(a, cell - 1, "right") + " ", ""),
        (fit(b, cell - 1, "right") + " ", ""),
        (fit(times, cell - 1, "right"), "muted"),
    )


def _word(test: LoadTest) -> str:
    return test.word or "valid"


def _differences(one: LoadTest, other: LoadTest, width: int) -> list[Line]:
    """Settings in which the two differ: a ratio between different loads says little, so it is said."""
    words = []
    for name in one.settings.__struct_fields__:
        if name in ALIKE:
            continue
        a, b = getattr(one.settings, name), getattr(other.settings, name)
        if a != b:
            shown = [
                figures.UNKNOWN if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for value in (a, b)
            ]
            words.append(f"{name.replace('_', ' ')} {shown[0]} / {shown[1]}")
    if one.conditions.runtime != other.conditions.runtime or one.conditions.device != other.conditions.device:
        words.append(
            f"{one.conditions.runtime} {one.conditions.device} / {other.conditions.runtime} {other.conditions.device}"
        )
    turned = [word for word, test in (("the first", one), ("the second", other)) if was_turned(test)]
    if turned:
        words.append(f"{' and '.join(turned)} was turned while it ran" if len(turned) == 1 else "both were turned")
    if not words:
        return [(("Same load, same batching.", "good"),)]
    text = clean("They differ in: " + ", ".join(words), 400)
    return [((line, "warn"),) for line in wrap(text, width)]


def _interval(one: Percentile) -> str:
    return f"{figures.milliseconds(one.low)}–{figures.milliseconds(one.high)}" if one.low and one.high else ""


def _bin(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"
