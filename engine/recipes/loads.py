"""Load tests as recipes, commands and forms name them: raw values read into `LoadSettings`, with sentences.

A load is a rate, a concurrency or `offline`; with only a limit for p99 the highest rate is searched, with `sweep` the
batching settings. `search_key` says which tests belong to one search, so that a cancelled one goes on where it was.
"""

import difflib
import hashlib
import os
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..protocol import Field, LoadKnobs, LoadSettings, LoadTest, TechniqueInfo, Variant
from ..protocol.load import no_batch_for, too_many
from ..safety import clean_text
from ..session import Session, SessionError
from ..techniques import fields_of

WORD = "load-test"
"""What recipes and the command line call it."""

SWEEP_SECONDS = 4.0
"""Of each of a sweep's tests, where nothing else is asked for: there are dozens."""


def load_fields() -> tuple[Field, ...]:
    """The form."""
    return fields_of(LoadSettings)


def describe_load_test(variant: Variant | None, reason: str | None) -> TechniqueInfo:
    """The form with its heading, as techniques have one; `reason`: why it cannot be run now."""
    return TechniqueInfo(
        tag=WORD,
        title="Load test",
        group="load test",
        summary="Send requests to the variant behind the dynamic batcher and measure throughput and tail latency.",
        fields=load_fields(),
        unavailable=reason or (None if variant is not None else "Open a model first."),
    )


