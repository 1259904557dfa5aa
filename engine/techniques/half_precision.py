"""FP16 and BF16: half the size, and twice the speed and more where the processor has units for it.

GPUs with tensor cores gain; ONNX Runtime's CPU kernels mostly compute in FP32 and convert on the way, so that a CPU
is slower with it: the expectation says so beforehand, the measurement says how much afterwards. Inputs and outputs
keep their types. Nodes whose values do not fit, or without which the answers would not hold, stay in FP32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from ..protocol import Hardware, Left, ModelInfo, Variant
from ..targets import Target, resolve_target
from . import Changed, Needs, Parameters, Refusal, technique

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles

ON_A_GPU = "size 50 %, 1.5–2× faster on a GPU, < 0.1 % loss; slower on most CPUs"
"""What the field expects, and what it forgets to say about CPUs."""

CHECKED_SAMPLES = 8

LEAST_OPSET = {"fp16": 13, "bf16": 22}
"""From these operator sets on nearly every operator knows the type; convolutions know BF16 from 22."""


class QuantizeFp16(Parameters, frozen=True, tag="quantize-fp16"):
    """FP16."""

    exclude: Annotated[list[str], Meta(description="names of nodes to leave in FP32")] = []
    tolerance: Annotated[
        float, Meta(gt=0, le=1, description="largest accepted difference, as a share of the largest output")
    ] = 0.02


class QuantizeBf16(Parameters, frozen=True, tag="quantize-bf16"):
    """BF16."""

    exclude: Annotated[list[str], Meta(description="names of nodes to leave in FP32")] = []
    tolerance: Annotated[
        float, Meta(gt=0, le=1, description="largest accepted difference, as a share of the largest output")
    ] = 0.1


def _refuse(variant: Variant, model: ModelInfo, hardware: Hardware, parameters: Any) -> str | None:
    figures = variant.changed.figures if variant.changed is not None else {}
    if figures.get("precision"):
        return f"{variant.name} is {figures['precision']} already."
    return None


def slower_on(target: Target) -> str | None:
    """The sentence to say beforehand where the graph is for a CPU."""
    if target.device_class == "cuda":
        return None
    return (
        f"16-bit floats are for GPUs: on a CPU ({target.name}) most graphs get smaller by them, but slower. Use INT8 "
        "for speed there, or make it for the target cuda or tensorrt."
    )


@technique(
    "FP16",
    group="quantization",
    parameters=QuantizeFp16,
    needs=Needs.ONNX,
    packages=(("onnxruntime", "pip install 'trimtab[cpu]'"),),
    expectation=ON_A_GPU,
    refuse=_refuse,
    caution=slower_on,
)
def quantize_fp16(source: LoadedVariant, parameters: QuantizeFp16, job: JobContext) -> list[VariantFiles]:
    """Compute in 16-bit floats (5 bits of exponent, 10 of fraction); keep inputs and outputs as they are."""
    return _convert(source, "fp16", parameters.exclude, parameters.tolerance, job)


@technique(
    "BF16",
    group="quantization",
    parameters=QuantizeBf16,
    needs=Needs.ONNX,
    packages=(("onnxruntime", "pip install 'trimtab[cpu]'"),),
    expectation=ON_A_GPU,
    refuse=_refuse,
    caution=slower_on,
)
def quantize_bf16(source: LoadedVariant, parameters: QuantizeBf16, job: JobContext) -> list[VariantFiles]:
    """Compute in 16-bit floats with the range of FP32 (8 bits of exponent, 7 of fraction)."""
    return _convert(source, "bf16", parameters.exclude, parameters.tolerance, job)


def _convert(
    source: LoadedVariant, precision: Literal["fp16", "bf16"], exclude: list[str], tolerance: float, job: JobContext
) -> list[VariantFiles]:
    from ..context import VariantFiles
    from ..graphs.onnx_graph import Graph, load_graph, save_graph
    from ..graphs.precision import LARGEST, SENSITIVE, convert, rounded
    from ..graphs.preparation import OpsetTooOld, name_nodes, raise_opset, with_shapes
    from ..graphs.sessions import LEAVE_OUT, Crashes, crashing_optimisers

    job.progress(0, 5, "reading the graph")
    model = load_graph(source.path)
    name_nodes(model)
    try:
        model = with_shapes(raise_opset(model, LEAST_OPSET[precision]))
    except OpsetTooOld as error:
        raise Refusal(f"{source.record.name} cannot be {precision.upper()}: {error}.") from None
    target = resolve_target(job.spec.task.target, job.spec.processor)  # type: ignore[union-attr]
    if sentence := slower_on(target):
        job.log(sentence)
    unknown = [name for name in exclude if name not in {node.name for node in model.graph.node}]
    if unknown:
        raise Refusal(f"There is no node {unknown[0]!r} to leave in FP32 in this graph.")
    batches = [job.model.example(job.model.fixed_batch or CHECKED_SAMPLES, seed=seed) for seed in (1, 2)]
    kept = set(exclude)
    if precision == "fp16":
        job.progress(1, 5, "looking for values that do not fit")
        kept |= _too_large(Graph(model), batches, LARGEST["fp16"])
    verdict, on_gpu = "", target.device_class == "cuda"
    for step, extra in enumerate(((), ("Gelu",), SENSITIVE)):
        job.progress(2 + step, 5, "converting and checking the answers")
        named = {node.name for node in model.graph.node if node.op_type in extra}
        result = convert(model, precision, kept | named)
        if not result.touched:
            raise Refusal(f"Nothing in {source.record.name} can be {precision.upper()}: it has no float operation.")
        files = save_graph(result.model, job.work / "model.onnx")
        checked = rounded(model, result.touched, precision) if on_gpu else files[0]
        figures, verdict = _check(job, source, checked, batches, tolerance, precision)
        if not verdict:
            break
    if verdict:
        raise Refusal(f"{precision.upper()} does not hold the answers of {source.record.name}: {verdict}.")
    try:
        crashing = crashing_optimisers(files[0])
    except Crashes:  # only for a GPU: for the CPU its answers were asked for
        crashing = ()
    summary = f"{len(result.touched)} nodes in {precision.upper()}, {len(result.left)} left in FP32"
    if on_gpu:
        summary += "; checked by rounding every value to 16 bits on the CPU"
    if crashing:
        figures["left_out"] = ", ".join(crashing)
        summary += (
            f"; ONNX Runtime crashes while it loads this graph on a CPU, so its optimiser {crashing[0]} is left out "
            f"here: where it is used on a CPU, set the session option {LEAVE_OUT} to that name"
        )
    return [
        VariantFiles(
            format="onnx",
            files=files,
            changed=Changed(
                summary=summary,
                touched=tuple(result.touched),
                left=tuple(Left(name=name, reason=reason) for name, reason in result.left.items()),
                figures={"precision": precision.upper(), "casts": result.casts, **figures},
            ),
            parameter_count=source.record.parameter_count,
            macs=source.record.macs,
            portable=source.record.portable,
            target=target.name,
        )
    ]


def _too_large(graph: Any, batches: list[dict[str, Any]], limit: float) -> set[str]:
    """Nodes that make or read a value beyond the limit on these batches."""
    from ..graphs.calibration import Calibrator
    from ..graphs.precision import float_values

    floats = float_values(graph)
    names = [name for node in graph.proto.node for name in node.output if name in floats]
    found = Calibrator(graph.model, lambda: batches).ranges(names)
    large = {name for name, seen in found.items() if max(-seen.low, seen.high) > limit}
    return {node.name for node in graph.proto.node if large & {*node.input, *node.output}}


def _check(
    job: JobContext, source: LoadedVariant, graph: Any, batches: list[dict[str, Any]], tolerance: float, precision: str
) -> tuple[dict[str, Any], str]:
    """(figures, why the answers do not hold or "")."""
    from ..graphs.sessions import Crashes
    from ..graphs.verification import compare_outputs, run_graph, varying_outputs

    try:
        outputs = run_graph(graph, batches, job.spec.threads, optimize=isinstance(graph, Path))
    except Crashes as crash:
        raise Refusal(
            f"{crash}, so the answers of {source.record.name} in {precision.upper()} cannot be compared: make it for "
            "the target cuda or tensorrt."
        ) from None
    except Exception as error:  # ONNX Runtime has a class for each status, below no class of its own
        line = str(error).strip().splitlines()[0][:200]
        if "NOT_IMPLEMENTED" in line:
            raise Refusal(
                f"ONNX Runtime's CPU provider has no {precision.upper()} kernels ({line.partition(' : ')[2]}): "
                "make it for the target cuda or tensorrt."
            ) from None
        return {}, f"ONNX Runtime cannot run it: {line}"
    try:
        reference = run_graph(source.path, batches, job.spec.threads)
        found = compare_outputs(reference, outputs, varying=varying_outputs(source.path))
    except ValueError as error:
        return {}, str(error)
    apart = found.beyond(tolerance, one_may_change=True)
    return found.figures, f"outputs {apart}" if apart else ""
