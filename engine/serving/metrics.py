"""What the server tells about its model: Prometheus metrics, and the protocol's metadata, statistics, configuration.

Metrics and statistics carry Triton's names and units, so that dashboards and clients made for it work as they are.
Batch sizes have a histogram of our own beside them.
"""

import re
from typing import Any

from .served import VERSION, Counts, ServedModel
from .tensors import ServedTensor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's reasons: turned away by the queue, caller gone, failed in the model, no good to begin with."""


def prometheus(model: ServedModel) -> str:
    """All metrics in Prometheus's text format."""
    counts, labels = model.counts(), f'model="{escaped(model.name)}",version="{VERSION}"'
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, values: list[tuple[str, float]]) -> None:
        lines.extend(metric_lines(name, kind, about, values))

    def counter(name: str, about: str, value: float) -> None:
        metric(f"nv_inference_{name}", "counter", about, [(f"{{{labels}}}", value)])

    counter("request_success", "Number of successful inference requests", counts.succeeded)
    failures = [(f'{{{labels},reason="{reason}"}}', float(counts.failed[reason])) for reason in FAILURES]
    metric("nv_inference_request_failure", "counter", "Number of failed inference requests", failures)
    counter("count", "Number of inferences performed (rows)", counts.rows)
    counter("exec_count", "Number of model executions performed", counts.runs)
    metric(
        "nv_inference_pending_request_count",
        "gauge",
        "Number of requests that wait in the queue",
        [(f"{{{labels}}}", model.batcher.depth)],
    )
    counter("request_duration_us", "Cumulative request duration in microseconds", counts.request_seconds * 1e6)
    counter("queue_duration_us", "Cumulative time in the queue in microseconds", counts.queue * 1e6)
    counter("compute_input_duration_us", "Cumulative time of joining inputs in microseconds", counts.forming * 1e6)
    counter("compute_infer_duration_us", "Cumulative time in the model in microseconds", counts.compute * 1e6)
    counter("compute_output_duration_us", "Cumulative time of writing answers in microseconds", counts.output * 1e6)
    sizes = _size_buckets(counts, model.max_rows)
    buckets = [(f'_bucket{{{labels},le="{bound}"}}', count) for bound, count in sizes]
    rows = sum(size * held.runs for size, held in counts.by_size.items())
    total = [(f"_sum{{{labels}}}", float(rows)), (f"_count{{{labels}}}", float(counts.runs))]
    metric("trimtab_batch_size", "histogram", "Rows of the batches that ran", [*buckets, *total])
    return "\n".join(lines) + "\n"


def metric_lines(name: str, kind: str, about: str, values: list[tuple[str, float]]) -> list[str]:
    """One metric: what it is, then a line for each of its (labels, value)."""
    values_lines = [f"{name}{suffix} {_number(value)}" for suffix, value in values]
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *values_lines]


def metadata(model: ServedModel) -> dict[str, Any]:
    """GET /v2/models/NAME."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": model.platform,
        "inputs": [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": _axes(model, tensor.wire_shape)}
            for tensor in model.inputs.values()
        ],
        "outputs": [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": _axes(model, tensor.wire_shape)}
            for tensor in model.outputs.values()
        ],
    }


def index(model: ServedModel) -> list[dict[str, str]]:
    """POST /v2/repository/index: every model there is."""
    return [{"name": model.name, "version": VERSION, "state": "READY" if model.ready else "UNAVAILABLE", "reason": ""}]


def statistics(model: ServedModel) -> dict[str, Any]:
    """One entry of `model_stats` (Triton's statistics extension). Durations are nanoseconds."""
    counts = model.counts()
    nothing = _duration(0, 0.0)
    return {
        "name": model.name,
        "version": VERSION,
        "last_inference": int(counts.last * 1e3),
        "inference_count": counts.rows,
        "execution_count": counts.runs,
        "inference_stats": {
            "success": _duration(counts.succeeded, counts.request_seconds),
            "fail": _duration(sum(counts.failed.values()), counts.failed_seconds),
            "queue": _duration(counts.run_requests, counts.queue),
            "compute_input": _duration(counts.run_requests, counts.forming),
            "compute_infer": _duration(counts.run_requests, counts.compute),
            "compute_output": _duration(counts.written, counts.output),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(held.runs, held.forming),
                "compute_infer": _duration(held.runs, held.compute),
                "compute_output": nothing,  # written for each request, not for a batch
            }
            for size, held in sorted(counts.by_size.items())
        ],
    }


def configuration(model: ServedModel) -> dict[str, Any]:
    """GET /v2/models/NAME/config, and gRPC's ModelConfig: what Triton's own tools want to know before they send load.

    A model with a fixed number of rows has `max_batch_size` 0, as Triton says "takes its whole shape and no other".
    """
    policy, fixed = model.batcher.policy, model.fixed_rows

    def tensors(held: dict[str, ServedTensor]) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor.name,
                "data_type": "TYPE_" + tensor.datatype,
                "dims": _axes(model, tensor.wire_shape)[0 if fixed is not None else 1 :],
            }
            for tensor in held.values()
        ]

    found = {
        "name": model.name,
        "platform": model.platform,
        "backend": model.backend,
        "max_batch_size": 0 if fixed is not None else policy.max_batch_size,
        "input": tensors(model.inputs),
        "output": tensors(model.outputs),
        "instance_group": [{"name": model.name, "kind": "KIND_AUTO", "count": policy.instances}],
    }
    if fixed is None:
        found["dynamic_batching"] = {
            "preferred_batch_size": list(policy.preferred_batch_sizes),
            "max_queue_delay_microseconds": int(policy.max_wait_ms * 1000),
            "priority_levels": policy.priority_levels,
            "default_priority_level": policy.default_priority,
            "default_queue_policy": {
                "timeout_action": policy.timeout_action.upper(),
                "default_timeout_microseconds": int((policy.default_timeout_ms or 0) * 1000),
                "allow_timeout_override": policy.allow_timeout_override,
                "max_queue_size": policy.max_queue_size,
            },
        }
    return found


def _axes(model: ServedModel, shape: list[int]) -> list[int]:
    return [model.fixed_rows, *shape[1:]] if model.fixed_rows is not None else shape


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * 1e9)}


def _size_buckets(counts: Counts, largest: int) -> list[tuple[str, float]]:
    """Cumulative counts at powers of two up to the largest batch."""
    bounds = [1 << power for power in range(largest.bit_length()) if 1 << power < largest] + [largest]
    found = [
        (str(bound), float(sum(held.runs for size, held in counts.by_size.items() if size <= bound)))
        for bound in bounds
    ]
    return [*found, ("+Inf", float(counts.runs))]


def escaped(value: str) -> str:
    """A label's value: backslash, quote and line break as the format wants them, other control characters gone."""
    clean = re.sub(r"[\x00-\x09\x0b-\x1f\x7f]", "?", value)
    return clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
