"""A list of live lines with a cursor: variants, jobs, comparisons. Built on `lines.LineView`, so it stays cheap.

Each row has a key; the cursor stays on its key while rows come, go and move. Rows without a key (headings, progress
lines) are skipped by the cursor. Arrow keys, `j`/`k`, Home/End, `g`/`G`, Page Up/Down, and the mouse all move it.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from .lines import Line, LineView


class Row(NamedTuple):
    """One line and what it stands for; None: the cursor skips it."""

    key: str | None
    line: Line


class LineTable(LineView, can_focus=True):
    """Rows under fixed headings, one of them chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("pagedown,ctrl+d", "page(1)", show=False),
        Binding("pageup,ctrl+u", "page(-1)", show=False),
        Binding("home,g", "move(-1000000)", show=False),
        Binding("end,G", "move(1000000)", show=False),
        Binding("enter", "choose", show=False),
    ]

    class Highlighted(Message):
        """The cursor came to another row."""

        def __init__(self, table: "LineTable", key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> "LineTable":
            return self.table

    class Chosen(Message):
        """Enter, or a click on the row under the cursor."""

        def __init__(self, table: "LineTable", key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> "LineTable":
            return self.table

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.keys: list[str | None] = []
        self.key: str | None = None
        """The key under the cursor; None while there is no row."""

    def set_rows(self, rows: Sequence[Row], headings: Sequence[Line] = ()) -> None:
        """Show these rows. If the cursor's row is gone, the cursor goes to the nearest one left."""
        old_index = self.cursor
        self.keys = [row.key for row in rows]
        self.set_lines([row.line for row in rows], headings)
        if self.key is None or self.key not in self.keys:
            self._put(self._nearest(old_index if old_index is not None else 0, 1))
        elif (index := self.cursor) != old_index:
            for changed in (old_index, index):
                if changed is not None:
                    self.refresh_row(changed)

    @property
    def cursor(self) -> int | None:
        """The row of the cursor."""
        return self.keys.index(self.key) if self.key is not None and self.key in self.keys else None

    def select(self, key: str) -> None:
        """Put the cursor on a key, if it is there."""
        if key in self.keys:
            self._put(self.keys.index(key))

    def background_role(self, index: int) -> str:
        if index != self.cursor:
            return ""
        return "cursor" if self.has_focus else "cursor-blurred"

    def action_move(self, by: int) -> None:
        here = self.cursor
        if here is None:
            return
        target = self._nearest(here + by, 1 if by > 0 else -1)
        if target == here and by == -1:
            self.scroll_to(y=0, animate=False)
        self._put(target)

    def action_page(self, by: int) -> None:
        self.action_move(by * max(self.room.height - len(self.fixed) - 1, 1))

    def action_choose(self) -> None:
        if self.key is not None:
            self.post_message(self.Chosen(self, self.key))

    def on_click(self, event: events.Click) -> None:
        index = self.line_at(event.y - self.gutter.top)
        if index is None or self.keys[index] is None:
            return
        if index == self.cursor and event.chain >= 2:
            self.action_choose()
        self._put(index)

    def on_focus(self) -> None:
        self._refresh_cursor()

    def on_blur(self) -> None:
        self._refresh_cursor()

    def on_resize(self) -> None:
        if (index := self.cursor) is not None:
            self._show(index)

    def _refresh_cursor(self) -> None:
        if (index := self.cursor) is not None:
            self.refresh_row(index)

    def _nearest(self, index: int, step: int) -> int | None:
        """The row with a key nearest to an index, first in the direction of `step`, then in the other."""
        if not any(key is not None for key in self.keys):
            return None
        index = min(max(index, 0), len(self.keys) - 1)
        for direction in (step, -step):
            probe = index
            while 0 <= probe < len(self.keys):
                if self.keys[probe] is not None:
                    return probe
                probe += direction
        return None

    def _put(self, index: int | None) -> None:
        """Move the cursor and tell."""
        before = self.cursor
        key = self.keys[index] if index is not None else None
        if key == self.key:
            return
        self.key = key
        if before is not None:
            self.refresh_row(before)
        if index is not None:
            self.refresh_row(index)
            self._show(index)
        self.post_message(self.Highlighted(self, key))

    def _show(self, index: int) -> None:
        """Scroll so that a row is in sight."""
        top, room = self.scroll_offset.y, self.room.height - len(self.fixed)
        if index < top:
            self.scroll_to(y=index, animate=False)
        elif index >= top + room > top:
            self.scroll_to(y=index - room + 1, animate=False)
