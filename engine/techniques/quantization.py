"""Quantization to INT8: weights and activations as bytes, in the flavour that is right and fast on the target.

`quantize-dynamic` finds the range of an activation while the model runs: no data needed, right for matrix products
and LSTM, never for convolutions. `quantize-static` fixes the ranges beforehand on calibration data and lets whole
chains of layers stay in integers: right for convolutional networks. Both record node by node what was quantized,
what was left in float, and why; the passes themselves are in `engine/graphs/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..protocol import Hardware, ModelInfo, Variant
from ..targets import Target
from . import Changed, Needs, Parameters, Refusal, technique
from .pytorch_weights import ABOUT_FORMAT, FORMATS, quantize_pytorch, why_not
from .quantized_graphs import (
    calibration_batches,
    calibration_or_made_up,
    compare_with_source,
    left_of,
    nothing_quantized,
    prepared_graph,
    refuse_quantized,
    refuse_too_little,
    refuse_unknown,
    summary_of,
    target_of,
)
from .touches import Masks, Residuals, pinned_touches, touches_asked_for

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles

EXPECTATION = "size 25 %, 2–4× faster, 0.5–1 % loss"
"""What the field expects of INT8, before it is measured."""

RUNTIME = (("onnxruntime", "pip install 'trimtab[cpu]'"),)


class QuantizeDynamic(Parameters, frozen=True, tag="quantize-dynamic"):
    """Dynamic INT8."""

    per_channel: Annotated[
        bool, Meta(description="one scale for each output channel: more exact, up to 8 % slower in an LSTM")
    ] = True
    attention: Annotated[
        Literal["kept", "fused", "integer"],
        Meta(description="as the graph has it; fused in float; fused, its products in integers (search finds which)"),
    ] = "kept"
    residuals: Residuals = "kept"
    masks: Masks = "kept"
    search: Annotated[
        Literal["fastest", "never"],
        Meta(description="try each kind of attention and scales, residuals and masks; keep the fastest near enough"),
    ] = "fastest"
    embeddings: Annotated[bool, Meta(description="store the rows of embedding tables as bytes too")] = True
    exclude: Annotated[list[str], Meta(description="names of nodes (PyTorch: layers) to leave in float")] = []
    format: Annotated[FORMATS, Meta(description=ABOUT_FORMAT)] = "onnx"
    activations: Annotated[
        Literal["int8", "float"],
        Meta(description="format pytorch: round activations while running too, or store the weights as bytes only"),
    ] = "int8"


class QuantizeStatic(Parameters, frozen=True, tag="quantize-static"):
    """Static INT8."""

    calibration: Annotated[
        Literal["min-max", "entropy", "percentile", "mse"],
        Meta(description="how an activation's range is chosen from what it was seen to hold"),
    ] = "min-max"
    percentile: Annotated[
        float, Meta(gt=50, le=100, description="for calibration by percentile: share of values kept in range, per cent")
    ] = 99.99
    samples: Annotated[int, Meta(ge=1, le=100_000, description="how many samples to calibrate on")] = 256
    per_channel: Annotated[bool, Meta(description="one scale for each output channel: more exact, equally fast")] = True
    bias_correction: Annotated[
        bool, Meta(description="add to each bias the mean error that its layer's rounded weights make")
    ] = True
    measured_correction: Annotated[
        bool, Meta(description="measure that error layer by layer in the quantized graph instead of reckoning it")
    ] = False
    equalise: Annotated[
        float, Meta(ge=0, le=1, description="bring channels to like size: share of it moved into weights; 0: do not")
    ] = 0.0
    dynamic_rest: Annotated[
        bool, Meta(description="on CPUs, also quantize what has no static kernel (LSTM, embeddings) dynamically")
    ] = True
    exclude: Annotated[list[str], Meta(description="names of nodes to leave in float")] = []
    residuals: Residuals = "kept"
    masks: Masks = "kept"
    search: Annotated[
        Literal["when-needed", "always", "never"],
        Meta(description="look for the ranges and biases that cost least, then for the nodes to leave in float"),
    ] = "when-needed"
    search_minutes: Annotated[
        float, Meta(gt=0, description="about how long ways to quantize, and then nodes, are looked at one by one")
    ] = 5.0
    synthetic: Annotated[
        bool, Meta(description="calibrate on made-up inputs when there is no data; accuracy is then not judged")
    ] = False


def refuse_dynamic(
    variant: Variant, model: ModelInfo, hardware: Hardware, parameters: QuantizeDynamic | None
) -> str | None:
    """The wrong format, or nothing but convolutions: they get slower, never faster."""
    chosen = None if parameters is None else parameters.format
    if variant.format != "onnx" or chosen == "pytorch":
        return why_not("Dynamic INT8 quantization", variant, chosen)
    operators = set(model.operators)
    if operators and "Conv" in operators and not operators & {"MatMul", "Gemm", "LSTM", "Gather", "Attention"}:
        return (
            f"Dynamic quantization does nothing for {variant.name}: its weights are all in convolutions, which get "
            "slower by it. Use quantize-static."
        )
    return _already(variant)


def refuse_dynamic_for(variant: Variant, target: Target, parameters: QuantizeDynamic | None) -> str | None:
    """GPUs have no kernel for it; PyTorch's own quantization, which a module may still choose, does not ask for it."""
    chosen = variant.format if parameters is None else parameters.format
    if target.device_class != "cuda" or chosen == "pytorch":
        return None
    return f"Dynamic quantization is for CPUs: {target.name} has no kernel for it. Use quantize-static."


