"""The command palette: every action of the registry by name, and the themes.

An action that is not available is listed with its reason instead of its description, and says it again when chosen.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from .actions import ACTIONS, Action
from .theme import THEMES

if TYPE_CHECKING:
    from .app import TrimtabApp


class Entry(NamedTuple):
    """A line of the palette."""

    name: str
    help: str
    run: Callable[[], object]


class ActionProvider(Provider):
    """What the palette asks."""

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for entry in self._entries():
            score = matcher.match(entry.name)
            if score > 0:
                yield Hit(score, matcher.highlight(entry.name), entry.run, text=entry.name, help=entry.help)

    async def discover(self) -> Hits:
        for entry in self._entries():
            yield DiscoveryHit(Content(entry.name), entry.run, text=entry.name, help=entry.help)

    def _entries(self) -> Iterator[Entry]:
        app = cast("TrimtabApp", self.app)
        here: Any = self.screen
        yield from _entries_of(getattr(here, "own_actions", ()), here)
        yield from _entries_of(ACTIONS, app.main)
        for theme in THEMES:
            yield Entry(f"Theme: {theme.name}", "Switch the colours.", partial(setattr, app, "theme", theme.name))


def _entries_of(actions: Sequence[Action], screen: Any) -> Iterator[Entry]:
    """A screen's actions; it has a `situation` and can `act`."""
    if not actions:
        return
    situation = screen.situation()
    for action in actions:
        if action.id == "open_palette":
            continue
        reason = action.reason(situation)
        text = f"{action.description} ({action.shown_key})" if reason is None else f"Not now: {reason}"
        yield Entry(f"{action.group}: {action.label}", text, partial(screen.act, action.id))
