"""Latency of real variants: paired with the baseline in its own runtime, with the parent beside it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from opened_models import CLASSIFIER, baseline_of, job_on, linear_graph, opened, save_graph, stored, write

from engine.context import JobCancelled, JobContext, LoadedVariant
from engine.measurements import timing
from engine.measurements.latency import measure_latency
from engine.models import ModelError
from engine.protocol import Latency, Progressed, VariantDraft

BUDGET = 0.5
"""Seconds of rounds: the code is what is tested, not the machine."""


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.004)
    monkeypatch.setattr(timing, "PATIENCE", 1)


def a_graph(path: Path, layers: int, width: int = 192) -> Path:
    """features (batch, 6) → output (batch, 6) through `layers` products of (width, width): time grows with `layers`."""
    names = [f"h{i}" for i in range(layers + 1)]
    nodes = [helper.make_node("MatMul", ["features", "first"], ["h0"])]
    nodes += [helper.make_node("MatMul", [names[i], "square"], [names[i + 1]]) for i in range(layers)]
    nodes.append(helper.make_node("MatMul", [names[-1], "last"], ["output"]))
    random = np.random.default_rng(0)
    weights = {
        "first": random.standard_normal((6, width)),
        "square": random.standard_normal((width, width)) / width**0.5,
        "last": random.standard_normal((width, 6)) / width**0.5,
    }
    ends: list[int | str | None] = ["batch", 6]
    return save_graph(
        path,
        nodes,
        {"features": (TensorProto.FLOAT, ends)},
        {"output": (TensorProto.FLOAT, ends)},
        {name: array.astype(np.float32) for name, array in weights.items()},
    )


def graph_variant(job: JobContext, directory: Path, name: str, parent: str, path: Path) -> LoadedVariant:
    """A variant made of this graph, known to the job."""
    where = directory / "variants" / name
    where.mkdir(parents=True)
    path.rename(where / "model.onnx")
    draft = VariantDraft(label=None, format="onnx", files=("model.onnx",), deployed_files=("model.onnx",))
    job.variants[name] = stored(job.model, draft, where, name, parent)
    return job.variants[name]


def onnx_job(directory: Path, layers: int = 60, on_message: Any = lambda message: None) -> JobContext:
    return job_on(baseline_of(opened(a_graph(directory / "net.onnx", layers)), directory), directory, on_message)


def test_a_faster_variant_is_faster_and_says_than_what(tmp_path: Path) -> None:
    job = onnx_job(tmp_path)
    variant = graph_variant(job, tmp_path, "short", "baseline", a_graph(tmp_path / "short.onnx", 3))
    small, large = measure_latency(job, variant, "onnxruntime", (1, 32), budget=BUDGET)

    assert (small.batch_size, large.batch_size) == (1, 32)
    for latency in (small, large):
        assert latency.variant == "short"
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms
        assert latency.samples >= 10
        assert latency.noise_floor is not None
        assert latency.speedup is not None
        assert latency.speedup.low <= latency.speedup.ratio <= latency.speedup.high
        assert latency.speedup.against_variant == "baseline"
        assert latency.speedup_over_parent == latency.speedup
    assert large.speedup is not None
    assert large.speedup.ratio > 2
    assert large.speedup.against == "baseline · onnxruntime · cpu · batch 32"
    assert large.throughput_per_s > small.throughput_per_s
    assert large.conditions.runtime == "onnxruntime"
    assert large.conditions.providers == ("CPUExecutionProvider",)
    assert large.conditions.threads == 1
    assert large.conditions.processor == "avx2"


def test_the_baseline_of_a_python_model_runs_in_pytorch_whatever_the_variant_runs_in(tmp_path: Path) -> None:
    job = job_on(baseline_of(opened(write(tmp_path, CLASSIFIER)), tmp_path), tmp_path)
    exported = graph_variant(job, tmp_path, "onnx", "baseline", a_graph(tmp_path / "a.onnx", 40))
    (latency,) = measure_latency(job, exported, "onnxruntime", (4,), budget=BUDGET)
    assert latency.speedup is not None
    assert latency.speedup.against == "baseline · pytorch · cpu · batch 4"
    assert latency.speedup_over_parent is None, "its parent is a module, which ONNX Runtime cannot run"

    quicker = graph_variant(job, tmp_path, "quicker", "onnx", a_graph(tmp_path / "b.onnx", 2))
    (latency,) = measure_latency(job, quicker, "onnxruntime", (4,), budget=BUDGET)
    assert latency.speedup_over_parent is not None
    assert latency.speedup_over_parent.against == "onnx · onnxruntime · cpu · batch 4"
    assert latency.speedup_over_parent.ratio > 1.5
    assert latency.speedup is not None
    assert latency.speedup.ratio != latency.speedup_over_parent.ratio


def test_the_baseline_against_itself_is_1_with_a_floor(tmp_path: Path) -> None:
    job = onnx_job(tmp_path, layers=10)
    (latency,) = measure_latency(job, job.variants["baseline"], "onnxruntime", (2,), budget=BUDGET)
    assert latency.speedup is not None
    assert (latency.speedup.ratio, latency.speedup.verdict) == (1.0, "SAME")
    assert latency.speedup_over_parent is None
    assert latency.noise_floor is not None
    assert latency.noise_floor > 0


def test_a_model_with_a_fixed_batch_is_measured_at_that_one(tmp_path: Path) -> None:
    job = job_on(baseline_of(opened(linear_graph(tmp_path / "net.onnx", batch=4)), tmp_path), tmp_path)
    (latency,) = measure_latency(job, job.variants["baseline"], "onnxruntime", (1, 8), budget=BUDGET)
    assert latency.batch_size == 4
    assert "measured at batch 4 only" in " ".join(latency.conditions.notes)


def test_a_variant_that_fails_at_a_batch_size_is_told_with_its_name(tmp_path: Path) -> None:
    job = onnx_job(tmp_path, layers=3)
    path = save_graph(
        tmp_path / "fixed.onnx",
        [helper.make_node("Relu", ["features"], ["output"])],
        {"features": (TensorProto.FLOAT, [1, 6])},
        {"output": (TensorProto.FLOAT, [1, 6])},
    )
    fixed = graph_variant(job, tmp_path, "fixed", "baseline", path)
    with pytest.raises(ModelError, match="fixed fails under onnxruntime at batch 8"):
        measure_latency(job, fixed, "onnxruntime", (8,), budget=BUDGET)


def test_outputs_that_are_not_numbers_are_noted(tmp_path: Path) -> None:
    job = onnx_job(tmp_path, layers=3)
    path = save_graph(
        tmp_path / "nan.onnx",
        [helper.make_node("Log", ["features"], ["output"])],
        {"features": (TensorProto.FLOAT, ["batch", 6])},
        {"output": (TensorProto.FLOAT, ["batch", 6])},
    )
    (latency,) = measure_latency(
        job, graph_variant(job, tmp_path, "nan", "baseline", path), "onnxruntime", (4,), budget=BUDGET
    )
    assert "Outputs that are not finite numbers: output." in latency.conditions.notes


def test_progress_is_told_and_cancelling_ends_it(tmp_path: Path) -> None:
    messages: list[Any] = []
    job = onnx_job(tmp_path, layers=10, on_message=messages.append)
    measure_latency(job, job.variants["baseline"], "onnxruntime", (1, 2), budget=BUDGET)
    told = [message for message in messages if isinstance(message, Progressed)]
    assert any("batch 1: round" in message.message for message in told)
    shares = [message.done / message.total for message in told if message.total]
    assert shares == sorted(shares)
    assert shares[-1] < 1

    def cancel_in_the_rounds(message: Any) -> None:
        if "round" in message.message:
            job.cancel()

    job = dataclasses.replace(job, send=cancel_in_the_rounds)
    with pytest.raises(JobCancelled):
        measure_latency(job, job.variants["baseline"], "onnxruntime", (1,), budget=60)


def test_a_baseline_too_large_to_load_twice_has_no_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.measurements import latency as module

    monkeypatch.setattr(module, "FREE_MEMORY_SHARE", 0.0)
    job = onnx_job(tmp_path, layers=10)
    variant = graph_variant(job, tmp_path, "short", "baseline", a_graph(tmp_path / "short.onnx", 3))
    found: list[Latency] = measure_latency(job, variant, "onnxruntime", (1,), budget=BUDGET)
    assert found[0].noise_floor is None
    assert any("No noise floor" in note for note in found[0].conditions.notes)
