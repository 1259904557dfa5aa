"""The knobs of a load test that runs: their keys, where they stand, what was asked and is not confirmed yet.

    - rate 400/s +   b batch 32 B   w wait 10 ms W   i instances 1 I   space pause

A knob that was turned shows the new value in grey with an arrow until a tick of the test confirms it. Every key can be
clicked. `turned` is the arithmetic: what a key asks for, or a sentence that says why there is nothing to turn.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from textual import events
from textual.message import Message

from engine.protocol import LoadKnobs, LoadSettings

from ..lines import LineView, Span
from ..text import width_of

STEP = 1.1
"""One press of + or -."""

LEAST_WAIT_MS = 0.25
"""Half of this is 0; double 0 is twice this."""

NAMES = ("rate", "concurrency", "max_batch_size", "max_wait_ms", "instances", "paused")
"""The fields of `LoadKnobs`."""


class LoadKnobsPane(LineView):
    """See the top of this file."""

    class Pressed(Message):
        """A key was clicked."""

        def __init__(self, id: str) -> None:
            super().__init__()
            self.id = id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._places: list[tuple[int, int, str]] = []

    def show(self, settings: LoadSettings, knobs: LoadKnobs, asked: Mapping[str, Any]) -> None:
        """All knobs that this test has."""
        spans: list[Span] = []
        self._places = []
        x = 0

        def put(text: str, role: str, action: str = "") -> None:
            nonlocal x
            if action:
                self._places.append((x, x + width_of(text), action))
            spans.append((text, role))
            x += width_of(text)

        wide = self.size.width >= 110
        for name, word, less, more, unit in _shown(settings):
            put(" ", "")
            if wide and name in ("rate", "concurrency"):
                put("<", "key", "rate_halve")
                put(" ", "")
            put(*less[:1], "key", less[1])
            put(f" {word} ", "muted", less[1])
            now, wish = getattr(knobs, name), asked.get(name)
            put(written(now) + ("" if wish is not None else unit), "strong" if wish is None else "")
            if wish is not None:
                put(f"→{written(wish)}{unit}", "muted")
            put(" ", "")
            put(*more[:1], "key", more[1])
            if wide and name in ("rate", "concurrency"):
                put(" ", "")
                put(">", "key", "rate_double")
            put("  ", "")
        put(" ", "")
        paused = asked.get("paused", knobs.paused)
        put("space", "key", "pause_load")
        put(" go on" if paused else " pause", "muted" if "paused" in asked else "", "pause_load")
        if paused:
            put("  PAUSED", "warn-strong")
        self.set_lines([tuple(spans)])

    def on_click(self, event: events.Click) -> None:
        for start, end, action in self._places:
            if start <= event.x - self.gutter.left < end:
                self.post_message(self.Pressed(action))
                return


def turned(settings: LoadSettings, knobs: LoadKnobs, action: str) -> LoadKnobs | str:
    """What an action asks for where the knobs stand so, or why there is nothing to turn."""
    if settings.kind != "run":
        return "A search chooses load and batching by itself: only s (stop) and x (cancel) reach it."
    if action == "pause_load":
        return LoadKnobs(paused=not knobs.paused)
    if action.startswith("rate_"):
        factor = {"rate_up": STEP, "rate_down": 1 / STEP, "rate_double": 2.0, "rate_halve": 0.5}[action]
        if settings.concurrency is not None:
            now = knobs.concurrency or settings.concurrency
            wish = round(now * factor)
            wish = max(now + 1, wish) if factor > 1 else max(min(now - 1, wish), 1)
            return LoadKnobs(concurrency=wish)
        if knobs.rate is None:
            what = "as fast as possible" if settings.offline else "what its trace says"
            return f"This test sends {what}: there is no rate to turn."
        return LoadKnobs(rate=float(f"{knobs.rate * factor:.3g}"))
    if settings.url is not None:
        return "The batching of a server cannot be changed from here; its rate can."
    if action.startswith("batch_"):
        now = knobs.max_batch_size or settings.max_batch_size
        return LoadKnobs(max_batch_size=now * 2 if action == "batch_double" else max(now // 2, 1))
    if action.startswith("wait_"):
        wait = settings.max_wait_ms if knobs.max_wait_ms is None else knobs.max_wait_ms
        if action == "wait_double":
            return LoadKnobs(max_wait_ms=max(wait * 2, 2 * LEAST_WAIT_MS))
        return LoadKnobs(max_wait_ms=wait / 2 if wait / 2 > LEAST_WAIT_MS * 0.99 else 0.0)
    copies = knobs.instances or settings.instances
    return LoadKnobs(instances=copies + 1 if action == "instances_up" else max(copies - 1, 1))


def given(knobs: LoadKnobs) -> dict[str, Any]:
    """What a command turns."""
    return {name: getattr(knobs, name) for name in NAMES if getattr(knobs, name) is not None}


def overlaid(knobs: LoadKnobs, asked: Mapping[str, Any]) -> LoadKnobs:
    """Where the knobs will stand when what was asked is done: the next press goes on from there."""
    return msgspec.structs.replace(knobs, **asked)


def still_asked(knobs: LoadKnobs, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked and does not stand so yet."""
    return {name: wish for name, wish in asked.items() if not _same(getattr(knobs, name), wish)}


def written(value: Any) -> str:
    """A knob's position."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _same(now: Any, wish: Any) -> bool:
    if isinstance(now, int | float) and not isinstance(now, bool):
        return bool(abs(now - wish) <= 1e-6 * max(abs(wish), 1))
    return bool(now == wish)


def _shown(settings: LoadSettings) -> list[tuple[str, str, tuple[str, str], tuple[str, str], str]]:
    """(field, word, (key, action) for less, (key, action) for more, unit) of each knob this test has."""
    shown = []
    if settings.concurrency is not None:
        shown.append(("concurrency", "callers", ("-", "rate_down"), ("+", "rate_up"), ""))
    elif settings.rate is not None:
        shown.append(("rate", "rate", ("-", "rate_down"), ("+", "rate_up"), "/s"))
    if settings.url is None:
        shown.append(("max_batch_size", "batch", ("b", "batch_halve"), ("B", "batch_double"), ""))
        shown.append(("max_wait_ms", "wait", ("w", "wait_halve"), ("W", "wait_double"), " ms"))
        shown.append(("instances", "copies", ("i", "instances_down"), ("I", "instances_up"), ""))
    return shown
