"""A light input for one of a few values: `‹ uint8 ›`, changed with left, right, space or a click.

Textual's Select mounts a list and an overlay for each input; a form with five of them took most of a second to
appear while a job burned every core. This is one line.
"""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from .text import clean

AUTOMATIC = "automatic"
"""How None is shown."""


class Choice(Widget, can_focus=True):
    """Holds one of `choices`; with `optional` None is the first of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,space,l", "turn(1)", show=False),
        Binding("left,h", "turn(-1)", show=False),
    ]

    value: reactive[str | None] = reactive(None, init=False)

    class Changed(Message):
        """Another value was chosen."""

        def __init__(self, choice: "Choice", value: str | None) -> None:
            super().__init__()
            self.choice = choice
            self.value = value

        @property
        def control(self) -> "Choice":
            return self.choice

    def __init__(self, choices: Sequence[str], value: str | None, *, optional: bool = False) -> None:
        super().__init__()
        self._choices: list[str | None] = [*([None] if optional else []), *choices]
        if value not in self._choices:
            value = self._choices[0] if self._choices else None
        self.set_reactive(Choice.value, value)

    def render(self) -> RenderResult:
        word = AUTOMATIC if self.value is None else clean(self.value, 60)
        return Content.assemble(("‹ ", "$muted"), word, (" ›", "$muted"))

    def action_turn(self, by: int) -> None:
        if self._choices:
            position = self._choices.index(self.value)
            self.value = self._choices[(position + by) % len(self._choices)]

    def watch_value(self, value: str | None) -> None:
        self.post_message(self.Changed(self, value))

    def on_click(self, event: events.Click) -> None:
        self.action_turn(1)
