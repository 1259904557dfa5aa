"""The form of a load test as data: which fields a load has, what is proposed, and the command that says the same.

Pure functions; the screen is `screens/load_test_form.py`. The fields themselves come from the engine, so that a form, a
recipe and the command line never disagree; here is only which of them matter for a load, and in which order.
"""

import shlex
from typing import Any

import msgspec

from engine.protocol import Field, LoadSettings, Snapshot, Variant

from .comparison import latencies

RATE, CALLERS, OFFLINE, FIND, SWEEP = LOADS = (
    "requests at a rate",
    "callers that wait",
    "as fast as possible",
    "highest rate under a p99 limit",
    "sweep over batching",
)
"""What one can choose from."""

BATCHING = ("max_batch_size", "max_wait_ms", "instances")

IMPORTANT = {
    RATE: ("rate", "seconds", "slo_p99_ms", *BATCHING),
    CALLERS: ("concurrency", "seconds", "slo_p99_ms", *BATCHING),
    OFFLINE: ("seconds", "slo_p99_ms", *BATCHING),
    FIND: ("slo_p99_ms", "seconds", *BATCHING),
    SWEEP: ("slo_p99_ms", "seconds", "sweep_batch_sizes", "sweep_waits_ms", "sweep_instances"),
}
"""The fields that come first."""

CHOSEN_BY_LOAD = ("rate", "concurrency", "offline", "sweep")
"""Fields that the choice of the load fills in, or shows by itself."""

OF_ARRIVALS = ("arrivals", "burst_size", "trace")
"""Fields that only a rate has."""

OF_SWEEPS = ("sweep_batch_sizes", "sweep_waits_ms", "sweep_instances")

OF_SERVERS = ("url", "model_name")

SHARE_OF_BEST = 0.5
"""The rate that is proposed, as a part of the throughput measured offline."""

TAILS = 5.0
"""The p99 limit that is proposed, as a multiple of the largest batch's measured p99: waiting and queueing on top."""


def fields_for(fields: tuple[Field, ...], load: str, proposed: dict[str, Any]) -> tuple[Field, ...]:
    """The fields of a load: first those that matter, then all others that apply."""
    by_name = {field.name: field for field in fields}
    first = [by_name[name] for name in IMPORTANT[load] if name in by_name]
    hidden = {*CHOSEN_BY_LOAD, *IMPORTANT[load]}
    hidden |= set() if load == RATE else set(OF_ARRIVALS)
    hidden |= {*BATCHING, *OF_SERVERS} if load == SWEEP else set(OF_SWEEPS)
    rest = [field for field in fields if field.name not in hidden]
    return tuple(_shaped(field, load, proposed) for field in (*first, *rest))


def _shaped(field: Field, load: str, proposed: dict[str, Any]) -> Field:
    """The field as this load needs it: what it cannot do without has a value; what may stay empty says so."""
    needed = field.name in ("rate", "concurrency") or (field.name == "slo_p99_ms" and load == FIND)
    if needed:
        return msgspec.structs.replace(field, optional=False, default=proposed.get(field.name, field.default))
    return field


def load_of(settings: LoadSettings) -> str:
    """Which load the settings are."""
    if settings.kind != "run":
        return SWEEP if settings.kind == "sweep" else FIND
    return OFFLINE if settings.offline else CALLERS if settings.concurrency is not None else RATE


def parameters_of(load: str, values: dict[str, Any]) -> dict[str, Any]:
    """A form's values as the engine takes them; what is empty is left out."""
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    if load == OFFLINE:
        given["offline"] = True
    if load == SWEEP:
        given["sweep"] = True
    if given.get("arrivals") == "replay":
        given.pop("rate", None)
    return given


def settings_of(load: str, values: dict[str, Any]) -> LoadSettings:
    """The settings of a form. Raises ValueError with a sentence."""
    try:
        return msgspec.convert(parameters_of(load, values), LoadSettings, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}.") from None


def proposal(snapshot: Snapshot, variant: Variant) -> dict[str, Any]:
    """What to begin with: half of what the variant managed when it was timed, and a limit that leaves room to batch."""
    timed = latencies(snapshot, variant.id)
    best = max((one.throughput_per_s for one in timed), default=None)
    slowest = max((one.p99_ms for one in timed), default=None)
    return {
        "rate": float(f"{best * SHARE_OF_BEST:.2g}") if best else 100.0,
        "concurrency": 16,
        "slo_p99_ms": float(f"{max(slowest * TAILS, 1.0):.2g}") if slowest else 50.0,
    }


def command_line(variant: str, load: str, values: dict[str, Any]) -> str:
    """The `trimtab load-test` line that does what a form would: only what differs from the defaults is written."""
    words = ["trimtab", "load-test", variant]
    defaults = {field.name: field.default for field in msgspec.structs.fields(LoadSettings)}
    for name, value in parameters_of(load, values).items():
        if (tuple(value) if isinstance(value, list) else value) == defaults.get(name):
            continue
        option = "--slo-p99" if name == "slo_p99_ms" else "--" + name.replace("_", "-")
        words.append(option)
        if value is not True:
            listed = value if isinstance(value, list | tuple) else (value,)
            words.append(",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in listed))
    return shlex.join(words)
