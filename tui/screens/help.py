"""Every key there is, from the registry of actions, with the reason beside what is not available now."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from ..actions import ACTIONS, GROUPS, Action, Situation
from ..text import wrap

MORE = (
    ("↑ ↓ j k", "Move the cursor; Page Up/Down, Home/End, g/G too."),
    ("Tab", "Next pane; Shift+Tab the one before."),
    ("Esc", "Close what is open, clear the filter, shrink a filled pane."),
    ("mouse", "Click chooses, double click opens, the wheel scrolls, dragging selects text (ctrl+c copies it)."),
)
"""What is not an action but good to know."""

SYMBOLS = (
    ("● ★", "the baseline; the fastest variant within the accuracy limit"),
    ("~", "timed while other processes worked: compare speed-ups, which are measured in turn, not times"),
    ("✓ ✗ ?", "passes, breaks, or cannot yet be judged against the accuracy limit"),
    ("│━┿─", "1×, the speed-up, the measured ratio, its 95 % confidence interval (one log scale for all)"),
    ("⠋ ◌ ⊘", "runs; waits; cancelled or refused"),
    ("⣀⠤⠒ ╌╌", "a training's curves over its epochs; the dashes are the accuracy limit"),
    ("·░▒▓█", "what making a layer narrower costs: from harmless to more than ten accuracy limits"),
)
"""What the marks mean."""


KEY, WIDTH, FRAME = 11, 100, 5
"""Cells for the key, of the dialog, and for its border, padding and scroll bar."""


class HelpScreen(ModalScreen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark", "dismiss", show=False),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
    ]

    def __init__(self, situation: Situation, actions: Sequence[Action] = ACTIONS) -> None:
        super().__init__()
        self._situation, self._actions = situation, actions

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog", id="help") as dialog:
            dialog.border_title = Content(" Keys ")
            width = min(WIDTH, int(self.app.size.width * 0.96)) - FRAME
            yield Static(help_text(self._situation, self._actions, width))

    def on_mount(self) -> None:
        self.query_one("#help").focus()

    def action_scroll(self, by: int) -> None:
        self.query_one("#help").scroll_relative(y=by, animate=False)


def help_text(situation: Situation, actions: Sequence[Action] = ACTIONS, width: int = WIDTH) -> Content:
    """The whole help of a screen, in lines of at most `width` cells; a long text goes on under its own beginning."""
    lines: list[Content] = []

    def entry(key: str, text: str, key_style: str, style: str) -> None:
        first, *rest = wrap(text, max(width - KEY, 20))
        lines.append(Content.assemble((f" {key:>{KEY - 3}}  ", key_style), (first, style)))
        lines.extend(Content.styled(" " * KEY + line, style) for line in rest)

    found = {action.group for action in actions}
    for group in [one for one in GROUPS if one in found] + sorted(found - set(GROUPS)):
        lines.append(Content.styled(group, "bold $secondary"))
        for action in actions:
            if action.group != group:
                continue
            reason = action.reason(situation)
            key_style, style = ("bold $primary", "") if reason is None else ("$faint", "$muted")
            entry(action.shown_key, action.description, key_style, style)
            if reason is not None:
                entry("", f"not now: {reason}", "", "$warning")
    for title, entries in (("Everywhere", MORE), ("Marks", SYMBOLS)):
        lines.append(Content.styled(title, "bold $secondary"))
        for key, text in entries:
            entry(key, text, "bold $primary", "")
    return Content("\n").join(lines)
