"""FP8 for TensorRT: E4M3 weights and activations in the products and convolutions of an FP16 graph.

The tensor cores of NVIDIA GPUs from Ada (compute capability 8.9) on multiply FP8 at twice the rate of
FP16; nothing else does, so for any other target it is refused. The file can be made on a machine without such a GPU
when the target is named, and its answers are checked here on the CPU; its speed can only be measured there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from ..protocol import Hardware, ModelInfo, Variant
from ..targets import Target
from . import Changed, Needs, Parameters, Refusal, technique
from .quantized_graphs import (
    calibration_or_made_up,
    compare_with_source,
    left_of,
    nothing_quantized,
    refuse_quantized,
    refuse_unknown,
    target_of,
)

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles

EXPECTATION = "size 25 %, 2–4× faster, 0.5–1 % loss; only under TensorRT on NVIDIA GPUs from Ada (8.9) on"
"""What the field expects of FP8. It pays in large products; small ones stay bound by memory."""

LEAST_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs with FP8 tensor cores (Ada)."""


class QuantizeFp8(Parameters, frozen=True, tag="quantize-fp8"):
    """FP8 (E4M3)."""

    calibration: Annotated[
        Literal["min-max", "percentile"],
        Meta(description="how an activation's range is chosen from what it was seen to hold"),
    ] = "min-max"
    percentile: Annotated[
        float, Meta(gt=50, le=100, description="for calibration by percentile: share of values kept in range, per cent")
    ] = 99.99
    samples: Annotated[int, Meta(ge=1, le=100_000, description="how many samples to calibrate on")] = 128
    per_channel: Annotated[bool, Meta(description="one scale for each output channel of the weights")] = True
    attention: Annotated[bool, Meta(description="the products inside attention too")] = True
    exclude: Annotated[list[str], Meta(description="names of nodes to leave in FP16")] = []
    synthetic: Annotated[
        bool, Meta(description="calibrate on made-up inputs when there is no data; accuracy is then not judged")
    ] = False


def refuse_fp8(variant: Variant, model: ModelInfo, hardware: Hardware, parameters: QuantizeFp8 | None) -> str | None:
    """GPUs too old, nothing to compute in FP8, or quantized already."""
    known = [(gpu.name, capability_of(gpu.compute_capability)) for gpu in hardware.gpus]
    old = [(name, capability) for name, capability in known if capability and capability < LEAST_CAPABILITY]
    if known and len(old) == len(known):
        name, capability = old[0]
        return no_fp8(f"{name} has {capability[0]}.{capability[1]}")
    operators = set(model.operators)
    if operators and not operators & {"Conv", "MatMul", "Gemm"}:
        return f"FP8 does nothing for {variant.name}: it has no convolution and no matrix product."
    figures = variant.changed.figures if variant.changed is not None else {}
    if figures.get("quantized_weight_share"):
        return f"{variant.name} is quantized already: start from its parent."
    if figures.get("precision"):
        return f"{variant.name} is {figures['precision']}: start from the variant with FP32 weights."
    return None


def refuse_fp8_for(variant: Variant, target: Target, parameters: QuantizeFp8 | None) -> str | None:
    """Anything but TensorRT: no other runtime multiplies FP8."""
    if target.runtime == "tensorrt":
        return None
    why = f"the target {target.name} is {target.description.partition(':')[0]}"
    return no_fp8(f"{why}. To make the file for such a GPU, choose the target tensorrt (--target, or in a recipe)")


