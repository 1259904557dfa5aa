"""What runs, what waits, and how each job ended: newest first, the unfinished on top.

⠹ quantize-static    62 %  ━━━━━╸────   0:41 left
◌ accuracy int8      waiting for cpu
✓ export-onnx        8.1 s  12 nodes fused, outputs equal
✗ quantize-dynamic   There is nothing to quantize: …
⊘ int8-conv          refused: …                                (a recipe's step that never became a job)
"""

from engine.protocol import Cancelled, Failed, Job, Queued, RecipeRun, Running, Snapshot, Step, Succeeded

from .. import charts, figures
from ..lines import Line
from ..table import LineTable, Row
from ..text import clean, fit
from ..view import View, seconds_left, share_done

STEP_REASONS = ("refused", "skipped", "failed")
"""States of a recipe's step that a user must see even if no job was made for it."""


class JobsPane(LineTable):
    """See the top of this file. Keys of its rows are the jobs' ids; steps that never became jobs have none."""

    def show(self, snapshot: Snapshot, view: View) -> None:
        width = self.size.width
        entries = [(_order(job), Row(job.id, job_line(job, width, view.now))) for job in snapshot.jobs]
        entries += [
            ((2, -run.created, number), Row(None, _step_line(step, width)))
            for run in snapshot.runs
            for number, step in enumerate(run.steps)
            if step.status in STEP_REASONS and step.job is None and not step.reused
        ]
        entries += [((2, -run.created, -1), Row(None, _run_line(run, width))) for run in snapshot.runs if run.error]
        rows = [row for _, row in sorted(entries, key=lambda entry: entry[0])]
        self.set_rows(rows)
        if not rows:
            self.set_lines([(("Nothing has run yet.", "muted"),)])
        waiting = sum(isinstance(job.state, Queued) for job in snapshot.jobs)
        running = sum(isinstance(job.state, Running) for job in snapshot.jobs)
        self.set_caption("2 Jobs", f"{running} running, {waiting} waiting" if running or waiting else "idle")


def job_line(job: Job, width: int, now: float) -> Line:
    """One job in one line."""
    title_width = _title_width(width)
    title = fit(clean(job.title or job.kind, 80), title_width)
    state = job.state
    if isinstance(state, Running):
        share, left = share_done(job), seconds_left(job, now)
        bar = max(min(width - title_width - 24, 24), 0) if width >= 60 else 0
        done, rest = charts.progress(share, bar)
        time = f"{figures.duration(left)} left" if left is not None else figures.duration(now - state.started)
        room = max(width - title_width - bar - 24, 0)
        message = "cancelling" if state.cancelling else clean(state.message, 120)
        return (
            ("▶ ", "accent"),
            (title, "accent"),
            (fit(figures.percent(share) if share is not None else "", 6, "right"), ""),
            (" " + done if bar else "", "accent"),
            (rest, "track"),
            (fit(time, 12, "right"), "muted"),
            ("  " + message if room > 8 else "", "muted"),
        )
    if isinstance(state, Queued):
        reason = f"waiting for {clean(state.waiting_for, 60)}" if state.waiting_for else "waiting"
        return (("◌ ", "muted"), (title, "muted"), (" " + reason, "muted"))
    symbol, role = {Succeeded: ("✓ ", "good"), Failed: ("✗ ", "bad"), Cancelled: ("⊘ ", "warn")}[type(state)]
    took = state.finished - state.started if state.started is not None else None
    words = "cancelled"
    if isinstance(state, Succeeded):
        words = clean(state.summary, 200)
    elif isinstance(state, Failed):
        words = clean(state.reason, 200)
    return (
        (symbol, role),
        (title, "bad" if isinstance(state, Failed) else ""),
        (fit(figures.duration(took), 8, "right"), "muted"),
        ("  " + words, "bad" if isinstance(state, Failed) else "muted"),
    )


def _title_width(width: int) -> int:
    """Cells for the title: in a narrow pane it is worth more than the bar and the summary."""
    return min(max(width - 26, 14), 36) if width < 90 else 36


def _order(job: Job) -> tuple[int, float, int]:
    """Running first, then waiting in the order of the queue, then finished with the newest first."""
    if isinstance(job.state, Running):
        return (0, job.state.started, 0)
    if isinstance(job.state, Queued):
        return (1, job.created, 0)
    return (2, -job.state.finished, 0)


def _step_line(step: Step, width: int) -> Line:
    title_width = _title_width(width)
    reason = clean(step.reason or "", 200)
    return (
        ("⊘ ", "warn"),
        (fit(clean(step.name, 60), title_width), ""),
        (fit(step.status, 8, "right"), "warn"),
        ("  " + reason, "muted"),
    )


def _run_line(run: RecipeRun, width: int) -> Line:
    title_width = _title_width(width)
    return (("✗ ", "bad"), (fit(clean(run.title, 60), title_width), "bad"), ("  " + clean(run.error or "", 300), "bad"))
