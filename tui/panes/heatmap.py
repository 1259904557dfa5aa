"""Layers down, ratios across, the accuracy that each cut costs as colour, shade and, where there is room, number.

      layer                units   12.5 %     25 %   37.5 %     50 %
    ▸ stem                 32 ch  ·  0.00  ·  0.10 [░  0.45]  ▒  1.90
      blocks.0.conv1       64 ch  ·  0.00 ◆·  0.02   ░  0.30  ░  0.71

The cell under the cursor stands in brackets, a chosen one has a ◆. Arrow keys and the mouse move; the screen around it
says what a cell means.
"""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from engine.protocol import LayerSensitivity, Sensitivity

from .. import heat
from ..lines import Line, Span
from ..table import LineTable, Row
from ..text import clean, fit

NAME_MINIMUM, NAME_MAXIMUM, UNITS = 12, 40, 7
"""Cells for a layer's name, and for how many units it has."""

CELL_MINIMUM, CELL_MAXIMUM, WITH_NUMBER = 3, 10, 7
"""Cells for one ratio; from so many on the number stands in it."""

KINDS = {"channels": "ch", "neurons": "n", "heads": "h", "hidden units": "hid"}
"""What a layer has, short."""


class HeatMap(LineTable):
    """Shows a scan; `layer` and `column` are where the cursor is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "aside(1)", show=False),
        Binding("left,h", "aside(-1)", show=False),
    ]

    class Moved(Message):
        """The cursor came to another cell."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.column = 0
        self._columns = 1
        self._start = self._cell = 1

    def show(self, scan: Sensitivity, choice: heat.Choice, limit: float) -> None:
        """Draw the whole map."""
        name, self._cell = layout(scan, self.room.width)
        self._start = 2 + name + UNITS
        self._columns = len(scan.ratios)
        self.column = min(self.column, self._columns - 1)
        chosen = self.key or scan.layers[0].name
        rows = [
            Row(
                one.name, _line(scan, one, name, self._cell, choice, limit, self.column if one.name == chosen else None)
            )
            for one in scan.layers
        ]
        self.set_rows(rows, [_headings(scan, name, self._cell)])

    def background_role(self, index: int) -> str:
        """None: it would hide the heat. The cursor is the brackets."""
        return ""

    def action_aside(self, by: int) -> None:
        self._go(self.column + by)

    def on_click(self, event: events.Click) -> None:
        super().on_click(event)
        at = (event.x - self.gutter.left - self._start) // self._cell
        if 0 <= at < self._columns:
            self._go(at)

    def _go(self, column: int) -> None:
        column = min(max(column, 0), self._columns - 1)
        if column != self.column:
            self.column = column
            self.post_message(self.Moved())


def layout(scan: Sensitivity, width: int) -> tuple[int, int]:
    """Cells for the names and for each ratio: numbers come before long names, names before wide cells."""
    longest = max(len(clean(one.name, 80)) for one in scan.layers) + 1
    count = len(scan.ratios)
    room = width - 2 - UNITS
    cell = WITH_NUMBER if room - count * WITH_NUMBER >= NAME_MINIMUM else CELL_MINIMUM
    name = min(max(longest, NAME_MINIMUM), NAME_MAXIMUM, max(room - count * cell, NAME_MINIMUM))
    return name, min(max((room - name) // count, CELL_MINIMUM), CELL_MAXIMUM)


def _headings(scan: Sensitivity, name: int, cell: int) -> Line:
    spans: list[Span] = [
        ("  ", ""),
        (fit("layer", name), "heading"),
        (fit("units", UNITS - 1, "right") + " ", "heading"),
    ]
    for ratio in scan.ratios:
        text = (
            f"{ratio * 100:g} %"
            if cell >= WITH_NUMBER + 1
            else f"{ratio * 100:g}%"
            if cell > 4
            else f"{ratio * 100:.0f}"
        )
        spans.append((fit(text + (" " if len(text) < cell else ""), cell, "right"), "heading"))
    return tuple(spans)


def _line(
    scan: Sensitivity,
    layer: LayerSensitivity,
    name: int,
    cell: int,
    choice: heat.Choice,
    limit: float,
    column: int | None,
) -> Line:
    """One layer; `column` is where the cursor is, if it is in this line."""
    units = f"{layer.width} {KINDS.get(layer.kind, '')}".strip()
    spans: list[Span] = [
        ("▸ " if column is not None else "  ", "key"),
        (fit(clean(layer.name, 80), name), "strong" if column is not None else ""),
        (fit(units, UNITS - 1, "right") + " ", "muted"),
    ]
    for at in range(len(scan.ratios)):
        value = heat.drop(scan, layer, at)
        level = heat.heat(value, limit)
        left, right = ("[", "]") if at == column else (" ", " ")
        if choice.get(layer.name) == at:
            left = "◆"
        shade = heat.SHADES[level]
        if cell >= WITH_NUMBER:
            inside = shade + fit(_points(value, cell - 3), cell - 3, "right")
        else:
            inside = shade * (cell - 2)
        spans.append((left + inside + right, f"heat-{level}"))
    return tuple(spans)


def _points(value: float, width: int) -> str:
    """A drop in points, in at most `width` cells; a gain has a minus."""
    shown = round(value * 100, 2) + 0.0
    for decimals in (2, 1, 0):
        text = f"{shown:.{decimals}f}"
        if len(text) <= width:
            return text
    return text
