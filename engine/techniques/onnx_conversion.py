"""ONNX conversion: a PyTorch module becomes an ONNX graph, the hub that every other format branches from.

The graph is only kept if ONNX Runtime gives PyTorch's answers with it, at two batch sizes; that is what shows that
the batch axis is really open and that nothing was traced into a constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from ..protocol import TensorSpec
from . import Changed, Needs, Parameters, Refusal, technique

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles
    from ..graphs.exporting import Exported
    from ..models import Model

CHECKED_BATCH_SIZES = (2, 3)
"""Other than 1, where a wrongly closed axis could hide behind broadcasting."""


class ExportOnnx(Parameters, frozen=True, tag="export-onnx"):
    """How to write the graph."""

    opset: Annotated[
        int,
        Meta(ge=17, le=23, description="ONNX operator set: a higher one knows more, a lower one suits old runtimes"),
    ] = 20
    tolerance: Annotated[
        float,
        Meta(gt=0, le=0.1, description="largest accepted difference from PyTorch, as a share of the largest output"),
    ] = 1e-3


@technique(
    "Export to ONNX",
    group="ONNX conversion",
    parameters=ExportOnnx,
    needs=Needs.PYTORCH,
    packages=(
        ("onnxscript", "pip install onnxscript"),
        ("onnxruntime", "pip install 'trimtab[cpu]'"),
    ),
    expectation="same answers; 1–3× faster than PyTorch eager on a CPU",
)
def export_onnx(source: LoadedVariant, parameters: ExportOnnx, job: JobContext) -> list[VariantFiles]:
    """Write the module as an ONNX graph with an open batch axis, and check it against PyTorch."""
    from ..context import VariantFiles
    from ..graphs.exporting import TRACE_BATCH, ExportFailed, export_module, weight_bytes
    from ..graphs.onnx_graph import element_count, float_weights, save_graph

    model = job.model
    job.progress(0, 3, "exporting")
    module = source.module()
    args, kwargs = model.torch_args(model.example(model.fixed_batch or TRACE_BATCH))
    try:
        exported = export_module(
            module, args, kwargs, model.input_names, model.output_names, open_axes(model.inputs), parameters.opset
        )
    except ExportFailed as failure:
        raise Refusal(str(failure)) from None
    job.log(exported.log)
    job.progress(1, 3, "writing the graph")
    files = save_graph(exported.model, job.work / "model.onnx")
    job.progress(2, 3, "checking the answers against PyTorch")
    sizes = (model.fixed_batch,) if model.fixed_batch else CHECKED_BATCH_SIZES
    difference = _check(model, module, files[0], sizes, parameters.tolerance)
    nodes = len(exported.model.graph.node)
    return [
        VariantFiles(
            format="onnx",
            files=files,
            changed=Changed(
                summary=_summary(exported, nodes, sizes, difference),
                touched=tuple(node.name for node in exported.model.graph.node),
                figures={
                    "nodes": nodes,
                    "folded_nodes": exported.nodes_before_folding - nodes,
                    "opset": parameters.opset,
                    "exporter": exported.exporter,
                    "max_abs_difference": difference,
                    "weight_bytes": weight_bytes(exported.model),
                },
            ),
            parameter_count=element_count(float_weights(exported.model.graph)),
            target=source.record.target,
            macs=source.record.macs,
        )
    ]


def open_axes(inputs: tuple[TensorSpec, ...]) -> dict[str, dict[int, str]]:
    """Input name → {axis: name} for every axis whose size is a name."""
    return {spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in inputs}


def _check(model: Model, module: Any, path: Any, sizes: tuple[int, ...], tolerance: float) -> float:
    """Largest absolute difference from PyTorch. Raises Refusal where an answer differs by more than the tolerance."""
    from ..graphs.verification import compare_outputs, run_graph

    largest = 0.0
    for seed, size in enumerate(sizes, start=1):
        inputs = model.example(size, seed=seed)
        try:
            outputs = run_graph(path, [inputs])
        except Exception as error:  # ONNX Runtime has a class for each status, below no class of its own
            line = str(error).strip().splitlines()[0][:300]
            raise Refusal(f"ONNX Runtime cannot run the exported graph at batch size {size}: {line}") from None
        try:
            found = compare_outputs([model.call(module, inputs)], outputs)
        except ValueError as error:
            raise Refusal(
                f"The exported graph does not answer as PyTorch does at batch size {size}: {error}."
            ) from None
        if apart := found.beyond(tolerance):
            raise Refusal(
                f"The exported graph does not give PyTorch's answers: at batch size {size} they {apart}. "
                "Is the module random, or does its control flow depend on its input?"
            )
        largest = max(largest, found.maximum)
    return largest


def _summary(exported: Exported, nodes: int, sizes: tuple[int, ...], difference: float) -> str:
    text = (
        f"{nodes} nodes written with {exported.exporter}, {exported.nodes_before_folding - nodes} folded away; "
        f"differs from PyTorch by at most {difference:.2g} at batch sizes {' and '.join(map(str, sizes))}"
    )
    if exported.fallback_reason:
        text += f"; used because {exported.fallback_reason}"
    return text
