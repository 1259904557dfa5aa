"""Which way to quantize a network costs it the least: ranges, biases and equalised channels, tried one after the other.

No way is the best everywhere. On real networks the same choice gains 10 dB on one and loses 4 dB on the next, so each
is tried on calibration data and kept only when the noise at the outputs falls. Everything here costs no time when the
network runs; what is left after it is for `sensitivity` to leave in float.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx

from .bias_correction import channels_second
from .calibration import Batch, Calibrator
from .equalisation import equalise, passages
from .onnx_graph import Graph
from .sensitivity import Answers, Judge
from .static_recipe import Quantizer, Settings

WORTH_DB = 0.3
"""A choice is kept when it takes at least this much off the noise."""

ALPHA = 0.5
"""How much of a channel's size equalisation moves into the weights, when it is tried."""

SETTLE_SECONDS = 300.0
"""After about so long no further way is tried, unless the caller says otherwise."""

GRAPHS_LATER = 4
"""Correcting layer by layer costs half a pass over the data for each, in every graph that is made later: so often."""

Watch = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One way that was tried and how near the answers were."""

    name: str
    answers: Answers

    def sentence(self) -> str:
        """For the log and the record."""
        difference = self.answers.difference
        return f"{self.name}: cosine {difference.cosine:.5f}, {difference.sqnr_db:.1f} dB"


def settle(
    prepared: onnx.ModelProto,
    batches: Sequence[Batch],
    settings: Settings,
    judge: Judge,
    watch: Watch = lambda share, what: None,
    seconds: float = SETTLE_SECONDS,
) -> tuple[Quantizer, list[Tried]]:
    """(a quantizer with the way that was best, every way tried in order; the first is `settings` as given).

    After about so many seconds nothing further is tried. Biases are only measured layer by layer where the passes over
    the data that this takes, once here and in each graph a search makes later, fit into the time.
    """
    ends = time.monotonic() + seconds
    tried: list[Tried] = []
    best: tuple[float, Quantizer] | None = None
    one_pass = 0.0

    def attempt(name: str, changes: Settings) -> None:
        nonlocal best, one_pass
        if best is not None and time.monotonic() > ends:
            watch(min(0.95, len(tried) / 8), f"no time is left to try {name}")
            return
        watch(min(0.95, len(tried) / 8), f"trying {name}")
        quantizer = quantizer_for(
            prepared, batches, changes, lambda share, what: watch(min(0.95, len(tried) / 8), what)
        )
        result = quantizer.quantize()
        if not result.touched:  # it would be the float graph, and nearest of all
            return
        began = time.monotonic()
        answers = judge.answers(result.model)
        one_pass = time.monotonic() - began
        tried.append(Tried(name, answers))
        noise = answers.difference.sqnr_db
        if best is None or noise > best[0] + WORTH_DB:
            best = noise, quantizer

    attempt("as given", settings)
    if best is None:
        raise ValueError("with these settings nothing is quantized: see that before settling them")
    ranges = [
        ("mse", settings.percentile),
        ("percentile", 99.99),
        ("percentile", 99.9),
        ("entropy", settings.percentile),
        ("min-max", settings.percentile),
    ]
    for method, percentile in ranges:
        if (method, percentile) != (settings.calibration, settings.percentile):
            changed = dataclasses.replace(settings, calibration=method, percentile=percentile)  # type: ignore[arg-type]
            attempt(f"ranges by {method}{f' {percentile}' if method == 'percentile' else ''}", changed)
    found = best[1].settings
    if found.bias_correction:
        attempt("biases as they are", dataclasses.replace(found, bias_correction=False))
    if not found.equalise and passages(Graph(prepared)):
        attempt("channels equalised", dataclasses.replace(best[1].settings, equalise=ALPHA))
    found = best[1].settings
    layers = sum(node.op_type in ("Conv", "Gemm") for node in prepared.graph.node)
    if layers > 0 and not found.measured_correction and layers * one_pass / 2 < seconds / GRAPHS_LATER:
        corrected = dataclasses.replace(found, bias_correction=True, measured_correction=True)
        attempt("biases measured layer by layer", corrected)
    return best[1], tried


def quantizer_for(
    prepared: onnx.ModelProto, batches: Sequence[Batch], settings: Settings, watch: Watch = lambda share, what: None
) -> Quantizer:
    """A quantizer of the graph, with its channels equalised first where the settings say so."""
    graph = prepared
    if settings.equalise:
        source = Graph(prepared)
        values = [passage.value for passage in passages(source)]
        calibrator = Calibrator(prepared, lambda: batches, settings.threads)
        peaks = {
            name: np.asarray(peak)
            for name, peak in calibrator.peaks(values, channels_second=channels_second(source)).items()
        }
        graph, _ = equalise(prepared, peaks, settings.equalise)
    return Quantizer(graph, lambda: batches, settings, watch)
