"""Static quantization from beginning to end: place, calibrate, correct biases, write, look at what really fused.

After writing, ONNX Runtime's own fused graph is read back: a node that it still computes in float would pay for
its Quantize/Dequantize pairs and gain nothing, so such nodes are taken out and the graph is written again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import onnx

from .bias_correction import bias_shifts, channels_second, measured_shifts
from .calibration import Batch, Calibrator, Method, Range
from .dynamic_quantization import quantize_rest
from .onnx_graph import Graph, element_count, float_weights
from .placement import Plan, place
from .static_quantization import Flavour, Written, write_quantized
from .verification import executed_graph, unfused

ROUNDS = 4
"""How often nodes that did not fuse are taken out before we accept what is left."""

Watch = Callable[[float, str], None]
"""Called with the share that is done (0…1) and what is being done; may raise to cancel."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that shapes the result."""

    calibration: Method = "min-max"
    percentile: float = 99.99
    per_channel: bool = True
    seven_bit: bool = False
    symmetric: bool = False
    float_bias: bool = False
    bias_correction: bool = True
    measured_correction: bool = False
    """Correct biases by what the quantized graph is seen to do, layer by layer, instead of by the weights' error."""
    equalise: float = 0.0
    """Bring channels to like size before (see `equalisation`); read by `settings_search.quantizer_for` alone."""
    dynamic_rest: bool = False
    """Quantize LSTM layers and embeddings too, which have no static kernel: their ranges are found while running."""
    exclude: tuple[str, ...] = ()
    threads: int = 0
    weight_bits: int | None = None
    """Fewer bits for weights than the target's 7 or 8."""

    @property
    def flavour(self) -> Flavour:
        return Flavour(self.symmetric, self.seven_bit, self.per_channel, self.float_bias, weight_bits=self.weight_bits)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What fine-tuning with fake quantization settled: used as it is, where it is known."""

    ranges: Mapping[str, Range]
    """Value → range."""
    weight_scales: Mapping[str, np.ndarray]
    """Anchor → scales of its weights."""


@dataclasses.dataclass
class Result:
    """A quantized graph and what was done to whom."""

    model: onnx.ModelProto
    touched: list[str]
    left: dict[str, str]
    absorbed: int
    share: float
    """Share of the model's floating-point numbers that are now 8-bit integers."""


