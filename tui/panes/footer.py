"""The last line: the actions that matter, with their keys; greyed out while they are not available. Clickable.

Own widget because Textual's footer mounts a dozen widgets anew whenever an action's availability changes; this is
one line that repaints the words that changed.
"""

from collections.abc import Sequence

from textual import events
from textual.message import Message

from ..actions import ACTIONS, FOOTER_ORDER, Action, Situation
from ..lines import LineView, Span
from ..text import width_of


class FooterPane(LineView):
    """Shows a situation: those of `actions` that `order` names, its first the longest."""

    class Pressed(Message):
        """An action was clicked."""

        def __init__(self, id: str) -> None:
            super().__init__()
            self.id = id

    def __init__(
        self, *, id: str | None = None, actions: Sequence[Action] = ACTIONS, order: Sequence[str] = FOOTER_ORDER
    ) -> None:
        super().__init__(id=id)
        self._actions, self._order = actions, order
        self._ends: list[tuple[int, str]] = []

    def show(self, situation: Situation) -> None:
        """As many actions as fit, in the order of the registry. Without a model opening one comes first."""
        room = self.size.width - 1
        kept = set()
        actions = {action.id: action for action in self._actions}
        first = () if situation.snapshot.variants or "open_model" not in self._order else ("open_model",)
        for id in dict.fromkeys((*first, *self._order)):
            cells = width_of(actions[id].shown_key) + len(actions[id].label) + 3
            if cells > room:
                break
            room -= cells
            kept.add(id)
        spans: list[Span] = [(" ", "")]
        self._ends = []
        x = 1
        for action in self._actions:
            if action.id not in kept:
                continue
            available = action.reason(situation) is None
            spans.append((action.shown_key, "key" if available else "faint"))
            spans.append((f" {action.label}  ", "muted" if available else "faint"))
            x += width_of(action.shown_key) + len(action.label) + 3
            self._ends.append((x, action.id))
        self.set_lines([tuple(spans)])

    def on_click(self, event: events.Click) -> None:
        for end, id in self._ends:
            if event.x < end:
                self.post_message(self.Pressed(id))
                return
