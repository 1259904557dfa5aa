"""Progress of a recipe run on standard error: one live bar on a terminal, plain lines elsewhere.

Both are functions of the snapshot: `show` may be called as often as one likes. Standard output is never touched,
so that it can hold one JSON object and nothing else.
"""

import sys
import time
from typing import Protocol

from engine.protocol import Cancelled, Failed, Queued, RecipeRun, Running, Snapshot, Step, Variant

MARKS = {
    "succeeded": "done",
    "refused": "refused",
    "failed": "failed",
    "skipped": "skipped",
    "cancelled": "cancelled",
    "running": "started",
}


class Progress(Protocol):
    """Follows one run from its first snapshot to its end."""

    def show(self, snapshot: Snapshot, run: RecipeRun) -> None: ...

    def end(self) -> None: ...


def make_progress(quiet: bool) -> Progress:
    """A live bar where standard error is a terminal, plain lines where it is not, nothing when quiet."""
    if quiet:
        return Silence()
    return LiveLine() if sys.stderr.isatty() else PlainLines()


class Silence:
    """Shows nothing."""

    def show(self, snapshot: Snapshot, run: RecipeRun) -> None:
        pass

    def end(self) -> None:
        pass


class PlainLines:
    """One line when a step starts, what it waits for, one every 10 s while it runs, and when it ends."""

    every_seconds = 10.0

    def __init__(self) -> None:
        self._told: dict[int, str] = {}
        self._last = 0.0
        self._waits = ""

    def show(self, snapshot: Snapshot, run: RecipeRun) -> None:
        for index, step in enumerate(run.steps):
            if step.status == "queued" or self._told.get(index) == step.status or _waits(step, snapshot):
                continue
            self._told[index] = step.status
            self._last = time.monotonic()
            _say(_sentence(index, step, run, snapshot))
        waits = waiting(snapshot, run)
        if waits and waits != self._waits:
            _say(f"  {waits}")
        self._waits = waits
        running = doing(snapshot, run)
        if running and time.monotonic() - self._last > self.every_seconds:
            self._last = time.monotonic()
            _say(f"  {running}")

    def end(self) -> None:
        pass


class LiveLine:
    """A single line that is rewritten, and a kept line for every step that has ended."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._drawn = ""

    def show(self, snapshot: Snapshot, run: RecipeRun) -> None:
        for index, step in enumerate(run.steps):
            if index not in self._told and step.status not in ("queued", "running"):
                self._told.add(index)
                self._clear()
                _say(_sentence(index, step, run, snapshot))
        line = doing(snapshot, run) or waiting(snapshot, run)
        if line != self._drawn:
            self._clear()
            width = _terminal_width()
            sys.stderr.write(line[: width - 1])
            sys.stderr.flush()
            self._drawn = line

    def end(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[2K")
            self._drawn = ""


def doing(snapshot: Snapshot, run: RecipeRun) -> str:
    """What runs now, in one line, or nothing."""
    for job in snapshot.jobs:
        if job.recipe_run == run.id and isinstance(job.state, Running):
            share = f"{100 * job.state.done / job.state.total:3.0f} %" if job.state.total else ""
            parts = [printable(job.title), share, printable(job.state.message)]
            return "  ".join(part for part in parts if part)
    return ""


def waiting(snapshot: Snapshot, run: RecipeRun) -> str:
    """What the run's jobs wait for while none of them runs, or nothing."""
    jobs = [job for job in snapshot.jobs if job.recipe_run == run.id]
    if not any(isinstance(job.state, Running) for job in jobs):
        for job in jobs:
            if isinstance(job.state, Queued) and job.state.waiting_for:
                return printable(f"{job.title}  waiting for {job.state.waiting_for}")
    return ""


def printable(text: str) -> str:
    """Text from a model or a user's code, fit for a terminal: every control character becomes a visible mark."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _sentence(index: int, step: Step, run: RecipeRun, snapshot: Snapshot) -> str:
    known: dict[str, Variant] = {variant.id: variant for variant in snapshot.variants}
    made = ", ".join(known[name].name for name in step.variants if name in known)
    status = "already there" if step.reused and step.status == "succeeded" else MARKS.get(step.status, step.status)
    text = f"[{index + 1}/{len(run.steps)}] {step.name}: {status}"
    if made and step.status == "succeeded" and step.kind == "technique":
        text += f" → {made}"
    reason = step.reason or _job_reason(step, snapshot)
    if reason and step.status != "succeeded":
        text += f". {reason}"
    return printable(text)


def _waits(step: Step, snapshot: Snapshot) -> bool:
    """Its turn has come, but its job still waits for a device."""
    return any(job.id == step.job and isinstance(job.state, Queued) for job in snapshot.jobs)


def _job_reason(step: Step, snapshot: Snapshot) -> str | None:
    for job in snapshot.jobs:
        if job.id == step.job:
            if isinstance(job.state, Failed):
                return job.state.reason
            return job.goes_on if isinstance(job.state, Cancelled) else None
    return None


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
