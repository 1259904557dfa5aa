"""A model behind its batcher, as every door of the server sees it: `infer`, what it takes and gives, and its counts.

Durations are seconds. Counts follow Triton's meaning: a request's compute time is that of the whole batch it was in.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..batching import BatcherClosed, DeadlineExceeded, DynamicBatcher, QueueFull, RequestTooLarge
from ..batching.policy import Rejected
from ..batching.statistics import CAPACITY
from .tensors import Arrays, Problem, ServedTensor, all_of, checked_shape

VERSION = "1"
"""There is one version of a model: the variant, which never changes."""

SENTENCE_LENGTH = 300
"""Characters of a model's own error that its caller is told."""


class BatchTimes(NamedTuple):
    """Runs of one batch size."""

    runs: int = 0
    forming: float = 0.0
    compute: float = 0.0


class Counts:
    """What became of requests, and where their time went, since the start."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.rows = 0
        self.request_seconds = 0.0
        """From the whole request's arrival to its answer, over those that succeeded."""
        self.failed: Counter[str] = Counter()
        """Triton's reasons: "REJECTED", "CANCELED", "BACKEND", "OTHER"."""
        self.failed_seconds = 0.0
        self.last = 0.0
        """Seconds since the epoch of the newest answer; 0: none yet."""
        self.runs = 0
        self.run_requests = 0
        self.queue = 0.0
        self.forming = 0.0
        self.compute = 0.0
        """Summed over requests."""
        self.written = 0
        self.output = 0.0
        """Seconds of turning outputs into answers' bytes, and of how many requests."""
        self.by_size: dict[int, BatchTimes] = {}


