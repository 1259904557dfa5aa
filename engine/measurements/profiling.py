"""Where a call's time goes, operator by operator, from the runtime's own profiler.

ONNX Runtime's profile and OpenVINO's counters are mapped back to the nodes of the variant's file; PyTorch's profiler
is summed by module. Times are medians over calls, or means where the profiler gives only sums. A profiler costs time
of its own, so the latency beside the operators is measured without it, and the remainder is the difference; where the
operators alone take longer than that, their times are scaled down to it and a note says so.
"""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from ..context import JobContext, LoadedVariant
from ..protocol import Conditions, OperatorTime, Profile
from ..runtimes import Runner, RuntimeUnavailable, load
from .conditions import OtherWork, conditions

PROFILED_RUNTIMES = ("pytorch", "onnxruntime", "openvino")
"""Each has a module `<runtime>_profile` with a function `operator_times`."""

PROFILED_SECONDS = 1.5
"""Calls are profiled for about so long, `FEWEST_CALLS` at least and `MOST_CALLS` at most."""

FEWEST_CALLS, MOST_CALLS = 5, 50

PLAIN_SECONDS = 1.0
"""Calls without the profiler, for the latency."""

MOST_OPERATORS = 300
"""Further operators of a variant are summed up in one entry."""


NOTABLE_SCALE = 0.97
"""Below it a note says that times were scaled."""


STRETCHED = 1.3
"""Calls that take so much longer than what they consist of were disturbed: operators are short, calls are not."""


class Profiled(NamedTuple):
    """What a profile found, before it is a record."""

    operators: tuple[OperatorTime, ...]
    remainder_ms: float
    conditions: Conditions
    latency_ms: float

    @property
    def accounted_ms(self) -> float:
        """What operators and remainder add up to: the call as it is when nothing disturbs it."""
        return sum(one.time_ms for one in self.operators) + self.remainder_ms


def measure_profile(job: JobContext, variant: LoadedVariant, runtime: str, batch_size: int) -> Profile:
    """The profile at this batch size (a model with a fixed batch: at that one).

    Raises RuntimeUnavailable when the runtime cannot run the variant or has no profiler we read, JobCancelled.
    """
    size = job.model.fixed_batch or batch_size
    others = OtherWork()
    found = profile_variant(job, variant, runtime, size)
    held = found.conditions
    slowest = found.operators[0] if found.operators else None
    sentence = f"{len(found.operators)} operators take {sum(one.time_ms for one in found.operators):.3g} ms"
    sentence += f" of the {found.latency_ms:.3g} ms a call takes"
    if slowest is not None and slowest.share is not None:
        sentence += f"; the slowest is {slowest.name} ({slowest.type}) with {100 * slowest.share:.0f} %"
    return Profile(
        id=uuid.uuid4().hex[:12],
        variant=variant.record.id,
        job=job.spec.job,
        created=time.time(),
        conditions=msgspec.structs.replace(held, notes=(*held.notes, *others.note())),
        batch_size=size,
        latency_ms=found.latency_ms,
        operators=found.operators,
        remainder_ms=found.remainder_ms,
        sentence=sentence + ".",
    )


