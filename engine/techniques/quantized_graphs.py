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


def compare_with_source(job: JobContext, source: Any, quantized: Any) -> dict[str, float]:
    """Distance of the quantized outputs from the source's, on a few inputs."""
    from ..graphs.verification import compare_outputs, run_graph

    batches = [job.model.example(job.model.fixed_batch or 8, seed=seed) for seed in (1, 2)]
    try:
        found = compare_outputs(run_graph(source, batches), run_graph(quantized, batches))
    except ValueError as error:
        raise Refusal(f"The quantized graph is broken: {error}.") from None
    return {"cosine": round(found.cosine, 6), "sqnr_db": round(min(found.sqnr_db, 200.0), 2)}


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


def summary_of(touched: int, left: dict[str, str], share: float, target: Target) -> str:
    text = f"{touched} nodes quantized for {target.name}, {share:.0%} of the weights"
    if share < MOST_WEIGHTS:
        text += f" — only a part: {len(left)} nodes stay in float" if left else " — only a part"
    return text


def left_of(left: dict[str, str]) -> tuple[Left, ...]:
    return tuple(Left(name=name, reason=reason) for name, reason in left.items())