def refuse_static(
    variant: Variant, model: ModelInfo, hardware: Hardware, parameters: QuantizeStatic | None
) -> str | None:
    """Already quantized, or nothing that has a static kernel."""
    operators = set(model.operators)
    if operators and not operators & {"Conv", "MatMul", "Gemm", "FusedConv", "FusedMatMul", "FusedGemm"}:
        return f"Static quantization does nothing for {variant.name}: it has no convolution and no matrix product."
    return _already(variant)


def _already(variant: Variant) -> str | None:
    figures = variant.changed.figures if variant.changed is not None else {}
    if figures.get("quantized_weight_share"):
        return f"{variant.name} is quantized already: start from its parent."
    return None


@technique(
    "Dynamic INT8 quantization",
    group="quantization",
    parameters=QuantizeDynamic,
    packages=RUNTIME,
    expectation=EXPECTATION,
    refuse=refuse_dynamic,
    refuse_target=refuse_dynamic_for,
)
def quantize_dynamic(source: LoadedVariant, parameters: QuantizeDynamic, job: JobContext) -> list[VariantFiles]:
    """Store weights of matrix products, LSTM and embeddings as bytes; find activation ranges while running."""
    from ..context import VariantFiles
    from ..graphs.dynamic_search import Flavours
    from ..graphs.onnx_graph import is_portable, save_graph
    from . import with_defaults

    target = target_of(job)
    if parameters.format == "pytorch":
        kind: Literal["int8-dynamic", "int8-weights"] = (
            "int8-dynamic" if parameters.activations == "int8" else "int8-weights"
        )
        return quantize_pytorch(source, job, kind, parameters.exclude, target.name)
    if reason := refuse_dynamic_for(source.record, target, parameters):
        raise Refusal(reason)
    job.progress(0, 10, "preparing the graph")
    prepared = prepared_graph(source)
    refuse_quantized(prepared, source)
    refuse_unknown(parameters.exclude, prepared)
    job.progress(1, 10, "quantizing weights")
    flavours = Flavours(source.path, target.weights_7_bit, parameters.embeddings, frozenset(parameters.exclude))
    result = flavours.make(prepared, parameters.attention, parameters.per_channel, touches_asked_for(parameters))
    pinned = with_defaults(parameters) | {"search": "never"}
    figures: dict[str, Any] = {}
    if result is None:
        raise Refusal(f"There is no attention in {source.record.name} that can be {parameters.attention}.")
    if not result.touched:
        raise Refusal(nothing_quantized(source, result.left))
    refuse_too_little(source, prepared, result)
    if parameters.search == "fastest":
        chosen, figures = _fastest(flavours, prepared, parameters, job)
        result = chosen.result
        pinned |= {
            "attention": chosen.attention,
            "per_channel": chosen.per_channel,
            **pinned_touches(chosen.touched.counts if chosen.touched is not None else ()),
        }
    files = save_graph(result.model, job.work / "model.onnx")
    job.progress(9.5, 10, "comparing with the source")
    figures |= {
        "quantized_weight_share": round(result.share, 4),
        "weight_bits": 7 if target.weights_7_bit else 8,
    }
    figures |= compare_with_source(job, source.path, files[0])
    return [
        VariantFiles(
            format="onnx",
            files=files,
            changed=Changed(
                summary=summary_of(len(result.touched), result.left, result.share, target),
                touched=tuple(result.touched),
                left=left_of(result.left),
                figures=figures,
            ),
            parameters=pinned,
            parameter_count=source.record.parameter_count,
            macs=source.record.macs,
            portable=source.record.portable and is_portable(result.model),
            target=target.name,
        )
    ]