def profile_variant(job: JobContext, variant: LoadedVariant, runtime: str, size: int) -> Profiled:
    """The operators of a variant, the slowest first.

    The latency is timed right before: on a busy machine one from minutes ago would not fit the operators' times.
    """
    read = _profiler(runtime)
    inputs = job.model.example(size)
    job.progress(0, None, f"loading {variant.record.name} under {runtime}")
    runner = load(variant, runtime, job.spec.device, job.spec.threads)
    try:
        job.progress(0, None, f"timing {variant.record.name} without the profiler")
        latency_ms = 1000 * _median_seconds(runner.bind(inputs))
        runner.settle()
        calls = int(min(MOST_CALLS, max(FEWEST_CALLS, 1000 * PROFILED_SECONDS / max(latency_ms, 1e-3))))
        job.progress(0, None, f"profiling {calls} calls of {variant.record.name} under {runtime}")
        operators, around_ms = read(job, variant, runner, inputs, calls)
        runner.settle()
        held = conditions(job, runner)
    finally:
        runner.close()
    spent = sum(one.time_ms for one in operators)
    remainder_ms = max(0.0, latency_ms - spent)
    if around_ms is not None and around_ms < remainder_ms:
        if latency_ms > STRETCHED * (spent + around_ms):
            calls_take = f"{spent + around_ms:.3g} ms undisturbed, {latency_ms:.3g} ms on the median"
            stretched = f"Other work on the machine stretched calls: {calls_take}."
            held = msgspec.structs.replace(held, notes=(*held.notes, stretched))
        remainder_ms = around_ms
    scale = min(1.0, latency_ms / spent) if spent else 1.0
    if scale < NOTABLE_SCALE:
        slowed = f"The profiler slowed operators down from {latency_ms:.3g} to {spent:.3g} ms in all: times are scaled."
        held = msgspec.structs.replace(held, notes=(*held.notes, slowed))
    shared = [
        msgspec.structs.replace(
            one, time_ms=scale * one.time_ms, share=scale * one.time_ms / (scale * spent + remainder_ms)
        )
        for one in sorted(operators, key=lambda one: one.time_ms, reverse=True)
    ]
    return Profiled(_summed_up(shared), remainder_ms, held, latency_ms)


def profile_or_time(job: JobContext, variant: LoadedVariant, runtime: str, size: int) -> Profiled:
    """As `profile_variant`; under a runtime whose profile is not read, the latency alone and a note that says so."""
    if profiler_of(runtime) in PROFILED_RUNTIMES:
        return profile_variant(job, variant, runtime, size)
    job.progress(0, None, f"loading {variant.record.name} under {runtime}")
    runner = load(variant, runtime, job.spec.device, job.spec.threads)
    try:
        latency_ms = 1000 * _median_seconds(runner.bind(job.model.example(size)))
        runner.settle()
        held = conditions(job, runner)
    finally:
        runner.close()
    unread = f"Operators are not known: Trimtab reads no profile of {runtime}."
    return Profiled((), latency_ms, msgspec.structs.replace(held, notes=(*held.notes, unread)), latency_ms)


Read = tuple[list[OperatorTime], float | None]
"""The operators, and milliseconds of a call outside of them where the profiler tells (None: it does not)."""

Reader = Callable[[JobContext, LoadedVariant, Runner, dict[str, np.ndarray], int], Read]


def profiler_of(runtime: str) -> str:
    """The runtime whose profiler reads this one: PyTorch under autocast is PyTorch."""
    return "pytorch" if runtime in ("pytorch-float16", "pytorch-bfloat16") else runtime


def _profiler(runtime: str) -> Reader:
    runtime = profiler_of(runtime)
    if runtime not in PROFILED_RUNTIMES:
        raise RuntimeUnavailable(f"Trimtab reads no profile of {runtime}: profile the variant under another runtime.")
    reader: Reader = importlib.import_module(f".{runtime}_profile", __package__).operator_times
    return reader


def _median_seconds(call: Callable[[], object]) -> float:
    """Median of calls for about `PLAIN_SECONDS`, after two that warm up."""
    call(), call()
    times: list[float] = []
    end = time.perf_counter() + PLAIN_SECONDS
    while len(times) < FEWEST_CALLS or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _summed_up(operators: list[OperatorTime]) -> tuple[OperatorTime, ...]:
    """The slowest operators, the others as one."""
    rest = operators[MOST_OPERATORS:]
    if not rest:
        return tuple(operators)
    other = OperatorTime(
        name=f"{len(rest)} further operators",
        type="other",
        time_ms=sum(one.time_ms for one in rest),
        calls=sum(one.calls for one in rest),
        share=sum(one.share or 0.0 for one in rest),
    )
    return (*operators[:MOST_OPERATORS], other)
