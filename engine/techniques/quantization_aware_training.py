"""Quantization-aware training: the network learns to live with the rounding that INT8 brings.

Static quantization rounds a network that knows nothing of it. Here the PyTorch module is fine-tuned on the user's
training data while its weights and activations are rounded as they will be (Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018), and then goes down the same path as
`export-onnx` and `quantize-static`: the result is an ONNX graph with the same Quantize/Dequantize pairs, in the
flavour of the target. There is one variant. The fine-tuned float weights are none of their own: they lie on the
levels of this one target, are no better than the source in float, and every runtime reads the graph.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from ..protocol import Hardware, Left, ModelInfo, Variant
from ..targets import Target, resolve_target
from . import Changed, Needs, Parameters, Refusal, technique

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles


class QuantizeAware(Parameters, frozen=True, tag="quantize-aware-training"):
    """How to train, and how the numbers are rounded."""

    epochs: Annotated[float, Meta(gt=0, le=1000, description="passes over the training data; 0.5 is half a pass")] = 1.0
    learning_rate: Annotated[
        float, Meta(gt=0, description="peak learning rate (AdamW): small, the network is trained already")
    ] = 1e-4
    distillation: Annotated[
        float, Meta(ge=0, le=1, description="share of the float network's answers in the loss; 0: labels alone")
    ] = 0.5
    temperature: Annotated[
        float, Meta(gt=0, le=20, description="for distillation: how soft the float network's answers are made")
    ] = 3.0
    per_channel: Annotated[bool, Meta(description="one scale for each output channel: more exact, equally fast")] = True
    weight_bits: (
        Annotated[
            int,
            Meta(ge=2, le=8, description="bits of a weight; empty: 8, or 7 where the target needs it. Stored as bytes"),
        ]
        | None
    ) = None
    calibration: Annotated[
        Literal["min-max", "entropy", "percentile"],
        Meta(description="how an activation's first range is chosen; training moves it on"),
    ] = "min-max"
    samples: Annotated[int, Meta(ge=1, le=100_000, description="how many samples the first ranges come from")] = 256
    exclude: Annotated[
        list[str], Meta(description="layers to leave in float, by name or pattern (head, blocks.0.*)")
    ] = []
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Meta(description="number format of the training; bfloat16 is faster, but blurs the levels of the activations"),
    ] = "float32"


def refuse(variant: Variant, model: ModelInfo, hardware: Hardware, parameters: QuantizeAware | None) -> str | None:
    """Nothing that has an INT8 kernel."""
    operators = set(model.operators)
    if operators and not operators & {"Conv", "MatMul", "Gemm"}:
        return (
            f"Quantization-aware training does nothing for {variant.name}: it has no convolution and no matrix product."
        )
    return None


@technique(
    "Quantization-aware training",
    group="quantization",
    parameters=QuantizeAware,
    needs=Needs.PYTORCH | Needs.TRAIN_DATA,
    complexity="high",
    packages=(
        ("onnxscript", "pip install onnxscript"),
        ("onnxruntime", "pip install 'trimtab[cpu]'"),
    ),
    expectation="size 25 %, 2–4× faster, less loss than static quantization",
    refuse=refuse,
)
def quantize_aware_training(source: LoadedVariant, parameters: QuantizeAware, job: JobContext) -> list[VariantFiles]:
    """Fine-tune with rounded weights and activations, then write the INT8 graph that was trained."""
    from ..context import VariantFiles
    from ..graphs.exporting import ExportFailed
    from ..graphs.onnx_graph import is_portable, save_graph
    from ..graphs.precision import convert
    from ..graphs.preparation import OpsetTooOld, with_shapes
    from ..models.finite import NotFinite
    from ..training.quantized import NothingToTrain, train_quantized

    try:
        target = resolve_target(job.spec.task.target, job.spec.processor)  # type: ignore[union-attr]
    except ValueError as error:
        raise Refusal(str(error)) from None
    try:
        deployed = train_quantized(source, parameters, job, target)
    except NothingToTrain as nothing:
        raise Refusal(f"{source.record.name} cannot be trained for INT8: {nothing}.") from None
    except (ExportFailed, OpsetTooOld, NotFinite) as failure:
        raise Refusal(str(failure)) from None
    if reason := worse_than_static(deployed.figures, job.spec.limit):
        raise Refusal(f"The training made {source.record.name} worse in INT8, so nothing is kept: {reason}.")
    result = deployed.result
    written = result.model
    if target.float_type == "float16":
        written = convert(with_shapes(written), "fp16").model
    files = save_graph(written, job.work / "model.onnx")
    figures = {
        "quantized_weight_share": round(result.share, 4),
        "quantized_nodes": len(result.touched),
        "trained_nodes": len(result.touched) - len(deployed.untrained),
        "absorbed_activations": result.absorbed,
        "folded_batch_norms": deployed.folded,
        "weight_bits": parameters.weight_bits or (7 if target.weights_7_bit else 8),
        "cosine": round(deployed.difference.cosine, 6),
        "sqnr_db": round(min(deployed.difference.sqnr_db, 200.0), 2),
        **deployed.figures,
    }
    left = {
        name: f"quantized, but not wholly trained with its rounding: {why}" for name, why in deployed.untrained.items()
    }
    return [
        VariantFiles(
            format="onnx",
            files=files,
            changed=Changed(
                summary=_summary(target, figures),
                touched=tuple(result.touched),
                left=tuple(Left(name=name, reason=reason) for name, reason in (result.left | left).items()),
                figures=figures,
            ),
            parameter_count=source.record.parameter_count,
            macs=source.record.macs,
            portable=source.record.portable and is_portable(result.model),
            target=target.name,
        )
    ]


def worse_than_static(figures: dict[str, Any], limit: float) -> str:
    """The accuracies, where what was trained has lost more than `limit`, and than chance, against where it started.

    Chance: twice the standard error of the difference of two shares of so many samples. Else "".
    """
    after, static, before = (figures[f"held_out_accuracy{which}"] for which in ("", "_static", "_before"))
    if after is None or before < 0:
        return ""
    variance = sum(max(share * (1 - share), 0.0) for share in (after, static))
    if static - after <= max(limit, 2 * math.sqrt(variance / figures["held_out_samples"])):
        return ""
    return (
        f"on held-out training data {after:.2%} are right after it, {static:.2%} with plain quantize-static, "
        f"{before:.2%} in float. Use quantize-static, or train longer, with a lower learning_rate or with more data"
    )


def _summary(target: Target, figures: dict[str, Any]) -> str:
    """What was done, and what it was worth beside plain static quantization with the same settings."""
    text = (
        f"{figures['quantized_nodes']} nodes quantized for {target.name}, {figures['quantized_weight_share']:.0%} of "
        f"the weights, {figures['trained_nodes']} of them trained with their rounding for {figures['steps']} steps"
    )
    after, static, before = (figures[f"held_out_accuracy{which}"] for which in ("", "_static", "_before"))
    if after is None or before < 0:
        return text
    text += f"; on held-out training data {after:.2%} right, {static:.2%} without the training, {before:.2%} in float"
    if after <= static:
        text += f": plain quantize-static does {'better' if after < static else 'as well'} here"
    return text