class ServedModel:
    """The variant with its name, its tensors and its batcher (which is started)."""

    def __init__(
        self,
        name: str,
        inputs: Sequence[ServedTensor],
        outputs: Sequence[ServedTensor],
        batcher: DynamicBatcher,
        *,
        platform: str = "",
        backend: str = "",
        also: tuple[str, ...] = (),
        fixed_rows: int | None = None,
    ) -> None:
        self.name, self.platform, self.backend = name, platform, backend
        self.batcher, self.fixed_rows = batcher, fixed_rows
        self.inputs = {tensor.name: tensor for tensor in inputs}
        self.outputs = {tensor.name: tensor for tensor in outputs}
        self.closing = False
        self.broken = ""
        """Why the model can never answer again (it ended its thread); "" while it can."""
        self._names = {name, *also}
        self._counts = Counts()
        self._seen = 0
        """Runs of the batcher whose times are counted already."""

    def demand(self, name: str, version: str = "") -> None:
        """Raises Problem when this is not the model that is served."""
        if name not in self._names:
            raise Problem(404, f"There is no model {name[:80]!r} here. The model served is {self.name!r}.")
        if version not in ("", VERSION):
            raise Problem(404, f"The model has the version {VERSION} only, not {version[:20]!r}.")

    @property
    def max_rows(self) -> int:
        return self.batcher.policy.max_batch_size

    @property
    def ready(self) -> bool:
        """It takes requests."""
        return not self.closing and not self.broken

    def checked(self, name: str, datatype: str | None, shape: Sequence[int]) -> tuple[ServedTensor, tuple[int, ...]]:
        """The input of that name and its shape if the model takes it. Raises Problem."""
        tensor = self.inputs.get(name)
        if tensor is None:
            all_of(self.inputs, (name,))
        assert tensor is not None
        return tensor, checked_shape(tensor, datatype, shape, self.max_rows, self.fixed_rows)

    def chosen(self, names: Sequence[str]) -> list[str]:
        """The outputs asked for, all of them if none is named. Raises Problem."""
        for name in names:
            if name not in self.outputs:
                raise Problem(400, f"The model has no output {name[:80]!r}. Its outputs: {', '.join(self.outputs)}.")
        return list(dict.fromkeys(names)) or list(self.outputs)

    async def infer(self, inputs: Arrays, timeout_us: int | None = None, priority: int = 0) -> Arrays:
        """The outputs for these rows. Raises Problem, and CancelledError when the caller went away.

        As with Triton a timeout of the sender's may shorten the policy's but not lengthen it, and a priority that is
        0 or beyond the policy's levels is the default one.
        """
        began = time.monotonic()
        self._demand_life()
        all_of(self.inputs, list(inputs))
        rows = _rows(inputs)
        try:
            outputs = await self.batcher.predict(
                inputs, priority=self._level(priority), timeout_ms=self._patience_ms(timeout_us)
            )
        except asyncio.CancelledError:
            self._fail("CANCELED", began)
            raise
        except Exception as error:
            self._fail("REJECTED" if isinstance(error, Rejected) else "BACKEND", began)
            if isinstance(error, BatcherClosed) and not self.closing:
                self.broken = _sentence(error)
            problem = _problem(error)
            problem.counted = True
            raise problem from error
        counts = self._counts
        counts.succeeded += 1
        counts.rows += rows
        counts.request_seconds += time.monotonic() - began
        counts.last = time.time()
        return outputs

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around turning outputs into an answer's bytes: Triton's compute output time."""
        began = time.monotonic()
        yield
        self._counts.written += 1
        self._counts.output += time.monotonic() - began

    def turned_away(self, problem: Problem) -> None:
        """Count a request that was no good before it got to the batcher."""
        if not problem.counted:
            self._counts.failed["OTHER"] += 1
            problem.counted = True

    @property
    def succeeded(self) -> int:
        """Requests answered."""
        return self._counts.succeeded

    def counts(self) -> Counts:
        """Up to date. Numbers are exact however long nobody asked.

        The batcher remembers 65,536 runs one by one. Of those that it forgot before they were counted the times are
        taken to be those of the runs since.
        """
        counts, statistics = self._counts, self.batcher.statistics
        totals = statistics.totals()
        # Half of what is remembered: so nothing that is read is overwritten by runs that end meanwhile.
        since = max(self._seen, totals.runs - CAPACITY // 2)
        runs = statistics.runs(since)[: totals.runs - since]
        if len(runs):
            weight = (totals.runs - self._seen) / len(runs)
            self._seen = totals.runs
            requests = runs["requests"]
            counts.runs, counts.run_requests, counts.queue = totals.runs, totals.run_requests, totals.queue_seconds
            counts.forming += weight * float((runs["forming"] * requests).sum())
            counts.compute += weight * float((runs["compute"] * requests).sum())
            forming = np.bincount(runs["rows"], weight * runs["forming"])
            compute = np.bincount(runs["rows"], weight * runs["compute"])
            for size, ran in totals.batch_sizes.items():
                held = counts.by_size.get(size, BatchTimes())
                more = (float(forming[size]), float(compute[size])) if size < len(forming) else (0.0, 0.0)
                counts.by_size[size] = BatchTimes(ran, held.forming + more[0], held.compute + more[1])
        return counts

    def _level(self, priority: int) -> int | None:
        return priority if 1 <= priority <= self.batcher.policy.priority_levels else None

    def _patience_ms(self, timeout_us: int | None) -> float | None:
        """The sender's limit where it counts; None: the policy's own."""
        longest = self.batcher.policy.default_timeout_ms
        if timeout_us is None or (longest is not None and timeout_us / 1000 >= longest):
            return None
        return timeout_us / 1000

    def _demand_life(self) -> None:
        if self.closing:
            raise Problem(503, "The server is shutting down.")
        if self.broken:
            raise Problem(503, f"The model cannot go on: {self.broken}.")

    def _fail(self, reason: str, began: float) -> None:
        self._counts.failed[reason] += 1
        self._counts.failed_seconds += time.monotonic() - began


def _rows(inputs: Arrays) -> int:
    """Of a request. Raises Problem when its inputs do not agree."""
    (first, array), *others = inputs.items()
    rows: int = array.shape[0]
    for name, other in others:
        if other.shape[0] != rows:
            raise Problem(
                400,
                f"Input {name} has {other.shape[0]} rows, input {first} has {rows}: "
                "all inputs of a request have as many.",
            )
    return rows


def _problem(error: Exception) -> Problem:
    """What became of a request, for its sender. A model's own error is told in one line, without its traceback."""
    match error:
        case RequestTooLarge():
            return Problem(413, f"{_sentence(error)}.")
        case QueueFull():
            return Problem(503, f"The server is busy: {_sentence(error)}. Try again later.")
        case DeadlineExceeded():
            return Problem(504, f"The request was not run: {_sentence(error)}.")
        case BatcherClosed():
            return Problem(503, f"The request was not run: {_sentence(error)}.")
    return Problem(500, f"The model failed: {type(error).__name__}: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:SENTENCE_LENGTH] if lines else "no message"
