"""Which range of numbers an activation takes, found by running the float graph on real data.

Four methods: the extremes seen (min-max); the range that keeps a given share of all values (percentile); the
range whose 8-bit histogram loses the least information (entropy, after Migacz, "8-bit inference with TensorRT",
GTC 2017); the range with the least squared error of rounding and clipping together (mse). All stream: memory
does not grow with the number of samples, because values go into histograms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from .sessions import open_session

Method = Literal["min-max", "percentile", "entropy", "mse"]

BINS = 2048
"""Bins of a histogram between the smallest and largest value seen in the first pass."""

WATCHED_BYTES = 512 << 20
"""Values watched are fetched in groups of about this size: all of a detector's at once would be gigabytes."""

LEVELS = 128
"""Levels the entropy method compares with: those of one half of a signed byte; an unsigned one has twice as many."""

Batch = dict[str, np.ndarray]
Watch = Callable[[float], None]
"""Called with the share of the work that is done, in 0…1; may raise to cancel."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Smallest and largest value to represent, low ≤ high."""

    low: float
    high: float


class Calibrator:
    """Runs a float graph on calibration batches and watches chosen values.

    `batches` is called for every pass, and must give the same batches each time.
    """

    def __init__(self, model: onnx.ModelProto, batches: Callable[[], Iterable[Batch]], threads: int = 0) -> None:
        self._model = model
        self._batches = batches
        self._threads = threads
        self._shapes: dict[str, onnx.ValueInfoProto] | None = None

    def ranges(
        self,
        names: Sequence[str],
        method: Method = "min-max",
        percentile: float = 99.99,
        watch: Watch = lambda share: None,
    ) -> dict[str, Range]:
        """The range of each value. A value that is never finite is left out.

        `percentile` counts for that method only: the share of values (in per cent) that stay in the range.
        """
        session = self._session(names)
        passes = 1 if method == "min-max" else 2
        found: dict[str, Range] = {}
        for done, outputs in self._run(session, names):
            watch(done / passes)
            for name, value in outputs.items():
                finite = value[np.isfinite(value)] if not np.isfinite(value).all() else value
                if finite.size:
                    low, high = float(finite.min()), float(finite.max())
                    seen = found.get(name)
                    found[name] = Range(min(low, seen.low), max(high, seen.high)) if seen else Range(low, high)
        if method == "min-max":
            return found
        histograms = {name: np.zeros(BINS, dtype=np.int64) for name in found}
        for done, outputs in self._run(session, names):
            watch((1 + done) / passes)
            for name, value in outputs.items():
                if name in found and found[name].high > found[name].low:
                    seen = found[name]
                    histograms[name] += np.histogram(value, BINS, range=(seen.low, seen.high))[0]
        for name, seen in found.items():
            if seen.high > seen.low:
                counts = histograms[name]
                if method == "percentile":
                    found[name] = percentile_range(counts, seen, percentile)
                else:
                    found[name] = entropy_range(counts, seen) if method == "entropy" else mse_range(counts, seen)
        return found

    def means(
        self, names: Sequence[str], watch: Watch = lambda share: None, channels_second: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """Mean of each value by channel: over all axes but axis 1, or the last one for values of 2 or 3 axes.

        `channels_second`: values whose channels are axis 1 however many axes they have (signals of a Conv). Numbers
        that are not finite are left out, and values with a channel that is never finite.
        """
        sums: dict[str, np.ndarray] = {}
        counts: dict[str, np.ndarray] = {}
        for done, outputs in self._run(self._session(names), names):
            watch(done)
            for name, value in outputs.items():
                total, count = channel_sums(value, name in channels_second)
                sums[name] = sums.get(name, 0) + total
                counts[name] = counts.get(name, 0) + count
        return {name: sums[name] / counts[name] for name in sums if counts[name].all()}

    def peaks(
        self, names: Sequence[str], watch: Watch = lambda share: None, channels_second: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """Largest absolute value by channel, of those that are finite; channels as in `means`."""
        found: dict[str, np.ndarray] = {}
        for done, outputs in self._run(self._session(names), names):
            watch(done)
            for name, value in outputs.items():
                axis = channel_axis(value, name in channels_second)
                finite = np.where(np.isfinite(value), np.abs(value), 0)
                peak = finite.max(axis=tuple(index for index in range(value.ndim) if index != axis))
                found[name] = np.maximum(found[name], peak) if name in found else peak
        return found

    def _session(self, names: Sequence[str]) -> onnxruntime.InferenceSession:
        return observed_session(self._model, names, self._threads)

    def _run(
        self, session: onnxruntime.InferenceSession, names: Sequence[str]
    ) -> Iterable[tuple[float, dict[str, np.ndarray]]]:
        batches = list(self._batches()) if names else []
        for index, batch in enumerate(batches):
            inputs = {key: batch[key] for key in (value.name for value in session.get_inputs())}
            groups = in_groups(self._sizes(names, inputs), WATCHED_BYTES)
            for place, group in enumerate(groups):
                outputs = session.run(group, inputs)
                yield (index + (place + 1) / len(groups)) / len(batches), dict(zip(group, outputs, strict=True))

    def _sizes(self, names: Sequence[str], inputs: Batch) -> dict[str, int]:
        """Value → bytes it takes with these inputs, by inferred shapes; an unknown one counts as the largest known."""
        axes: dict[str, int] = {}
        for value in self._model.graph.input:
            if value.name in inputs:
                given = zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=False)
                axes |= {axis.dim_param: size for axis, size in given if axis.dim_param}
        if self._shapes is None:
            graph = self._model.graph
            self._shapes = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
        found: dict[str, int | None] = {}
        for name in names:
            value = self._shapes.get(name)
            known = value is not None and value.type.tensor_type.HasField("shape")
            dims = value.type.tensor_type.shape.dim if value is not None and known else []
            sizes = [axis.dim_value if axis.HasField("dim_value") else axes.get(axis.dim_param) for axis in dims]
            found[name] = 4 * math.prod(size or 1 for size in sizes) if known and None not in sizes else None
        largest = max((size for size in found.values() if size is not None), default=WATCHED_BYTES // 12)
        return {name: largest if size is None else size for name, size in found.items()}


def in_groups(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in their order, in groups that take at most so many bytes together (a larger one stands alone)."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return groups


def observed_session(model: onnx.ModelProto, names: Sequence[str], threads: int = 0) -> onnxruntime.InferenceSession:
    """A CPU session of the graph that can also give these inner values. Nothing is fused, so they exist."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    for name in names:
        if name not in known:
            known.add(name)
            watched.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return open_session(watched, options)


def channel_axis(value: np.ndarray, second: bool = False) -> int:
    """Axis 1 of pictures and of signals with 4 or 5 axes, else the last; `second`: axis 1 in any case."""
    return 1 if second or value.ndim >= 4 else value.ndim - 1


def channel_sums(value: np.ndarray, second: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sum by channel (see `channel_axis`) of what is finite, and how many numbers that is."""
    axis = channel_axis(value, second)
    others = tuple(index for index in range(value.ndim) if index != axis)
    finite = np.isfinite(value)
    return value.sum(axis=others, dtype=np.float64, where=finite), finite.sum(axis=others)


def percentile_range(counts: np.ndarray, seen: Range, percentile: float) -> Range:
    """The range that leaves out (100 − percentile) per cent of the values, half on each side that has a tail.

    A side that ends at zero (after a ReLU) has no tail and stays.
    """
    edges = np.linspace(seen.low, seen.high, counts.size + 1)
    cumulated = np.cumsum(counts) / max(counts.sum(), 1)
    outside = 1 - percentile / 100
    if seen.low < 0 < seen.high:
        outside /= 2
    first, last = np.searchsorted(cumulated, [outside, 1 - outside]).tolist()
    low = float(edges[first]) if seen.low < 0 else seen.low
    high = float(edges[min(last + 1, counts.size)]) if seen.high > 0 else seen.high
    return Range(low, high)


def entropy_range(counts: np.ndarray, seen: Range) -> Range:
    """The range around zero whose quantized histogram is nearest to the clipped one (Kullback-Leibler)."""
    bound = max(abs(seen.low), abs(seen.high))
    centres = np.linspace(seen.low, seen.high, counts.size + 1)
    magnitudes = np.abs((centres[:-1] + centres[1:]) / 2)
    folded = np.histogram(magnitudes, BINS, range=(0, bound), weights=counts)[0]
    folded[0] = folded[1]  # zeros (most values behind a ReLU) are exact at any scale and would drown the rest
    levels = LEVELS if seen.low < 0 else 2 * LEVELS
    best, threshold = np.inf, bound
    for width in range(levels, BINS + 1, max(1, BINS // 256)):
        reference = folded[:width].astype(np.float64)
        reference[-1] += folded[width:].sum()
        level = np.arange(width) * levels // width
        inside = folded[:width] > 0
        mass = np.bincount(level, folded[:width], levels)
        spread = np.bincount(level, inside, levels)
        candidate = np.where(inside, (mass / np.maximum(spread, 1))[level], 0.0)
        divergence = _divergence(reference, candidate)
        if divergence < best:
            best, threshold = divergence, bound * width / BINS
    return Range(max(seen.low, -threshold), min(seen.high, threshold))


def mse_range(counts: np.ndarray, seen: Range) -> Range:
    """The part of the range, shrunk towards zero, with the least squared error of 255 steps."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    edges = np.linspace(seen.low, seen.high, counts.size + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    best, found = np.inf, seen
    for share in np.linspace(1.0, 0.2, 81):
        clipped = centres - np.clip(centres, share * low, share * high)
        rounding = (share * (high - low) / 255) ** 2 / 12
        error = float(counts @ (clipped**2 + rounding * (clipped == 0)))
        if error < best:
            best, found = error, Range(max(seen.low, share * low), min(seen.high, share * high))
    return found


def _divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Kullback-Leibler divergence of two histograms, with a little mass moved to empty bins."""
    if not candidate.any():
        return float("inf")
    p = reference + 1e-4 * (reference == 0)
    q = candidate + 1e-4 * (candidate == 0)
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))
