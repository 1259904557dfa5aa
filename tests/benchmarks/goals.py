"""What a benchmark is judged by: goals, what was measured, and a verdict that claims no more than the interval does.

met: the whole interval lies within the goal. MISSED: it lies wholly beyond. UNDECIDED: the goal lies inside it, or
nothing could be measured. A benchmark ends with the table and the exit status: 0 all met, 1 one is missed, 3 none is
missed but one is undecided.

    options = arguments(__doc__, "3 minutes").parse_args()
    goals = Goals()
    goals.at_least("the batcher takes 100,000 requests/s", mean(rates), 100_000, digits=0)
    sys.exit(goals.judged())
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from intervals import shown

from engine.measurements.statistics import Interval

MET, MISSED, UNDECIDED = "met", "MISSED", "UNDECIDED"

Verdict = Literal["met", "MISSED", "UNDECIDED"]

KEPT = "TRIMTAB_GOALS"
"""Environment variable: a file to which the goals are appended too, one JSON array a line (for `__main__`)."""

FAILED, OPEN = 1, 3
"""Exit statuses."""


class Goal(NamedTuple):
    """One line of the table."""

    text: str
    measured: str
    verdict: Verdict


class Goals:
    """The goals of one benchmark as they are judged."""

    def __init__(self) -> None:
        self.found: list[Goal] = []

    def within(self, text: str, found: Interval, low: float, high: float, digits: int = 3, unit: str = "") -> None:
        """The true value lies between the two."""
        self._add(text, shown(found, digits) + unit, verdict(found, low, high))

    def at_least(self, text: str, found: Interval, limit: float, digits: int = 3, unit: str = "") -> None:
        self.within(text, found, limit, math.inf, digits, unit)

    def at_most(self, text: str, found: Interval, limit: float, digits: int = 3, unit: str = "") -> None:
        self.within(text, found, -math.inf, limit, digits, unit)

    def counted(self, text: str, holds: bool, measured: str) -> None:
        """What was counted or is exact: there is no interval."""
        self._add(text, measured, MET if holds else MISSED)

    def undecided(self, text: str, why: str) -> None:
        """Nothing was measured that would decide it."""
        self._add(text, why, UNDECIDED)

    def judged(self) -> int:
        """Print the table; the exit status."""
        print(f"\n{table(self.found)}", flush=True)
        if path := os.environ.get(KEPT):
            with Path(path).open("a") as kept:
                kept.writelines(f"{json.dumps(goal)}\n" for goal in self.found)
        verdicts = {goal.verdict for goal in self.found}
        return FAILED if MISSED in verdicts else OPEN if UNDECIDED in verdicts or not verdicts else 0

    def _add(self, text: str, measured: str, judged: Verdict) -> None:
        self.found.append(Goal(text, measured, judged))


def verdict(found: Interval, low: float, high: float) -> Verdict:
    """Whether an interval says that the true value lies between the two."""
    if low <= found.low and found.high <= high:
        return MET
    return MISSED if found.high < low or found.low > high else UNDECIDED


def table(goals: list[Goal]) -> str:
    """Goal | measured | verdict, as Markdown that can be read as it stands."""
    rows = [Goal("goal", "measured", "met / MISSED / UNDECIDED"), *goals]  # type: ignore[arg-type]
    widths = [max(len(row[column].replace("|", "/")) for row in rows) for column in range(3)]
    lines = [
        "| " + " | ".join(cell.replace("|", "/").ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def arguments(document: str | None, takes: str) -> argparse.ArgumentParser:
    """A benchmark's parser: `--help` shows its docstring and how long it takes on a quiet machine."""
    return argparse.ArgumentParser(
        description=document,
        epilog=f"Takes {takes} on a quiet machine. Exit status: 0 every goal met, 1 one missed, 3 one undecided.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def product(intervals: list[Interval]) -> Interval:
    """The geometric mean of independent ratios, their intervals put together."""
    with np.errstate(divide="ignore"):
        logs = [np.log(interval) for interval in intervals]
    middle = float(np.mean([log[0] for log in logs]))
    below, above = (math.hypot(*(float(log[end] - log[0]) for log in logs)) / len(logs) for end in (1, 2))
    return Interval(math.exp(middle), math.exp(middle - below), math.exp(middle + above))
