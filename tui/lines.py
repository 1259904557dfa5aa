"""Live lines: a widget that is given lines of coloured text and sends only what changed to the terminal.

Everything that moves on the main screen is one of these. Textual's own table repaints itself whole for one changed
cell (22 KB/s for a table that needs 1); this one compares the new lines with the old, span by span, and refreshes
the cells up to the last span that differs. Textual sends a repainted row from its widget's left edge (measured with
8.2.8), so what changes at every tick stands in a widget of its own: the live column and the figures of the charts.

A line is a tuple of spans, a span is (text, role). The text must have come through `tui.text` or be our own. A role
is a name of `ROLES`; its colour is in the theme, by way of `app.tcss`. Markup is never parsed.
"""

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .text import fit, width_of

Span = tuple[str, str]
Line = tuple[Span, ...]

ROLES = (
    "muted",
    "faint",
    "strong",
    "accent",
    "good",
    "bad",
    "warn",
    "good-strong",
    "bad-strong",
    "warn-strong",
    "heading",
    "key",
    "bar",
    "bar-slow",
    "track",
    "chart",
    "chart-memory",
    "chart-gpu",
    "chart-accuracy",
    "limit",
    "heat-0",
    "heat-1",
    "heat-2",
    "heat-3",
    "heat-4",
    "now",
    "cursor",
    "cursor-blurred",
)
"""What a span may mean. "" is ordinary text."""


class LineView(ScrollView):
    """Shows lines; `set_lines` repaints what differs. `fixed` lines at the top do not scroll."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"lines--{role}" for role in ROLES}

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.fixed: tuple[Line, ...] = ()
        self.lines: list[Line] = []
        self._styles: dict[str, Style] = {}
        self._caption = ("", "")

    def set_caption(self, title: str, details: str = "") -> None:
        """The title in the pane's upper border. Setting a border title repaints the pane, so only if it changed."""
        if (title, details) != self._caption:
            self._caption = (title, details)
            parts = [(f" {title} ", "bold")] + ([(f"· {details} ", "$muted")] if details else [])
            self.border_title = Content.assemble(*parts)

    def set_lines(self, lines: Sequence[Line], fixed: Sequence[Line] = ()) -> None:
        """Show these lines from now on."""
        old_fixed, old = self.fixed, self.lines
        self.fixed, self.lines = tuple(fixed), list(lines)
        mine = self.room
        size = Size(mine.width, len(self.fixed) + len(self.lines))
        if size != self.virtual_size or len(old_fixed) != len(self.fixed):
            self.virtual_size = size
            self.refresh()
            return
        regions = [
            Region(start, y, width, 1)
            for y, (before, after) in enumerate(zip(old_fixed, self.fixed))
            if before != after
            for start, width in [changed_cells(before, after)]
        ]
        top = self.scroll_offset.y
        shown = mine.height - len(self.fixed)
        for y in range(top, min(top + shown, len(self.lines))):
            if old[y] != self.lines[y]:
                start, width = changed_cells(old[y], self.lines[y])
                regions.append(Region(start, y - top + len(self.fixed), width, 1))
        if regions:
            whole = mine.region
            self.refresh(*(region.intersection(whole) for region in regions))

    @property
    def room(self) -> Size:
        """Cells there are for lines: without borders, padding and a scroll bar (`size` counts the bar in)."""
        return self.scrollable_content_region.size

    def refresh_row(self, index: int) -> None:
        """Repaint one of `lines`, if it is in sight."""
        y = index - self.scroll_offset.y + len(self.fixed)
        if len(self.fixed) <= y < self.room.height:
            self.refresh(Region(0, y, self.room.width, 1))

    def line_at(self, y: int) -> int | None:
        """The index into `lines` of the screen row `y` of this widget, or None."""
        index = y - len(self.fixed) + self.scroll_offset.y
        return index if y >= len(self.fixed) and 0 <= index < len(self.lines) else None

    def background_role(self, index: int) -> str:
        """The role whose background the whole line gets; "" for none."""
        return ""

    def role_style(self, role: str) -> Style:
        """The role's colours under the present theme."""
        style = self._styles.get(role)
        if style is None:
            style = self.rich_style
            if role:
                style += self.get_component_rich_style(f"lines--{role}", partial=True)
            self._styles[role] = style
        return style

    def render_line(self, y: int) -> Strip:
        width = self.room.width
        if y < len(self.fixed):
            return self._strip(self.fixed[y], width, None)
        index = self.line_at(y)
        if index is None:
            return Strip.blank(width, self.role_style(""))
        background = self.background_role(index)
        return self._strip(self.lines[index], width, self._ground(background) if background else None)

    def _ground(self, role: str) -> Style:
        """What a role lays under a whole line: its background, and what takes its place where there are no colours."""
        style = self.get_component_rich_style(f"lines--{role}", partial=True)
        return Style(bgcolor=style.bgcolor, reverse=style.reverse or None, bold=style.bold or None)

    def notify_style_update(self) -> None:
        self._styles.clear()
        super().notify_style_update()

    def _strip(self, line: Line, width: int, over: Style | None) -> Strip:
        """A line as Textual's strip, exactly `width` wide; `over` lies over every span."""
        segments = []
        taken = 0
        for text, role in line:
            room = width - taken
            if room <= 0:
                break
            cells = width_of(text)
            if cells > room:
                text, cells = fit(text, room), room
            style = self.role_style(role)
            segments.append(Segment(text, style + over if over is not None else style))
            taken += cells
        if taken < width:
            base = self.role_style("")
            segments.append(Segment(" " * (width - taken), base + over if over is not None else base))
        return Strip(segments, width).simplify()  # one style change costs 40 bytes


def changed_cells(before: Line, after: Line) -> tuple[int, int]:
    """(first cell, number of cells) that must be repainted to turn one line into the other.

    If a span changed its width everything to the right of it may have moved: then up to the end of the longer line.
    """
    start = 0
    first: int | None = None
    end = 0
    for (old, old_role), (new, new_role) in zip(before, after):
        width = width_of(new)
        if old != new or old_role != new_role:
            first = start if first is None else first
            if width_of(old) != width:
                break
            end = start + width
        start += width
    else:
        if len(before) == len(after):
            return (first or 0), end - (first or 0)
        first = start if first is None else first
    longest = max(sum(width_of(text) for text, _ in line) for line in (before, after))
    return first or 0, max(longest - (first or 0), 1)