def _fastest(
    flavours: Any, prepared: Any, parameters: QuantizeDynamic, job: JobContext
) -> tuple[Any, dict[str, float | str]]:
    """(the flavour to keep, what each one gave), compared on calibration data where there is any."""
    from ..graphs.dynamic_search import fastest

    model, size = job.model, job.model.fixed_batch or 32
    batches = calibration_batches(job, size, 128) if model.has_calibration_data else []
    tried = fastest(
        flavours,
        prepared,
        parameters.per_channel,
        batches or [model.example(model.fixed_batch or 8, seed=seed) for seed in (1, 2)],
        [model.example(count) for count in ([model.fixed_batch] if model.fixed_batch else job.spec.batch_sizes)],
        job.spec.limit,
        job.spec.threads,
        lambda share, what: job.progress(1 + 8 * min(share, 1.0), 10, what),
        job.log,
    )
    if not tried:
        raise Refusal("ONNX Runtime can run none of the quantized graphs: the job's log says why for each.")
    for attempt in tried:
        job.log(attempt.sentence())
    if len(tried) < 2:
        return tried[0], {}
    return tried[0], {f"tried: {attempt.sentence().partition(':')[0]}": round(attempt.ratio, 3) for attempt in tried}


@technique(
    "Static INT8 quantization",
    group="quantization",
    parameters=QuantizeStatic,
    needs=Needs.ONNX | Needs.CALIBRATION_DATA,
    packages=RUNTIME,
    expectation=EXPECTATION,
    refuse=refuse_static,
)
def quantize_static(source: LoadedVariant, parameters: QuantizeStatic, job: JobContext) -> list[VariantFiles]:
    """Fix the ranges of activations on calibration data, so that whole chains of layers run in integers."""
    from ..graphs.more_exact import more_exact
    from ..graphs.sensitivity import Judge, search
    from ..graphs.settings_search import quantizer_for, settle
    from ..graphs.static_recipe import Settings
    from ..graphs.touches import touch_up

    target = target_of(job)
    job.progress(0, 10, "preparing the graph")
    prepared = prepared_graph(source, for_static=True, half=target.float_type == "float16")
    refuse_quantized(prepared, source)
    refuse_unknown(parameters.exclude, prepared)
    size = job.model.fixed_batch or min(32, parameters.samples)
    needs = "Static quantization needs data to calibrate on"
    batches, synthetic = calibration_or_made_up(job, needs, size, parameters.samples, 256, parameters.synthetic)
    job.log(f"Calibrating on {'made-up inputs' if synthetic else 'real samples'}; target {target.name}.")
    settings = Settings(
        calibration=parameters.calibration,
        percentile=parameters.percentile,
        per_channel=parameters.per_channel,
        seven_bit=target.weights_7_bit,
        symmetric=target.symmetric_activations,
        float_bias=target.device_class == "cuda",
        bias_correction=parameters.bias_correction,
        measured_correction=parameters.measured_correction,
        equalise=parameters.equalise,
        dynamic_rest=parameters.dynamic_rest and target.device_class != "cuda",
        exclude=tuple(parameters.exclude),
        threads=job.spec.threads,
    )
    steps = _Steps(job)
    quantizer = quantizer_for(prepared, batches, settings, lambda share, what: steps.at(0.5 + share, what))
    figures: dict[str, Any] = {
        "weight_bits": 7 if target.weights_7_bit else 8,
        "calibration_samples": sum(next(iter(batch.values())).shape[0] for batch in batches),
        "synthetic_calibration": synthetic,
    }
    result = quantizer.quantize()
    if not result.touched:
        raise Refusal(nothing_quantized(source, result.left))
    refuse_too_little(source, prepared, result)
    if parameters.search == "never":
        return [_static_variant(source, parameters, job, target, result, figures, None, (), "")]
    judge, seconds = Judge(prepared, batches, job.spec.threads, job.log), 60 * parameters.search_minutes
    if judge.samples < figures["calibration_samples"]:
        figures["judged_samples"] = judge.samples
    if parameters.search == "always" or not judge.answers(result.model).within(job.spec.limit):
        quantizer, tried = settle(
            prepared, batches, settings, judge, lambda share, what: steps.at(1.5 + 2.5 * share, what), seconds
        )
        job.log("; ".join(way.sentence() for way in tried))
        figures |= {f"tried: {way.name}": round(way.answers.difference.cosine, 6) for way in tried}
        parameters = _settled(parameters, quantizer.settings)
    feed = job.model.example(job.model.fixed_batch or max(job.spec.batch_sizes))
    front = search(
        quantizer,
        judge,
        job.spec.limit,
        feed,
        lambda share, what: steps.at(4 + 5 * share, what),
        parameters.search == "always",
        seconds,
    )
    if not front:
        raise Refusal(nothing_quantized(source, result.left))
    if len(front) == 1 and front[0].within and parameters.search != "always":
        exact, told = more_exact(
            quantizer,
            judge,
            front[0],
            None if target.device_class == "cuda" else feed,
            job.spec.limit,
            job.spec.threads,
            lambda share, what: steps.at(6 + 3 * share, what),
        )
        job.log(told)
        if exact is not None:
            front = [*(front if exact.label else []), exact]
    if target.device_class != "cuda":
        steps.at(9, "the fastest with rewrites that serve speed alone")
        sizes = [job.model.fixed_batch] if job.model.fixed_batch else job.spec.batch_sizes
        feeds = [job.model.example(size) for size in sizes]
        done = touch_up(
            front[0].result.model, feeds, job.spec.threads, 1.0, judge.as_good_as(front[0].answers), job.log
        )
        parameters = msgspec.structs.replace(parameters, **pinned_touches(done.counts))
    variants = []
    for found in front:
        answers = found.answers
        extra = figures | {
            "nodes_left_for_accuracy": len(found.in_float) - len(found.for_speed),
            "nodes_left_for_speed": len(found.for_speed),
            "calibration_cosine": round(answers.difference.cosine, 6),
            "calibration_answers_changed": answers.changed,
        }
        sensitive = [name for name in found.in_float if name not in found.for_speed]
        note = left_in_float(sensitive, len(found.for_speed))
        if not found.within:
            note += "; beyond the accuracy limit on the calibration data"
        job.log(f"{found.label or 'first'}: cosine {answers.difference.cosine:.5f}, changed {answers.changed}{note}")
        variants.append(
            _static_variant(source, parameters, job, target, found.result, extra, found.label, found.in_float, note)
        )
    return variants


