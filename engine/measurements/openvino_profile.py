"""OpenVINO's performance counters, read: each primitive's time, its precision, and the file's nodes it stands for."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx

from ..context import JobContext, LoadedVariant
from ..graphs.onnx_graph import Graph
from ..protocol import OperatorTime
from ..runtimes import Runner

PRECISIONS = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "int8", "i32": "int32", "i64": "int64",
}  # fmt: skip
"""What OpenVINO calls them → what we call them."""

CONVERSIONS = {"FakeQuantize", "Convert", "Quantize"}
"""Primitives that turn float into integers and back."""


def operator_times(
    job: JobContext, variant: LoadedVariant, runner: Runner, inputs: dict[str, np.ndarray], calls: int
) -> tuple[list[OperatorTime], float]:
    """Median milliseconds a call of every primitive that was executed, and of what a call takes beside them."""
    feed: dict[str, np.ndarray] = runner._feed(inputs)  # type: ignore[attr-defined]
    compiled = runner.compiled(feed, counters=True)  # type: ignore[attr-defined]
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = {}
    kinds: dict[str, tuple[str, str]] = {}
    around: list[float] = []
    for done in range(calls + 2):
        job.progress(done, calls + 2, f"profiling {variant.record.name} under openvino")
        start = time.perf_counter()
        request.infer(feed)
        whole = 1000 * (time.perf_counter() - start)
        if done < 2:
            continue
        executed = [one for one in request.profiling_info if one.status == one.Status.EXECUTED]
        around.append(max(0.0, whole - sum(1000 * one.real_time.total_seconds() for one in executed)))
        for counter in executed:
            times.setdefault(counter.node_name, []).append(counter.real_time.total_seconds() * 1000)
            kinds[counter.node_name] = (counter.node_type, counter.exec_type)
    behind = _nodes_behind(compiled, Graph(onnx.load(variant.path, load_external_data=False)))
    found = [
        OperatorTime(
            name=name,
            type=kinds[name][0],
            time_ms=float(np.median(values)),
            nodes=behind.get(name, ()),
            precision=_precision(*kinds[name]),
        )
        for name, values in times.items()
    ]
    return found, float(np.median(around))


def _precision(kind: str, executed: str) -> str | None:
    if kind in CONVERSIONS:
        return "conversion"
    return PRECISIONS.get(executed.rpartition("_")[2].lower())


def _nodes_behind(compiled: Any, source: Graph) -> dict[str, tuple[str, ...]]:
    """Primitive → the file's nodes it was made of. OpenVINO keeps a node's name, or that of the value it gives."""
    names = {node.name: node.name for node in source.proto.node if node.name}
    names |= {value: node.name or value for value, node in source.producers.items() if value not in names}
    behind = {}
    for operation in compiled.get_runtime_model().get_ops():
        facts = operation.get_rt_info()
        if "originalLayersNames" not in facts:
            continue
        originals = facts["originalLayersNames"].astype(str).split(",")
        parts = [part for whole in originals for part in (whole, whole.partition("/WithoutBiases")[0])]
        found = [names[part] for part in parts if part in names]
        behind[operation.get_friendly_name()] = tuple(dict.fromkeys(found))
    return _with_silent(behind, source)


def _with_silent(behind: dict[str, tuple[str, ...]], source: Graph) -> dict[str, tuple[str, ...]]:
    """A product whose bias was added to it leaves only the Add's name: nodes that nothing claims belong to the one
    primitive that all their readers belong to."""
    owner = {node: primitive for primitive, nodes in behind.items() for node in nodes}
    added: dict[str, list[str]] = {}
    for node in reversed(source.proto.node):
        if node.name in owner:
            continue
        owners = {owner.get(reader.name) for value in node.output for reader in source.readers.get(value, [])}
        if len(owners) == 1 and (primitive := owners.pop()) is not None:
            owner[node.name] = primitive
            added.setdefault(primitive, []).append(node.name)
    return {primitive: (*nodes, *reversed(added.get(primitive, []))) for primitive, nodes in behind.items()}
