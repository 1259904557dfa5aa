"""The first line: which model under which limits, and what the machine is doing.

    trimtab  residual_cnn · limit 1.0 pt · batch 8 · cpu-vnni              CPU 38 %   mem 46 %   GPU 0 61 %

When there is no connection it says so here, with the age of what is on the screen.
"""

from textual.app import ComposeResult
from textual.containers import Horizontal

from engine.protocol import Snapshot

from .. import figures
from ..lines import LineView, Span
from ..text import clean, width_of
from ..view import STALE_SECONDS, View


class HeaderPane(Horizontal):
    """See the top of this file. Two widgets, because the loads change at every tick and the rest does not."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._left, self._right = LineView(id="title"), LineView(id="loads")

    def compose(self) -> ComposeResult:
        yield self._left
        yield self._right

    def show(self, snapshot: Snapshot, view: View) -> None:
        right = _link(view) if view.link != "connected" else _loads(snapshot, view)
        taken = sum(width_of(text) for text, _ in right)
        loads = self._right
        if loads.styles.width is None or loads.styles.width.value != taken:
            loads.styles.width = taken
        loads.set_lines([tuple(right)])
        name = clean(snapshot.model.name if snapshot.model else (view.session or "no model"), 60)
        facts = [f"limit {figures.points(snapshot.options.accuracy_limit)} pt"]
        if view.batch_size is not None:
            facts.append(f"batch {view.batch_size}")
        facts.append(clean(snapshot.options.target, 24))
        if snapshot.options.device != "cpu":
            facts.append(clean(snapshot.options.device, 16))
        rest = "".join(f" · {fact}" for fact in facts) if snapshot.session else ""
        self._left.set_lines([((" trimtab ", "key"), (" ", ""), (name, "strong"), (rest, "muted"))])


def _loads(snapshot: Snapshot, view: View) -> list[Span]:
    """One figure for each device, the newest sample's; one span, because it changes at every tick."""
    if not snapshot.telemetry:
        return []
    newest = snapshot.telemetry[-1]
    stale = view.now - newest.time > STALE_SECONDS
    role = "faint" if stale else "muted"
    share = None
    if newest.memory_used_bytes is not None and newest.memory_total_bytes:
        share = newest.memory_used_bytes / newest.memory_total_bytes
    text = f"  CPU{figures.percent(newest.cpu):>6}  mem{figures.percent(share):>6}"
    if len(newest.gpus) <= 2:
        text += "".join(f"  GPU{gpu.index}{figures.percent(gpu.utilisation):>6}" for gpu in newest.gpus)
    else:
        known = [gpu.utilisation for gpu in newest.gpus if gpu.utilisation is not None]
        mean = sum(known) / len(known) if known else None
        text += f"  {len(newest.gpus)} GPUs{figures.percent(mean):>6}"
    return [(text + " ", role)]


def _link(view: View) -> list[Span]:
    """The state of the connection, when it is not simply there."""
    if view.link == "connecting":
        return [(" connecting … ", "warn")]
    age = figures.duration(view.now - view.link_since)
    return [(f" ! no engine for {age} ", "bad-strong")]
