"""What quantize-dynamic and quantize-int4 do with `format = "pytorch"`: the module itself, quantized by torchao.

For people who deploy PyTorch, mainly with torch.compile on GPUs. The variant is a module that the runtimes "pytorch"
and "torch-compile" run. In eager mode every layer quantizes, multiplies and scales in steps of its own: on a CPU that
can be many times slower than float, so the log says it beforehand and the measurement says how much.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from ..protocol import Left, Variant
from . import Changed, Refusal

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles

FORMATS = Literal["onnx", "pytorch"]

ABOUT_FORMAT = (
    "pytorch: quantize the module itself with torchao, for torch.compile; in eager mode a CPU gets slower by it"
)
"""The description of the parameter in both techniques."""

EAGER = (
    "In eager mode on a CPU this can be many times slower than float: measure it under torch-compile too, or use the "
    "ONNX way."
)

COMPARED_SAMPLES = 8


def why_not(title: str, variant: Variant, format: FORMATS | None) -> str | None:
    """Why the format asked for does not go with the variant; `format` None: not chosen yet."""
    if variant.format == "onnx":
        if format == "pytorch":
            return f"{variant.name} is ONNX already: format = pytorch starts from a PyTorch module."
        return None
    if variant.format != "pytorch":
        return f"{title} works on an ONNX graph or a PyTorch module; {variant.name} is {variant.format.upper()}."
    missing = importlib.util.find_spec("torchao") is None
    if format == "onnx" or (format is None and missing):
        return (
            f"{title} works on an ONNX graph: apply export-onnx to {variant.name} first (or set format = pytorch to "
            "quantize the module itself, for torch.compile)."
        )
    if format == "pytorch" and missing:
        return f"{title} of a PyTorch module needs torchao, which is not installed: pip install 'trimtab[torchao]'"
    figures = variant.changed.figures if variant.changed is not None else {}
    if figures.get("quantized_weight_share"):
        return f"{variant.name} is quantized already: start from its parent."
    return None


def quantize_pytorch(
    source: LoadedVariant,
    job: JobContext,
    kind: Literal["int8-dynamic", "int8-weights", "int4-weights"],
    exclude: list[str],
    target: str,
    group_size: int = 64,
) -> list[VariantFiles]:
    """The variant. Raises Refusal when nothing could be quantized or a named layer does not exist."""
    from ..context import VariantFiles
    from ..graphs.verification import compare_outputs
    from ..models.torch_model import save_module
    from ..structure.torchao_weights import CannotQuantize, is_quantized, quantize_module

    name, on_cpu = source.record.name, job.spec.device == "cpu"
    if on_cpu:
        job.log(EAGER)
    job.progress(0, 4, "loading the module")
    module = source.module()
    if is_quantized(module):
        raise Refusal(f"{name} is quantized already: start from the variant it was made from.")
    known = dict(module.named_modules())
    if missing := [layer for layer in exclude if layer not in known]:
        raise Refusal(f"There is no layer {missing[0]!r} to exclude in this module.")
    batches = [job.model.example(job.model.fixed_batch or COMPARED_SAMPLES, seed=seed) for seed in (1, 2)]
    wanted = [job.model.call(module, batch) for batch in batches]
    count = sum(one.numel() for one in module.parameters())
    job.progress(1, 4, "quantizing layers")
    try:
        result = quantize_module(module, kind, group_size, on_cpu, frozenset(exclude))
    except CannotQuantize as cannot:
        raise Refusal(f"Nothing in {name} could be quantized: {cannot}.") from None
    job.progress(2, 4, "comparing with the source")
    try:
        found = compare_outputs(wanted, [job.model.call(module, batch) for batch in batches])
    except ValueError as error:
        raise Refusal(f"The quantized module is broken: {error}.") from None
    job.progress(3, 4, "writing")
    path = job.work / "model.pt"
    save_module(module, path)
    figures: dict[str, Any] = {
        "quantized_weight_share": round(result.share, 4),
        "weight_bits": 4 if kind == "int4-weights" else 8,
        "kind": kind,
        **found.figures,
    }
    summary = f"{len(result.touched)} layers quantized in PyTorch ({kind}), {result.share:.0%} of the weights"
    if result.left:
        summary += f", {len(result.left)} left in float"
    return [
        VariantFiles(
            format="pytorch",
            files=[path],
            changed=Changed(
                summary=f"{summary}; for torch.compile" + (", in eager mode a CPU may be slower" if on_cpu else ""),
                touched=tuple(result.touched),
                left=tuple(Left(name=layer, reason=reason) for layer, reason in result.left.items()),
                figures=figures,
            ),
            parameter_count=count,
            macs=source.record.macs,
            target=target,
        )
    ]
