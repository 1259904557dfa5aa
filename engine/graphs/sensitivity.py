"""Which nodes to leave in float: a search guided by error and by measured time.

Every quantized node adds noise to the outputs, and the powers of these noises nearly add up. So each node is once
quantized alone and once left in float alone (only the first shows a value that two neighbours round, only the second
a node that needs quantized neighbours); the larger noise is set against the time its integer kernel saves, both
measured. Nodes then go back to float in the order of noise per time until the answers are near enough; a bisection
over that order finds how many. All on calibration data: the labelled test data decides nothing here.

Two graphs for each node would be hours on a large network, so the search has a budget of time. Where it does not reach,
fewer samples are looked at, then nodes in blocks, of which the noisiest are split as long as time is left.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .comparison import Comparison, Difference
from .onnx_graph import Graph
from .sessions import open_session
from .static_recipe import Quantizer, Result
from .timing import WORTH, time_in_turns
from .verification import outputs_of, varying_outputs

LEAST_COSINE = 0.99
"""Outputs at a smaller cosine to the source are not near enough, whatever the limit."""

LEAST_SAVING = 0.02
"""A node is reckoned to save at least this share of the mean node's time: what saves nothing goes back first."""

ENOUGH_SAMPLES = 64
"""The error of single nodes is looked at on so many samples: twice as many graphs as nodes are run."""

SEARCH_SECONDS = 300.0
"""About how long the error of nodes is looked for, unless the caller says otherwise."""

SLOWER = 1.2
"""A node this many times slower in integers than in float is tried in float, whatever its error."""

LEAST_NODE_SECONDS = 5e-5
"""Times of single nodes below this are too uncertain for that."""

AS_EXACT_DB = 0.5
"""What it may lose in exactness: less is rounded, but errors no longer cancel as they did."""

FIRST_LOOK = 0.6
"""Share of that time for the first look at all blocks; the rest is for splitting the noisiest."""

MOST_IN_FLOAT = 0.5
"""Share of the nodes that may go back; beyond it the graph is rather a float one."""

KEPT_BYTES = 512 << 20
"""Of the source's answers so many are kept to compare with: a segmentation's for some hundred samples are gigabytes."""

NO_ANSWER = Difference(float("inf"), float("inf"), 0.0, -200.0)
"""Of a graph whose answers cannot be set beside the source's."""

Batch = Mapping[str, np.ndarray]
Watch = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Answers:
    """How near a quantized graph's answers are to the source's."""

    difference: Difference
    changed: float | None
    """Share of samples whose largest class score moved to another class, or of whole numbers that are others.

    None where outputs are neither class scores nor whole numbers.
    """
    samples: int = 0
    """How many samples (or whole numbers) that share is of."""

    def within(self, limit: float) -> bool:
        """Near enough: cosine of floats at least `LEAST_COSINE`, and not more than `limit` of the answers changed.

        One changed answer says nothing about a share smaller than one in so many samples, and is accepted.
        """
        accepted = max(limit, 1 / self.samples if self.samples else 0.0)
        near = self.difference.only_whole or self.difference.cosine >= LEAST_COSINE
        return near and (self.changed is None or self.changed <= accepted)


@dataclasses.dataclass(frozen=True)
class Found:
    """One result of the search."""

    label: str | None
    result: Result
    in_float: tuple[str, ...]
    answers: Answers
    within: bool
    for_speed: tuple[str, ...] = ()
    """Those of them that are in float because they are slower in integers."""


