"""Latency of a variant, paired with the baseline in the same worker (method: `timing`).

The baseline always runs in its own runtime (PyTorch eager for a module, ONNX Runtime for an `.onnx`), whatever the
variant runs in. Beside it run a second load of the baseline (its ratio to the first is the noise floor) and, where
it can, the parent under the variant's runtime: INT8 on ONNX Runtime against eager FP32 mixes two gains.

Verdict, with delta the larger of 1 % and the floor: FASTER when the whole interval lies above 1 + delta, SLOWER
below 1 / (1 + delta), SAME when it lies within delta and within 5 % of 1, else UNDECIDED. On a GPU a call's time
includes the synchronisation at its end.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from typing import Literal

import numpy as np
import psutil
import torch

from ..context import JobContext, LoadedVariant
from ..models import Arrays, ModelError
from ..protocol import LEAST_DELTA, Latency, Ratio
from ..runtimes import RUNTIMES, Runner, RuntimeUnavailable, load
from .conditions import OtherWork, conditions
from .statistics import Interval
from .timing import Arm, log_ratio, time_rounds, warm_up

BUDGET_SECONDS = 5.0
"""Rounds of one batch size end about then; two batch sizes of a small model take 15 s with loading and warm-up."""

WIDEST_SAME = 0.05
"""On a noisy machine the floor can be anything: what lies further apart than this is never called SAME."""

FREE_MEMORY_SHARE = 0.25
"""No second load of a baseline that is bigger than this share of the free memory: then there is no floor."""

Verdict = Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]


def measure_latency(
    job: JobContext,
    variant: LoadedVariant,
    runtime: str,
    batch_sizes: tuple[int, ...],
    budget: float = BUDGET_SECONDS,
) -> list[Latency]:
    """One `Latency` per batch size (a model with a fixed batch: that one alone).

    Raises RuntimeUnavailable when an arm cannot run here, ModelError when a call fails, JobCancelled.
    """
    baseline = job.variants[job.spec.baseline or variant.record.id]
    sizes = batch_sizes if job.model.fixed_batch is None else (job.model.fixed_batch,)
    arms = _Arms(job, variant, runtime, baseline)
    try:
        return [_at_batch(job, arms, size, position, len(sizes), budget) for position, size in enumerate(sizes)]
    finally:
        arms.close()


class _Arms:
    """The loaded runners of a comparison, made once for all batch sizes."""

    def __init__(self, job: JobContext, variant: LoadedVariant, runtime: str, baseline: LoadedVariant) -> None:
        self.variant, self.baseline, self.runtime, self.own_runtime = variant, baseline, runtime, job.model.own_runtime
        self.job = job
        self.loaded: list[Runner] = []
        self.notes: tuple[str, ...] = job.model.notes[:1] if job.model.fixed_batch else ()
        self.is_baseline = variant.record.id == baseline.record.id and runtime == self.own_runtime
        try:
            self.first = self._load(baseline, self.own_runtime)
            self.subject = self.first if self.is_baseline else self._load(variant, runtime)
            self.parent_runner, self.parent = self._load_parent()
            self.second = self._second_load()
        except BaseException:
            self.close()
            raise

    def _load(self, variant: LoadedVariant, runtime: str) -> Runner:
        self.job.progress(0, None, f"loading {variant.record.name} under {runtime}")
        runner = load(variant, runtime, self.job.spec.device, self.job.spec.threads)
        self.loaded.append(runner)
        return runner

    def _load_parent(self) -> tuple[Runner | None, LoadedVariant | None]:
        """The parent under the variant's runtime; no runner of its own when that is what the baseline arm is."""
        parent = self.job.variants.get(self.variant.record.parent or "")
        if parent is None or parent.record.format not in RUNTIMES[self.runtime][1]:
            return None, None
        if parent.record.id == self.baseline.record.id and self.runtime == self.own_runtime:
            return self.first, parent
        try:
            return self._load(parent, self.runtime), parent
        except RuntimeUnavailable as error:
            self.notes += (f"Not compared with its parent: {error}",)
            return None, None

    def _second_load(self) -> Runner | None:
        if self.baseline.record.size_bytes > FREE_MEMORY_SHARE * psutil.virtual_memory().available:
            self.notes += ("No noise floor: too little memory for a second load of the baseline.",)
            return None
        return self._load(self.baseline, self.own_runtime)

    def close(self) -> None:
        for runner in self.loaded:
            runner.close()


