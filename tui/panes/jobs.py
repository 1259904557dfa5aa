"""What runs, what waits, and how each job ended: newest first, the unfinished on top.

▶    38 %  Structured pruning of baseline  1:10 left  fine-tuning: step 228 of 600
           epoch 2/5  loss 0.31 ↓  91.2 %                                          (a training job's second line)
▶    62 %  Static INT8 quantization of onnx  0:41 left  calibrating batch 40 of 64
◌   waits  Latency of int8 · onnxruntime  waiting for cpu
✓   8.1 s  Export to ONNX of baseline  47 nodes written
✗   1.0 s  Dynamic INT8 quantization of int8  There is nothing to quantize: …
⊘ refused  int8-conv  …                                       (a recipe's step that never became a job)
"""

from engine.protocol import Cancelled, Failed, Job, Queued, RecipeRun, Running, Snapshot, Step, Succeeded

from .. import charts, figures
from ..lines import Line
from ..table import LineTable, Row
from ..text import clean, fit, width_of
from ..view import View, seconds_left, share_done
from . import training

STEP_REASONS = ("refused", "skipped", "failed")
"""States of a recipe's step that a user must see even if no job was made for it."""


TIME = 7
"""Cells for the share done, the time taken, or a word."""

CURVES = (("   L", "key"), (" curves", "faint"))
"""Where the curves of a training job are to be seen; left out where there is no room."""

ROOMY, BAR = 90, 20
"""From this width on a running job has a bar here too (it always has one in the tree), and how long it is."""


class JobsPane(LineTable):
    """See the top of this file. Keys of its rows are the jobs' ids; steps that never became jobs have none."""

    def show(self, snapshot: Snapshot, view: View) -> None:
        width = self.room.width
        entries = [(_order(job), Row(job.id, job_line(job, width, view.now))) for job in snapshot.jobs]
        indent = 2 + TIME + 2 if width >= ROOMY // 2 else 4
        entries += [
            ((*_order(job)[:2], 1), Row(None, _training_line(words, indent, width)))
            for job in snapshot.jobs
            if isinstance(job.state, Running)
            and (words := training.summary(job, view.curves.get(job.id), width - indent))
        ]
        entries += [
            ((2, -run.created, number), Row(None, _step_line(step)))
            for run in snapshot.runs
            for number, step in enumerate(run.steps)
            if step.status in STEP_REASONS and step.job is None and not step.reused
        ]
        entries += [((2, -run.created, -1), Row(None, _run_line(run))) for run in snapshot.runs if run.error]
        rows = [row for _, row in sorted(entries, key=lambda entry: entry[0])]
        self.set_rows(rows)
        if not rows:
            self.set_lines([(("Nothing has run yet.", "muted"),)])
        waiting = sum(isinstance(job.state, Queued) for job in snapshot.jobs)
        running = sum(isinstance(job.state, Running) for job in snapshot.jobs)
        self.set_caption("2 Jobs", f"{running} running, {waiting} waiting" if running or waiting else "idle")


def job_line(job: Job, width: int, now: float) -> Line:
    """One job in one line: state, how far or how long, title, and what there is to say."""
    title = clean(job.title or job.kind, 80)
    state = job.state
    if isinstance(state, Running):
        share, left = share_done(job), seconds_left(job, now)
        elapsed = figures.duration(now - state.started)
        done, rest = charts.progress(share, BAR) if width >= ROOMY else ("", "")
        return (
            ("▶ ", "accent"),
            (fit(figures.percent(share) if share is not None else elapsed, TIME, "right"), ""),
            ("  " + done if done else " " if rest else "", "accent"),
            (rest, "track"),
            ("  " + title, "accent"),
            (f"  {figures.duration(left)} left" if left is not None else "", ""),
            ("  " + ("cancelling" if state.cancelling else clean(state.message, 120)), "muted"),
        )
    if isinstance(state, Queued):
        reason = f"  waiting for {clean(state.waiting_for, 60)}" if state.waiting_for else ""
        return (("◌ ", "muted"), (fit("waits", TIME, "right"), "muted"), ("  " + title, "muted"), (reason, "faint"))
    symbol, role = {Succeeded: ("✓ ", "good"), Failed: ("✗ ", "bad"), Cancelled: ("⊘ ", "warn")}[type(state)]
    took = state.finished - state.started if state.started is not None else None
    words, shade = f"cancelled. {job.goes_on}" if job.goes_on else "cancelled", "muted"
    if isinstance(state, Succeeded):
        words = clean(state.summary, 200)
    elif isinstance(state, Failed):
        words, shade = clean(state.reason, 200), "bad"
    return (
        (symbol, role),
        (fit(figures.duration(took), TIME, "right"), "muted"),
        ("  " + title, "bad" if isinstance(state, Failed) else ""),
        ("  " + words, shade),
    )


def _training_line(words: Line, indent: int, width: int) -> Line:
    """What a training job's curves say, under its own line."""
    taken = indent + sum(width_of(text) for text, _ in (*words, *CURVES))
    return ((" " * indent, ""), *words, *(CURVES if taken <= width else ()))


def _order(job: Job) -> tuple[int, float, int]:
    """Running first, then waiting in the order of the queue, then finished with the newest first."""
    if isinstance(job.state, Running):
        return (0, job.state.started, 0)
    if isinstance(job.state, Queued):
        return (1, job.created, 0)
    return (2, -job.state.finished, 0)


def _step_line(step: Step) -> Line:
    """A step of a recipe for which no job was made, and why."""
    name, reason = clean(step.name, 60), clean(step.reason or "", 200)
    return (("⊘ ", "warn"), (fit(step.status, TIME, "right"), "warn"), ("  " + name, ""), ("  " + reason, "muted"))


def _run_line(run: RecipeRun) -> Line:
    """A recipe that could not go on, and why."""
    return (
        ("✗ ", "bad"),
        (" " * TIME, ""),
        ("  " + clean(run.title, 60), "bad"),
        ("  " + clean(run.error or "", 300), "bad"),
    )