def capability_of(text: str | None) -> tuple[int, int] | None:
    """ "8.9" as (8, 9); None for what is not known."""
    major, _, minor = (text or "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def no_fp8(why: str) -> str:
    """The sentence of the refusal."""
    return f"FP8 needs an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell) and TensorRT; {why}."


@technique(
    "FP8",
    group="quantization",
    parameters=QuantizeFp8,
    needs=Needs.ONNX | Needs.CALIBRATION_DATA,
    packages=(("onnxruntime", "pip install 'trimtab[cpu]'"),),
    complexity="medium",
    expectation=EXPECTATION,
    refuse=refuse_fp8,
    refuse_target=refuse_fp8_for,
)
def quantize_fp8(source: LoadedVariant, parameters: QuantizeFp8, job: JobContext) -> list[VariantFiles]:
    """Products and convolutions in 8-bit floats (4 bits of exponent, 3 of fraction), for TensorRT on Ada and later."""
    from ..context import VariantFiles
    from ..graphs.calibration import Calibrator
    from ..graphs.fp8_quantization import write_fp8
    from ..graphs.onnx_graph import save_graph
    from ..graphs.precision import convert
    from ..graphs.preparation import with_shapes

    target = _target(job, source)
    job.progress(0, 10, "preparing the graph")
    plan = _planned(source, parameters)
    size = job.model.fixed_batch or min(16, parameters.samples)
    needs = "FP8 needs data to calibrate on, at least one whole batch"
    batches, synthetic = calibration_or_made_up(job, needs, size, parameters.samples, 128, parameters.synthetic)

    def watch(share: float) -> None:
        job.progress(1 + 6 * share, 10, "looking at what activations hold")

    calibrator = Calibrator(plan.model, lambda: batches, job.spec.threads or 0)
    ranges = calibrator.ranges(plan.values, parameters.calibration, parameters.percentile, watch)
    dead = [name for name in plan.values if name not in ranges]
    if dead:
        raise Refusal(f"{source.record.name}: {dead[0]} is never finite on the calibration data.")
    job.progress(7, 10, "writing")
    written = write_fp8(plan, ranges, parameters.per_channel)
    result = convert(with_shapes(written.model), "fp16").model
    files = save_graph(result, job.work / "model.onnx")
    job.progress(8, 10, "comparing with the source")
    figures: dict[str, Any] = {
        "quantized_weight_share": round(written.share, 4),
        "quantized_nodes": len(plan.anchors),
        "weight_bits": 8,
        "float8": "E4M3FN",
        "calibration_samples": sum(len(next(iter(batch.values()))) for batch in batches),
        "synthetic_calibration": synthetic,
        # its optimiser, made for integers, drops a ReLU between FP32 and FP8 (1.32): the pairs are run one by one
        **compare_with_source(job, source.path, result, job.spec.threads or 0, optimize=False),
    }
    summary = (
        f"{len(plan.anchors)} nodes in FP8 (E4M3) for {target.name}, {written.share:.0%} of the weights, rest FP16; "
        "answers checked on the CPU, speed can only be measured on a GPU with FP8"
    )
    if plan.left:
        summary += f"; {len(plan.left)} nodes left"
    if synthetic:
        summary += "; calibrated on made-up inputs, so its accuracy says nothing about real ones"
    return [
        VariantFiles(
            format="onnx",
            files=files,
            changed=Changed(
                summary=summary,
                touched=tuple(one.node for one in plan.anchors),
                left=left_of(plan.left),
                figures=figures,
            ),
            parameter_count=source.record.parameter_count,
            macs=source.record.macs,
            portable=source.record.portable,
            target=target.name,
        )
    ]


def _target(job: JobContext, source: LoadedVariant) -> Target:
    """TensorRT, and no GPU here that is known to be too old for it."""
    import torch

    target = target_of(job)
    if reason := refuse_fp8_for(source.record, target, None):
        raise Refusal(reason)
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        if max(found) < LEAST_CAPABILITY:
            raise Refusal(no_fp8(f"{torch.cuda.get_device_name(0)} has {found[0][0]}.{found[0][1]}"))
    return target


def _planned(source: LoadedVariant, parameters: QuantizeFp8) -> Any:
    from ..graphs.fp8_quantization import OPSET, plan_fp8
    from ..graphs.onnx_graph import is_portable
    from ..graphs.preparation import OpsetTooOld, prepare

    name = source.record.name
    try:
        prepared = prepare(source.path, least_opset=OPSET)
    except OpsetTooOld as error:
        raise Refusal(f"{name} cannot be quantized: {error}.") from None
    refuse_quantized(prepared, source)
    if not is_portable(prepared):
        raise Refusal(
            f"{name} has operators that only ONNX Runtime knows, not TensorRT: start from an earlier variant."
        )
    refuse_unknown(parameters.exclude, prepared)
    plan = plan_fp8(prepared, parameters.attention, frozenset(parameters.exclude))
    if not any(one.weight for one in plan.anchors):
        raise Refusal(nothing_quantized(source, plan.left))
    return plan
