"""Graph optimization: several nodes become one, the answers stay the same.

Every optimiser at hand is tried (`engine/graphs/graph_optimization.py`), checked on real inputs and timed in turns
with the source; the fastest is kept, if it is faster when it is timed once more by itself. Where none is faster than
what ONNX Runtime fuses by itself when it loads the graph, the job says so and gives no variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from . import Changed, Needs, Parameters, Refusal, technique
from .touches import Masks, Residuals, pinned_touches, touches_asked_for

if TYPE_CHECKING:
    import onnx

    from ..context import JobContext, LoadedVariant, VariantFiles
    from ..models import Model


VERIFYING_SECONDS = 3.0
"""About how long the source takes for the inputs on which each graph is compared with it."""

REAL_SAMPLES = 256
"""At most so many of them are real ones."""


class OptimizeGraph(Parameters, frozen=True, tag="optimize-graph"):
    """Which optimisers to try."""

    optimiser: Annotated[
        str, Meta(description="only this one (its name as in the record of an earlier run); empty: try all")
    ] = ""
    residuals: Residuals = "kept"
    masks: Masks = "kept"
    least_gain: Annotated[
        float,
        Meta(ge=0, le=1, description="how much faster than the source a graph must be, as a share, when all are tried"),
    ] = 0.02


@technique(
    "Graph optimization",
    group="ONNX conversion",
    parameters=OptimizeGraph,
    needs=Needs.ONNX,
    packages=(("onnxruntime", "pip install 'trimtab[cpu]'"),),
    expectation="same answers; 1.0–1.4× faster where attention is fused",
)
def optimize_graph(source: LoadedVariant, parameters: OptimizeGraph, job: JobContext) -> list[VariantFiles]:
    """Fuse attention, layer norm, GELU and more with every optimiser at hand; keep the fastest that is right."""
    from ..context import VariantFiles
    from ..graphs.graph_optimization import Candidate, answered, candidates, confirmed, rivals, verify, why_wrong
    from ..graphs.onnx_graph import is_portable, save_graph
    from ..graphs.timing import time_in_turns
    from ..graphs.touches import touch_up, touched
    from ..graphs.verification import varying_outputs

    model = job.model
    batches, reference = answered(source.path, _inputs(model), VERIFYING_SECONDS, 2)
    varying = varying_outputs(source.path)
    tried: list[Candidate] = []
    for candidate in candidates(source.path, parameters.optimiser):
        job.progress(len(tried), 10, f"trying {candidate.name}")
        if candidate.model is not None:
            if parameters.optimiser:
                candidate.touch(touched(candidate.model, touches_asked_for(parameters)))
            verify(candidate, reference, batches, varying)
        tried.append(candidate)
    if not tried:
        raise Refusal(f"There is no optimiser {parameters.optimiser!r} for this graph.")
    good = [candidate for candidate in tried if candidate.model is not None]
    feeds = [model.example(size) for size in ((model.fixed_batch,) if model.fixed_batch else job.spec.batch_sizes)]
    ratios = time_in_turns(
        [source.path, *(candidate.model for candidate in good if candidate.model is not None)],
        feeds,
        job.spec.threads,
        lambda share: job.progress(6 + 3 * share, 10, f"timing {len(good)} graphs in turns"),
    )
    for candidate, ratio in zip(good, ratios[1:], strict=True):
        candidate.ratio = ratio
    told = "; ".join(candidate.sentence() for candidate in tried)
    job.log(told)
    best = max(good, key=lambda candidate: candidate.ratio or 0.0, default=None)
    if best is not None and not parameters.optimiser:

        def right(model: onnx.ModelProto) -> bool:
            return why_wrong(model, reference, batches, varying) is None

        for one in (best, *rivals(best, good)[:1]):
            assert one.model is not None
            job.progress(9, 10, f"{one.name} with rewrites that serve speed alone")
            one.touch(touch_up(one.model, feeds, job.spec.threads, 1.5, right, job.log))

    def timed_again(model: onnx.ModelProto) -> float:
        job.progress(9.5, 10, "timing the fastest once more")
        return time_in_turns([source.path, model], feeds, job.spec.threads)[1]

    changed = [candidate for candidate in good if not candidate.is_source]
    doubts: list[str] = []
    if parameters.optimiser:  # kept at any speed: a recipe that is run again must give the same graph
        best = changed[0] if changed else None
    else:
        best, doubts = confirmed(changed, 1 + parameters.least_gain, timed_again)
    for doubt in doubts:
        job.log(f"{doubt}.")
    if best is None or best.model is None:
        if parameters.optimiser:
            raise Refusal(f"{told}.")
        told = "; ".join([told, *doubts])
        raise Refusal(f"No optimiser made {source.record.name} faster than ONNX Runtime does by itself. {told}.")
    nodes = [node.name for node in best.model.graph.node if node.op_type in best.fused]
    files = save_graph(best.model, job.work / "model.onnx")
    return [
        VariantFiles(
            format="onnx",
            files=files,
            changed=Changed(
                summary=f"{best.name}: {best.what()}; {best.ratio:.2f}× of the source, answers checked",
                touched=tuple(nodes),
                figures={
                    "optimiser": best.name,
                    "nodes": best.nodes,
                    "compared_samples": sum(len(next(iter(batch.values()))) for batch in batches),
                    **{f"fused_{kind}": count for kind, count in best.fused.items()},
                    **{f"tried: {candidate.name}": candidate.failure or candidate.ratio for candidate in tried},
                },
            ),
            parameters={
                "optimiser": best.name,
                **pinned_touches(best.touched.counts if best.touched is not None else ()),
                "least_gain": parameters.least_gain,
            },
            parameter_count=source.record.parameter_count,
            macs=source.record.macs,
            portable=source.record.portable and is_portable(best.model),
            target=source.record.target,
        )
    ]


def _inputs(model: Model) -> Iterator[dict[str, Any]]:
    """Made-up inputs of two sizes, then real ones where there are any."""
    for size in (model.fixed_batch,) if model.fixed_batch else (2, 3):
        yield model.example(size, seed=size)
    if model.has_calibration_data:
        yield from model.calibration_batches(batch_size=model.fixed_batch or 16, limit=REAL_SAMPLES)
