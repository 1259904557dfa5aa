"""One load test from its settings to its figures, and the task that a worker is given.

A `LoadStage` holds what several tests share: loaded copies of the model, requests from the user's data, the
hardware's sampler, and the ear for knobs. Each `test` sends one load and returns one `LoadTest`.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from ...batching.policy import BatchPolicy
from ...batching.queue import COMPLETED
from ...context import JobContext, LoadedVariant
from ...models import ModelError
from ...protocol import (
    Conditions,
    LoadKnobs,
    LoadSearch,
    LoadSettings,
    LoadTest,
    Measurement,
    Steer,
    TestLoad,
    Took,
)
from ...protocol.load import DEFAULT_SECONDS
from ...runtimes import RuntimeUnavailable
from ...runtimes.copies import ModelCopies
from ...safety import clean_text
from ...telemetry import Telemetry
from ..conditions import OtherWork, conditions
from .generator import LoadGenerator, priorities
from .live import LiveTest
from .pool import request_pool
from .record import Record
from .request import Load
from .summary import summarise
from .target import BatcherTarget, Target

if TYPE_CHECKING:
    from .server_target import ServerTarget

HEAR_SECONDS = 0.02
"""How often a knob that was turned too early looks whether the test has begun."""

SERVER_TESTS_SECONDS = 3600.0
"""So long a search takes over tests that an earlier one made of the same server."""

MOST_TRACE_LINES = 5_000_000
"""Arrivals of a trace that is read."""

LONGEST_TRACE_SECONDS = 86_400.0
"""Of a replay, as of any test."""

Purpose = Literal["run", "capacity", "probe", "confirmation", "point"]


def run_task(job: JobContext, task: TestLoad) -> tuple[tuple[Measurement, ...], str]:
    """Do what the task asks: its measurements (those of a search but the last were sent before) and a sentence.

    Raises RuntimeUnavailable when the variant cannot run, ModelError when it cannot be called, JobCancelled.
    """
    stage = LoadStage(job, job.variants[task.variant], task.runtime, task.settings)
    try:
        if task.settings.kind == "run":
            found = stage.test(task.settings, "")
            return (found,), in_words(found)
        search: LoadSearch
        if task.settings.kind == "rate":
            from .rate_search import find_rate

            search = find_rate(stage, task)
        else:
            from .sweep import sweep

            search = sweep(stage, task)
        return (search,), search.sentence
    finally:
        stage.close()


def in_words(test: LoadTest) -> str:
    """The finding of one test as a sentence."""
    summary = test.summary
    if test.word == "INVALID":
        return f"INVALID: {'; '.join(summary.reasons)}."
    p99 = summary.latency_ms.get("p99")
    sentence = f"{summary.achieved_per_s:.4g} requests/s"
    if p99 is not None:
        sentence += f", p99 {p99.value:.3g} ms"
        sentence += f" (at most {p99.at_most:.3g})" if p99.at_most is not None else " (too few requests for a claim)"
    if test.verdict is not None:
        sentence += f", limit {summary.slo_ms:g} ms: {test.verdict}"
    if missing := summary.not_completed:
        sentence += f"; {missing:,} of {summary.completed + missing:,} requests were rejected or failed"
    if test.saturated:
        sentence += "; saturated: the backlog grew all the time"
    return sentence + "."


class LoadStage:
    """Everything the tests of one job share. `stopped`: the user wants it to end and keep what there is."""

    def __init__(self, job: JobContext, variant: LoadedVariant, runtime: str, settings: LoadSettings) -> None:
        self.job, self.variant, self.runtime = job, variant, runtime
        self.stopped = False
        self._paused = False
        """Asked for, maybe before the test was there."""
        self._live: LiveTest | None = None
        self._asked = threading.Lock()
        """Around what is asked at once (stop, pause) and the test that it is asked of: none of it gets lost between."""
        self._knobs: queue.SimpleQueue[LoadKnobs] = queue.SimpleQueue()
        """The others: they take their time."""
        self._closed = False
        job.progress(0, None, f"loading {variant.record.name}")
        self.copies = ModelCopies(job.model, variant, runtime, job.spec.device, job.spec.threads)
        self.telemetry = Telemetry()
        try:
            self.pool, self.notes = request_pool(job.model, self.copies, settings.same_input)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._turn_on, name="knobs", daemon=True).start()
        job.hear(self._steer)

    def close(self) -> None:
        self._closed = True
        self._knobs.put(LoadKnobs())  # for its thread to end
        self.copies.close()
        self.telemetry.close()

    def conditions(self, instances: int) -> Conditions:
        """Where the copies run; `threads` are those of one copy."""
        if not self.copies.loaded:
            self.copies.runs(instances)
        held = conditions(self.job, self.copies.first())
        return msgspec.structs.replace(held, threads=max(1, self.job.spec.threads // instances))

    # --- one test ----------------------------------------------------------------------------------

    def test(
        self,
        settings: LoadSettings,
        phase: str,
        search: str | None = None,
        purpose: Purpose = "run",
        stop_saturated: bool = False,
    ) -> LoadTest:
        """Send one load. `stop_saturated`: end as soon as it is certain to be more than the model can bear."""
        settings, notes = fitted(settings, self.job.model.fixed_batch)
        load, replayed = load_of(settings)
        notes += replayed
        settings = msgspec.structs.replace(settings, seconds=load.seconds)
        self.job.progress(0, load.seconds, f"{phase}: warming the model up" if phase else "warming the model up")
        target, where = self._target(settings)
        generator = LoadGenerator(target, self.pool, load)
        if settings.url is not None:
            _server(target).prepare(generator.inputs)
        live = LiveTest(self, settings, target, generator, phase)
        live.stop_saturated = stop_saturated
        others = OtherWork()
        with self._asked:
            self._live = live
            live.set_paused(self._paused)
            if self.stopped:
                live.generator.stop()
        try:
            record = live.run()
        finally:
            with self._asked:
                self._live, self._paused = None, False
        summary = summarise(record, live.generator.load, live.generator.sending_ended)
        if settings.url is not None:
            summary = _server(target).with_server_figures(summary)
            if summary.batch_sizes or summary.queue_ms:
                notes += ("Batches, queue and compute times are the server's own counts, its warm-up included.",)
        if live.generator.errors and summary.failed:
            notes += (f"Failed: {live.generator.errors[0]}.",)
        notes += _by_priority(record, load)
        if live.came_too_late():
            sent = f"{live.generator.sending_ended:.3g} s of sending"
            notes += (f"Answers came only after the {sent}, so there is no throughput to tell: give more seconds.",)
        if live.turned:
            notes += ("Its settings were changed while it ran: the figures mix them.",)
        if not live.here:
            notes += ("The server runs on another machine: what its processors did is not known here.",)
        if settings.url is None:
            notes += (*others.note(), *self._shapes_note())
        return LoadTest(
            id=uuid.uuid4().hex[:12],
            variant=self.variant.record.id,
            job=self.job.spec.job,
            created=time.time(),
            conditions=where(),
            settings=settings,
            summary=summary,
            use=live.use(),
            marks=live.marks,
            notes=(*self.notes, *notes),
            saturated=live.saturated(),
            search=search,
            purpose=purpose,
        )

    def keep(self, test: LoadTest) -> None:
        """Have a search's test stored now, whatever becomes of the search."""
        self.job.send(Took(measurement=test))

    def still_valid(self, tests: Iterable[LoadTest]) -> list[LoadTest]:
        """Those of an earlier job that stand for new ones: they count, and nothing they depend on has changed."""
        tests = [test for test in tests if test.summary.completed and (test.summary.valid or test.saturated)]
        if tests and tests[0].settings.url is not None:  # it may be another server by now
            return [test for test in tests if time.time() - test.created < SERVER_TESTS_SECONDS]
        if not tests:
            return []
        now = self.conditions(1)
        threads = {count: max(1, self.job.spec.threads // count) for count in {t.settings.instances for t in tests}}
        return [
            test
            for test in tests
            if test.conditions.versions == now.versions and test.conditions.threads == threads[test.settings.instances]
        ]

    def _target(self, settings: LoadSettings) -> tuple[Target, Callable[[], Conditions]]:
        """What the load is sent to, and a function that says where that is."""
        if settings.url is not None:
            from .server_target import open_target, server_conditions

            target = open_target(settings, self.pool)
            return target, lambda: server_conditions(target)
        runs = self.copies.runs(settings.instances)
        try:
            self.copies.warm_up(settings.instances, self.pool[0], settings.max_batch_size, self.pool)
        except RuntimeUnavailable:
            raise
        except Exception as error:
            what = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
            raise ModelError(
                f"{self.variant.record.name} fails on batches of up to {settings.max_batch_size} rows: {what}"
            ) from error
        return BatcherTarget(runs, policy_of(settings)), lambda: self.conditions(settings.instances)

    def _shapes_note(self) -> tuple[str, ...]:
        """What compiling for each shape means for the figures."""
        if not self.copies.fills_up:
            return ()
        note = (
            f"{self.runtime} compiles for each shape: a batch is filled up to the next power of two, at most to the"
            " maximum batch size. Batch sizes count the rows that were asked for."
        )
        if cold := self.copies.cold_shapes:
            note += f" {cold} shapes of the data were too many to compile beforehand: the first request of each waited."
        return (note,)

    # --- knobs -------------------------------------------------------------------------------------

    def _steer(self, message: Steer) -> None:
        """From another thread, any time. Stop and pause are done at once, whatever another knob waits for; what cannot
        be done is said in the job's log."""
        with self._asked:
            self.stopped = self.stopped or message.stop
            paused, live = message.knobs.paused, self._live
            if paused is not None:
                self._paused = paused
                if live is not None:
                    live.set_paused(paused)
            if message.stop and live is not None:
                live.generator.stop()
        others = msgspec.structs.replace(message.knobs, paused=None)
        if others != LoadKnobs():
            self._knobs.put(others)

    def _turn_on(self) -> None:
        """Turn one knob after the other, in a thread of its own: a number of instances takes as long as loading them,
        and one turned while the model is loaded means what comes then."""
        while True:
            knobs = self._knobs.get()
            live = self._when_sending()
            if live is None:
                return
            try:
                live.turn(knobs)
            except Exception as error:  # whatever it was: the next knob has to turn
                if self._closed:  # the job has ended meanwhile, and its copies with it
                    return
                self.job.log(f"Not changed: {_why(error)}.")

    def _when_sending(self) -> LiveTest | None:
        """The test that runs, once it sends; None when none will."""
        while (live := self._live) is None or not live.generator.started:
            if self.stopped or self._closed:
                return None
            time.sleep(HEAR_SECONDS)
        return live


def _server(target: Target) -> ServerTarget:
    from .server_target import ServerTarget

    assert isinstance(target, ServerTarget)
    return target


def load_of(settings: LoadSettings) -> tuple[Load, tuple[str, ...]]:
    """What the generator is to send, and of a replay a sentence how much of its trace that is. Raises ModelError."""
    arrivals = "offline" if settings.offline else "closed" if settings.concurrency else settings.arrivals
    trace = read_trace(settings.trace) if settings.replays and settings.trace else ()
    seconds = settings.duration
    notes: tuple[str, ...] = ()
    if trace:
        span = trace[-1] - trace[0]
        if settings.rate is not None:
            span = (len(trace) - 1) / settings.rate
        seconds, notes = _replayed(settings, len(trace), span)
    try:
        return Load(
            arrivals=arrivals,
            seconds=seconds or DEFAULT_SECONDS,
            rate=settings.rate,
            concurrency=settings.concurrency or 1,
            samples_per_request=settings.rows_per_request,
            warm_up_seconds=settings.warm_up_seconds,
            seed=settings.seed,
            burst_size=settings.burst_size,
            trace=trace,
            trace_once=bool(trace) and settings.seconds is None,
            slo_p99_ms=settings.slo_p99_ms,
            timeout_ms=settings.timeout_ms,
            priority_levels=settings.priority_levels,
        ), notes
    except ValueError as error:
        raise ModelError(f"This load cannot be sent: {error}.") from None


def _replayed(settings: LoadSettings, arrivals: int, span: float) -> tuple[float, tuple[str, ...]]:
    """(seconds of sending, how much of a trace of `span` seconds that is). Raises ModelError."""
    asked = settings.seconds
    if asked is None:
        if not settings.warm_up_seconds < span < LONGEST_TRACE_SECONDS:
            raise ModelError(
                f"The trace lasts {span:g} s: without seconds it is replayed once, which takes more than the warm-up of"
                f" {settings.warm_up_seconds:g} s and less than a day. Give seconds or warm_up_seconds."
            )
        # The last arrival is to lie within.
        return span * (1 + 1e-9) + 1e-6, (f"The whole trace was replayed once: {arrivals:,} arrivals in {span:g} s.",)
    if asked < span:
        return asked, (f"Only the first {asked:g} s of the trace's {span:g} s were replayed.",)
    times = asked / max(span, 1e-9)
    return asked, (f"The trace of {span:g} s was repeated {times:.3g} times to fill {asked:g} s.",) if times > 1 else ()


def _by_priority(record: Record, load: Load) -> tuple[str, ...]:
    """What being first is worth, where there are priorities."""
    if load.priority_levels == 1 or not record.count:
        return ()
    used = slice(0, record.count)
    counted = (record.status[used] == COMPLETED) & (record.scheduled[used] >= load.warm_up_seconds)
    latency, levels = (record.finished[used] - record.scheduled[used]) * 1e3, priorities(load, 0, record.count)
    parts = [
        f"{level}: {np.quantile(latency[chosen], 0.99):.3g} ms"
        for level in range(1, load.priority_levels + 1)
        if (chosen := counted & (levels == level)).any()
    ]
    return (f"p99 by priority, 1 is served first: {', '.join(parts)}.",) if parts else ()


def fitted(settings: LoadSettings, fixed_batch: int | None) -> tuple[LoadSettings, tuple[str, ...]]:
    """The settings as a model with this batch size can take them, and a sentence where they differ."""
    if fixed_batch is None or (settings.max_batch_size, settings.rows_per_request) == (fixed_batch, 1):
        return settings, ()
    why = f"The model takes batches of {fixed_batch} only: every request is one, and none is joined with another."
    return msgspec.structs.replace(settings, max_batch_size=fixed_batch, rows_per_request=1), (why,)


def _why(error: Exception) -> str:
    """An error on one line, without its full stop; what says nothing by itself carries its type."""
    text = clean_text(" ".join(str(error).split()), 300).rstrip(".")
    return text if text and isinstance(error, ValueError | RuntimeUnavailable) else f"{type(error).__name__}: {text}"


def policy_of(settings: LoadSettings) -> BatchPolicy:
    """How the batcher is to batch."""
    return BatchPolicy(
        max_batch_size=settings.max_batch_size,
        max_wait_ms=settings.max_wait_ms,
        wait=settings.wait,
        preferred_batch_sizes=tuple(size for size in settings.preferred_batch_sizes if size <= settings.max_batch_size),
        priority_levels=settings.priority_levels,
        instances=settings.instances,
        max_queue_size=settings.max_queue_size,
    )


def read_trace(path: str) -> tuple[float, ...]:
    """Arrival times in seconds from a text file, one a line. Raises ModelError with a sentence."""
    try:
        times = np.loadtxt(path, dtype=float, ndmin=1, max_rows=MOST_TRACE_LINES + 1)
    except (OSError, ValueError) as error:
        raise ModelError(f"The trace {path} cannot be read: one arrival time in seconds a line ({error}).") from None
    if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all():
        raise ModelError(f"The trace {path} needs at least two arrival times in seconds, one a line.")
    if len(times) > MOST_TRACE_LINES:
        raise ModelError(f"The trace {path} has more than {MOST_TRACE_LINES:,} arrival times: split it.")
    if times.min() == times.max():
        raise ModelError(f"The trace {path} has one moment only: it needs at least two arrival times that differ.")
    return tuple(np.sort(times).tolist())
