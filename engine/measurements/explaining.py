"""Why is this variant faster than that one, or why not? Both are timed side by side and profiled, then compared.

The answer is an `Explanation`: the ratio, one sentence with the main cause (`causes`), operators of both with their
precision, quantized nodes that the runtime computes in float, what the hardware lacks, and the error layer by layer.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import Any

import onnx

from ..context import JobContext, LoadedVariant
from ..graphs.onnx_graph import Graph
from ..graphs.unfused_pairs import unfused_nodes
from ..protocol import ExplainVariant, Explanation, LayerError, OperatorTime, Ratio, Unfused
from ..runtimes import load
from .causes import INTEGERS, Machine, main_cause, profiles_disagree
from .conditions import OtherWork
from .float_twin import float_twin
from .latency import speed_verdict
from .layer_errors import kernel_cosine, layer_errors, seven_bit_cosine
from .onnxruntime_profile import name_nodes
from .operator_changes import Side, changes
from .profiling import Profiled, profile_or_time
from .timing import Arm, log_ratio, time_rounds, warm_up

BUDGET_SECONDS = 3.0
"""Rounds of timing both end about then."""

COMPARED_SAMPLES = 4
"""Samples whose values are compared layer by layer."""


def explain_variant(job: JobContext, task: ExplainVariant) -> Explanation:
    """Raises RuntimeUnavailable when one of the two cannot run under its runtime, JobCancelled."""
    variant, against = job.variants[task.variant], job.variants[task.against]
    size = job.model.fixed_batch or task.batch_size
    others = OtherWork()
    speedup = _time_both(job, task, size)
    after = profile_or_time(job, variant, task.runtime, size)
    before = profile_or_time(job, against, task.against_runtime, size)
    unfused: tuple[Unfused, ...] = ()
    if variant.record.format == "onnx":
        unfused = unfused_nodes(_named_graph(variant), after.operators, task.runtime)
    cause = main_cause(
        _side(against, task.against_runtime, before),
        _side(variant, task.runtime, after),
        speedup,
        unfused,
        Machine(job.spec.device, job.spec.processor.features),
    )
    missing = missing_features(job, task.runtime, after.operators)
    disagreement = profiles_disagree(speedup, before.accounted_ms, after.accounted_ms)
    sentence, notes = cause.sentence, list(missing.values())
    saturation = _saturation(job, variant, task.runtime, after.operators, size)
    if saturation is not None:
        harmful, text = saturation
        notes.append(text)
        if harmful:
            sentence = f"{sentence.rstrip('.')}; and {text[0].lower()}{text[1:]}"
    layers, why_none = _layers(job, variant, against, size)
    for name, one in ((variant.record.name, after), (against.record.name, before)):
        notes += [f"{name}: {note}" for note in one.conditions.notes]
    notes += [*([why_none] if why_none else []), *others.note()]
    return Explanation(
        id=uuid.uuid4().hex[:12],
        variant=variant.record.id,
        against=against.record.id,
        job=job.spec.job,
        created=time.time(),
        conditions=after.conditions,
        against_conditions=before.conditions,
        batch_size=size,
        speedup=speedup,
        cause=f"{sentence} {disagreement}".rstrip(),
        cause_kind=cause.kind,
        latency_ms=after.latency_ms,
        against_latency_ms=before.latency_ms,
        operators=after.operators,
        against_operators=before.operators,
        changes=changes(before.operators, after.operators),
        remainder_ms=after.remainder_ms,
        against_remainder_ms=before.remainder_ms,
        unfused=unfused,
        missing_features=tuple(missing),
        notes=tuple(notes),
        layers=layers,
    )


def _time_both(job: JobContext, task: ExplainVariant, size: int) -> Ratio:
    """The speed-up of the variant over the other, timed in turns."""
    variant, against = job.variants[task.variant], job.variants[task.against]
    inputs = job.model.example(size)
    runners = []
    try:
        arms = []
        for name, one, runtime in (("against", against, task.against_runtime), ("variant", variant, task.runtime)):
            job.progress(0, None, f"loading {one.record.name} under {runtime}")
            runner = load(one, runtime, job.spec.device, job.spec.threads)
            runners.append(runner)
            arms.append(Arm(name, runner.bind(inputs), runner.settle))
        for arm in arms:
            job.progress(0, None, f"warming up {arm.name}")
            warm_up(arm)

        def progress(rounds: int, seconds: float, half_width: float) -> None:
            job.progress(min(0.99, seconds / BUDGET_SECONDS), 4, f"timing both, round {rounds + 1}")

        time_rounds(arms, (arms[0], arms[1]), budget=BUDGET_SECONDS, seed=job.spec.seed, progress=progress)
    finally:
        for runner in runners:
            runner.close()
    value, low, high = (math.exp(part) for part in log_ratio(arms[0], arms[1]))
    return Ratio(
        ratio=value,
        low=low,
        high=high,
        verdict=speed_verdict(low, high, None),
        against=f"{against.record.name} · {task.against_runtime} · {job.spec.device} · batch {size}",
        against_variant=against.record.id,
    )


def missing_features(job: JobContext, runtime: str, operators: tuple[OperatorTime, ...]) -> dict[str, str]:
    """What the device lacks for the precisions that are used → a sentence on what that means."""
    used = {one.precision for one in operators}
    if job.spec.device != "cpu":
        return _missing_on_gpu(job.spec.device, used)
    have = set(job.spec.processor.features)
    missing: dict[str, str] = {}
    if "int8" in used:
        if have & {"neon"}:
            if "dotprod" not in have:
                missing["dotprod"] = "This CPU has no dot product of bytes: INT8 is hardly faster than FP32."
        else:
            if "vnni" not in have:
                missing["vnni"] = (
                    "This CPU has no VNNI: INT8 products take three instructions instead of one, and sums of "
                    "full-range weights saturate."
                )
            if "amx-int8" not in have:
                missing["amx-int8"] = "This CPU has no AMX: no matrix unit for INT8."
    if "bfloat16" in used and "amx-bf16" not in have:
        missing["amx-bf16"] = "This CPU has no matrix unit for BF16."
    if "float16" in used and runtime == "onnxruntime":
        missing["fp16"] = "ONNX Runtime converts FP16 to FP32 and back on a CPU: it saves memory, not time."
    return missing


def _missing_on_gpu(device: str, used: set[str | None]) -> dict[str, str]:
    import torch

    if not torch.cuda.is_available():
        return {}
    capability = torch.cuda.get_device_capability(device)
    missing = {}
    if capability < (7, 0):
        missing["tensor-cores"] = "This GPU has no tensor cores: FP16 and INT8 gain little."
    elif used & INTEGERS and capability < (7, 5):
        missing["int8-tensor-cores"] = "This GPU's tensor cores do not take INT8."
    if capability < (8, 9):
        missing["fp8"] = "This GPU has no FP8."
    return missing


def _saturation(
    job: JobContext, variant: LoadedVariant, runtime: str, operators: tuple[OperatorTime, ...], size: int
) -> tuple[bool, str] | None:
    """(whether sums lose more than 7-bit weights would, a sentence), where 8-bit weights meet a CPU that adds in 16."""
    features = set(job.spec.processor.features)
    full = [one for one in operators if one.full_range and (one.operands or "").startswith("uint8")]
    if not full or job.spec.device != "cpu" or runtime != "onnxruntime" or features & {"vnni", "neon"}:
        return None
    inputs = job.model.example(job.model.fixed_batch or min(size, COMPARED_SAMPLES))
    try:
        cosine = kernel_cosine(variant.path, inputs, job.spec.threads)
        careful = seven_bit_cosine(variant.path, inputs, job.spec.threads)
    except Exception as error:  # outputs that cannot be compared, and ONNX Runtime's own classes
        text = " ".join(str(error).split())[:200]
        return False, f"What sums that saturate at 16 bits cost could not be found: {text}."
    return cosine < careful, (
        f"Weights of {len(full)} operators use all 8 bits, and without VNNI sums of u8×s8 saturate at 16 bits: the "
        f"kernels' answers have cosine {cosine:.4f} with the graph's own, where 7-bit weights would keep "
        f"{careful:.4f}. Quantize for cpu-avx2 or cpu-portable (7-bit weights)."
    )


def _layers(
    job: JobContext, variant: LoadedVariant, against: LoadedVariant, size: int
) -> tuple[tuple[LayerError, ...], str]:
    """The errors and, where there are none, why."""
    if variant.record.format != "onnx":
        return (), f"Errors layer by layer need ONNX graphs, and {variant.record.name} is {variant.record.format}."
    if against.record.format != "onnx" and variant.record.technique == "export-onnx":
        return (), "An export computes what the module computes, layer by layer: only its outputs were compared."
    job.progress(3, 4, "comparing layer by layer")
    samples = job.model.fixed_batch or min(size, COMPARED_SAMPLES)
    inputs = job.model.example(samples)
    try:
        reference = against.path if against.record.format == "onnx" else float_twin(job, against, inputs)
        changed = variant.record.changed
        found = layer_errors(
            variant.path,
            reference,
            inputs,
            job.spec.threads,
            work=job.work,
            quantized=changed.touched if changed is not None else (),
        )
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return (), f"Errors layer by layer could not be found: {text}"
    if found and against.record.format != "onnx":
        return found, f"Errors layer by layer are against {against.record.name}, exported and not trained further."
    return found, "" if found else "The two graphs share no value by name, so there are no errors layer by layer."


def _side(variant: LoadedVariant, runtime: str, profiled: Profiled) -> Side:
    return Side(
        name=variant.record.name,
        runtime=runtime,
        operators=profiled.operators,
        latency_ms=profiled.accounted_ms,
        remainder_ms=profiled.remainder_ms,
        macs=variant.record.macs,
    )


def _named_graph(variant: LoadedVariant) -> Graph:
    """The variant's graph with the node names that the profile used."""
    model: Any = onnx.load(variant.path)
    name_nodes(model.graph)
    return Graph(model)
