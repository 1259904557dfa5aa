"""Which nodes to leave in float: a search guided by error and by measured time.

Every quantized node adds noise to the outputs, and the powers of these noises nearly add up. So each node is once
quantized alone and once left in float alone (only the first shows a value that two neighbours round, only the second
a node that needs quantized neighbours); the larger noise is set against the time its integer kernel saves, both
measured. Nodes then go back to float in the order of noise per time until the answers are near enough; a bisection
over that order finds how many. All on calibration data: the labelled test data decides nothing here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .onnx_graph import Graph
from .sessions import open_session
from .static_recipe import Quantizer, Result
from .verification import Difference, compare_outputs, run_graph, varying_outputs

LEAST_COSINE = 0.99
"""Outputs at a smaller cosine to the source are not near enough, whatever the limit."""

LEAST_SAVING = 0.02
"""A node is reckoned to save at least this share of the mean node's time: what saves nothing goes back first."""

ENOUGH_SAMPLES = 64
"""The error of single nodes is looked at on so many samples: twice as many graphs as nodes are run."""

MOST_IN_FLOAT = 0.5
"""Share of the nodes that may go back; beyond it the graph is rather a float one."""

NO_ANSWER = Difference(float("inf"), float("inf"), 0.0, -200.0)
"""Of a graph whose answers cannot be set beside the source's."""

Batch = Mapping[str, np.ndarray]
Watch = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Answers:
    """How near a quantized graph's answers are to the source's."""

    difference: Difference
    changed: float | None
    """Share of samples whose largest class score moved to another class; None where outputs are no class scores."""
    samples: int = 0
    """How many samples that share is of."""

    def within(self, limit: float) -> bool:
        """Near enough: cosine at least `LEAST_COSINE`, and not more than `limit` of the answers changed.

        One changed answer says nothing about a share smaller than one in so many samples, and is accepted.
        """
        accepted = max(limit, 1 / self.samples if self.samples else 0.0)
        return self.difference.cosine >= LEAST_COSINE and (self.changed is None or self.changed <= accepted)


@dataclasses.dataclass(frozen=True)
class Found:
    """One result of the search."""

    label: str | None
    result: Result
    in_float: tuple[str, ...]
    answers: Answers
    within: bool


class Judge:
    """Compares quantized graphs with the source on the same batches."""

    def __init__(self, source: onnx.ModelProto, batches: Sequence[Batch], threads: int) -> None:
        self._batches, self._threads = batches, threads
        self._reference = run_graph(source, batches, threads)
        self._varying = varying_outputs(source)

    def answers(self, model: onnx.ModelProto, simulated: bool = False) -> Answers:
        """`simulated`: in float with rounding, as written; else with the kernels of this machine."""
        outputs = run_graph(model, self._batches, self._threads, optimize=not simulated)
        changed, samples = 0, 0
        for wanted, got in zip(self._reference, outputs, strict=True):
            scores = next(iter(wanted.values()))
            others = next(iter(got.values()))
            if len(wanted) == 1 and scores.ndim == 2 and scores.shape[1] > 1 and others.shape == scores.shape:
                samples += len(scores)
                changed += int((scores.argmax(1) != others.argmax(1)).sum())
        try:
            difference = compare_outputs(self._reference, outputs, self._varying)
        except ValueError:  # numbers that are not finite, or nothing that can be compared
            difference = NO_ANSWER
        return Answers(difference, changed / samples if samples else None, samples)

    def on_fewer(self, samples: int) -> Judge:
        """The same comparison on the first batches only, at least so many samples."""
        count = 0
        for index, batch in enumerate(self._batches):
            count += len(next(iter(batch.values())))
            if count >= samples:
                fewer = object.__new__(Judge)
                fewer._batches, fewer._threads = self._batches[: index + 1], self._threads
                fewer._reference, fewer._varying = self._reference[: index + 1], self._varying
                return fewer
        return self


def search(
    quantizer: Quantizer, judge: Judge, limit: float, feed: Batch, watch: Watch, always: bool = False
) -> list[Found]:
    """The plain graph if its answers are near enough (and not `always`), else a front.

    The first of a front is the fastest within the limit; "exact" leaves twice as many nodes in float; "fast" none.
    `limit`: largest share of changed answers. `feed`: inputs to time nodes with.
    """
    watch(0.0, "quantizing every node")
    plain = quantizer.quantize()
    if not plain.touched:
        return []
    answers = judge.answers(plain.model)
    everything = Found(None, plain, (), answers, answers.within(limit))
    if everything.within and not always:
        return [everything]
    order = _order(quantizer, judge, plain, feed, watch)
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
            tried[count] = Found(None, result, names, seen, seen.within(limit))
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
    if first.in_float:
        front.append(dataclasses.replace(everything, label="fast"))
    return front


def _order(quantizer: Quantizer, judge: Judge, plain: Result, feed: Batch, watch: Watch) -> list[str]:
    """Quantized nodes, the one whose return to float brings most for its time first."""
    names, judge = quantizer.candidates(), judge.on_fewer(ENOUGH_SAMPLES)
    full = _noise(judge.answers(quantizer.simulate(()), simulated=True))
    noises = []
    for index, name in enumerate(names):
        watch(0.1 + 0.6 * index / len(names), f"error of node {index + 1} of {len(names)}: {name}")
        without = _noise(judge.answers(quantizer.simulate((name,)), simulated=True))
        others = [other for other in names if other != name]
        alone = _noise(judge.answers(quantizer.simulate(others), simulated=True))
        noises.append(max(full - without, alone))
    watch(0.7, "timing nodes in float and in integers")
    slow, quick = node_times(quantizer.prepared, feed), node_times(plain.model, feed)
    mean = sum(slow.values()) / max(len(slow), 1)
    savings = [max(slow.get(name, 0.0) - quick.get(name, 0.0), LEAST_SAVING * mean) for name in names]
    ranked = sorted(range(len(names)), key=lambda index: -noises[index] / savings[index])
    return [names[index] for index in ranked]


def _noise(answers: Answers) -> float:
    """Noise power over signal power."""
    return float(10 ** (-answers.difference.sqnr_db / 10))


def node_times(model: onnx.ModelProto, feed: Batch, runs: int = 8) -> dict[str, float]:
    """Node name → median seconds of its kernel on one thread, from ONNX Runtime's own profile.

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
    return {name: float(np.median(values)) for name, values in times.items()}


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