def read_load(raw: dict[str, Any]) -> LoadSettings:
    """Raw values (strings are taken for numbers and booleans) as settings. Raises SessionError with one sentence."""
    known = LoadSettings.__struct_fields__
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            raise SessionError(f"{WORD} has no key {clean_text(name, 60)}. {hint}")
    if raw.get("sweep") in (True, "true", "1") and "seconds" not in raw:
        raw = {**raw, "seconds": SWEEP_SECONDS}
    try:
        settings = msgspec.convert(raw, LoadSettings, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        place = f"{where.rstrip('`')}: " if where else ""
        raise SessionError(f"{WORD}: {place}{what[0].lower()}{what[1:]}.") from None
    _demand_sense(settings, raw)
    return settings


def check_load(raw: dict[str, Any]) -> dict[str, str]:
    """Field name → sentence for each value that is not valid; "" for what concerns no single field."""
    errors: dict[str, str] = {}
    for name, value in raw.items():
        try:
            msgspec.convert({name: value}, LoadSettings, strict=False)
        except msgspec.ValidationError as error:
            what = str(error).partition(" - at ")[0]
            errors[name] = f"{WORD}: {name}: {what[0].lower()}{what[1:]}."
    if not errors:
        try:
            read_load(raw)
        except SessionError as error:
            errors[""] = str(error)
    return errors


def _demand_sense(settings: LoadSettings, raw: dict[str, Any]) -> None:
    loads = [
        name
        for name, given in (
            ("rate", settings.rate is not None),
            ("concurrency", settings.concurrency is not None),
            ("offline", settings.offline),
        )
        if given
    ]
    if len(loads) > 1:
        raise SessionError(f"{WORD}: {' and '.join(loads)} exclude each other: one says what the load is.")
    if settings.kind == "run" and not loads and settings.arrivals != "replay":
        raise SessionError(
            f"{WORD}: say what load: rate (requests a second), concurrency (callers) or offline; or slo_p99_ms to find"
            " the highest rate, or sweep."
        )
    if settings.kind == "run" and settings.arrivals == "replay" and not settings.trace:
        raise SessionError(f"{WORD}: a replay needs a trace: a file with one arrival time in seconds a line.")
    _demand_use(settings)
    if settings.trace and not os.path.isabs(settings.trace):
        raise SessionError(f"{WORD}: the engine needs the whole path of the trace, from / on.")
    seconds = settings.duration
    if settings.rate is not None and (why := too_many(settings.rate, seconds or 0.0)):
        raise SessionError(f"{WORD}: {why}.")
    if seconds is not None and settings.warm_up_seconds >= seconds:
        if "warm_up_seconds" in raw:
            raise SessionError(f"{WORD}: warm_up_seconds must be shorter than seconds.")
        left = f"{seconds:g} s leave nothing to measure after {settings.warm_up_seconds:g} s of warm-up"
        raise SessionError(f"{WORD}: {left}.")
    if settings.url is None and (why := no_batch_for(settings.rows_per_request, settings.max_batch_size)):
        raise SessionError(f"{WORD}: {why}.")
    if any(
        size < 1 or not (settings.sweep or size <= settings.max_batch_size) for size in settings.preferred_batch_sizes
    ):
        raise SessionError(
            f"{WORD}: preferred_batch_sizes must be between 1 and max_batch_size ({settings.max_batch_size}) each."
        )
    if settings.sweep:
        for name, most in (("sweep_batch_sizes", 65_536), ("sweep_instances", 64)):
            if any(not 1 <= value <= most for value in getattr(settings, name)):
                raise SessionError(f"{WORD}: {name} must be between 1 and {most:,} each.")
        if not settings.sweep_batch_sizes or not settings.sweep_waits_ms:
            raise SessionError(f"{WORD}: a sweep needs at least one batch size and one wait.")
        if any(not 0 <= wait <= 60_000 for wait in settings.sweep_waits_ms):
            raise SessionError(f"{WORD}: sweep_waits_ms must be between 0 and 60000 each.")
    if settings.url is not None:
        parts = urlsplit(settings.url)
        if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
            raise SessionError(f"{WORD}: url must be http://host:port or grpc://host:port, not {settings.url}.")
        if settings.priority_levels > 1 or settings.preferred_batch_sizes:
            raise SessionError(f"{WORD}: a server has its own priorities and preferred_batch_sizes: leave them out.")
        if settings.sweep:
            raise SessionError(f"{WORD}: a server's batching cannot be changed from here, so a sweep needs no url.")


def _demand_use(settings: LoadSettings) -> None:
    """Refuse what would count for nothing in silence."""
    callers = settings.concurrency is not None or settings.offline or (settings.sweep and settings.rate is None)
    schedule = (not callers, "a load that follows a schedule: a rate, a trace, or slo_p99_ms alone")
    needs = {
        "arrivals": schedule,
        "trace": schedule if callers else (settings.arrivals == "replay", 'arrivals = "replay"'),
        "burst_size": schedule if callers else (settings.arrivals == "bursty", 'arrivals = "bursty"'),
        "model_name": (settings.url is not None, "url"),
        **dict.fromkeys(("sweep_batch_sizes", "sweep_waits_ms", "sweep_instances"), (settings.sweep, "sweep")),
    }
    standard = LoadSettings()
    if settings.url is not None:
        for name in ("max_wait_ms", "instances", "wait"):
            if getattr(settings, name) != getattr(standard, name):
                raise SessionError(f"{WORD}: with url {name} is the server's own: leave it out.")
    if settings.sweep and settings.offline:
        raise SessionError(f"{WORD}: a sweep sends at a rate or from callers, not offline: leave offline out.")
    for name, (met, needed) in needs.items():
        if not met and getattr(settings, name) not in (getattr(standard, name), ""):
            raise SessionError(f"{WORD}: {name} counts only with {needed}.")


def check_knobs(knobs: LoadKnobs, settings: LoadSettings | None = None) -> LoadKnobs:
    """The same knobs if all their values make sense, and if a load test with these settings has them. Raises
    SessionError."""
    limits = {name: getattr(knobs, name) for name in LoadKnobs.__struct_fields__ if name != "paused"}
    given = {name: value for name, value in limits.items() if value is not None}
    if errors := {name: text for name, text in check_load(given).items() if name}:
        raise SessionError(next(iter(errors.values())))
    if settings is not None and (why := _not_turned(knobs, settings)):
        raise SessionError(why)
    return knobs


def _not_turned(knobs: LoadKnobs, settings: LoadSettings) -> str | None:
    """Why this load test cannot turn one of these knobs, as a sentence; None: it has them all. What only the worker
    knows (the model takes one batch size only) it says in the job's log."""
    if knobs.rate is not None or knobs.concurrency is not None:
        if settings.offline:
            return "This load test sends as fast as possible: it has no rate and no concurrency to change."
        if knobs.rate is not None and settings.concurrency is not None:
            return "This load test has callers that wait for their answers, and no rate: change its concurrency."
        if knobs.concurrency is not None and settings.concurrency is None:
            return "This load test sends on schedule, and has no concurrency: change its rate."
    batching = (knobs.max_batch_size, knobs.max_wait_ms, knobs.instances)
    if settings.url is not None and any(value is not None for value in batching):
        return "The batching of a server cannot be changed from here."
    if knobs.max_batch_size is not None and (why := no_batch_for(settings.rows_per_request, knobs.max_batch_size)):
        return f"{why[0].upper()}{why[1:]}."
    return None


def search_key(variant: Variant, runtime: str, device: str, processor: str, settings: LoadSettings) -> str:
    """Ties the tests of one search together: the same question on the same machine has the same word."""
    if settings.kind == "run":
        return ""
    trace = None
    if settings.trace and os.path.exists(settings.trace):
        there = os.stat(settings.trace)
        trace = [there.st_size, there.st_mtime_ns]
    asked = msgspec.json.encode([variant.id, runtime, device, processor, trace, msgspec.to_builtins(settings)])
    return f"{settings.kind}-{hashlib.sha256(asked).hexdigest()[:12]}"


def known_tests(session: Session, search: str) -> tuple[LoadTest, ...]:
    """Tests of an earlier job of the same search, oldest first."""
    found = (one for one in session.measurements.values() if isinstance(one, LoadTest))
    return tuple(one for one in found if search and one.search == search)
