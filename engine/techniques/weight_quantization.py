"""Weights in 4 bits, block by block; activations stay as they are, so no range has to be found for them.

What it brings is size, and speed where reading the weights is what takes the time: small batches, large matrices. With
many rows to multiply the weights are turned back on the way, and a CPU gains little or loses; the expectation says so
beforehand. For ONNX Runtime the graph gets its MatMulNBits (not portable); for TensorRT, or on request, standard
DequantizeLinear with blocks. Convolutions and recurrent layers have no 4-bit kernels: they are named and left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from ..protocol import Hardware, ModelInfo, Variant
from ..targets import Target
from . import Changed, Parameters, Refusal, technique, with_defaults
from .pytorch_weights import ABOUT_FORMAT, FORMATS, quantize_pytorch, why_not
from .quantized_graphs import (
    MOST_WEIGHTS,
    calibration_batches,
    left_of,
    nothing_quantized,
    refuse_quantized,
    refuse_unknown,
    target_of,
)

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles

EXPECTATION = "size 12.5 %, 3–6× faster, 1–3 % loss; on a CPU faster for few rows only (small batches), else not"
"""What the field expects of 4-bit weights, and what it forgets to say about CPUs."""

LEAST_SHARE = 0.1
"""Below this share of the weights the file hardly gets smaller: refused."""

HELD_OUT = 4
"""One calibration batch in so many judges the methods; the others are what GPTQ learns from."""

MADE_UP_BATCH = 8
"""Samples in a batch of example inputs, where there is no calibration data to judge by."""


class QuantizeInt4(Parameters, frozen=True, tag="quantize-int4"):
    """INT4 weights."""

    method: Annotated[
        Literal["auto", "rtn", "least-error", "gptq"],
        Meta(
            description="how weights are rounded: to nearest; with the scale of least error; so that the layer's "
            "outputs keep (needs calibration data); auto: try all, keep the least error of the answers"
        ),
    ] = "auto"
    block_size: Annotated[
        Literal[16, 32, 64, 128, 256],
        Meta(description="weights that share a scale: fewer are more exact, more are smaller and faster"),
    ] = 64
    symmetric: Annotated[bool, Meta(description="no zero point: a little smaller, less exact; TensorRT needs it")] = (
        False
    )
    form: Annotated[
        Literal["auto", "matmul-nbits", "qdq"],
        Meta(
            description="ONNX Runtime's own operators, or standard ones that TensorRT and OpenVINO read too; auto: by "
            "the target"
        ),
    ] = "auto"
    compute: Annotated[
        Literal["auto", "float32", "int8"],
        Meta(description="what MatMulNBits multiplies in: int8 (fastest on CPUs) rounds the inputs block by block"),
    ] = "auto"
    embeddings: Annotated[bool, Meta(description="put the rows of embedding tables into 4 bits too")] = True
    samples: Annotated[int, Meta(ge=1, le=100_000, description="how many samples GPTQ and the choice look at")] = 128
    exclude: Annotated[list[str], Meta(description="names of nodes (PyTorch: layers) to leave in float")] = []
    format: Annotated[FORMATS, Meta(description=ABOUT_FORMAT)] = "onnx"


def refuse_int4(variant: Variant, model: ModelInfo, hardware: Hardware, parameters: QuantizeInt4 | None) -> str | None:
    """The wrong format, layers without a 4-bit kernel, a variant that is quantized, or GPTQ without data."""
    chosen = None if parameters is None else parameters.format
    if variant.format != "onnx" or chosen == "pytorch":
        return why_not("INT4 weights", variant, chosen)
    operators = set(model.operators)
    if operators and not operators & {"MatMul", "Gemm", "Gather", "Attention"}:
        others = {"Conv": "quantize-static", "LSTM": "quantize-dynamic"}
        fitting = " or ".join(tag for kind, tag in others.items() if kind in operators)
        return (
            f"There are no 4-bit kernels for what {variant.name} is made of ({', '.join(sorted(operators)[:4])}): only "
            f"for matrix products and embeddings.{f' Use {fitting}.' if fitting else ''}"
        )
    figures = variant.changed.figures if variant.changed is not None else {}
    if figures.get("quantized_weight_share"):
        return f"{variant.name} is quantized already: start from its parent."
    if figures.get("precision"):
        return f"{variant.name} is {figures['precision']}: start from the variant with FP32 weights."
    has_data = set(model.offers) & {"calibration_data", "train_data", "test_data"}
    if parameters is not None and parameters.method == "gptq" and not has_data:
        return (
            "GPTQ needs data to calibrate on: add calibration_data() to the model file "
            '(or calibration_data = "calib.npz" for an .onnx), or choose method = "least-error".'
        )
    return None


@technique(
    "INT4 weights",
    group="quantization",
    parameters=QuantizeInt4,
    packages=(("onnxruntime", "pip install 'trimtab[cpu]'"),),
    complexity="medium",
    expectation=EXPECTATION,
    refuse=refuse_int4,
)
def quantize_int4(source: LoadedVariant, parameters: QuantizeInt4, job: JobContext) -> list[VariantFiles]:
    """Store weights of matrix products and embeddings in 4 bits with a scale for each block."""
    from ..context import VariantFiles
    from ..graphs.int4_quantization import choose_blocks, write_int4
    from ..graphs.onnx_graph import is_portable, save_graph

    target = target_of(job)
    if parameters.format == "pytorch":
        return quantize_pytorch(source, job, "int4-weights", parameters.exclude, target.name, parameters.block_size)
    form, symmetric = _form(parameters, target), parameters.symmetric or target.name == "tensorrt"
    job.progress(0, 10, "preparing the graph")
    plan = _planned(source, parameters, form)
    learn, judge, real = _data(job, parameters)
    methods = _methods(parameters, real, bool(plan.products))
    tried: dict[str, Any] = {}
    for index, method in enumerate(methods):

        def watch(share: float, what: str, index: int = index, method: str = method) -> None:
            job.progress(1 + 8 * (index + 0.9 * share) / len(methods), 10, f"{method}: {what}")

        try:
            chosen = choose_blocks(
                plan, method, parameters.block_size, symmetric, learn, judge, job.spec.threads or 0, watch
            )
        except ValueError as error:  # from GPTQ alone, which looks at data
            if parameters.method == "gptq":
                raise Refusal(
                    f'GPTQ cannot be used: {error}. Leave such samples out, or choose method = "least-error".'
                ) from None
            job.log(f"{method} is left out: {error}.")
            continue
        written = write_int4(plan, chosen, form, parameters.block_size, symmetric, parameters.compute, method != "rtn")
        tried[method] = (written, _distance(source, written.model, judge, job.spec.threads or 0))
        job.log(f"{method}: {tried[method][1].sqnr_db:.2f} dB between the answers and their error")
    best = max(tried, key=lambda name: tried[name][1].sqnr_db)
    written, distance = tried[best]
    result = written.model
    if target.float_type == "float16":
        from ..graphs.precision import convert
        from ..graphs.preparation import with_shapes

        result = convert(with_shapes(result), "fp16").model
        distance = _distance(source, result, judge, job.spec.threads or 0)
    files = save_graph(result, job.work / "model.onnx")
    size = sum(path.stat().st_size for path in files) / source.record.size_bytes if source.record.size_bytes else None
    seen = judge if learn is judge else [*learn, *judge]
    figures: dict[str, Any] = {
        "quantized_weight_share": round(written.share, 4),
        "weight_bits": 4,
        "block_size": parameters.block_size,
        "method": best,
        "form": form,
        "calibration_samples": sum(len(next(iter(batch.values()))) for batch in seen) if real else 0,
        "size_share": None if size is None else round(size, 4),
        **distance.figures,
    }
    figures |= {f"sqnr_db_{name}": round(min(found.sqnr_db, 200.0), 2) for name, (_, found) in tried.items()}
    pinned = {"method": best, "symmetric": symmetric, "form": form}
    return [
        VariantFiles(
            format="onnx",
            files=files,
            changed=Changed(
                summary=_summary(written, plan, best, parameters, target),
                touched=tuple(written.touched),
                left=left_of(written.left),
                figures=figures,
            ),
            parameters=with_defaults(parameters) | pinned,
            parameter_count=source.record.parameter_count,
            macs=source.record.macs,
            portable=source.record.portable and is_portable(result),
            target=target.name,
        )
    ]


def _form(parameters: QuantizeInt4, target: Target) -> Literal["matmul-nbits", "qdq"]:
    if target.runtime == "tensorrt":
        if parameters.form == "matmul-nbits":
            raise Refusal("TensorRT does not know MatMulNBits: leave form at auto, or choose qdq.")
        return "qdq"
    return "matmul-nbits" if parameters.form == "auto" else parameters.form


def _planned(source: LoadedVariant, parameters: QuantizeInt4, form: Literal["matmul-nbits", "qdq"]) -> Any:
    """What will be done. Raises Refusal where it would be nothing, or too little to show."""
    from ..graphs.int4_plan import plan_int4
    from ..graphs.int4_quantization import BLOCK_OPSET
    from ..graphs.preparation import LEAST_OPSET, OpsetTooOld, prepare

    name = source.record.name
    try:
        prepared = prepare(source.path, least_opset=BLOCK_OPSET if form == "qdq" else LEAST_OPSET)
    except OpsetTooOld as error:
        raise Refusal(f"{name} cannot be quantized: {error}.") from None
    refuse_quantized(prepared, source)
    refuse_unknown(parameters.exclude, prepared)
    plan = plan_int4(prepared, form, parameters.embeddings, frozenset(parameters.exclude))
    if not plan.products and not plan.tables:
        raise Refusal(nothing_quantized(source, plan.left))
    share = plan.planned_elements / plan.total_elements
    if share < LEAST_SHARE:
        found = ", ".join([one.node for one in plan.products] + [table.node for table in plan.tables][:3])
        raise Refusal(
            f"Only {share:.1%} of the weights of {name} could be put into 4 bits ({found}): the file would hardly get "
            "smaller. Use quantize-static."
        )
    return plan


def _data(job: JobContext, parameters: QuantizeInt4) -> tuple[list[Any], list[Any], bool]:
    """(batches to learn from, batches to judge by, whether they are real calibration data).

    With a single batch it is both, the same list.
    """
    model, batches = job.model, []
    if model.has_calibration_data:
        size = model.fixed_batch or min(16, parameters.samples)
        batches = calibration_batches(job, size, max(parameters.samples, size))
    if not batches:  # fewer samples than a fixed batch takes, too
        made_up = [model.example(model.fixed_batch or MADE_UP_BATCH, seed=seed) for seed in (1, 2)]
        return [], made_up, False
    judge = batches[::HELD_OUT]
    return [batch for index, batch in enumerate(batches) if index % HELD_OUT] or judge, judge, True


def _methods(parameters: QuantizeInt4, real: bool, products: bool) -> tuple[Literal["rtn", "least-error", "gptq"], ...]:
    """What to try. `real`: there is calibration data; `products`: there is a matrix product and not only embeddings."""
    if parameters.method != "auto":
        if parameters.method == "gptq" and not products:
            raise Refusal(
                "GPTQ rounds matrix products, and only embeddings can be put into 4 bits here: choose "
                'method = "least-error".'
            )
        if parameters.method == "gptq" and not real:
            raise Refusal(
                "GPTQ needs data to calibrate on, at least one whole batch: add calibration_data(), or choose "
                'method = "least-error".'
            )
        return (parameters.method,)
    return ("rtn", "least-error", "gptq") if real and products else ("rtn", "least-error")


def _distance(source: LoadedVariant, model: Any, batches: list[Any], threads: int) -> Any:
    from ..graphs.verification import compare_graphs

    try:
        return compare_graphs(source.path, model, batches, threads)
    except ValueError as error:
        raise Refusal(f"The quantized graph's answers cannot be set beside the source's: {error}.") from None


def _summary(written: Any, plan: Any, method: str, parameters: QuantizeInt4, target: Target) -> str:
    counts = {"matrix product": len(plan.products), "embedding": len(plan.tables)}
    text = " and ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count)
    text += f" in 4 bits for {target.name}, blocks of {parameters.block_size} by {method}, {written.share:.0%} of the "
    text += "weights"
    if written.share < MOST_WEIGHTS:
        text += f" — only a part: {len(written.left)} nodes stay in float"
    return text
