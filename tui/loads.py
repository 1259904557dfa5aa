"""What a load test tells while it runs, kept small: points on one time axis, marks, batch sizes, and what was asked.

A load test of a day ticks 350,000 times; a chart has four hundred dot columns. So at most `MOST_POINTS` are kept: when
there are more, neighbours in the older half become one, and what happened lately stays sharp. `x` is seconds since
the first test of the job began (a search starts its tests one after the other; each counts from 0 by itself).

Rates are requests a second, latencies milliseconds, shares 0 to 1, memory GiB, power watts; None is not known.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from engine.protocol import Job, LoadKnobs, LoadSearch, LoadSettings, LoadTest, LoadTick, Snapshot
from engine.protocol.load import newest_of_each

KIND = "load-test"
"""What such a job is called."""

NO_TURNS = ("paused", "resumed", "ended")
"""How marks begin that leave the load as it is."""

MOST_POINTS = 4096
"""More are thinned; 8 minutes stay as sharp as they came."""

SMOOTH_SECONDS = 1.0
"""Rates are means over so long: a quarter of a second holds too few requests."""

MOMENT_SECONDS = 1.0
"""Between two of the figures that are shown in numbers; the histogram changes at every second one."""

RECENT_SECONDS = 10.0
"""What the histogram of batch sizes is over while a test runs."""

REFUSAL = "Not changed: "
"""How a worker's log begins to say that it did not turn a knob."""


class Point(NamedTuple):
    """One tick, or several neighbouring ones."""

    x: float
    span: float
    offered: float
    achieved: float
    p50: float | None
    p99: float | None
    queue: float | None
    cpu: float | None
    gpu: float | None
    batch: float | None
    """Mean rows of a run."""
    memory: float | None
    """In use on the whole machine."""
    gpu_memory: float | None
    power: float | None
    """Of the GPU."""


class Moment(NamedTuple):
    """What is shown in numbers."""

    figures: Point
    """Latencies are the middle (p50) and the worst (p99) of the last second."""
    tick: LoadTick
    sizes: dict[int, int]
    """Rows of a run → runs, over the last ten seconds."""
    number: int
    """Of the second it was taken in."""


class Mark(NamedTuple):
    """Something was changed."""

    x: float
    text: str


