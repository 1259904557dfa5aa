"""ONNX Runtime's own profile, read: each kernel's time, what it computes in, and the file's nodes it stands for.

The session that is profiled also writes the graph it runs after all its fusions; the profile's names are that graph's.
Kernels inside an If, Loop or Scan are counted for themselves and not once more for the node around them.
On a GPU the profile holds the host's time to launch a kernel unless the provider traces the device, and a note says so.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ..context import JobContext, LoadedVariant
from ..graphs.executed_nodes import nodes_behind
from ..graphs.onnx_graph import EXTERNAL_DATA_BYTES, Graph
from ..graphs.sessions import LEAVE_OUT, crashing_optimisers
from ..graphs.verification import INTEGER_KERNELS
from ..protocol import OperatorTime
from ..runtimes import Runner

CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
"""Operators that turn float into integers and back."""

WEIGHT_AT = {
    "QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "MatMulInteger": 1, "ConvInteger": 1, "QAttention": 1, "DynamicQuantizeLSTM": 1,
}  # fmt: skip
"""Integer kernels → which input holds the weights."""

FLOATS = {"float": "float32", "float16": "float16", "bfloat16": "bfloat16", "double": "float64"}

SEVEN_BITS = 64
"""Magnitude that 7-bit weights do not exceed."""


def operator_times(
    job: JobContext, variant: LoadedVariant, runner: Runner, inputs: dict[str, np.ndarray], calls: int
) -> tuple[list[OperatorTime], float]:
    """Median milliseconds a call of every kernel, and of what a call takes beside them.

    `runner` gives device and threads; the session that is profiled is another one.
    """
    path = named_copy(variant.path, job.work)
    executed_path = job.work / "executed.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(job.work / "onnxruntime")
    options.optimized_model_filepath = str(executed_path)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if runner.threads is not None:
        options.intra_op_num_threads = runner.threads
        options.inter_op_num_threads = 1
    providers: list[Any] = ["CPUExecutionProvider"]
    if runner.device == "cpu":
        if unwanted := crashing_optimisers(variant.path):
            options.add_session_config_entry(LEAVE_OUT, ";".join(unwanted))
    else:
        index = runner.device.partition(":")[2] or "0"
        providers = [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    wanted = {value.name for value in session.get_inputs()}
    feed = {name: array for name, array in runner._feed(inputs).items() if name in wanted}  # type: ignore[attr-defined]
    for done in range(calls + 2):
        job.progress(done, calls + 2, f"profiling {variant.record.name} under onnxruntime")
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    executed = onnx.load(executed_path, load_external_data=False).graph
    source = Graph(onnx.load(path, load_external_data=False))
    kernels = _kernels(events, calls)
    return _operators(kernels, source, executed), _around_ms(events, kernels, calls)


def named_copy(path: Path, work: Path) -> Path:
    """The graph with a name of its own for every node: the profile knows nodes by their names only.

    A graph with external data is given back as it is.
    """
    model = onnx.load(path, load_external_data=False)
    names = [node.name for node in model.graph.node]
    if (all(names) and len(set(names)) == len(names)) or any(
        tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer
    ):
        return path
    name_nodes(model.graph)
    if model.ByteSize() > EXTERNAL_DATA_BYTES:
        return path
    copy = work / "named.onnx"
    onnx.save(model, copy)
    return copy


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node of the main graph a name that no other has."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            first = next((name for name in node.output if name), str(index))
            node.name = f"{node.op_type}:{first}"
        taken.add(node.name)


def _kernels(events: list[dict[str, Any]], calls: int) -> dict[str, tuple[list[float], dict[str, Any]]]:
    """Kernel → (its milliseconds in each of the last `calls` calls, the facts of its last run)."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")[-calls:]
    own = _own_times([e for e in events if e.get("cat") == "Node" and str(e.get("name")).endswith("_kernel_time")])
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    facts: dict[str, dict[str, Any]] = {}
    position = 0
    for event, duration in sorted(own, key=lambda pair: pair[0]["ts"]):
        while position < len(runs) and event["ts"] > runs[position][1]:
            position += 1
        if position < len(runs) and event["ts"] >= runs[position][0]:
            name = event["name"].removesuffix("_kernel_time")
            times[name][position] += duration / 1000
            facts[name] = event["args"]
    return {name: (values, facts[name]) for name, values in times.items()}


