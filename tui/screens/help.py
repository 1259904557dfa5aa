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

MORE = (
    ("↑ ↓ j k", "Move the cursor; Page Up/Down, Home/End, g/G too."),
    ("Tab", "Next pane; Shift+Tab the one before."),
    ("Esc", "Close what is open, clear the filter, shrink a filled pane."),
    ("mouse", "Click chooses, double click opens, the wheel scrolls, dragging selects text (ctrl+c copies it)."),
)
"""What is not an action but good to know."""

SYMBOLS = (
    ("● ★", "the baseline; the fastest variant within the accuracy limit"),
    ("✓ ✗ ?", "passes, breaks, or cannot yet be judged against the accuracy limit"),
    ("│━┿─", "1×, the speed-up, the measured ratio, its 95 % confidence interval (one log scale for all)"),
    ("⠋ ◌ ⊘", "runs; waits; cancelled or refused"),
)
"""What the marks mean."""


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
            yield Static(help_text(self._situation, self._actions))

    def on_mount(self) -> None:
        self.query_one("#help").focus()

    def action_scroll(self, by: int) -> None:
        self.query_one("#help").scroll_relative(y=by, animate=False)


def help_text(situation: Situation, actions: Sequence[Action] = ACTIONS) -> Content:
    """The whole help of a screen."""
    lines: list[Content] = []
    found = {action.group for action in actions}
    for group in [one for one in GROUPS if one in found] + sorted(found - set(GROUPS)):
        lines.append(Content.styled(group, "bold $secondary"))
        for action in actions:
            if action.group != group:
                continue
            reason = action.reason(situation)
            key = Content.styled(f" {action.shown_key:>8}  ", "bold $primary" if reason is None else "$faint")
            words = Content.styled(action.description, "" if reason is None else "$muted")
            lines.append(Content.assemble(key, words))
            if reason is not None:
                lines.append(Content.styled(f"           not now: {reason}", "$warning"))
    for title, entries in (("Everywhere", MORE), ("Marks", SYMBOLS)):
        lines.append(Content.styled(title, "bold $secondary"))
        lines += [Content.assemble((f" {key:>8}  ", "bold $primary"), text) for key, text in entries]
    return Content("\n").join(lines)
