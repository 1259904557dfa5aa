"""What is nice to have and may be lost: telemetry, curves of jobs and ticks of load tests, in `telemetry.db`.

It stands apart from `session.db` so that two samples a second never make a result wait, and a damaged or full file
never costs one. Nothing here raises into the engine: a sample that cannot be stored is dropped.

Cost and limits: full detail for `DETAIL_SECONDS`, then one (lowest, highest) pair a minute for `SUMMARY_SECONDS`.
Reading is bounded by that, whatever the session's age. After a kill at most the last second of curves and the last
minute's pair are missing.
"""

import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..protocol import GpuSample, LoadSettings, LoadTick, TelemetrySample

DETAIL_SECONDS = 2 * 3600.0
"""How long every sample is kept: 14,400 rows at 2 Hz."""

SUMMARY_SECONDS = 30 * 86400.0
"""How long the pairs of lowest and highest figures are kept: 86,400 rows."""

SUMMARY_STEP = 60.0
"""Seconds that one pair stands for."""

CURVE_FLUSH_SECONDS = 1.0
"""Points of curves are written together this often: a job may report one for every batch."""

TABLES = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA busy_timeout = 1000",
    "PRAGMA journal_size_limit = 4194304",
    "CREATE TABLE IF NOT EXISTS samples (time REAL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS summaries (time REAL PRIMARY KEY, low BLOB NOT NULL, high BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS points (
        number INTEGER PRIMARY KEY, job TEXT NOT NULL, name TEXT NOT NULL, value REAL, step INTEGER, time REAL)""",
    "CREATE INDEX IF NOT EXISTS points_job ON points (job, number)",
    "CREATE TABLE IF NOT EXISTS ticks (number INTEGER PRIMARY KEY, job TEXT NOT NULL, body BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS ticks_job ON ticks (job, number)",
    "CREATE TABLE IF NOT EXISTS loads (job TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
)

Point = tuple[str, float, int, float]
"""(name, value, step, time)."""


class History:
    """One open `telemetry.db`. A damaged file is replaced by an empty one: nothing in it is a result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        """The newest sentence about why something could not be stored."""
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._points: list[tuple[str, str, float | None, int, float]] = []
        self._last_flush = time.monotonic()
        self._minute: list[TelemetrySample] = []
        self._decode = msgspec.msgpack.Decoder(TelemetrySample).decode
        self._decode_tick = msgspec.msgpack.Decoder(LoadTick).decode
        try:
            self._connection = _open(path)
        except sqlite3.Error:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            try:
                self._connection = _open(path)
                self.trouble = "The history of the hardware charts was damaged and starts anew."
            except sqlite3.Error as error:
                self.trouble = f"The history of the hardware charts cannot be kept: {error}."

    def add_sample(self, sample: TelemetrySample) -> None:
        """Keep a sample; once a minute make the pair that outlives it, and forget what is too old."""
        self._run(lambda c: c.execute("INSERT OR REPLACE INTO samples VALUES (?, ?)", (sample.time, _encode(sample))))
        with self._lock:
            if self._minute and sample.time // SUMMARY_STEP != self._minute[0].time // SUMMARY_STEP:
                self._summarise()
            self._minute.append(sample)

    def samples(self, since: float, limit: int) -> list[TelemetrySample]:
        """Samples from `since` on, oldest first, thinned to at most `limit` by `thin`."""

        def read(connection: sqlite3.Connection) -> list[TelemetrySample]:
            detail = connection.execute("SELECT time, body FROM samples WHERE time >= ? ORDER BY time", (since,))
            recent = [self._decode(body) for _, body in detail]
            first = recent[0].time if recent else float("inf")
            older = connection.execute(
                "SELECT low, high FROM summaries WHERE time >= ? AND time < ? ORDER BY time",
                (since, first - SUMMARY_STEP),
            )
            return [self._decode(body) for pair in older for body in pair] + recent

        try:
            return thin(self._run(read) or [], limit)
        except msgspec.MsgspecError:
            return []

    def add_point(self, job: str, point: Point) -> None:
        """Keep a point of a curve; written with its neighbours, at most a second later."""
        name, value, step, moment = point
        with self._lock:
            self._points.append((job, name, value, step, moment))
            if len(self._points) >= 500 or time.monotonic() - self._last_flush > CURVE_FLUSH_SECONDS:
                self._flush()

    def points(self, job: str) -> list[Point]:
        """Every point a job reported, in order. A value that was not a number reads as NaN."""
        with self._lock:
            self._flush()
        rows = self._run(
            lambda c: c.execute(
                "SELECT name, value, step, time FROM points WHERE job = ? ORDER BY number", (job,)
            ).fetchall()
        )
        return [(name, float("nan") if value is None else value, step, at) for name, value, step, at in rows or []]

    def add_load(self, job: str, settings: LoadSettings) -> None:
        """Keep what a load test was asked to do."""
        self._run(lambda c: c.execute("INSERT OR REPLACE INTO loads VALUES (?, ?)", (job, _encode(settings))))

    def load(self, job: str) -> LoadSettings | None:
        """What a load test was asked to do; None when that is not known."""
        rows = self._run(lambda c: c.execute("SELECT body FROM loads WHERE job = ?", (job,)).fetchall())
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.msgpack.decode(rows[0][0], type=LoadSettings) if rows else None
        return None

    def add_tick(self, job: str, tick: LoadTick) -> None:
        """Keep a tick of a load test."""
        self._run(lambda c: c.execute("INSERT INTO ticks (job, body) VALUES (?, ?)", (job, _encode(tick))))

    def ticks(self, job: str) -> list[LoadTick]:
        """Every tick of a load test, in order."""
        rows = self._run(lambda c: c.execute("SELECT body FROM ticks WHERE job = ? ORDER BY number", (job,)).fetchall())
        with contextlib.suppress(msgspec.MsgspecError):
            return [self._decode_tick(body) for (body,) in rows or []]
        return []

    def forget_job(self, job: str) -> None:
        """Drop a job's curves, ticks and load."""
        self._run(lambda c: c.execute("DELETE FROM loads WHERE job = ?", (job,)))
        self._run(lambda c: c.execute("DELETE FROM points WHERE job = ?", (job,)))
        self._run(lambda c: c.execute("DELETE FROM ticks WHERE job = ?", (job,)))

    def close(self) -> None:
        with self._lock:
            self._flush()
            if self._minute:
                self._summarise()
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
            self._connection = None

    def _flush(self) -> None:
        rows, self._points, self._last_flush = self._points, [], time.monotonic()
        if rows:
            insert = "INSERT INTO points (job, name, value, step, time) VALUES (?, ?, ?, ?, ?)"
            self._run(lambda c: c.executemany(insert, rows))

    def _summarise(self) -> None:
        minute, self._minute = self._minute, []
        low, high = lowest_and_highest(minute)
        self._run(
            lambda c: c.execute(
                "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?)", (low.time, _encode(low), _encode(high))
            )
        )
        self._run(lambda c: c.execute("DELETE FROM samples WHERE time < ?", (high.time - DETAIL_SECONDS,)))
        self._run(lambda c: c.execute("DELETE FROM summaries WHERE time < ?", (high.time - SUMMARY_SECONDS,)))

    def _run(self, action: Callable[[sqlite3.Connection], Any]) -> Any:
        """The action as one transaction, or None when it could not be done (the reason is in `trouble`)."""
        with self._lock:
            if self._connection is None:
                return None
            try:
                with self._connection:
                    return action(self._connection)
            except sqlite3.Error as error:
                self.trouble = f"Telemetry is not being stored: {error}."
                return None


