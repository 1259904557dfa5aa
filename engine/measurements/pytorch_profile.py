"""PyTorch's profiler, summed by module: which layer takes how long, and what runs outside of any leaf layer.

Every call of a module is marked by wrapping `nn.Module.__call__` for the time of the profile. Hooks would do the same,
but modules such as `TransformerEncoderLayer` leave their fast path as soon as a hook is set: another program would be
profiled. On a GPU times are those of the kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import torch

from ..context import JobContext, LoadedVariant
from ..protocol import OperatorTime
from ..runtimes import Runner

MULTIPLYING = ("Linear", "Conv", "LSTM", "GRU", "MultiheadAttention")
"""Kinds of modules that autocast computes in 16 bits."""

MARK = "trimtab:"
"""Before a module's path in the profile."""


def operator_times(
    job: JobContext, variant: LoadedVariant, runner: Runner, inputs: dict[str, np.ndarray], calls: int
) -> tuple[list[OperatorTime], None]:
    """Mean milliseconds a call, by leaf module, and by operation for what other modules do themselves."""
    module: torch.nn.Module = runner.module  # type: ignore[attr-defined]
    on_gpu = runner.device != "cpu"
    call = runner.bind(inputs)
    call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with _marked(module), torch.profiler.profile(activities=activities) as profile:
        for done in range(calls):
            job.progress(done, calls, f"profiling {variant.record.name} under pytorch")
            call()
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in profile.events():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        place = _place(event)
        if place is not None and spent:
            times[place].append(spent / 1000)
    modules = dict(module.named_modules())
    found = []
    for (path, operation), values in times.items():
        owner = modules.get(path)
        leaf = owner is not None and not any(True for _ in owner.children())
        found.append((path, operation, leaf, sum(values) / calls, len(values) / calls, owner))
    return [_cast(one, runner.runtime) for one in _merged(found)], None


def _cast(one: OperatorTime, runtime: str) -> OperatorTime:
    """Under autocast layers that multiply compute in another precision than their weights are stored in."""
    precision = runtime.removeprefix("pytorch-")
    if precision not in ("float16", "bfloat16") or one.precision != "float32" or not one.type.startswith(MULTIPLYING):
        return one
    return msgspec.structs.replace(one, precision=precision)


def _merged(found: list[tuple[str, str, bool, float, float, Any]]) -> list[OperatorTime]:
    """A leaf module is one operator whatever it calls; of the others each operation is one."""
    merged: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    facts: dict[tuple[str, str], tuple[str, str | None, str | None]] = {}
    for path, operation, leaf, spent, calls, owner in found:
        name = path if leaf and path else f"{path}/{operation}" if path else operation
        kind = type(owner).__name__ if leaf and path else operation
        key = (name, kind)
        merged[key][0] += spent
        merged[key][1] = max(merged[key][1], calls)
        facts[key] = (kind, path or None, _precision(owner))
    return [
        OperatorTime(
            name=name,
            type=kind,
            time_ms=merged[name, kind][0],
            calls=max(1, round(merged[name, kind][1])),
            module=facts[name, kind][1],
            precision=facts[name, kind][2],
        )
        for name, kind in merged
    ]


def _place(event: Any) -> tuple[str, str] | None:
    """(path of the innermost module, its operation that the event belongs to); None for what is no operation."""
    if event.name.startswith(MARK):
        return None
    operation, around = event, event.cpu_parent
    while around is not None and not around.name.startswith(MARK):
        operation, around = around, around.cpu_parent
    if around is None:
        return None
    return around.name.removeprefix(MARK), operation.name.removeprefix("aten::")


def _precision(owner: torch.nn.Module | None) -> str | None:
    """The type most of the module's parameters have, quantized ones by their class; None where it has none."""
    if type(owner).__module__.startswith("torch.ao.nn.quantized"):
        return "int8"
    for weight in owner.parameters() if owner is not None else ():
        for name, precision in (("Int4", "int4"), ("Int8", "int8")):
            if type(weight).__name__.startswith(name):  # torchao's tensors say that they are float
                return precision
    for tensor in (*owner.parameters(), *owner.buffers()) if owner is not None else ():
        if tensor.is_floating_point():
            return str(tensor.dtype).removeprefix("torch.")
    return None


@contextmanager
def _marked(module: torch.nn.Module) -> Iterator[None]:
    """Marks every call of a module with its path while this is open."""
    paths = {id(inner): path for path, inner in module.named_modules()}
    original = torch.nn.Module.__call__

    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = paths.get(id(self))
        if path is None:
            return original(self, *args, **kwargs)
        with torch.profiler.record_function(MARK + path):
            return original(self, *args, **kwargs)

    torch.nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.__call__ = original  # type: ignore[method-assign]
