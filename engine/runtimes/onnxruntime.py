"""ONNX Runtime: the CPU provider, or CUDA when it is asked for and really there.

Every graph optimisation is on. Its thread pool spins for some 20 ms after a run and would rob whatever is timed
next (measured: 22 ms of CPU time burnt in the 200 ms after a run, 0.1 ms with `session.force_spinning_stop`;
ONNX Runtime 1.32, two cores), so sessions are told to stop spinning when a run ends; within a run they still spin.
A session that fell back from CUDA to the CPU, wholly, raises; nodes left on the CPU are listed in `notes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from ..graphs.sessions import LEAVE_OUT, Crashes, crashing_optimisers
from . import RuntimeUnavailable

if TYPE_CHECKING:
    from ..context import LoadedVariant

NUMPY_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(int16)": np.int16, "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32, "tensor(uint32)": np.uint32, "tensor(int64)": np.int64, "tensor(uint64)": np.uint64,
}  # fmt: skip
"""What ONNX Runtime calls its tensors → what it takes for them. bfloat16 has no numpy type: it gets none."""


class OnnxRuntimeRunner:
    """A session. See `Runner`."""

    runtime = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, device: str, threads: int | None, cpu_nodes: int) -> None:
        self.session, self.device, self.threads = session, device, threads
        self.providers = tuple(session.get_providers())
        self.cpu_nodes = cpu_nodes
        """Nodes that a GPU session left to the CPU (shape arithmetic, or unsupported kinds)."""
        self.types = {value.name: NUMPY_TYPES.get(value.type) for value in session.get_inputs()}
        self.output_names = [o.name for o in session.get_outputs() if o.type.startswith("tensor")]

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self.session.run(self.output_names, self._feed(inputs))
        return dict(zip(self.output_names, values, strict=True))

    def bind(self, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
        feed, names, session = self._feed(inputs), self.output_names, self.session
        if self.device == "cpu":
            return lambda: session.run(names, feed)
        binding = session.io_binding()
        index = int(self.device.partition(":")[2] or 0)
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", index))
        for name in names:
            binding.bind_output(name, "cuda", index)

        def call() -> object:
            session.run_with_iobinding(binding)  # returns when the stream is done (its default)
            return binding

        return call

    def settle(self) -> None:
        """Nothing to do: `session.force_spinning_stop` ended the spinning with the run."""

    def close(self) -> None:
        del self.session

    def _feed(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Only the inputs the graph has, in the types it wants: an FP16 graph gets the FP32 samples as FP16."""
        feed = {}
        for name, dtype in self.types.items():
            if name not in inputs:
                raise ValueError(f"the graph's input {name} is missing among {', '.join(inputs)}")
            array = np.asarray(inputs[name])
            feed[name] = np.ascontiguousarray(array if dtype is None else array.astype(dtype, copy=False))
        return feed


def load(variant: LoadedVariant, device: str = "cpu", threads: int | None = None) -> OnnxRuntimeRunner:
    """Load an ONNX variant. Raises RuntimeUnavailable when the provider is missing, fell back, or refuses the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RuntimeUnavailable(
                "This ONNX Runtime has no CUDA provider: replace onnxruntime by onnxruntime-gpu (never install both)."
            )
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        index = device.partition(":")[2] or "0"
        providers = [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        if device == "cpu" and (unwanted := crashing_optimisers(variant.path)):
            options.add_session_config_entry(LEAVE_OUT, ";".join(unwanted))
    except Crashes as crash:
        raise RuntimeUnavailable(f"{crash}: {variant.record.name} cannot run here.") from None
    try:
        session = onnxruntime.InferenceSession(variant.path, options, providers=providers)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise RuntimeUnavailable(f"ONNX Runtime cannot load {variant.record.name} on {device}: {text}") from error
    cpu_nodes = 0
    if device != "cpu":
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeUnavailable(
                f"ONNX Runtime fell back to the CPU instead of {device}: its CUDA provider did not load (CUDA or cuDNN "
                "libraries missing, or of another version than it wants)."
            )
        on_gpu, cpu_nodes = _assigned_nodes(session)
        if on_gpu == 0 and cpu_nodes:
            raise RuntimeUnavailable(
                f"ONNX Runtime would run every node of {variant.record.name} on the CPU, not on {device}."
            )
    return OnnxRuntimeRunner(session, device, threads, cpu_nodes)


def _assigned_nodes(session: onnxruntime.InferenceSession) -> tuple[int, int]:
    """How many nodes CUDA and the CPU got; (0, 0) where this ONNX Runtime does not tell."""
    read = getattr(session, "get_provider_graph_assignment_info", None)
    if read is None:
        return 0, 0
    counts = {True: 0, False: 0}
    for subgraph in read():
        counts[subgraph.ep_name == "CUDAExecutionProvider"] += len(subgraph.get_nodes())
    return counts[True], counts[False]
