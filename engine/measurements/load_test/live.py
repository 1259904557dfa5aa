"""A load test while it runs: its knobs, its ticks, what the hardware did meanwhile.

A thread reports four times a second what happened since the last tick. Knobs are turned from other threads (the pause
from one that never waits for the others) and take effect with the next batch; each leaves a mark on the time axis.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
import numpy as np

from ...protocol import LoadKnobs, LoadMark, LoadSettings, LoadTick, Progressed, TelemetrySample, Ticked, Use
from ...protocol.load import no_batch_for
from .generator import LoadGenerator
from .record import Record
from .saturation import LOOKS, is_saturated
from .target import BatcherTarget, Target

if TYPE_CHECKING:
    from .running import LoadStage

TICK_SECONDS = 0.25
"""Between two ticks."""


class LiveTest:
    """A test that runs: its knobs, its ticks, what the hardware did meanwhile."""

    def __init__(
        self, stage: LoadStage, settings: LoadSettings, target: Target, generator: LoadGenerator, phase: str
    ) -> None:
        self.stage, self.settings, self.target, self.generator, self.phase = stage, settings, target, generator, phase
        self.stop_saturated = False
        self.turned = False
        self.here = settings.url is None or is_loopback(settings.url)
        """The model runs on this machine, so that what its processors do belongs to the test."""
        self._knobs = knobs_of(settings)
        self._turning = threading.Lock()
        """Around where the knobs stand: two threads turn some."""
        self._samples: list[tuple[float, TelemetrySample]] = []
        start = generator.load.warm_up_seconds
        self._looks = [start + share * (generator.load.seconds - start) for share in LOOKS if share < 1]
        self._saturated = False
        self._sizes: dict[int, int] = {}
        self._told = 0
        self._ended = threading.Event()

    def run(self) -> Record:
        """The record of the whole test; ticks go out meanwhile."""
        ticking = threading.Thread(target=self._tick_on, name="ticks", daemon=True)
        ticking.start()
        try:
            return self.generator.run()
        finally:
            self._ended.set()
            ticking.join(timeout=5.0)

    def set_paused(self, paused: bool) -> None:
        """Send nothing from now on, or go on; also before the first request. Never waits."""
        with self._turning:
            if paused == self._knobs.paused:
                return
            (self.generator.pause if paused else self.generator.resume)()
            self._knobs = msgspec.structs.replace(self._knobs, paused=paused)
            self.turned = True

    def turn(self, knobs: LoadKnobs) -> None:
        """Change what is given, but for the pause. Raises what a knob raises (ValueError with a sentence); those before
        it are changed."""
        generator = self.generator
        if knobs.rate is not None:
            generator.set_rate(knobs.rate)
            self._turned(rate=knobs.rate)
        if knobs.concurrency is not None:
            generator.set_concurrency(knobs.concurrency)
            self._turned(concurrency=knobs.concurrency)
        batching = {name: getattr(knobs, name) for name in ("max_batch_size", "max_wait_ms", "instances")}
        wanted = {name: value for name, value in batching.items() if value is not None}
        if wanted:
            self._set_batching(wanted)
            self._turned(**wanted)

    def _turned(self, **given: float) -> None:
        with self._turning:
            self._knobs = msgspec.structs.replace(self._knobs, **given)
            self.turned = True

    def _set_batching(self, wanted: dict[str, float]) -> None:
        if not isinstance(self.target, BatcherTarget):
            raise ValueError("the batching of a server cannot be changed from here")
        stage, executor = self.stage, self.target.executor
        fixed = stage.job.model.fixed_batch
        if fixed is not None and wanted.get("max_batch_size", fixed) != fixed:
            raise ValueError(f"the model takes batches of {fixed} only")
        most = wanted.get("max_batch_size", executor.policy.max_batch_size)
        if why := no_batch_for(self.settings.rows_per_request, most):
            raise ValueError(why)
        preferred = tuple(size for size in self.settings.preferred_batch_sizes if size <= most)
        policy = msgspec.structs.replace(executor.policy, **wanted, preferred_batch_sizes=preferred)
        before, more = stage.copies.held(), policy.instances != executor.policy.instances
        try:
            copies = stage.copies.runs(policy.instances) if more else None
            if more or "max_batch_size" in wanted:  # now, or the next requests would pay for first calls and compiling
                stage.copies.warm_up(policy.instances, stage.pool[0], policy.max_batch_size, stage.pool)
            executor.set_policy(policy, copies)
        except BaseException:
            stage.copies.hold(before)
            raise
        words = {"max_batch_size": "max batch", "max_wait_ms": "max wait ms", "instances": "instances"}
        self.generator.mark(", ".join(f"{words[name]} {value:g}" for name, value in wanted.items()))

    @property
    def marks(self) -> tuple[LoadMark, ...]:
        """What was changed so far, also after the last tick."""
        return tuple(LoadMark(seconds=mark.time, text=mark.text) for mark in self.generator.marks)

    # --- ticks -------------------------------------------------------------------------------------

    def _tick_on(self) -> None:
        self.stage.telemetry.sample()  # CPU figures are means since the sample before
        due = time.monotonic()
        while not self._ended.is_set():
            due = max(due + TICK_SECONDS, time.monotonic())
            if self._ended.wait(due - time.monotonic()):
                break
            if self.generator.started:
                self._tick()

    def _tick(self) -> None:
        figures = self.generator.look()
        sample = self.stage.telemetry.sample()
        if not self.here:
            sample = TelemetrySample(time=sample.time, cpu=None)
        self._samples.append((figures.time, sample))
        depth, sizes = self._batches()
        gpu = sample.gpus[self._gpu_index()] if self._gpu_index() < len(sample.gpus) else None
        marks = self.marks[self._told :]
        self._told += len(marks)
        job, load = self.stage.job, self.generator.load
        warm = figures.time >= load.warm_up_seconds
        sending = not self.generator.sending_ended
        part = "measuring" if sending and warm else "warm-up" if sending else "draining"
        phase = part if not self.phase else self.phase if part == "measuring" else f"{self.phase}, {part}"
        job.send(
            Ticked(
                tick=LoadTick(
                    time=time.time(),
                    seconds=figures.time,
                    span_seconds=figures.seconds,
                    phase=phase,
                    knobs=self._knobs,
                    offered_per_s=figures.sent / figures.seconds,
                    achieved_per_s=figures.throughput_per_s,
                    completed=figures.completed,
                    rejected=figures.rejected,
                    failed=figures.failed,
                    outstanding=figures.outstanding,
                    queue_depth=depth,
                    p50_ms=figures.p50_ms,
                    p99_ms=figures.p99_ms,
                    batch_sizes=sizes,
                    cpu=sample.cpu,
                    memory_bytes=sample.memory_used_bytes,
                    gpu=gpu.utilisation if gpu else None,
                    gpu_memory_bytes=gpu.memory_used_bytes if gpu else None,
                    power_w=gpu.power_w if gpu else None,
                    marks=marks,
                )
            )
        )
        words = f"{figures.throughput_per_s:.4g}/s" + (f", p99 {figures.p99_ms:.3g} ms" if figures.p99_ms else "")
        job.send(Progressed(done=min(figures.time, load.seconds), total=load.seconds, message=f"{phase} · {words}"))
        if self.stop_saturated and sending and self._looks and figures.time >= self._looks[0]:
            self._looks.pop(0)
            self._saturated = self._grows(figures.time)
            if self._saturated:
                self.generator.stop()

    def _batches(self) -> tuple[int | None, dict[str, int]]:
        """Requests that wait now, and the runs by size since the tick before."""
        if not isinstance(self.target, BatcherTarget):
            return None, {}
        executor = self.target.executor
        sizes = executor.statistics.totals().batch_sizes
        fresh = {str(size): count - self._sizes.get(size, 0) for size, count in sizes.items()}
        self._sizes = sizes
        return executor.depth, {size: count for size, count in fresh.items() if count}

    def saturated(self) -> bool:
        """The load was more than the model can bear, as far as it was sent."""
        return self._saturated or self._grows(self.generator.sending_ended)

    def _grows(self, until: float) -> bool:
        """Only an open loop can: callers that wait for their answers build no backlog."""
        load, record = self.generator.load, self.generator.record
        if not load.open_loop or self.turned:
            return False
        count = record.count
        sent, finished = record.sent[:count], record.finished[:count]
        went = np.isfinite(sent)
        return is_saturated(sent[went], finished[went], load.warm_up_seconds, until)

    def _gpu_index(self) -> int:
        device = self.stage.job.spec.device
        return int(device.partition(":")[2] or 0) if device != "cpu" else 1 << 30

    def came_too_late(self) -> bool:
        """There were answers to what was measured, and all came after the last request was sent."""
        cut_short = self.stage.stopped or self._saturated
        later = self.generator.record.completed_between(self.generator.sending_ended, float("inf"))
        return bool(len(later)) and not self._answered() and not cut_short

    def _answered(self) -> int:
        """Requests answered within the measured part: the others are no part of what it took."""
        return len(
            self.generator.record.completed_between(self.generator.load.warm_up_seconds, self.generator.sending_ended)
        )

    def use(self) -> Use:
        """Means over the measured part; its energy is shared out among the requests that were answered in it."""
        load, ended = self.generator.load, self.generator.sending_ended
        samples = [one for at, one in self._samples if load.warm_up_seconds < at <= ended + TICK_SECONDS]
        index = self._gpu_index()
        gpus = [one.gpus[index] for one in samples if index < len(one.gpus)]
        joules = [one.energy_j for one in gpus if one.energy_j is not None]
        power = _mean([one.power_w for one in gpus])
        energy = joules[-1] - joules[0] if len(joules) > 1 else None
        seconds = samples[-1].time - samples[0].time if len(samples) > 1 else 0.0
        if energy is None and power is not None:
            energy = power * seconds
        share = seconds / max(ended - load.warm_up_seconds, 1e-9)
        answered = self._answered() * min(share, 1.0)
        return Use(
            cpu=_mean([one.cpu for one in samples]),
            memory_bytes=max((one.memory_used_bytes for one in samples if one.memory_used_bytes), default=None),
            gpu=_mean([one.utilisation for one in gpus]),
            gpu_memory_bytes=max((one.memory_used_bytes for one in gpus if one.memory_used_bytes), default=None),
            power_w=power,
            energy_j=energy,
            energy_per_1000_requests_j=energy / answered * 1000 if energy is not None and answered else None,
        )


def is_loopback(url: str) -> bool:
    """The server at this address runs on this machine, for certain."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
