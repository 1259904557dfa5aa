"""Pick a finished load test to lay over another: every test of every variant, newest first, with its figures."""

from typing import ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from engine.protocol import LoadTest, Snapshot

from .. import figures
from ..comparison import variant_named
from ..lines import Line
from ..loads import finished_in_words
from ..table import LineTable, Row
from ..text import clean, fit

NONE = "none"
"""The key of the line that takes the other run away again."""

NAME, LOAD = 18, 22
"""Cells for the variant and for the load."""


class PickLoadScreen(ModalScreen[LoadTest | str | None]):
    """Ends with the test, "none" for no comparison, or None when nothing is to change."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,o", "dismiss(None)", show=False)]

    def __init__(self, but: str, now: LoadTest | None) -> None:
        super().__init__()
        self._but, self._now = but, now

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide", id="load-pick") as dialog:
            dialog.border_title = Content(" Lay over it ")
            yield LineTable(id="load-picks")
            yield Static("⏎ takes it   esc back", classes="hint")

    def on_mount(self) -> None:
        from ..app import TrimtabApp

        snapshot = cast(TrimtabApp, self.app).connection.snapshot
        found = others(snapshot, self._but)
        rows = [Row(NONE, (("  no other run", "muted"),))] if self._now is not None else []
        rows += [Row(one.id, line(snapshot, one)) for one in found]
        if not rows:
            rows = [Row(None, (("  There is no other finished load test yet: l starts one.", "muted"),))]
        table = self.query_one(LineTable)
        table.set_rows(rows, [heading()])
        table.styles.height = min(len(rows) + 1, 20)
        table.focus()
        self._found = {one.id: one for one in found}

    @on(LineTable.Chosen)
    def _chosen(self, message: LineTable.Chosen) -> None:
        self.dismiss(NONE if message.key == NONE else self._found[message.key])


def others(snapshot: Snapshot, but: str) -> list[LoadTest]:
    """Finished tests, the newest first."""
    tests = [one for one in snapshot.measurements if isinstance(one, LoadTest) and one.id != but]
    return sorted(tests, key=lambda one: -one.created)


def heading() -> Line:
    text = f"  {fit('Variant', NAME)} {fit('Load', LOAD)}{'batch':>6}{'wait':>6}{'copies':>7}{'/s':>8}{'p99 ms':>8}"
    return ((text, "heading"),)


def line(snapshot: Snapshot, one: LoadTest) -> Line:
    """One test."""
    variant = variant_named(snapshot, one.variant)
    settings, p99 = one.settings, one.summary.latency_ms.get("p99")
    load = finished_in_words(one) if settings.kind == "run" else f"a search's {one.purpose}"
    batching = f"{settings.max_batch_size:>6}{settings.max_wait_ms:>6g}{settings.instances:>7}"
    return (
        ("  " + fit(clean(variant.name if variant else one.variant, 60), NAME) + " ", "strong"),
        (fit(clean(load, 60), LOAD), ""),
        (batching, "muted"),
        (f"{figures.per_second(one.summary.achieved_per_s):>8}", ""),
        (f"{figures.milliseconds(p99.value if p99 else None):>8}", ""),
        (f"  {one.word}", "muted"),
    )
