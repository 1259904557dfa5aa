"""Hand-made load tests: ticks of a run in which knobs are turned, finished tests, a sweep and a rate search.

As in `scenes`, everything is fixed, so a picture of it never changes by itself.
"""

import math
from typing import Any

import msgspec
import scenes

from engine.protocol import (
    CheckParameters,
    DescribeLoadTest,
    Done,
    Field,
    Job,
    LoadHistory,
    LoadKnobs,
    LoadMark,
    LoadPoint,
    LoadSearch,
    LoadSettings,
    LoadSummary,
    LoadTest,
    LoadTick,
    ParametersChecked,
    Percentile,
    ReadLoad,
    RecipeRun,
    RunAccepted,
    RunLoadTest,
    Running,
    Snapshot,
    SteerLoad,
    Step,
    Succeeded,
    TechniqueInfo,
    Techniques,
    Use,
)

SETTINGS = LoadSettings(rate=400.0, seconds=30.0, slo_p99_ms=20.0)

RUN = "r9"
"""The recipe run of the load test that a test starts."""


def tick(number: int, settings: LoadSettings = SETTINGS, start: float = scenes.NOW - 12, **more: Any) -> LoadTick:
    """The `number`-th quarter of a second, from 1 on, of a run that began at `start`."""
    seconds = number / 4
    wave = math.sin(number / 5)
    knobs = LoadKnobs(
        rate=settings.rate,
        concurrency=settings.concurrency,
        max_batch_size=settings.max_batch_size,
        max_wait_ms=settings.max_wait_ms,
        instances=settings.instances,
        paused=False,
    )
    rate = settings.rate or 300.0
    changes: dict[str, Any] = {
        "time": start + seconds,
        "seconds": seconds,
        "span_seconds": 0.25,
        "phase": "warm-up" if seconds < 1 else "measuring",
        "knobs": knobs,
        "offered_per_s": rate + 20 * wave,
        "achieved_per_s": rate - 4 + 15 * wave,
        "completed": int(rate / 4),
        "rejected": 0,
        "failed": 0,
        "outstanding": 12,
        "queue_depth": 3 + int(3 * (1 + wave)),
        "p50_ms": 3.1 + 0.4 * wave,
        "p99_ms": 8.9 + 2.5 * wave,
        "batch_sizes": {"4": 5, "8": 12, "16": 3},
        "cpu": 0.72 + 0.1 * wave,
    }
    return LoadTick(**(changes | more))


def ticks(count: int, settings: LoadSettings = SETTINGS, **more: Any) -> tuple[LoadTick, ...]:
    """The first so many; after two thirds the maximum batch size was doubled."""
    found = [tick(number, settings, **more) for number in range(1, count + 1)]
    turned = 2 * count // 3
    mark = LoadMark(seconds=turned / 4, text="max batch 64")
    for at in range(turned, count):
        knobs = msgspec.structs.replace(found[at].knobs, max_batch_size=64)
        marks = (mark,) if at == turned else ()
        found[at] = msgspec.structs.replace(found[at], knobs=knobs, marks=marks, p99_ms=12.0, batch_sizes={"32": 9})
    return tuple(found)


def job(id: str = "j8", variant: str = "v2", ended: bool = False, **more: Any) -> Job:
    """A load test's job."""
    state: Any = Running(started=scenes.NOW - 13, pid=4300, done=12, total=30, message="measuring · 398/s")
    if ended:
        state = Succeeded(started=scenes.NOW - 60, finished=scenes.NOW - 29, summary="398/s, p99 8.92 ms.")
    return Job(
        id=id,
        kind="load-test",
        title=f"load-test of {variant}",
        created=more.pop("created", scenes.NOW - 14),
        variant=variant,
        recipe_run=more.pop("recipe_run", RUN),
        state=more.pop("state", state),
    )


def summary(achieved: float = 398.2, p99: float = 8.92, **more: Any) -> LoadSummary:
    """A measured part."""
    shapes = {"p50": 0.35, "p90": 0.7, "p95": 0.8, "p99": 1.0, "p999": 1.3}
    latency = {
        name: Percentile(value=p99 * share, low=p99 * share * 0.97, high=p99 * share * 1.04, at_most=p99 * share * 1.05)
        for name, share in shapes.items()
    }
    known: dict[str, Any] = {
        "scenario": "Server",
        "valid": True,
        "seconds": 29.0,
        "offered_per_s": 400.1,
        "achieved_per_s": achieved,
        "rows_per_s": achieved,
        "completed": int(achieved * 29),
        "rejected": 0,
        "failed": 0,
        "unanswered": 0,
        "latency_ms": latency,
        "requests_for_p99": 459,
        "queue_ms": {"mean": 1.1, "p50": 0.9, "p99": 4.0},
        "forming_ms": {"mean": 0.02, "p50": 0.02, "p99": 0.05},
        "compute_ms": {"mean": 2.2, "p50": 2.1, "p99": 3.9},
        "batch_sizes": {"4": 500, "8": 1200, "16": 300},
        "slo_ms": 20.0,
        "verdict": "PASS",
    }
    return LoadSummary(**(known | more))


def finished(
    id: str = "t1",
    variant: str = "v2",
    job: str = "j8",
    settings: LoadSettings = SETTINGS,
    age: float = 29,
    **more: Any,
) -> LoadTest:
    """A finished test."""
    return LoadTest(
        id=id,
        variant=variant,
        job=job,
        created=scenes.NOW - age,
        conditions=scenes.CONDITIONS["onnxruntime"],
        settings=settings,
        summary=more.pop("summary", None) or summary(),
        use=more.pop("use", Use(cpu=0.74)),
        **more,
    )