def thin(samples: Sequence[TelemetrySample], limit: int) -> list[TelemetrySample]:
    """At most `limit` samples that still show every peak and every dip.

    Neighbours are merged into pairs: one sample with the lowest of each figure, one with the highest. A merged
    sample is therefore no single moment; its time is that of the first or last of its group.
    """
    if len(samples) <= limit:
        return list(samples)
    groups = limit // 2
    if groups == 0:
        return list(samples[-limit:]) if limit > 0 else []
    edges = [len(samples) * i // groups for i in range(groups + 1)]
    return [merged for a, b in itertools.pairwise(edges) for merged in lowest_and_highest(samples[a:b])]


def thin_ticks(ticks: Sequence[LoadTick], limit: int) -> list[LoadTick]:
    """At most `limit` ticks: neighbours become one whose rates are means, whose p99 and queue are the worst."""
    if len(ticks) <= max(limit, 1):
        return list(ticks)
    edges = [len(ticks) * i // max(limit, 1) for i in range(max(limit, 1) + 1)]
    return [_one_tick(ticks[a:b]) for a, b in itertools.pairwise(edges)]


def _one_tick(ticks: Sequence[LoadTick]) -> LoadTick:
    def worst(name: str) -> Any:
        return max((value for tick in ticks if (value := getattr(tick, name)) is not None), default=None)

    span = sum(tick.span_seconds for tick in ticks)

    def mean(name: str) -> Any:
        known = [(value, tick.span_seconds) for tick in ticks if (value := getattr(tick, name)) is not None]
        weight = sum(share for _, share in known)
        return sum(value * share for value, share in known) / weight if weight else None

    sizes: dict[str, int] = {}
    for tick in ticks:
        for size, count in tick.batch_sizes.items():
            sizes[size] = sizes.get(size, 0) + count
    return msgspec.structs.replace(
        ticks[-1],
        span_seconds=span,
        offered_per_s=mean("offered_per_s") or 0.0,
        achieved_per_s=mean("achieved_per_s") or 0.0,
        completed=sum(tick.completed for tick in ticks),
        rejected=sum(tick.rejected for tick in ticks),
        failed=sum(tick.failed for tick in ticks),
        outstanding=worst("outstanding"),
        queue_depth=worst("queue_depth"),
        p50_ms=mean("p50_ms"),
        p99_ms=worst("p99_ms"),
        batch_sizes=sizes,
        cpu=mean("cpu"),
        gpu=mean("gpu"),
        gpu_memory_bytes=worst("gpu_memory_bytes"),
        power_w=mean("power_w"),
        marks=tuple(mark for tick in ticks for mark in tick.marks),
    )


def lowest_and_highest(samples: Sequence[TelemetrySample]) -> tuple[TelemetrySample, TelemetrySample]:
    """The lowest and the highest of each figure over these samples (at least one); None only where all are None."""
    return _merge(samples, min, samples[0].time), _merge(samples, max, samples[-1].time)


def _merge(samples: Sequence[TelemetrySample], choose: Callable[..., Any], moment: float) -> TelemetrySample:
    def of(parts: Sequence[Any], name: str) -> Any:
        known = [value for part in parts if (value := getattr(part, name)) is not None]
        return choose(known) if known else None

    cores = min(len(sample.cores) for sample in samples)
    indexes = sorted({gpu.index for sample in samples for gpu in sample.gpus})
    gpus = []
    for index in indexes:
        same = [gpu for sample in samples for gpu in sample.gpus if gpu.index == index]
        figures = {field: of(same, field) for field in _GPU_FIGURES}
        throttle = tuple(sorted({reason for gpu in same for reason in gpu.throttle})) if choose is max else ()
        gpus.append(
            GpuSample(index=index, throttle=throttle, processes=same[-1].processes, status=same[-1].status, **figures)
        )
    return TelemetrySample(
        time=moment,
        cpu=of(samples, "cpu"),
        cores=tuple(choose(sample.cores[core] for sample in samples) for core in range(cores)),
        memory_used_bytes=of(samples, "memory_used_bytes"),
        memory_total_bytes=of(samples, "memory_total_bytes"),
        gpus=tuple(gpus),
        job=next((sample.job for sample in reversed(samples) if sample.job), None),
    )


_GPU_FIGURES = tuple(
    field for field in GpuSample.__struct_fields__ if field not in ("index", "throttle", "processes", "status")
)
"""Everything of a GPU that is a number."""

_encode = msgspec.msgpack.Encoder().encode


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        for statement in TABLES:
            connection.execute(statement).fetchall()
        connection.execute("SELECT count(*) FROM samples").fetchall()
        connection.execute("SELECT count(*) FROM points").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection
