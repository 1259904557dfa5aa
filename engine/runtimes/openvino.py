"""OpenVINO on the CPU: reads the same ONNX and Q/DQ files as ONNX Runtime.

A graph is compiled for the shapes it is called with, once for each (what is timed never meets an open axis), with the
latency hint and a fixed number of threads. Float operators compute in the type the graph is written in: left to
itself OpenVINO turns FP32 into BF16 where the processor has it, which would be another model than the one compared.
Only standard operators: nodes of `com.microsoft` are refused.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import openvino

from ..graphs.onnx_graph import all_nodes, float_weights
from . import RuntimeUnavailable
from .settling import wait_until_quiet

if TYPE_CHECKING:
    from ..context import LoadedVariant

COMPILED_SHAPES = 8
"""Compiled graphs kept at a time, unless `shapes_kept` says more; a model with ever new shapes compiles ever again and
says so by its times."""

PRECISIONS: dict[int, str] = {onnx.TensorProto.FLOAT16: "f16", onnx.TensorProto.BFLOAT16: "bf16"}
"""What most weights are in → what float operators compute in; anything else is f32."""


class OpenVinoRunner:
    """A graph, compiled per shape. See `Runner`."""

    runtime = "openvino"
    device = "cpu"
    providers = ("CPU",)

    def __init__(self, core: Any, model: Any, precision: str, threads: int | None) -> None:
        self.core, self.model, self.precision, self.threads = core, model, precision, threads
        self.input_names = [port.get_any_name() for port in model.inputs]
        self.output_names = [port.get_any_name() for port in model.outputs]
        self.shapes_kept = COMPILED_SHAPES
        self._compiled: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = threading.Lock()
        """Around `_compiled`: a load test compiles for a larger batch while the smaller ones go on running."""

    @property
    def notes(self) -> tuple[str, ...]:
        """For `Conditions.notes`."""
        return (f"OpenVINO: latency hint, float operators in {self.precision}, shapes fixed before compiling.",)

    @property
    def versions(self) -> dict[str, str]:
        return {"openvino": openvino.__version__.partition("-")[0]}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = self._feed(inputs)
        results = self.compiled(feed).create_infer_request().infer(feed)
        return {name: np.array(results[index]) for index, name in enumerate(self.output_names)}

    def bind(self, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
        feed = self._feed(inputs)
        request = self.compiled(feed).create_infer_request()
        for name, array in feed.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

        def call(_kept_alive: dict[str, np.ndarray] = feed) -> object:
            request.infer()
            return request

        return call

    def compiled(self, feed: dict[str, np.ndarray], counters: bool = False) -> Any:
        """The graph compiled for these shapes. `counters`: with a time for every operator, which costs a little."""
        key = (counters, *(feed[name].shape for name in self.input_names))
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
        model = self.model.clone()
        model.reshape({name: list(array.shape) for name, array in feed.items()})
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.precision, "PERF_COUNT": counters}
        if self.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self.threads
        made = self.core.compile_model(model, "CPU", settings)
        with self._lock:
            self._compiled[key] = made
            while len(self._compiled) > self.shapes_kept:
                self._compiled.popitem(last=False)
        return made

    def settle(self) -> None:
        """Wait until the threads of its pool sleep."""
        wait_until_quiet()

    def close(self) -> None:
        self._compiled.clear()
        del self.model

    def _feed(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Only the inputs the graph has, in the types it wants."""
        feed = {}
        for name, port in zip(self.input_names, self.model.inputs, strict=True):
            known = next((other for other in (name, *port.get_names()) if other in inputs), None)
            if known is None:
                raise ValueError(f"the graph's input {name} is missing among {', '.join(inputs)}")
            feed[name] = np.ascontiguousarray(inputs[known].astype(port.get_element_type().to_dtype(), copy=False))
        return feed


def load(variant: LoadedVariant, device: str = "cpu", threads: int | None = None) -> OpenVinoRunner:
    """Load an ONNX variant. Raises RuntimeUnavailable when OpenVINO cannot read the graph."""
    name = variant.record.name
    if device != "cpu":
        raise RuntimeUnavailable(f"OpenVINO runs on the CPU here, not on {device}: measure {name} with device cpu.")
    graph = onnx.load(variant.path, load_external_data=False).graph
    foreign = sorted({node.op_type for node in all_nodes(graph) if node.domain not in ("", "ai.onnx", "ai.onnx.ml")})
    if foreign:
        raise RuntimeUnavailable(
            f"OpenVINO cannot run {name}: {', '.join(foreign[:5])} "
            f"{'is a node' if len(foreign) == 1 else 'are nodes'} that only ONNX Runtime knows. "
            "Measure the variant it was made from."
        )
    core = openvino.Core()
    try:
        model = core.read_model(variant.path)
    except Exception as error:
        raise RuntimeUnavailable(f"OpenVINO cannot load {name}: {' '.join(str(error).split())[:300]}") from error
    outputs = [value.name for value in graph.output]
    runner = OpenVinoRunner(core, model, _precision(graph), threads)
    if len(outputs) == len(runner.output_names):
        # A value that is passed on unchanged has several names there; ours are the graph's.
        runner.output_names = outputs
    return runner


def _precision(graph: onnx.GraphProto) -> str:
    """What most of the graph's float numbers are written in."""
    counts: dict[int, int] = {}
    for tensor in float_weights(graph):
        counts[tensor.data_type] = counts.get(tensor.data_type, 0) + int(np.prod(tensor.dims, dtype=np.int64))
    most = max(counts, key=lambda kind: counts[kind], default=0)
    return PRECISIONS.get(most, "f32")
