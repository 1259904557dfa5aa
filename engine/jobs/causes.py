"""Why a worker died without a last message, in words.

A signal is a fact, not a cause: SIGKILL comes from the kernel when memory runs out, but also from anyone with a
shell. It is called "probably out of memory" only when the kernel counted such a kill while the job ran, or when the
worker had grown near the limit; else the sender is unknown and that is what the sentence says.
"""

import signal
from pathlib import Path
from typing import Literal

from msgspec import Struct

from ..safety import clean_text
from ..telemetry import find_memory_group
from .workers import Exit

NEAR_LIMIT = 0.85
"""A worker that held this share of the memory it may have was probably killed for it."""

Cause = Literal["error", "signal", "out-of-memory", "lost"]


class MemoryWitness:
    """Remembers the kernel's count of out-of-memory kills at a job's start, to compare at its death."""

    def __init__(self) -> None:
        self._group = find_memory_group(Path("/"))
        self._before = self._kills()

    def was_called(self) -> bool:
        """The kernel killed for memory since this was made, in our control group or on the machine."""
        return any(now > before for before, now in zip(self._before, self._kills()))

    def limit(self) -> int | None:
        """Bytes this machine or control group allows."""
        limits = []
        reading = self._group.read() if self._group else None
        if reading is not None:
            limits.append(reading[1])
        total = _count(Path("/proc/meminfo"), "MemTotal:")
        if total is not None:
            limits.append(total * 1024)
        return min(limits, default=None)

    def _kills(self) -> tuple[int, int]:
        ours = None
        if self._group is not None:
            # memory.events is version 2 of control groups, memory.oom_control version 1.
            ours = _count(self._group.directory / "memory.events", "oom_kill")
            if ours is None:
                ours = _count(self._group.directory / "memory.oom_control", "oom_kill")
        return ours or 0, _count(Path("/proc/vmstat"), "oom_kill") or 0


class Death(Struct, frozen=True):
    """What is told of a worker's death."""

    reason: str
    cause: Cause


def explain_death(ended: Exit, witness: MemoryWitness, last_line: str, goes_on: str = "") -> Death:
    """One sentence on how a worker ended that sent no result, with the last line of its log if there is one.

    `goes_on`: where the same work would go on, as a sentence.
    """
    death = _death(ended, witness)
    said = f"Last line of its log: {clean_text(last_line, 200)}" if last_line else ""
    return Death(" ".join(part for part in (death.reason, goes_on, said) if part), death.cause)


def _death(ended: Exit, witness: MemoryWitness) -> Death:
    if ended.lost:
        return Death("The process that starts workers died, and this job's worker with it.", "lost")
    if ended.signal == signal.SIGKILL:
        limit = witness.limit()
        grown = limit is not None and ended.peak_bytes is not None and ended.peak_bytes > NEAR_LIMIT * limit
        if witness.was_called() or grown:
            held = f" when it held {ended.peak_bytes / 2**30:.1f} GiB" if ended.peak_bytes else ""
            return Death(f"Probably out of memory: killed by signal 9 (SIGKILL){held}.", "out-of-memory")
    if ended.signal is not None:
        crash = ended.signal in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
        why = "a crash in native code" if crash else "sender unknown"
        return Death(f"Killed by signal {ended.signal} ({_name(ended.signal)}), {why}.", "signal")
    return Death(f"The worker exited with status {ended.code} without a result.", "error")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _count(file: Path, key: str) -> int | None:
    """The number after `key` in a file of lines like "key 12"."""
    try:
        for line in file.read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == key:
                return int(words[1])
    except (OSError, ValueError):
        pass
    return None
