"""The log of the chosen job, or the engine's own: wrapped, following its end, and selectable with the mouse.

The engine keeps the whole log in a file; this pane holds the last `LINES_MAXIMUM` lines of what it was fed. It
follows the end until the user scrolls up, and again from when they come back to it.
"""

from collections import deque
from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.selection import Selection
from textual.strip import Strip

from ..lines import Line, LineView
from ..text import clean, wrap

LINES_MAXIMUM = 2000
"""Lines kept on the screen's side."""

LINE_LIMIT = 2000
"""Characters shown of one line."""


class LogPane(LineView, can_focus=True):
    """`start` names what follows, `feed` adds text as it arrives.

    While it follows the end it holds only the lines in sight, so that a new line repaints rows and scrolls nothing.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "read(1)", show=False),
        Binding("up,k", "read(-1)", show=False),
        Binding("pagedown,ctrl+d", "read(20)", show=False),
        Binding("pageup,ctrl+u", "read(-20)", show=False),
        Binding("home,g", "read(-1000000)", show=False),
        Binding("end,G", "read(1000000)", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._raw: deque[str] = deque(maxlen=LINES_MAXIMUM)
        self._wrapped: deque[Line] = deque(maxlen=LINES_MAXIMUM)
        self._part = ""
        self._width = 0
        self._following = True
        self._title, self._number = "", "4 "

    def start(self, title: str, number: str = "4 ") -> None:
        """Forget the old text; what is fed from now on belongs to `title` (foreign text is cleaned)."""
        self._raw.clear()
        self._wrapped.clear()
        self._part, self._following = "", True
        self._title, self._number = clean(title, 60), number
        self._show()

    def feed(self, text: str) -> None:
        """Add a piece of the log; it may end in the middle of a line."""
        *whole, self._part = (self._part + text).split("\n")
        if len(self._part) > 16 * LINE_LIMIT:
            whole.append(self._part)
            self._part = ""
        for line in whole[-LINES_MAXIMUM:]:
            shown = clean(line.rstrip("\r").expandtabs(4), LINE_LIMIT)
            self._raw.append(shown)
            self._wrapped.extend(self._wrap(shown))
        if whole:
            self._show()

    def action_read(self, by: int) -> None:
        """Move through the log; at its end it follows again."""
        if self._following and by < 0:
            self._following = False
            self._show()
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)
        if not self._following:
            self.scroll_to(y=self.scroll_offset.y + by, animate=False, immediate=True)
            if by > 0 and self.scroll_offset.y >= self.max_scroll_y:
                self._following = True
                self._show()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        event.prevent_default()
        self.action_read(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        event.prevent_default()
        self.action_read(3)

    def on_resize(self) -> None:
        if self.room.width != self._width:
            self._width = self.room.width
            self._wrapped.clear()
            for shown in self._raw:
                self._wrapped.extend(self._wrap(shown))
        self._show()

    def _show(self) -> None:
        """The end of the log, or all of it while the user reads."""
        lines = list(self._wrapped)
        if self._following:
            lines = lines[-max(self.room.height, 1) :]
            self.set_reactive(LogPane.scroll_y, 0.0)  # nothing scrolls now; what was read may have been far down
            self.set_reactive(LogPane.scroll_target_y, 0.0)
        self.set_lines(lines or [(("Nothing logged yet.", "faint"),)])
        details = self._title if self._following else f"{self._title} · end follows the end"
        self.set_caption(f"{self._number}Log", details)

    @property
    def allow_select(self) -> bool:
        return True

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text, as shown."""
        text = "\n".join("".join(part for part, _ in line) for line in self.lines)
        return selection.extract(text), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        row = y + self.scroll_offset.y
        selection = self.text_selection
        span = selection.get_span(row) if selection is not None else None
        if span is not None:
            start, end = span
            end = strip.cell_length if end == -1 else end
            chosen = self.screen.get_component_rich_style("screen--selection")
            before, inside, after = strip.crop(0, start), strip.crop(start, end), strip.crop(end)
            marked = Strip([Segment(text, (style + chosen) if style else chosen) for text, style, _ in inside])
            strip = Strip.join([before, marked, after])
        return strip.apply_offsets(self.scroll_offset.x, row)

    def _wrap(self, shown: str) -> list[Line]:
        """One line of the log as lines of the pane; what follows a break is indented."""
        lowered = shown[:80].lower()
        role = "bad" if "error" in lowered or "traceback" in lowered else "warn" if "warning" in lowered else ""
        width = max(self.room.width, 20)
        if len(shown) <= width:
            return [((shown, role),)]
        first, *rest = wrap(shown, width - 2)
        indent = len(shown) - len(shown.lstrip())
        return [((" " * min(indent, 8) + first, role),), *((("  " + part, role),) for part in rest)]