def _at_batch(job: JobContext, arms: _Arms, size: int, position: int, of: int, budget: float) -> Latency:
    inputs = job.model.example(size)
    others = OtherWork()
    baseline = _bound("baseline", arms.first, inputs, arms.baseline, size)
    subject = baseline if arms.is_baseline else _bound("variant", arms.subject, inputs, arms.variant, size)
    parent = None
    if arms.parent_runner is not None and arms.parent is not None:
        parent = (
            baseline
            if arms.parent_runner is arms.first
            else _bound("parent", arms.parent_runner, inputs, arms.parent, size)
        )
    again = None if arms.second is None else _bound("baseline again", arms.second, inputs, arms.baseline, size)
    running = list({id(arm): arm for arm in (baseline, subject, parent, again) if arm is not None}.values())

    for arm in running:
        job.progress(position, of, f"batch {size}: warming up {arm.name}")
        warm_up(arm)

    def progress(rounds: int, seconds: float, half_width: float) -> None:
        known = "" if math.isnan(half_width) else f", ±{100 * half_width:.1f} %"
        job.progress(position + min(0.99, seconds / budget), of, f"batch {size}: round {rounds + 1}{known}")

    watched = (baseline, subject if subject is not baseline or again is None else again)
    time_rounds(running, watched, budget=budget, seed=job.spec.seed, progress=progress)

    floor = None if again is None else _reach(log_ratio(baseline, again))
    disturbed = others.note()
    calls = np.concatenate(subject.times) * 1000
    p50, p90, p99 = np.percentile(calls, [50, 90, 99])
    notes = (
        *arms.notes,
        *disturbed,
        *_output_notes(arms.subject, inputs),
        *_gpu_notes(arms.subject, inputs, float(p50)),
    )
    unstable = [arm.name for arm in running if not arm.stable]
    if unstable:
        notes += (f"Not steady after warm-up: {', '.join(unstable)}.",)
    return Latency(
        id=uuid.uuid4().hex[:12],
        variant=arms.variant.record.id,
        job=job.spec.job,
        created=time.time(),
        conditions=conditions(job, arms.subject, notes),
        batch_size=size,
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        throughput_per_s=float(size * 1000 / calls.mean()),
        samples=len(calls),
        speedup=_ratio(baseline, subject, arms.first, arms.baseline, size, floor),
        speedup_over_parent=None
        if parent is None or arms.parent is None or arms.parent_runner is None
        else _ratio(parent, subject, arms.parent_runner, arms.parent, size, floor),
        noise_floor=floor,
    )


def _bound(name: str, runner: Runner, inputs: Arrays, variant: LoadedVariant, size: int) -> Arm:
    """An arm that makes this call; the first one, made here, shows whether it works at all."""
    try:
        call: Callable[[], object] = runner.bind(inputs)
        call()
    except (ModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"{variant.record.name} fails under {runner.runtime} at batch {size}: {text}") from error
    return Arm(name, call, runner.settle)


def _ratio(slow: Arm, subject: Arm, runner: Runner, against: LoadedVariant, size: int, floor: float | None) -> Ratio:
    words = f"{against.record.name} · {runner.runtime} · {runner.device} · batch {size}"
    if slow is subject:
        return Ratio(ratio=1.0, low=1.0, high=1.0, verdict="SAME", against=words, against_variant=against.record.id)
    value, low, high = (math.exp(part) for part in log_ratio(slow, subject))
    return Ratio(
        ratio=value,
        low=low,
        high=high,
        verdict=speed_verdict(low, high, floor),
        against=words,
        against_variant=against.record.id,
    )


def speed_verdict(low: float, high: float, floor: float | None) -> Verdict:
    """What an interval of a speed-up says, given the noise floor (None: unknown)."""
    delta = max(LEAST_DELTA, floor or 0.0)
    if low > 1 + delta:
        return "FASTER"
    if high < 1 / (1 + delta):
        return "SLOWER"
    same = min(delta, WIDEST_SAME)
    if low >= 1 / (1 + same) and high <= 1 + same:
        return "SAME"
    return "UNDECIDED"


def _reach(log_interval: Interval) -> float:
    """How far from 1 the A/A ratio may be: its interval's far end, not its half-width, so an offset counts too."""
    return math.exp(max(abs(log_interval.low), abs(log_interval.high))) - 1


def _output_notes(runner: Runner, inputs: Arrays) -> tuple[str, ...]:
    """A fast wrong answer is no speed-up: said here, judged by the accuracy measurement."""
    outputs = runner.run(inputs)
    bad = [name for name, array in outputs.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    return (f"Outputs that are not finite numbers: {', '.join(bad)}.",) if bad else ()


def _gpu_notes(runner: Runner, inputs: Arrays, p50_ms: float) -> tuple[str, ...]:
    """How much of a call the GPU works, where the runner can tell; the rest is launching and synchronising."""
    read = getattr(runner, "device_ms", None)
    on_gpu = None if read is None else read(inputs)
    if on_gpu is None:
        return ()
    return (f"By CUDA events the GPU works {on_gpu:.3f} ms of the {p50_ms:.3f} ms a call takes.",)