class LoadCourse:
    """One job's load test or search, as far as it has come."""

    def __init__(self) -> None:
        self.generation = 0
        """Other than before: points that were there already have changed."""
        self.settings: LoadSettings | None = None
        self.complete = False
        """The engine's history was read, and nothing can have been dropped since."""
        self.refused = ""
        """The newest sentence with which the worker did not turn a knob."""
        self._empty()

    def _empty(self) -> None:
        self.points: list[Point] = []
        self.marks: list[Mark] = []
        self.starts: list[float] = []
        """Where each test of a search began."""
        self.newest: LoadTick | None = None
        self.completed = self.rejected = self.failed = 0
        self.batch_sizes: collections.Counter[int] = collections.Counter()
        self._origin = 0.0
        self._moment: Moment | None = None
        self._moment_key = (0, 0)
        self._recent: collections.deque[LoadTick] = collections.deque()
        self._rates: collections.deque[LoadTick] = collections.deque()

    @property
    def now(self) -> float:
        """Where the newest point is; 0 before the first."""
        return self.points[-1].x if self.points else 0.0

    def add(self, tick: LoadTick) -> None:
        """Take in the next tick; one that is known already (or older) is left out."""
        before = self.newest
        if before is not None and tick.time <= before.time:
            return
        if before is None:
            self._origin = tick.time - tick.seconds
        x = tick.time - self._origin
        if before is None or tick.seconds < before.seconds:
            self.starts.append(max(x - tick.seconds, 0.0))
            self._rates.clear()
        self.newest = tick
        self.completed += tick.completed
        self.rejected += tick.rejected
        self.failed += tick.failed
        sizes = {int(size): count for size, count in tick.batch_sizes.items()}
        self.batch_sizes.update(sizes)
        self.marks += [Mark(x - tick.seconds + mark.seconds, mark.text) for mark in tick.marks]
        self._remember(tick)
        runs = sum(sizes.values())
        self.points.append(
            Point(
                x=x,
                span=tick.span_seconds,
                offered=_mean(self._rates, "offered_per_s"),
                achieved=_mean(self._rates, "achieved_per_s"),
                p50=tick.p50_ms,
                p99=tick.p99_ms,
                queue=tick.queue_depth if tick.queue_depth is not None else tick.outstanding,
                cpu=tick.cpu,
                gpu=tick.gpu,
                batch=sum(size * count for size, count in sizes.items()) / runs if runs else None,
                memory=gibibytes(tick.memory_bytes),
                gpu_memory=gibibytes(tick.gpu_memory_bytes),
                power=tick.power_w,
            )
        )
        if len(self.points) > MOST_POINTS:
            half = len(self.points) // 2
            self.points[:half] = [_merged(one) for one in _pairs(self.points[:half])]
            self.generation += 1

    def replace(self, ticks: Iterable[LoadTick]) -> None:
        """Begin again with what `ReadLoad` gives; ticks that came later by themselves stay."""
        ticks = list(ticks)
        later = [tick for tick in self._recent if not ticks or tick.time > ticks[-1].time]
        self._empty()
        self.generation += 1
        for tick in (*ticks, *later):
            self.add(tick)

    def hear(self, lines: Iterable[str]) -> None:
        """New lines of the job's log: a knob that the worker could not turn is told there."""
        for line in lines:
            if REFUSAL in line:
                self.refused = line.partition(REFUSAL)[2]

    @property
    def moment(self) -> Moment | None:
        """The figures of now, new once a second: nobody reads numbers faster, and each costs the terminal a line."""
        if not self.points or self.newest is None:
            return None
        last = self.points[-1]
        key = (self.generation, int(last.x / MOMENT_SECONDS))
        if self._moment is None or self._moment_key != key:
            self._moment_key = key
            near = [point for point in self.points[-8:] if point.x > last.x - SMOOTH_SECONDS]
            middle = sorted(one.p50 for one in near if one.p50 is not None)
            figures = last._replace(
                p50=middle[len(middle) // 2] if middle else None,
                p99=max((one.p99 for one in near if one.p99 is not None), default=None),
            )
            old = self._moment
            sizes = old.sizes if old is not None and key[1] % 2 and key[1] == old.number + 1 else self._recent_sizes()
            self._moment = Moment(figures, self.newest, sizes, key[1])
        return self._moment

    def _recent_sizes(self) -> dict[int, int]:
        sizes: collections.Counter[int] = collections.Counter()
        for tick in self._recent:
            sizes.update({int(size): count for size, count in tick.batch_sizes.items()})
        return dict(sizes)

    def part(self, test: LoadTest) -> "LoadCourse":
        """Of a search: the course of one of its tests alone."""
        ends = [start for start in self.starts if self._origin + start < test.created]
        start = ends[-1] if ends else 0.0
        after = next((one for one in self.starts if one > start), float("inf"))
        found = LoadCourse()
        found.points = [one._replace(x=one.x - start) for one in self.points if start <= one.x < after]
        found.marks = [one._replace(x=one.x - start) for one in self.marks if start <= one.x < after]
        found.starts, found.settings, found.complete = [0.0], test.settings, self.complete
        return found

    def _remember(self, tick: LoadTick) -> None:
        self._recent.append(tick)
        while self._recent[0].time < tick.time - RECENT_SECONDS:
            self._recent.popleft()
        self._rates.append(tick)
        while self._rates[0].time < tick.time - SMOOTH_SECONDS + 0.01:
            self._rates.popleft()


@dataclasses.dataclass(frozen=True)
class Found:
    """What the snapshot holds of a load test's job."""

    tests: tuple[LoadTest, ...] = ()
    """Oldest first; of a search also those that an earlier job of the same search made."""
    search: LoadSearch | None = None

    @property
    def single(self) -> LoadTest | None:
        """The test, where it is one."""
        return self.tests[-1] if self.search is None and self.tests and self.tests[-1].purpose == "run" else None


def is_load_test(job: Job) -> bool:
    return job.kind == KIND


def found_by(snapshot: Snapshot, job: str) -> Found:
    """What a job measured so far."""
    search = next((one for one in snapshot.measurements if isinstance(one, LoadSearch) and one.job == job), None)
    tests = [one for one in snapshot.measurements if isinstance(one, LoadTest)]
    words = {one.search for one in tests if one.job == job and one.search} | ({search.search} if search else set())
    mine = [one for one in tests if one.job == job or one.search in words]
    return Found(tuple(newest_of_each(mine)), search)


def load_jobs(snapshot: Snapshot, variant: str | None = None) -> list[Job]:
    """Load tests, of one variant or of all, the newest first."""
    jobs = [job for job in snapshot.jobs if is_load_test(job) and variant in (None, job.variant)]
    return sorted(jobs, key=lambda job: -job.created)


def newest_tests(snapshot: Snapshot, variant: str) -> list[LoadTest | LoadSearch]:
    """Of a variant, the newest first: single tests and searches, without the tests that a search consists of."""
    found = [
        one
        for one in snapshot.measurements
        if one.variant == variant
        and (isinstance(one, LoadSearch) or (isinstance(one, LoadTest) and one.purpose == "run"))
    ]
    return sorted(found, key=lambda one: -one.created)


def decisive(snapshot: Snapshot, one: LoadTest | LoadSearch) -> LoadTest | None:
    """The test whose figures stand for it: of a search the one at what it found, if that is still there."""
    if isinstance(one, LoadTest):
        return one
    every = (test for test in snapshot.measurements if isinstance(test, LoadTest))
    tests = newest_of_each(test for test in every if test.search == one.search and one.search)
    if one.best_rate_per_s is not None:
        best = [test for test in tests if test.settings.rate == one.best_rate_per_s]
        return best[-1] if best else None
    if one.recommended is not None:
        wanted = batching(one.points[one.recommended].settings)
        return next((test for test in tests if batching(test.settings) == wanted), None)
    return None


def batching(settings: LoadSettings) -> tuple[int, float, int]:
    """(maximum batch size, maximum wait in milliseconds, instances)."""
    return settings.max_batch_size, settings.max_wait_ms, settings.instances


def knobs_of(settings: LoadSettings) -> LoadKnobs:
    """Where the knobs stand at the start."""
    return LoadKnobs(
        rate=settings.rate,
        concurrency=settings.concurrency,
        max_batch_size=settings.max_batch_size,
        max_wait_ms=settings.max_wait_ms,
        instances=settings.instances,
        paused=False,
    )


def load_in_words(settings: LoadSettings, knobs: LoadKnobs | None = None) -> str:
    """ "poisson 400/s", "16 callers", "as fast as possible", "highest rate with p99 under 20 ms", "sweep"."""
    if settings.kind == "sweep":
        limit = f", p99 under {settings.slo_p99_ms:g} ms" if settings.slo_p99_ms else ""
        return f"sweep over batching{limit}"
    if settings.kind == "rate":
        return f"highest rate with p99 under {settings.slo_p99_ms:g} ms"
    if settings.offline:
        return "as fast as possible"
    knobs = knobs or knobs_of(settings)
    if settings.concurrency is not None:
        return f"{knobs.concurrency or settings.concurrency} callers"
    if settings.rate is None:
        return settings.arrivals
    return f"{settings.arrivals} {knobs.rate or settings.rate:.5g}/s"


def finished_in_words(test: LoadTest) -> str:
    """The load of a finished test; one whose knobs were turned did not keep what it began with."""
    text = load_in_words(test.settings)
    return f"{text}, turned" if was_turned(test) else text


def was_turned(test: LoadTest) -> bool:
    """A knob other than the pause: then its figures mix loads."""
    return any(not mark.text.startswith(NO_TURNS) for mark in test.marks)


def with_knobs(settings: LoadSettings, knobs: LoadKnobs) -> LoadSettings:
    """The settings as the knobs stand now."""
    names = ("rate", "concurrency", "max_batch_size", "max_wait_ms", "instances")
    given = {name: getattr(knobs, name) for name in names}
    return msgspec.structs.replace(settings, **{name: value for name, value in given.items() if value is not None})


def gibibytes(size: int | None) -> float | None:
    return None if size is None else size / 2**30


def _mean(ticks: Iterable[LoadTick], name: str) -> float:
    spans = [(getattr(tick, name), tick.span_seconds) for tick in ticks]
    whole = sum(span for _, span in spans)
    return sum(value * span for value, span in spans) / whole if whole else 0.0


def _pairs(points: Sequence[Point]) -> Iterable[Sequence[Point]]:
    return (points[at : at + 2] for at in range(0, len(points), 2))


def _merged(points: Sequence[Point]) -> Point:
    """Neighbours as one: rates, shares and power are means, latencies, the queue and memory the worst."""
    if len(points) == 1:
        return points[0]
    span = sum(one.span for one in points) or 1e-9

    def mean(name: str) -> float | None:
        known = [(value, one.span) for one in points if (value := getattr(one, name)) is not None]
        whole = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / whole if whole else None

    def worst(name: str) -> float | None:
        return max((value for one in points if (value := getattr(one, name)) is not None), default=None)

    return Point(
        x=points[-1].x,
        span=span,
        offered=mean("offered") or 0.0,
        achieved=mean("achieved") or 0.0,
        p50=mean("p50"),
        p99=worst("p99"),
        queue=worst("queue"),
        cpu=mean("cpu"),
        gpu=mean("gpu"),
        batch=mean("batch"),
        memory=worst("memory"),
        gpu_memory=worst("gpu_memory"),
        power=mean("power"),
    )