def sweep(ended: bool = True) -> tuple[LoadTest | LoadSearch, ...]:
    """Nine points of maximum batch sizes and waits; the sixth is the knee, the last the fastest within the limit."""
    settings = LoadSettings(sweep=True, slo_p99_ms=30.0, seconds=4.0)
    tests, points = [], []
    grid = [(batch, wait) for batch in (1, 4, 8, 16, 32) for wait in (0.0, 2.0)]
    for number, (batch, wait) in enumerate(grid):
        rate = 150 * batch**0.55 * (1.06 if wait else 1.0)
        p99 = 4.0 + 0.9 * batch + 1.5 * wait
        mine = msgspec.structs.replace(
            settings, sweep=False, concurrency=2 * batch, max_batch_size=batch, max_wait_ms=wait
        )
        verdict = "PASS" if p99 < 30 else "FAIL"
        found = summary(rate, p99, slo_ms=30.0, verdict=verdict, batch_sizes={str(batch): 200})
        tests.append(
            finished(f"p{number}", settings=mine, age=100 - number, summary=found, search="sweep-1", purpose="point")
        )
        points.append(
            LoadPoint(
                settings=mine,
                offered_per_s=rate,
                achieved_per_s=rate,
                rows_per_s=rate,
                p50_ms=p99 / 3,
                p99_ms=p99,
                verdict=verdict,  # type: ignore[arg-type]
            )
        )
    if not ended:
        return tuple(tests[:4])
    found_search = LoadSearch(
        id="s1",
        variant="v2",
        job="j8",
        created=scenes.NOW - 5,
        conditions=scenes.CONDITIONS["onnxruntime"],
        settings=settings,
        search="sweep-1",
        sentence="Batches of up to 16 with 2 ms of waiting give 731 requests/s with p99 21.4 ms.",
        points=tuple(points),
        front=(0, 2, 4, 6, 7, 8, 9),
        knee=6,
        recommended=7,
    )
    return (*tests, found_search)


def rate_search(ended: bool = True) -> tuple[LoadTest | LoadSearch, ...]:
    """A capacity, four probes, two confirmations."""
    settings = LoadSettings(slo_p99_ms=20.0, seconds=10.0)
    tests: list[LoadTest | LoadSearch] = []
    plan = (
        (None, 812.0, 41.0, None, "capacity"),
        (700.0, 655.0, 95.0, "FAIL", "probe"),
        (400.0, 399.0, 8.9, "PASS", "probe"),
        (550.0, 549.0, 14.2, "PASS", "probe"),
        (620.0, 618.0, 21.3, "UNCLEAR", "probe"),
        (550.0, 550.0, 14.9, "PASS", "confirmation"),
    )
    for number, (rate, achieved, p99, verdict, purpose) in enumerate(plan):
        mine = msgspec.structs.replace(settings, rate=rate, concurrency=None if rate else 64)
        found = summary(achieved, p99, verdict=verdict, offered_per_s=rate or achieved)
        tests.append(
            finished(
                f"q{number}",
                settings=mine,
                age=90 - number,
                summary=found,
                search="rate-1",
                purpose=purpose,  # type: ignore[arg-type]
            )
        )
    if not ended:
        return tuple(tests[:4])
    points = tuple(
        LoadPoint(
            settings=one.settings,
            offered_per_s=one.summary.offered_per_s,
            achieved_per_s=one.summary.achieved_per_s,
            rows_per_s=one.summary.rows_per_s,
            p50_ms=5.0,
            p99_ms=one.summary.latency_ms["p99"].value,
            verdict=one.verdict,
        )
        for one in tests
        if isinstance(one, LoadTest)
    )
    tests.append(
        LoadSearch(
            id="s2",
            variant="v2",
            job="j8",
            created=scenes.NOW - 5,
            conditions=scenes.CONDITIONS["onnxruntime"],
            settings=settings,
            search="rate-1",
            sentence="550 requests/s keep p99 under 20 ms; 620/s do not surely.",
            points=points,
            capacity_per_s=812.0,
            best_rate_per_s=550.0,
            bracket_high_per_s=620.0,
            p99_at_most_ms=15.8,
            confirmed=(3, 3),
        )
    )
    return tuple(tests)


def snapshot(*measurements: LoadTest | LoadSearch, jobs: tuple[Job, ...] = (), gpus: int = 0) -> Snapshot:
    """The scene of an afternoon with load tests in it, and nothing else at work."""
    work = scenes.work(gpus)
    others = tuple(one for one in work.jobs if one.is_done)
    return msgspec.structs.replace(work, jobs=(*others, *jobs), measurements=(*work.measurements, *measurements))


def fields() -> tuple[Field, ...]:
    """The form as the engine describes it."""
    from engine.recipes.loads import load_fields

    return load_fields()


def answers(history: tuple[LoadTick, ...] = (), settings: LoadSettings | None = SETTINGS) -> dict[type, Any]:
    """What the scene's engine answers about load tests."""
    info = TechniqueInfo(
        tag="load-test", title="Load test", group="load test", summary="Send requests and measure.", fields=fields()
    )
    steps = (Step(name="load-test", kind="measurement", word="load-test"),)
    return {
        DescribeLoadTest: Techniques(techniques=(info,)),
        CheckParameters: ParametersChecked(),
        RunLoadTest: RunAccepted(run=RecipeRun(id=RUN, title="Load test of int8", created=scenes.NOW, steps=steps)),
        ReadLoad: LoadHistory(ticks=history, settings=settings),
        SteerLoad: Done(),
    }
