"""What both INT8 techniques share: the graph they start from, their refusals, and how a result is told.

Not a technique. Nothing heavy is imported before a function runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..protocol import Left
from ..targets import Target, resolve_target
from . import Refusal

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant

MOST_WEIGHTS = 0.9
"""Below this share of quantized weights the summary says so."""

LEAST_SHARE = 0.1
"""Refused below this share of the weights that were looked at: there would be hardly anything to gain."""

CHOSEN = ("kept in float on request", "left in float: rounding it costs the most accuracy")
"""Reasons of nodes that could have been quantized."""


def prepared_graph(source: LoadedVariant, for_static: bool = False, half: bool = False) -> Any:
    from ..graphs.preparation import LEAST_OPSET, OpsetTooOld, prepare

    try:
        # from 19 on, pairs can stand in FP16
        return prepare(source.path, for_static, 19 if half else LEAST_OPSET, fold=for_static)
    except OpsetTooOld as error:
        raise Refusal(f"{source.record.name} cannot be quantized: {error}.") from None


def target_of(job: JobContext) -> Target:
    try:
        return resolve_target(job.spec.task.target, job.spec.processor)  # type: ignore[union-attr]
    except ValueError as error:
        raise Refusal(str(error)) from None


def calibration_batches(job: JobContext, size: int, limit: int) -> list[Any]:
    """Batches to calibrate on, without samples that are not finite (the log says how many). Raises Refusal for most."""
    from ..models.finite import NotFinite, finite_calibration

    try:
        return finite_calibration(job.model, size, limit, job.log)
    except NotFinite as error:
        raise Refusal(str(error)) from None


def calibration_or_made_up(
    job: JobContext, needs: str, size: int, samples: int, most_made_up: int, synthetic: bool
) -> tuple[list[Any], bool]:
    """(batches of `size` to calibrate on, whether they are made up, which `synthetic` allows where there are none).

    `needs` says in the refusal what needs them. Raises Refusal.
    """
    model = job.model
    if model.has_calibration_data:
        batches = calibration_batches(job, size, max(samples, size))
        if batches:  # none: fewer samples than a fixed batch takes
            return batches, False
    if not synthetic:
        raise Refusal(
            f"{needs}: add calibration_data() to the model file "
            '(or calibration_data = "calib.npz" for an .onnx), or set synthetic = true.'
        )
    return [model.example(size, seed=seed) for seed in range(max(1, min(samples, most_made_up) // size))], True


def compare_with_source(
    job: JobContext, source: Any, quantized: Any, threads: int = 0, optimize: bool = True
) -> dict[str, float | str]:
    """Distance of the quantized outputs from the source's, on a few inputs; `optimize`: let ONNX Runtime fuse it."""
    from ..graphs.verification import compare_graphs

    batches = [job.model.example(job.model.fixed_batch or 8, seed=seed) for seed in (1, 2)]
    try:
        found = compare_graphs(source, quantized, batches, threads, optimize)
    except ValueError as error:
        raise Refusal(f"The quantized graph's answers cannot be set beside the source's: {error}.") from None
    return found.figures


def refuse_quantized(prepared: Any, source: LoadedVariant) -> None:
    known = {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "MatMulInteger",
        "QLinearConv", "MatMulNBits", "GatherBlockQuantized",
    }  # fmt: skip
    if any(node.op_type in known for node in prepared.graph.node):
        raise Refusal(f"{source.record.name} is quantized already: start from the variant it was made from.")


def refuse_unknown(excluded: list[str], prepared: Any) -> None:
    names = {node.name for node in prepared.graph.node}
    missing = [name for name in excluded if name not in names]
    if missing:
        raise Refusal(f"There is no node {missing[0]!r} to exclude in this graph.")


def nothing_quantized(source: LoadedVariant, left: dict[str, str]) -> str:
    """Why nothing was quantized, from the reasons of the nodes that were looked at."""
    reasons = sorted(set(left.values()), key=lambda reason: -list(left.values()).count(reason))
    because = "; ".join(reasons[:3]) or "it has no convolution, matrix product or LSTM with constant weights"
    return f"Nothing in {source.record.name} could be quantized: {because}."


def refuse_too_little(source: LoadedVariant, prepared: Any, result: Any) -> None:
    """Refuse where nearly all of the weights are in nodes that cannot be quantized (embeddings are no such nodes)."""
    from ..graphs.onnx_graph import element_count, float_weights

    unable = {name for name, reason in result.left.items() if reason not in CHOSEN}
    done = result.share * element_count(float_weights(prepared.graph))
    left = _weights_of(prepared.graph, unable)
    if done >= LEAST_SHARE * (done + left):
        return
    reasons = list(dict.fromkeys(result.left[name] for name in result.left if name in unable))
    raise Refusal(
        f"Only {done / (done + left):.1%} of the weights of {source.record.name} could be quantized "
        f"({', '.join(result.touched[:3])}), too little to gain by: {'; '.join(reasons[:3])}."
    )


def _weights_of(graph: Any, names: set[str]) -> int:
    """Numbers in the constants that these nodes read, and in those of the graphs inside them; shared ones once."""
    from ..graphs.onnx_graph import element_count, float_weights, subgraphs_of

    nodes = [node for node in graph.node if node.name in names]
    read = {value for node in nodes for value in node.input}
    inside = sum(element_count(float_weights(part)) for node in nodes for part in subgraphs_of(node))
    return inside + element_count(tensor for tensor in float_weights(graph) if tensor.name in read)


def summary_of(touched: int, left: dict[str, str], share: float, target: Target) -> str:
    text = f"{touched} nodes quantized for {target.name}, {share:.0%} of the weights"
    if share < MOST_WEIGHTS:
        text += f" — only a part: {len(left)} nodes stay in float" if left else " — only a part"
    return text


def left_of(left: dict[str, str]) -> tuple[Left, ...]:
    return tuple(Left(name=name, reason=reason) for name, reason in left.items())
