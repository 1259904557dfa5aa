"""`trimtab load-test` and `trimtab steer`: start a load test or a search of several, and turn its knobs meanwhile.

Exit status of a load test: 0 measured, and within the p99 limit where one was given; 3 measured, but INVALID or not
within the limit; otherwise as every command (1 failed, 2 wrong usage, 130 cancelled).
"""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import msgspec

from engine.client import EngineError
from engine.protocol import (
    GetLoadTest,
    Job,
    LoadKnobs,
    LoadSearch,
    LoadSettings,
    LoadTest,
    RunAccepted,
    RunLoadTest,
    Running,
    Snapshot,
    SteerLoad,
    Text,
)

from .headless import CANCELLED, attached, find_run, follow, print_result
from .progress import printable
from .sessions import UsageError

LISTS = ("preferred_batch_sizes", "sweep_batch_sizes", "sweep_waits_ms", "sweep_instances")
"""Options with several values, set apart by commas."""

CHOICES = ("arrivals", "wait")
"""Options that are one of a few words."""

BEYOND_LIMIT = 3
"""Measured, but not what was asked for."""

KNOBS = ("rate", "concurrency", "max_batch_size", "max_wait_ms", "instances")
"""What `trimtab steer` can turn, beside pausing and stopping."""


def settings_of(options: argparse.Namespace) -> LoadSettings:
    """The options as settings. Raises UsageError with a sentence."""
    raw: dict[str, Any] = {}
    for name in LoadSettings.__struct_fields__:
        value = getattr(options, "slo_p99" if name == "slo_p99_ms" else name, None)
        if value is not None:
            raw[name] = value.split(",") if name in LISTS else value
    if "trace" in raw:
        raw["trace"] = str(Path(raw["trace"]).absolute())
    return _checked(raw)


def _checked(raw: dict[str, Any]) -> LoadSettings:
    """The values as settings. Raises UsageError with a sentence that names the option."""
    try:
        return msgspec.convert(raw, LoadSettings, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = where.partition("[")[0].rstrip("`")
        option = "slo-p99" if name == "slo_p99_ms" else name.replace("_", "-")
        if choices := get_args(LoadSettings.__annotations__[name].__origin__) if name in CHOICES else ():
            raise UsageError(f"--{option} is {' or '.join(choices)}, not {printable(str(raw[name]))}.") from None
        raise UsageError(f"--{option}: {what[0].lower()}{what[1:]}.") from None


async def load_test(session: Path, options: argparse.Namespace) -> int:
    """`trimtab load-test VARIANT`: one load, the highest rate within a limit, or a sweep."""
    async with attached(session) as client:
        command = RunLoadTest(
            request=0,
            variant=options.variant,
            settings=settings_of(options),
            runtime=options.runtime,
            device=options.device,
            again=options.again,
        )
        try:
            accepted = await client.request(command)
        except EngineError as error:
            raise UsageError(str(error)) from None
        assert isinstance(accepted, RunAccepted)
        cancelled = await follow(client, accepted.run, options)
        ended = find_run(client.state, accepted.run)
        job = next((step.job for step in ended.steps if step.job), None)
        text = await client.request(
            GetLoadTest(request=0, job=job or "", format="json" if options.json else "markdown")
        )
        assert isinstance(text, Text)
        if text.text:
            print_result(text.text)
        if cancelled:
            if options.json and not text.text:
                print_result(json.dumps({"schema": "trimtab/load-test/1", "error": "cancelled"}))
            return CANCELLED
        failed = ended.error or next((step.reason for step in ended.steps if step.status != "succeeded"), None)
        if failed:
            raise EngineError(failed)
        return 0 if _as_asked(client.state, job) else BEYOND_LIMIT


async def steer(session: Path, options: argparse.Namespace) -> int:
    """`trimtab steer`: turn the knobs of the load test that runs in this session."""
    async with attached(session) as client:
        running = [job for job in client.state.jobs if job.kind == "load-test" and isinstance(job.state, Running)]
        if not running:
            raise UsageError("No load test is running in this session. Start one: trimtab load-test VARIANT --rate 100")
        job: Job = running[-1]
        paused = True if options.pause else False if options.resume else None
        turned = {name: value for name in KNOBS if (value := getattr(options, name)) is not None}
        _checked(turned)
        knobs = LoadKnobs(**turned, paused=paused)
        if knobs == LoadKnobs() and not options.stop:
            raise UsageError(
                "Nothing to change: give --rate, --max-batch-size, --pause, --stop … (trimtab steer --help)."
            )
        try:
            await client.request(SteerLoad(request=0, job=job.id, knobs=knobs, stop=options.stop))
        except EngineError as error:
            raise UsageError(str(error)) from None
        if options.json:
            print_result(json.dumps({"schema": "trimtab/steer/1", "job": job.id}))
        else:
            said = [f"{name.replace('_', ' ')} {value:g}" for name, value in turned.items()]
            said += [] if paused is None else ["paused" if paused else "resumed"]
            said += ["it ends now, and what was measured is kept"] if options.stop else []
            print_result(f"{printable(job.title)}: {', '.join(said)}.")
        return 0


def _as_asked(state: Snapshot, job: str | None) -> bool:
    """Everything that decides is valid and within the limit."""
    found = [one for one in state.measurements if isinstance(one, LoadTest | LoadSearch) and one.job == job]
    searches = [one for one in found if isinstance(one, LoadSearch)]
    if searches:
        search = searches[-1]
        if search.settings.kind == "rate":
            return search.best_rate_per_s is not None
        return search.recommended is not None
    return all(isinstance(one, LoadTest) and one.word in ("", "PASS") for one in found)