class Quantizer:
    """Quantizes one prepared graph, also several times with other nodes left in float: calibration is done once."""

    def __init__(
        self,
        prepared: onnx.ModelProto,
        batches: Callable[[], Iterable[Batch]],
        settings: Settings,
        watch: Watch = lambda share, what: None,
        trained: Trained | None = None,
    ) -> None:
        self.prepared, self.settings, self.watch = prepared, settings, watch
        self.graph = Graph(prepared)
        self._calibrator = Calibrator(prepared, batches, settings.threads)
        self._ranges: dict[str, Range] = dict(trained.ranges) if trained else {}
        self._weight_scales = trained.weight_scales if trained else {}
        self._means: dict[str, np.ndarray] = {}
        self._output_means: dict[str, np.ndarray] = {}
        self._batches = batches
        self._total = element_count(float_weights(prepared.graph))
        self._reasons = dict.fromkeys(settings.exclude, "kept in float on request")

    def quantize(self, sensitive: Collection[str] = ()) -> Result:
        """The quantized graph, with the `sensitive` nodes in float beside those that the settings exclude.

        A result without `touched` nodes means that there was nothing to quantize.
        """
        for round_ in range(ROUNDS):
            plan = self._plan(sensitive)
            if not plan.anchors:
                return Result(self.prepared, [], plan.left, 0, 0.0)  # quantize-dynamic does the rest better alone
            self.watch(0.8 + 0.05 * round_, "writing the graph")
            written = self._write(plan)
            if self.settings.symmetric:
                break  # the fused graph of a GPU provider cannot be seen on a machine without one
            stuck = unfused(executed_graph(written.model), [*plan.anchors, *plan.carriers])
            if not stuck:
                break
            reason = "ONNX Runtime does not fuse it, so the pairs around it would only cost"
            self._reasons |= dict.fromkeys(stuck, reason)
        return self._result(plan, written)

    def leave(self, names: Collection[str], reason: str) -> None:
        """Keep these nodes in float from now on."""
        self._reasons |= dict.fromkeys(names, reason)

    def settled(self) -> tuple[Plan, dict[str, Range]]:
        """Where pairs go, without nodes found not to fuse by now, and the range of each value."""
        return self._plan(()), self._ranges

    def simulate(self, sensitive: Collection[str]) -> onnx.ModelProto:
        """The same graph without a look at what fuses: enough to see what it answers. Biases are never measured."""
        return self._write(self._plan(sensitive), quick=True).model

    def candidates(self) -> list[str]:
        """Names of the nodes that are quantized now: anchors, and carriers that compute."""
        plan = self._plan(())
        moved = {name for name, value in plan.carriers.items() if value in plan.same_scale}
        return [
            node.name
            for node in self.prepared.graph.node
            if node.name in plan.anchors or (node.name in plan.carriers and node.name not in moved)
        ]

    def _plan(self, sensitive: Collection[str]) -> Plan:
        """Where pairs go, with a range for each value; anchors that saw nothing finite are taken out."""
        while True:
            plan = place(self.graph, {*self._reasons, *sensitive}, self.settings.symmetric)
            told = dict.fromkeys(sensitive, "left in float: rounding it costs the most accuracy") | self._reasons
            plan.left.update({name: told[name] for name in plan.left if name in told})
            missing = [name for name in plan.values if name not in self._ranges]
            if missing:
                self._ranges |= self._calibrator.ranges(
                    missing,
                    self.settings.calibration,
                    self.settings.percentile,
                    lambda share: self.watch(0.6 * share, "calibrating"),
                )
            unseen = _unseen(plan, self._ranges)
            if not unseen:
                return plan
            self._reasons |= dict.fromkeys(unseen, "it saw no finite value on the calibration data")

    def _write(self, plan: Plan, quick: bool = False) -> Written:
        def write(shifts: Mapping[str, np.ndarray] | None) -> Written:
            return write_quantized(
                self.prepared, plan, self._ranges, self.settings.flavour, shifts, self._weight_scales
            )

        if not self.settings.bias_correction:
            return write(None)
        if self.settings.measured_correction and not quick:
            return write(self._measured_shifts(plan, lambda shifts: write(shifts).model))
        if not self._means:
            names = sorted({anchor.activation for anchor in plan.anchors.values() if anchor.op_type != "MatMul"})
            self._means = self._calibrator.means(
                names, lambda share: self.watch(0.6 + 0.2 * share, "correcting biases"), channels_second(self.graph)
            )
        written = write(None)
        if not self._means:
            return written
        return write(bias_shifts(self.graph, plan, written, self._means))

    def _measured_shifts(
        self, plan: Plan, write: Callable[[Mapping[str, np.ndarray]], onnx.ModelProto]
    ) -> dict[str, np.ndarray]:
        """Shifts of the biases, measured on the quantized graph; the float graph's means are kept for the next time."""
        outputs = {node.name: node.output[0] for node in self.prepared.graph.node if node.op_type in ("Conv", "Gemm")}
        wanted = {name: outputs[name] for name in plan.anchors if name in outputs}
        missing = sorted(set(wanted.values()) - set(self._output_means))
        if missing:
            self._output_means |= self._calibrator.means(missing, channels_second=channels_second(self.graph))
        return measured_shifts(
            self.graph,
            plan,
            write,
            {name: self._output_means[value] for name, value in wanted.items() if value in self._output_means},
            lambda model: Calibrator(model, self._batches, self.settings.threads),
            lambda share: self.watch(0.6 + 0.2 * share, "measuring and correcting biases"),
        )

    def _result(self, plan: Plan, written: Written) -> Result:
        nodes = self.prepared.graph.node
        touched = [node.name for node in nodes if node.name in plan.anchors or node.name in plan.carriers]
        model, elements = written.model, written.quantized_elements
        settings = self.settings
        if settings.dynamic_rest:
            rest = quantize_rest(model, settings.seven_bit, settings.per_channel, frozenset(settings.exclude))
            model = rest.model
            touched += rest.touched
            elements += rest.quantized_elements
            for name in rest.touched:
                plan.left.pop(name, None)
        share = elements / self._total if self._total else 0.0
        return Result(model, touched, plan.left, len(plan.absorbed), share)


def _unseen(plan: Plan, ranges: dict[str, Range]) -> list[str]:
    """Nodes whose input or output never had a finite value on the calibration data."""
    names = []
    for anchor in plan.anchors.values():
        values = [anchor.activation, *([anchor.output] if anchor.output in plan.integer_values else [])]
        if any(plan.same_scale.get(value, value) not in ranges for value in values):
            names.append(anchor.name)
    for name, value in plan.carriers.items():
        if value in plan.integer_values and plan.same_scale.get(value, value) not in ranges:
            names.append(name)
    return names
