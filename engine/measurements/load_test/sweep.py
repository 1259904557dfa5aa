"""The sweep over maximum batch size, wait and instances: what each gives in throughput and tail latency.

Each setting is tested with as many callers as its batches have room for, so that full batches can form (or at the
rate the user names). The front are those settings that no other beats in both; its knee has the most throughput for
its latency (Kleinrock's power: throughput over delay). Larger batches are given up once they gained nothing twice, as
Triton's Model Navigator does, so that one unlucky test does not end it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence

import msgspec

from ...protocol import LoadPoint, LoadSearch, LoadSettings, LoadTest, TestLoad
from .rate_search import reused_in_words
from .running import LoadStage, fitted

LEAST_GAIN = 1.05
"""Throughput that the next batch size must bring over the best so far."""

PATIENCE = 2
"""Batch sizes in a row that may bring less before larger ones are not tried."""

UNSERVED = 0.01
"""Share of requests that may be rejected or fail: with more p99 says nothing about those who asked."""

MOST_INSTANCES, MOST_CALLERS = 64, 100_000
"""What `LoadSettings` takes at the most."""

COUNTS_TRIED = 5
"""Numbers of instances that are tried where none are named: each is a whole row of tests for every wait."""

COPIES_ON_GPU = 4
"""Most copies on a GPU where none are named: every one holds the whole model in its memory."""


def sweep(stage: LoadStage, task: TestLoad) -> LoadSearch:
    """The whole sweep; with what is known so far when the user asks it to stop."""
    known = {_setting(test.settings): test for test in stage.still_valid(task.known)}
    tests: list[LoadTest] = []
    reused = given_up = 0
    spec = stage.job.spec
    cores = spec.threads if spec.device == "cpu" else COPIES_ON_GPU
    grid = plan(task.settings, min(cores, os.cpu_count() or 1), stage.job.model.fixed_batch)
    done, total = 0, sum(len(row) for row in grid)
    for row in grid:
        best, without_gain = 0.0, 0
        for position, settings in enumerate(row):
            if stage.stopped or without_gain >= PATIENCE:
                total -= len(row) - position
                given_up += 0 if stage.stopped else len(row) - position
                break
            done += 1
            test = known.get(_setting(settings))
            reused += test is not None
            if test is None:
                words = f"{done} of {total}: batch {settings.max_batch_size}, wait {settings.max_wait_ms:g} ms"
                words += f", {settings.instances} instances" if settings.instances > 1 else ""
                test = stage.test(settings, words, task.search, "point")
                if stage.stopped:
                    break
                stage.keep(test)
            tests.append(test)
            gained = test.summary.rows_per_s >= LEAST_GAIN * best
            without_gain = 0 if gained or task.settings.rate is not None else without_gain + 1
            best = max(best, test.summary.rows_per_s)
    return _result(stage, task, tests, reused, given_up)


def plan(settings: LoadSettings, cores: int, fixed_batch: int | None) -> list[list[LoadSettings]]:
    """Rows of settings, each with rising batch size. `cores`: the most instances, where none are named."""
    settings, _ = fitted(settings, fixed_batch)  # as they are stored, or a test would not be found again
    asked = settings.sweep_batch_sizes if fixed_batch is None else (fixed_batch,)
    sizes = sorted({max(size, settings.rows_per_request if fixed_batch is None else 1) for size in asked})
    instances = sorted(set(settings.sweep_instances or instance_counts(cores)))
    return [
        [
            msgspec.structs.replace(
                settings,
                sweep=False,
                max_batch_size=size,
                max_wait_ms=wait,
                instances=count,
                concurrency=None
                if settings.rate is not None
                else settings.concurrency or min(size * count, MOST_CALLERS),
            )
            for size in sizes
        ]
        for count in instances
        for wait in sorted(set(settings.sweep_waits_ms))
    ]


def instance_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4, … and the cores; in larger steps where those would be more than `COUNTS_TRIED`."""
    most, step = min(max(cores, 1), MOST_INSTANCES), 2
    while True:
        powers = [step**exponent for exponent in range(most.bit_length()) if step**exponent < most]
        if len(powers) < COUNTS_TRIED:
            return (*powers, most)
        step *= 2


