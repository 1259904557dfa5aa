"""What a training job reports while it runs, kept small: curves over steps, and the numbers they are drawn by.

A job of a day reports hundreds of thousands of points; a screen has two hundred columns. So a curve is kept as at most
`BUCKETS` buckets of equal width in steps, each with its lowest, highest and last value: extremes are never thinned
away, adding a point costs the same at any length, and adding one twice changes nothing (what was read from the
engine's history may also have come as an event).

Steps are the engine's: they count through all stages of a job and go on where a job that was stopped is run again.
Losses are as the training computes them, accuracies are fractions on the held-out part of the training data.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from engine.protocol import Job, Running

BUCKETS = 1024
"""More are merged in pairs; a screen of 200 columns has 400 dot columns."""

RECENT = 40
"""Points that the trend is read from: about ten seconds of training."""

TREND = 0.01
"""A change of the mean by less than this share is no trend; neither is one within twice its standard error."""

FACTS = ("steps_per_epoch", "total_steps", "accuracy_before", "checkpoint")
"""Metrics that are no curves: the axis, and what the accuracy limit is counted from."""

FIRST = ("loss", "accuracy", "held_out_loss")
"""The curves that come first, in this order."""


@dataclasses.dataclass
class Bucket:
    """What a curve did in some neighbouring steps."""

    step: int
    """The last one that has a value."""
    low: float
    high: float
    last: float

    def take(self, step: int, low: float, high: float, last: float) -> None:
        """Let these values be part of the bucket."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        if step >= self.step:
            self.step, self.last = step, last


class Curve:
    """One metric over steps. Values that are not finite are left out."""

    def __init__(self) -> None:
        self._width = 1
        self._buckets: dict[int, Bucket] = {}
        self._recent: collections.deque[tuple[int, float]] = collections.deque(maxlen=RECENT)

    def add(self, step: int, value: float) -> None:
        """Take in a point; they may come twice and need not be in order."""
        if not math.isfinite(value):
            return
        if (step, value) not in self._recent and (not self._recent or step >= self._recent[-1][0]):
            self._recent.append((step, value))
        self._put(step, value, value, value)
        if len(self._buckets) > BUCKETS:
            self._width *= 2
            old, self._buckets = self._buckets, {}
            for one in old.values():
                self._put(one.step, one.low, one.high, one.last)

    @property
    def buckets(self) -> list[Bucket]:
        """From the first step to the last."""
        return [self._buckets[key] for key in sorted(self._buckets)]

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self._recent[-1][1] if self._recent else None

    @property
    def trend(self) -> int:
        """Where the newest points go against those before: -1 down, 1 up, 0 neither (or too few to tell)."""
        values = [value for _, value in self._recent]
        half = len(values) // 2
        if half < 2:
            return 0
        (before, before_variance), (after, after_variance) = _moments(values[:half]), _moments(values[-half:])
        change = after - before
        noise = 2 * math.sqrt((before_variance + after_variance) / half)
        small = max(TREND * abs(before), noise)
        return 0 if abs(change) <= small else 1 if change > 0 else -1

    def _put(self, step: int, low: float, high: float, last: float) -> None:
        key = step // self._width
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = Bucket(step, low, high, last)
        else:
            bucket.take(step, low, high, last)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample variance; `statistics` takes 20 times as long, and this runs at every paint."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1)


class Curves:
    """All curves of one job."""

    def __init__(self) -> None:
        self.by_name: dict[str, Curve] = {}
        self.complete = False
        """The engine's history was read; until then there may be points that nobody saw."""

    def add(self, name: str, step: int, value: float) -> None:
        if name not in FACTS:
            self.by_name.setdefault(name, Curve()).add(step, value)

    def extend(self, points: Iterable[tuple[str, float, int, float]]) -> None:
        """Take in what `ReadMetrics` gives."""
        for name, value, step, _ in points:
            self.add(name, step, value)

    @property
    def names(self) -> list[str]:
        """The curves there are: loss and accuracy first, others as they came."""
        return sorted(self.by_name, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


class Course(NamedTuple):
    """How far a training job is, as far as it says so."""

    step: int
    total: int
    """Steps in all; never less than `step`."""
    steps_per_epoch: float | None
    before: float | None
    """Held-out accuracy of the network before it was changed, a fraction."""

    @property
    def epoch(self) -> str:
        """ "3/5"; "" where the job does not say how long an epoch is."""
        if not self.steps_per_epoch:
            return ""
        epochs = max(math.ceil(self.total / self.steps_per_epoch - 1e-9), 1)
        return f"{min(math.floor(self.step / self.steps_per_epoch) + 1, epochs)}/{epochs}"


def is_training(job: Job) -> bool:
    """The job has reported a curve."""
    return any(name not in FACTS for name in job.metrics)


def course_of(job: Job, curves: Curves | None) -> Course:
    """The axis of a job's charts. A job that has ended is drawn to its last step, it may have stopped early."""
    known = max((one.buckets[-1].step for one in curves.by_name.values() if one.buckets), default=0) if curves else 0
    total = int(job.metrics.get("total_steps", 0))
    running = isinstance(job.state, Running)
    if running and isinstance(job.state, Running) and job.state.total and int(job.state.total) == total:
        known = max(known, int(job.state.done))
    return Course(
        step=known,
        total=max(total if running else known, known, 1),
        steps_per_epoch=job.metrics.get("steps_per_epoch") or None,
        before=job.metrics.get("accuracy_before"),
    )
