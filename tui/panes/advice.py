"""One line that says what matters now: a lost engine, a notice, a failure, the best variant, or the next step."""

from engine.protocol import Failed, Snapshot, Variant

from .. import figures
from ..comparison import baseline_of, best_variant, figures_for
from ..lines import Line, LineView
from ..text import clean
from ..view import View, unfinished_jobs

FAILURE_SECONDS = 120.0
"""How long a failure is worth this line; the jobs pane keeps it."""


class AdvicePane(LineView):
    """See the top of this file."""

    def show(self, snapshot: Snapshot, view: View) -> None:
        self.set_lines([advice(snapshot, view)])


def advice(snapshot: Snapshot, view: View) -> Line:
    """The line, by urgency."""
    if view.link == "lost":
        reason = clean(view.link_reason, 160)
        text = f"What you see is old. {reason} "
        return ((" ! ", "bad-strong"), (text, "bad"), ("r", "key"), (" starts the engine.", "bad"))
    if snapshot.notices:
        return ((" ! ", "warn-strong"), (clean(snapshot.notices[-1], 300), "warn"))
    newest = max((job for job in snapshot.jobs if job.is_done), key=lambda job: job.state.finished, default=None)  # type: ignore[union-attr]
    if newest is not None and isinstance(newest.state, Failed) and view.now - newest.state.finished < FAILURE_SECONDS:
        return ((" ✗ ", "bad-strong"), (f"{clean(newest.title, 60)}: {clean(newest.state.reason, 240)}", "bad"))
    best = best_variant(snapshot, view.batch_size)
    if best is not None:
        return _best(snapshot, view, best)
    baseline = baseline_of(snapshot)
    if baseline is not None and len(snapshot.variants) == 1 and not unfinished_jobs(snapshot):
        first = "quantize-static" if baseline.format == "onnx" else "export-onnx"
        return ((" → ", "accent"), ("Next: press ", "muted"), ("t", "key"), (f" and apply {first}.", "muted"))
    if len(snapshot.variants) > 1 and not unfinished_jobs(snapshot):
        text = "No variant is both faster and within the accuracy limit yet. Another technique: "
        return ((" → ", "accent"), (text, "muted"), ("t", "key"))
    return ((" ", ""),)


def _best(snapshot: Snapshot, view: View, best: Variant) -> Line:
    """The fastest within the limit, in one sentence."""
    found = figures_for(snapshot, best.id, view.batch_size)
    assert found.latency is not None
    assert found.latency.speedup is not None
    assert found.accuracy is not None
    baseline = baseline_of(snapshot)
    smaller = ""
    if baseline is not None and best.size_bytes and baseline.size_bytes > best.size_bytes * 1.05:
        smaller = f", {baseline.size_bytes / best.size_bytes:.1f}× smaller"
    what = "of the answers changed" if found.accuracy.kind == "agreement" else "drop"
    return (
        (" ★ ", "good-strong"),
        ("Best within the limit: ", "muted"),
        (clean(best.name, 60), "good-strong"),
        (f", {figures.ratio(found.latency.speedup.ratio)} faster{smaller}, ", "muted"),
        (f"{figures.points(found.accuracy.drop)} pt {what}.", "muted"),
    )
