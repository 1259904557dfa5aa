"""Graphs timed against each other under ONNX Runtime on the CPU, for the choices that passes make."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from .verification import cpu_session

Batch = Mapping[str, np.ndarray]

WORTH = 1.02
"""A choice that only serves speed is taken when the graph gets so many times faster: noise can do less."""


def time_in_turns(
    models: Sequence[onnx.ModelProto | Path],
    feeds: Sequence[Batch],
    threads: int,
    watch: Callable[[float], None] = lambda share: None,
    seconds: float = 1.5,
) -> list[float]:
    """Speed of each graph relative to the first, one after the other in turns so that drift hits all alike.

    The geometric mean over `feeds` of the ratio of medians. `seconds` is roughly spent on each graph and feed.
    """
    sessions = [cpu_session(model, threads) for model in models]
    ratios = np.zeros(len(models))
    for index, feed in enumerate(feeds):
        inputs = [{value.name: feed[value.name] for value in session.get_inputs()} for session in sessions]
        for session, given in zip(sessions, inputs, strict=True):
            session.run(None, given)
        began = time.perf_counter()
        sessions[0].run(None, inputs[0])
        rounds = int(np.clip(seconds / max(time.perf_counter() - began, 1e-6), 7, 200))
        times = np.empty((rounds, len(models)))
        for turn in range(rounds):
            watch((index + turn / rounds) / len(feeds))
            order = range(len(models)) if turn % 2 == 0 else range(len(models) - 1, -1, -1)
            for which in order:
                began = time.perf_counter()
                sessions[which].run(None, inputs[which])
                times[turn, which] = time.perf_counter() - began
        medians = np.median(times, axis=0)
        ratios += np.log(medians[0] / medians) / len(feeds)
    return [float(ratio) for ratio in np.exp(ratios)]