def _around_ms(
    events: list[dict[str, Any]], kernels: dict[str, tuple[list[float], dict[str, Any]]], calls: int
) -> float:
    """Median over the calls of what lies between their kernels."""
    whole = [e["dur"] / 1000 for e in events if e.get("name") == "model_run"][-calls:]
    inside = np.sum([times for times, _ in kernels.values()], axis=0) if kernels else np.zeros(len(whole))
    return max(0.0, float(np.median(np.array(whole) - inside)))


def _own_times(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Each event with its microseconds less those of the events inside it (a Loop's body)."""
    own: list[list[Any]] = []
    open_events: dict[Any, list[list[Any]]] = defaultdict(list)
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        around = open_events[event.get("tid")]
        while around and around[-1][0]["ts"] + around[-1][0]["dur"] <= event["ts"]:
            around.pop()
        entry = [event, float(event["dur"])]
        if around and event["ts"] + event["dur"] <= around[-1][0]["ts"] + around[-1][0]["dur"]:
            around[-1][1] = max(0.0, around[-1][1] - event["dur"])
        around.append(entry)
        own.append(entry)
    return [(event, duration) for event, duration in own]


def _operators(
    kernels: dict[str, tuple[list[float], dict[str, Any]]], source: Graph, executed: onnx.GraphProto
) -> list[OperatorTime]:
    behind = nodes_behind(source, executed)
    nodes = {node.name: node for node in executed.node}
    constants = {tensor.name: tensor for tensor in executed.initializer}
    found = []
    for name, (times, facts) in kernels.items():
        types = [next(iter(entry), "") for entry in facts.get("input_type_shape", [])]
        kind = str(facts.get("op_name", ""))
        precision = _precision(kind, types)
        operands, full_range = None, None
        if precision == "int8" and kind in WEIGHT_AT and name in nodes:
            operands, full_range = _weights(nodes[name], kind, types, constants)
        found.append(
            OperatorTime(
                name=name,
                type=kind,
                time_ms=float(np.median(times)),
                nodes=behind.get(name, ()),
                precision=precision,
                operands=operands,
                full_range=full_range,
            )
        )
    return found


def _precision(kind: str, types: list[str]) -> str | None:
    """What a kernel computes in, from its name and the types it reads."""
    if kind in CONVERSIONS:
        return "conversion"
    if kind in ("MatMulNBits", "GatherBlockQuantized"):
        return "int4"
    if kind in INTEGER_KERNELS or (types and types[0] in ("uint8", "int8") and kind != "Cast"):
        return "int8"
    return next((FLOATS[name] for name in types if name in FLOATS), types[0] if types else None)


def _weights(
    node: onnx.NodeProto, kind: str, types: list[str], constants: dict[str, onnx.TensorProto]
) -> tuple[str | None, bool | None]:
    """("uint8×int8", whether the weights go beyond 7 bits) as far as the executed graph tells."""
    activation = "uint8" if kind.startswith("Dynamic") else types[0] if types else "uint8"
    at = WEIGHT_AT[kind]
    tensor = constants.get(node.input[at]) if len(node.input) > at else None
    if tensor is None:
        return None, None
    weights = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    full_range = None
    if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type == onnx.TensorProto.INT8:
        values = onnx.numpy_helper.to_array(tensor)
        full_range = bool(values.size and np.abs(values.astype(np.int16)).max() > SEVEN_BITS)
    return f"{activation}×{weights}", full_range