def pareto_front(points: Sequence[LoadPoint]) -> tuple[int, ...]:
    """Positions of the points that no other beats in both throughput and p99, by rising throughput.

    p99 is of the requests that were completed: a setting that left more than `UNSERVED` of them without is no way to
    get it.
    """
    able = [
        (number, point.rows_per_s, point.p99_ms)
        for number, point in enumerate(points)
        if point.p99_ms is not None and point.unserved <= UNSERVED
    ]
    front: list[int] = []
    lowest = float("inf")
    for number, _, latency in sorted(able, key=lambda one: (-one[1], one[2])):
        if latency < lowest:
            front.append(number)
            lowest = latency
    return tuple(reversed(front))


def knee_of(points: Sequence[LoadPoint], front: Sequence[int]) -> int | None:
    """The front's point with the most throughput for its latency."""

    def power(number: int) -> float:
        latency = points[number].p99_ms
        return points[number].rows_per_s / latency if latency else 0.0

    return max(front, key=power, default=None)


def _result(stage: LoadStage, task: TestLoad, tests: list[LoadTest], reused: int, given_up: int) -> LoadSearch:
    points = tuple(test.as_point() for test in tests if test.summary.valid)
    front = pareto_front(points)
    knee = knee_of(points, front)
    within = [number for number in front if points[number].verdict == "PASS"]
    limit = task.settings.slo_p99_ms
    recommended = within[-1] if within else knee if limit is None else None
    if recommended is not None:
        sentence = f"Take {_words(points[recommended])}"
        sentence += f", the highest throughput with p99 under {limit:g} ms" if within else ", the knee of the front"
    elif not points:
        sentence = "No setting could be measured"
        if stage.stopped:
            sentence += ": it was stopped before the first ended"
        elif tests:
            sentence += f": every test is INVALID ({tests[0].summary.reasons[0]})"
    elif unclear := [number for number in front if points[number].verdict == "UNCLEAR"]:
        sentence = f"UNCLEAR whether any setting keeps p99 under {limit:g} ms: longer tests (seconds) would tell"
        sentence += f". {_nearest(points, unclear, limit)}"
    elif not front:
        sentence = "No setting served the load"
    else:
        sentence = f"No setting keeps p99 under {limit:g} ms; the nearest is {_words(points[front[0]])}"
    if recommended is not None and front:
        sentence += f". The most throughput: {_words(points[front[-1]])}" if front[-1] != recommended else ""
    if stage.stopped:
        sentence += " (stopped early)"
    return LoadSearch(
        id=uuid.uuid4().hex[:12],
        variant=stage.variant.record.id,
        job=stage.job.spec.job,
        created=time.time(),
        conditions=tests[0].conditions if tests else stage.conditions(task.settings.instances),
        settings=task.settings,
        search=task.search,
        sentence=sentence + "." + _untried(given_up) + _lossy(points) + reused_in_words(reused, len(tests)),
        points=points,
        front=front,
        knee=knee,
        recommended=recommended,
    )


def _untried(settings: int) -> str:
    """What is said of so many settings that were given up."""
    if not settings:
        return ""
    many = f"{settings} setting{'s' if settings > 1 else ''}"
    return f" {many} with larger batches were not tried: the smaller ones had stopped gaining."


def _lossy(points: Sequence[LoadPoint]) -> str:
    """What is said of the settings that are left out for the requests they did not serve."""
    shares = [point.unserved for point in points if point.unserved > UNSERVED]
    if not shares:
        return ""
    many = "1 setting was" if len(shares) == 1 else f"{len(shares)} settings were"
    return f" {many} left out: up to {max(shares):.0%} of the requests were rejected or failed."


def _nearest(points: Sequence[LoadPoint], unclear: Sequence[int], limit: float | None) -> str:
    """Of the settings that nothing can be claimed of (by rising throughput), the one to look at more closely."""
    below = [number for number in unclear if limit is not None and (points[number].p99_ms or limit) < limit]
    if below:
        return f"The most throughput with a measured p99 below it: {_words(points[below[-1]])}"
    return f"The nearest is {_words(points[unclear[0]])}"


def _words(point: LoadPoint) -> str:
    settings = point.settings
    text = f"batch {settings.max_batch_size}, wait {settings.max_wait_ms:g} ms, {settings.instances} instance"
    text += "s" if settings.instances > 1 else ""
    return f"{text} ({point.rows_per_s:.4g} samples/s, p99 {point.p99_ms:.3g} ms)"


def _setting(settings: LoadSettings) -> tuple[object, ...]:
    seconds = None if settings.replays else settings.duration  # a trace's length is only known once it was read
    return (settings.max_batch_size, settings.max_wait_ms, settings.instances, settings.concurrency, seconds)