def left_in_float(sensitive: list[str], for_speed: int) -> str:
    """What a static quantization left in float and why, as the end of a sentence; "" for nothing."""
    note = ""
    if sensitive:
        note = f"; {len(sensitive)} sensitive {'node' if len(sensitive) == 1 else 'nodes'} left in float: "
        note += ", ".join(sensitive[:3]) + (" …" if len(sensitive) > 3 else "")
    if for_speed:
        nodes, are = ("node", "it is") if for_speed == 1 else ("nodes", "they are")
        note += f"; {for_speed} {nodes} left in float because {are} slower in integers here"
    return note


def _settled(parameters: QuantizeStatic, settings: Any) -> QuantizeStatic:
    """The parameters with what the search of settings found."""
    return msgspec.structs.replace(
        parameters,
        calibration=settings.calibration,
        percentile=settings.percentile,
        bias_correction=settings.bias_correction,
        measured_correction=settings.measured_correction,
        equalise=settings.equalise,
    )


class _Steps:
    """Progress that never goes back: the search quantizes many times, and each time reports its own steps."""

    def __init__(self, job: JobContext) -> None:
        self._job, self._furthest = job, 0.0

    def at(self, done: float, what: str) -> None:
        self._furthest = max(self._furthest, min(done, 9.0))
        self._job.progress(self._furthest, 10, what)


def _static_variant(
    source: LoadedVariant,
    parameters: QuantizeStatic,
    job: JobContext,
    target: Target,
    result: Any,
    figures: dict[str, Any],
    label: str | None,
    in_float: tuple[str, ...],
    note: str,
) -> VariantFiles:
    """Write one quantized graph and say what it is."""
    from ..context import VariantFiles
    from ..graphs.onnx_graph import is_portable, save_graph
    from ..graphs.precision import convert
    from ..graphs.preparation import with_shapes
    from ..graphs.touches import touched
    from . import with_defaults

    written = touched(result.model, touches_asked_for(parameters)).model
    if target.float_type == "float16":
        written = convert(with_shapes(written), "fp16").model
    files = save_graph(written, job.work / (f"model-{label}.onnx" if label else "model.onnx"))
    job.progress(9.5, 10, "comparing with the source")
    figures = {
        "quantized_weight_share": round(result.share, 4),
        "quantized_nodes": len(result.touched),
        "absorbed_activations": result.absorbed,
        **figures,
        **compare_with_source(job, source.path, files[0]),
    }
    summary = summary_of(len(result.touched), result.left, result.share, target) + note
    if figures["synthetic_calibration"]:
        summary += "; calibrated on made-up inputs, so its accuracy says nothing about real ones"
    pinned = with_defaults(parameters) | {"search": "never", "exclude": [*parameters.exclude, *in_float]}
    return VariantFiles(
        format="onnx",
        files=files,
        changed=Changed(summary=summary, touched=tuple(result.touched), left=left_of(result.left), figures=figures),
        label=label,
        parameters=pinned,
        parameter_count=source.record.parameter_count,
        macs=source.record.macs,
        portable=source.record.portable and is_portable(result.model),
        target=target.name,
    )