class Judge:
    """Compares quantized graphs with the source on the same batches.

    On the first of them, where the source's answers to all take more than `KEPT_BYTES`: `tell` hears of it.
    """

    def __init__(
        self,
        source: onnx.ModelProto,
        batches: Sequence[Batch],
        threads: int,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._threads, self._varying = threads, varying_outputs(source)
        self._reference: list[Batch] = []
        room = KEPT_BYTES
        for answers in outputs_of(source, batches, threads):
            room -= sum(value.nbytes for value in answers.values())
            if self._reference and room < 0:
                break
            self._reference.append(answers)
        self._batches = batches[: len(self._reference)]
        if len(self._batches) < len(batches):
            tell(
                f"The answers to all {_samples(batches)} samples are too large to be held: quantized graphs are judged "
                f"on the first {self.samples}."
            )

    @property
    def samples(self) -> int:
        """How many samples graphs are compared on."""
        return _samples(self._batches)

    def answers(self, model: onnx.ModelProto, simulated: bool = False) -> Answers:
        """`simulated`: in float with rounding, as written; else with the kernels of this machine."""
        outputs = outputs_of(model, self._batches, self._threads, optimize=not simulated)
        comparison, changed, samples = Comparison(self._varying), 0, 0
        for wanted, got in zip(self._reference, outputs, strict=True):
            comparison.add(wanted, got)
            scores = next(iter(wanted.values()))
            others = next(iter(got.values()))
            classes = scores.dtype.kind == "f" and scores.ndim == 2 and scores.shape[1] > 1
            if len(wanted) == 1 and classes and others.shape == scores.shape:
                samples += len(scores)
                changed += int((scores.argmax(1) != others.argmax(1)).sum())
        try:
            difference = comparison.difference()
        except ValueError:  # numbers that are not finite, or nothing that can be compared
            difference = NO_ANSWER
        if difference.whole:
            return Answers(difference, difference.changed, difference.whole)
        return Answers(difference, changed / samples if samples else None, samples)

    def as_good_as(self, wanted: Answers) -> Callable[[onnx.ModelProto], bool]:
        """What tells whether a graph answers as exactly as one with these answers."""
        least = wanted.difference.sqnr_db - AS_EXACT_DB
        return lambda model: self.answers(model).difference.sqnr_db >= least

    def on_fewer(self, samples: int) -> Judge:
        """The same comparison on the first batches only, at least so many samples."""
        for index in range(len(self._batches)):
            if _samples(self._batches[: index + 1]) >= samples:
                fewer = object.__new__(Judge)
                fewer._batches, fewer._threads = self._batches[: index + 1], self._threads
                fewer._reference, fewer._varying = self._reference[: index + 1], self._varying
                return fewer
        return self


def _samples(batches: Sequence[Batch]) -> int:
    return sum(len(next(iter(batch.values()))) for batch in batches)


def search(
    quantizer: Quantizer,
    judge: Judge,
    limit: float,
    feed: Batch,
    watch: Watch,
    always: bool = False,
    seconds: float = SEARCH_SECONDS,
) -> list[Found]:
    """The plain graph if its answers are near enough (and not `always`), else a front.

    The first of a front is the fastest within the limit; "exact" leaves twice as many nodes in float; "fast" none.
    `limit`: largest share of changed answers. `feed`: inputs to time nodes with. `seconds`: about how long the errors
    of nodes are looked for. Nodes that are measured to be slower in integers are in float in every graph of a CPU.
    """
    watch(0.0, "quantizing every node")
    plain = quantizer.quantize()
    if not plain.touched:
        return []
    answers = judge.answers(plain.model)
    times = NodeTimes(quantizer.prepared, feed)
    plain, answers, slower = _without_slower(quantizer, judge, plain, answers, times, watch)
    everything = Found(None, plain, slower, answers, answers.within(limit), slower)
    if everything.within and not always:
        return [everything]
    order = _order(quantizer, judge, plain, times, watch, seconds)
    most = max(1, int(len(order) * MOST_IN_FLOAT))
    tried: dict[int, Found] = {0: everything}

    def attempt(count: int) -> Found:
        if count not in tried:
            watch(0.75 + 0.03 * len(tried), f"{count} of {len(order)} nodes in float")
            names = tuple(order[:count])
            result = quantizer.quantize(names)
            if not result.touched:
                return everything
            seen = judge.answers(result.model)
            tried[count] = Found(None, result, (*slower, *names), seen, seen.within(limit), slower)
        return tried[count]

    low, high = (0, most) if not everything.within else (-1, 0)
    if attempt(high).within:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if attempt(middle).within else (middle, high)
    first = attempt(high)
    exact = attempt(min(most, max(2 * high, 2)))
    front = [first]
    if exact.in_float != first.in_float and exact.answers.difference.sqnr_db > first.answers.difference.sqnr_db:
        front.append(dataclasses.replace(exact, label="exact"))
    if first.in_float != everything.in_float:
        front.append(dataclasses.replace(everything, label="fast"))
    return front


def _without_slower(
    quantizer: Quantizer, judge: Judge, plain: Result, answers: Answers, times: NodeTimes, watch: Watch
) -> tuple[Result, Answers, tuple[str, ...]]:
    """(the graph, its answers, which nodes went back to float because integers make them slower).

    What a node takes by itself leaves out the pairs around it, so the whole graph has to be faster, too.
    """
    if quantizer.settings.symmetric:  # for a GPU: what is slow here says nothing
        return plain, answers, ()
    watch(0.02, "timing nodes in float and in integers")
    slow, quick = times.source, times.of(plain.model)
    least = {name: max(SLOWER * slow.get(name, np.inf), LEAST_NODE_SECONDS) for name in quantizer.candidates()}
    names = tuple(name for name, bound in least.items() if quick.get(name, 0.0) > bound)
    other = quantizer.quantize(names) if names else plain
    if not names or not other.touched:
        return plain, answers, ()
    seen = judge.answers(other.model)
    if seen.difference.sqnr_db < answers.difference.sqnr_db - AS_EXACT_DB:
        return plain, answers, ()
    ratio = time_in_turns([plain.model, other.model], [times.feed], quantizer.settings.threads, seconds=1.0)[1]
    if ratio < WORTH:
        return plain, answers, ()
    quantizer.leave(names, "left in float: it is slower in integers on this processor")
    return quantizer.quantize(), seen, names


def _order(
    quantizer: Quantizer, judge: Judge, plain: Result, times: NodeTimes, watch: Watch, seconds: float = SEARCH_SECONDS
) -> list[str]:
    """Quantized nodes, the one whose return to float brings most for its time first."""
    names = quantizer.candidates()
    noise = noise_by_node(quantizer, judge.on_fewer(ENOUGH_SAMPLES), names, watch, seconds)
    watch(0.7, "timing nodes in float and in integers")
    slow, quick = times.source, times.of(plain.model)
    mean = sum(slow.values()) / max(len(slow), 1)
    savings = {name: max(slow.get(name, 0.0) - quick.get(name, 0.0), LEAST_SAVING * mean) for name in names}
    return sorted(names, key=lambda name: -noise.get(name, 0.0) / max(savings[name], 1e-12))


def noise_by_node(
    quantizer: Quantizer, judge: Judge, names: Sequence[str], watch: Watch, seconds: float
) -> dict[str, float]:
    """Quantized node → its share of the noise at the outputs; nodes for which time did not last are missing."""
    return {
        name: noise / len(block) for noise, block in _noises(quantizer, judge, names, watch, seconds) for name in block
    }


def _noises(
    quantizer: Quantizer, judge: Judge, names: Sequence[str], watch: Watch, seconds: float
) -> list[tuple[float, list[str]]]:
    """(noise, nodes that make it together), for every node; blocks of more than one where time was short."""
    ends = time.monotonic() + seconds

    def noise_of(sensitive: Sequence[str]) -> float:
        return _noise(judge.answers(quantizer.simulate(sensitive), simulated=True))

    def look(block: list[str]) -> tuple[float, list[str]]:
        without, inside = noise_of(block), set(block)
        return max(full - without, noise_of([name for name in names if name not in inside])), block

    began = time.monotonic()
    full = noise_of(())
    each = time.monotonic() - began
    if 2 * each * len(names) > seconds:
        judge = judge.on_fewer(1)
        began = time.monotonic()
        full = noise_of(())
        each = time.monotonic() - began
    size = max(1, math.ceil(2 * each * len(names) / (FIRST_LOOK * seconds))) if 2 * each * len(names) > seconds else 1
    blocks = [list(names[start : start + size]) for start in range(0, len(names), size)]
    found: list[tuple[float, list[str]]] = []

    def tell(done: int, of: int, block: Sequence[str]) -> None:
        what = block[0] if len(block) == 1 else f"{block[0]} and {len(block) - 1} more"
        left = min(max(ends - time.monotonic(), 0.0), 2 * each * (of - done))
        watch(0.1 + 0.6 * min(done / of, 1.0), f"error of {done + 1} of {of}: {what}; {left:.0f} s left")

    for index, block in enumerate(blocks):
        tell(index, len(blocks), block)
        if index and time.monotonic() > ends:
            break
        found.append(look(block))
    while time.monotonic() + 4 * each < ends:
        worst = max((one for one in found if len(one[1]) > 1), key=lambda one: one[0], default=None)
        if worst is None:
            break
        found.remove(worst)
        half = len(worst[1]) // 2
        for block in (worst[1][:half], worst[1][half:]):
            tell(len(found), len(found) + 2, block)
            found.append(look(block))
    return found


def _noise(answers: Answers) -> float:
    """Noise power over signal power."""
    return float(10 ** (-answers.difference.sqnr_db / 10))


class NodeTimes:
    """Times of single nodes with one feed; the source's and those of the graph looked at last are kept."""

    def __init__(self, source: onnx.ModelProto, feed: Batch) -> None:
        self.feed = feed
        self._source = source
        self._last: tuple[onnx.ModelProto, dict[str, float]] | None = None

    @functools.cached_property
    def source(self) -> dict[str, float]:
        return node_times(self._source, self.feed)

    def of(self, model: onnx.ModelProto) -> dict[str, float]:
        """Of a quantized graph."""
        if self._last is None or self._last[0] is not model:
            self._last = model, node_times(model, self.feed)
        return self._last[1]


def node_times(model: onnx.ModelProto, feed: Batch, runs: int = 8) -> dict[str, float]:
    """Node name → least seconds of its kernel on one thread, from ONNX Runtime's own profile: what else runs on the
    machine can only make it longer.

    A fused kernel counts for the node it was made around: ONNX Runtime appends a number to its name, or, where it
    changes the memory layout (`…_nchwc`), calls it after the value it gives.
    """
    with tempfile.TemporaryDirectory() as directory:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory) / "profile")
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = open_session(model, options)
        wanted = {value.name: feed[value.name] for value in session.get_inputs()}
        for _ in range(runs):
            session.run(None, wanted)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    graph = Graph(model)
    times: dict[str, list[float]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            ran = re.sub(r"_token_\d+$", "", name.removesuffix("_kernel_time"))
            if ran.endswith("_nchwc"):
                ran = _behind(graph, ran.removesuffix("_nchwc")) or ran
            times.setdefault(ran, []).append(event["dur"] / 1e6)
    return {name: min(values) for name, values in times.items()}


def _behind(graph: Graph, value: str) -> str | None:
    """Name of the convolution whose fused kernel gives a value, through an activation and an added short cut."""
    names = [value]
    for _ in range(3):
        makers = [graph.producers[name] for name in names if name in graph.producers]
        for node in makers:
            if node.op_type in ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool"):
                return node.name
        names = [name for node in makers for name in node.input]
    return None
