"""The first line: which model under which limits, and what the machine is doing.

    trimtab  residual_cnn · limit 1.0 pt · batch 8 · cpu-vnni              CPU 38 %   mem 46 %   GPU 0 61 %

When there is no connection it says so here, with the age of what is on the screen.
"""

from engine.protocol import Snapshot

from .. import figures
from ..lines import LineView, Span
from ..text import clean, fit, width_of
from ..view import STALE_SECONDS, View


class HeaderPane(LineView):
    """See the top of this file."""

    def show(self, snapshot: Snapshot, view: View) -> None:
        width = self.size.width
        right = _link(view) if view.link != "connected" else _loads(snapshot, view)
        taken = sum(width_of(text) for text, _ in right)
        name = snapshot.model.name if snapshot.model else (view.session or "no model")
        facts = [f"limit {figures.points(snapshot.options.accuracy_limit)} pt"]
        if view.batch_size is not None:
            facts.append(f"batch {view.batch_size}")
        facts.append(clean(snapshot.options.target, 24))
        if snapshot.options.device != "cpu":
            facts.append(clean(snapshot.options.device, 16))
        room = max(width - taken - 12, 0)
        shown = fit(clean(name, 60), min(width_of(clean(name, 60)), room))
        rest = "".join(f" · {fact}" for fact in facts) if snapshot.seq or snapshot.session else ""
        rest = fit(rest, max(room - width_of(shown), 0))
        self.set_lines([((" trimtab ", "key"), (" ", ""), (shown, "strong"), (rest, "muted"), *right)])


def _loads(snapshot: Snapshot, view: View) -> list[Span]:
    """One figure for each device, the newest sample's; each a span of fixed width."""
    if not snapshot.telemetry:
        return []
    newest = snapshot.telemetry[-1]
    stale = view.now - newest.time > STALE_SECONDS
    role = "faint" if stale else ""
    share = None
    if newest.memory_used_bytes is not None and newest.memory_total_bytes:
        share = newest.memory_used_bytes / newest.memory_total_bytes
    spans = [("  CPU", "muted"), (fit(figures.percent(newest.cpu), 6, "right"), role)]
    spans += [("  mem", "muted"), (fit(figures.percent(share), 6, "right"), role)]
    for gpu in newest.gpus[:4]:
        spans += [(f"  GPU{gpu.index}", "muted"), (fit(figures.percent(gpu.utilisation), 6, "right"), role)]
    return [*spans, (" ", "")]


def _link(view: View) -> list[Span]:
    """The state of the connection, when it is not simply there."""
    if view.link == "connecting":
        return [(" connecting … ", "warn")]
    age = figures.duration(view.now - view.link_since)
    return [(f" ! engine lost {age} ago, reconnecting ", "bad-strong")]
