"""The two lines above a load test's charts: what is tested with what load, and how far it is or how it ended.

     Load test  int8  poisson 400/s   with onnx poisson 400/s
     ▶ measuring  0:12 of 0:30  ━━━━━━━━╸───────────  0:18 left

Pure functions to lines. At the end stands the verdict, in as many lines as it takes up to `MOST_LINES`.
"""

from collections.abc import Sequence

from engine.protocol import Cancelled, Failed, Job, LoadKnobs, LoadSettings, LoadTest, Queued, Running, Snapshot

from .. import charts, figures
from ..lines import Line, Span
from ..loads import Found, LoadCourse, finished_in_words, load_in_words
from ..text import clean, width_of, wrap
from ..view import STALE_SECONDS, View
from . import load_figures, load_search
from .load_lines import clock

BAR = 24
"""Cells of the progress bar where there is room."""

MOST_LINES = 5
"""A verdict takes no more."""


def title(variant: str, settings: LoadSettings | None, knobs: LoadKnobs, other: tuple[str, LoadTest] | None) -> Line:
    """What is tested; `other` is the run that lies over it."""
    spans: list[Span] = [(" Load test  ", "heading"), (clean(variant, 40), "strong")]
    if settings is not None:
        spans.append((f"  {load_in_words(settings, knobs)}", ""))
        if settings.url is not None:
            spans.append((f"  at {clean(settings.url, 60)}", "muted"))
    if other is not None:
        spans += [("   with ", "muted"), (clean(other[0], 40), "accent"), (f" {finished_in_words(other[1])}", "muted")]
    return tuple(spans)


def starting(snapshot: Snapshot, run: str | None, width: int) -> list[Line]:
    """Before there is a job; or why there will be none."""
    asked = next((one for one in snapshot.runs if one.id == run), None)
    reasons = [asked.error, *(step.reason for step in asked.steps)] if asked is not None else []
    if refusal := next((reason for reason in reasons if reason), None):
        return broken([("⊘ ", "warn"), (clean(refusal, 400), "warn")], width)
    return [((" The load test is about to start…", "muted"),)]


def status(
    job: Job, course: LoadCourse, settings: LoadSettings | None, found: Found, view: View, width: int
) -> list[Line]:
    """What state it is in; at the end the verdict."""
    if view.link == "lost":
        return [((" The connection to the engine is lost; what follows is the past.", "warn"),)]
    state = job.state
    if isinstance(state, Queued):
        return [((" ◌ ", "muted"), (f"waits for {clean(state.waiting_for or 'its turn', 80)}", "muted"))]
    if isinstance(state, Running):
        return [_progress(state, course, settings, view, width)]
    if isinstance(state, Failed):
        return broken([("✗ ", "bad-strong"), (clean(state.reason, 400), "bad")], width)
    if found.search is not None:
        lines = [line for text, role in load_search.findings(found.search) for line in broken([(text, role)], width)]
        return lines[:MOST_LINES]
    if found.single is not None:
        return broken(load_figures.verdict(found.single), width)
    if isinstance(state, Cancelled):
        many = len(found.tests)
        kept = f"; {many} finished test{'s are' if many > 1 else ' is'} kept: l and ⏎ go on from there" if many else ""
        return broken([("⊘ ", "warn"), (f"cancelled{kept}", "warn")], width)
    return [((" It has ended; its figures are not in this session any more.", "muted"),)]


def broken(spans: Sequence[Span], width: int) -> list[Line]:
    """Spans with sentences in lines of at most `width` cells; every line is indented by one."""
    lines: list[list[Span]] = [[(" ", "")]]
    room = width - 2
    for text, role in spans:
        for word in text.replace(" ", " \0").split("\0"):
            cells = width_of(word)
            if cells > room and room < width - 2:
                lines.append([(" ", "")])
                room = width - 2
            pieces = [word] if cells <= room else wrap(word, room)
            for number, piece in enumerate(pieces):
                if number:
                    lines.append([(" ", "")])
                    room = width - 2
                if lines[-1][-1][1] == role:
                    lines[-1][-1] = (lines[-1][-1][0] + piece, role)
                else:
                    lines[-1].append((piece, role))
                room -= width_of(piece)
    return [tuple(line) for line in lines]


def _progress(state: Running, course: LoadCourse, settings: LoadSettings | None, view: View, width: int) -> Line:
    """The phase, how far it is, how long it takes yet."""
    tick = course.newest
    if state.cancelling:
        return ((" ⊘ cancelling…", "warn"),)
    if tick is None:
        return ((" ▶ ", "accent"), (clean(state.message or "starting", 120), ""))
    age = view.now - tick.time
    if age > STALE_SECONDS:
        return ((" ▶ ", "accent"), (f"no figures for {figures.duration(age)}", "warn"))
    searching = settings is not None and settings.kind != "run"  # then each test has a length of its own
    asked = settings.duration if settings is not None and not searching else None
    total = asked or state.total or 0.0
    share = min(tick.seconds / total, 1.0) if total else None
    done, rest = charts.progress(share, BAR if width >= 100 else 10)
    left = figures.duration(max(total - tick.seconds, 0.0)) if total else figures.UNKNOWN
    time = f"{clock(tick.seconds)} of {clock(total)}" if total >= tick.seconds else clock(tick.seconds)
    return (
        (f" ▶ {clean(tick.phase, 40)}  {time}  {done}", "accent"),
        (rest, "track"),
        (
            (f"  {left} left" if total >= tick.seconds else "") + (f"   {clock(course.now)} in all" * searching),
            "muted",
        ),
    )
