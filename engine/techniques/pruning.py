"""Pruning: a network without what it hardly needs, fine-tuned until it is as good as before.

`prune-unstructured` sets single weights to zero. The network keeps its shape, so dense runtimes run it exactly as fast
as before: it pays only where the file is compressed, or where a GPU has sparse tensor cores (the 2:4 pattern).
`prune-structured` removes whole channels, neurons, attention heads and hidden units. What is left is a smaller dense
network: fewer multiply-adds, faster everywhere.

Both cut, measure batch normalisation anew, and fine-tune on the user's training data with the uncut network as a
teacher; how layers hang together is `engine/structure/`, the training is `engine/training/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from ..protocol import Hardware, ModelInfo, Variant
from . import Needs, Parameters, Refusal, technique

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles


class FineTuned(Parameters, frozen=True):
    """How a pruned network is fine-tuned; shared by both techniques."""

    fine_tune_epochs: Annotated[
        float, Meta(ge=0, le=1000, description="passes over the training data after cutting; 0: no fine-tuning")
    ] = 3.0
    learning_rate: (
        Annotated[
            float, Meta(gt=0, description="peak learning rate of fine-tuning; empty: chosen by the network's size")
        ]
        | None
    ) = None
    distillation: Annotated[
        float, Meta(ge=0, le=1, description="share of the uncut network's answers in the loss; 0: labels alone")
    ] = 0.5
    temperature: Annotated[float, Meta(gt=0, le=20, description="how soft the teacher's answers are made")] = 3.0
    stop_when_recovered: Annotated[
        bool, Meta(description="end as soon as the accuracy on held-out training data is that of the uncut network")
    ] = False
    protect: Annotated[
        list[str], Meta(description="layers to leave alone with all in them, by name or pattern (head, blocks.*.conv1)")
    ] = []
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], Meta(description="number format of the fine-tuning")
    ] = "auto"


class PruneUnstructured(FineTuned, frozen=True, tag="prune-unstructured"):
    """Zero single weights."""

    sparsity: Annotated[
        float, Meta(gt=0, lt=1, description="share of the weights to set to zero; always half with the pattern 2:4")
    ] = 0.3
    scope: Annotated[
        Literal["layer", "global"],
        Meta(description="the smallest weights of every layer, or the smallest of the whole network"),
    ] = "layer"
    pattern: Annotated[
        Literal["free", "2:4"],
        Meta(description="2:4: two zeros in every four neighbours, for the sparse tensor cores of NVIDIA GPUs"),
    ] = "free"


DEFAULT_RATIO = 0.3
"""Share of channels that goes where neither a ratio nor a budget nor widths are given."""


class PruneStructured(FineTuned, frozen=True, tag="prune-structured"):
    """Remove channels, neurons, heads and hidden units."""

    ratio: (
        Annotated[
            float,
            Meta(
                gt=0,
                lt=1,
                description=f"share of channels to remove; empty: {DEFAULT_RATIO}, or what a keep_… budget takes",
                extra={"empty": str(DEFAULT_RATIO)},
            ),
        ]
        | None
    ) = None
    keep_macs: (
        Annotated[float, Meta(gt=0, lt=1, description="search: keep at most this share of the multiply-adds")] | None
    ) = None
    keep_parameters: (
        Annotated[float, Meta(gt=0, lt=1, description="search: keep at most this share of the parameters")] | None
    ) = None
    keep_latency: (
        Annotated[
            float,
            Meta(
                gt=0,
                lt=1,
                description="search: keep at most this share of the time a call takes under eager PyTorch on the "
                "job's device, which another runtime need not share",
            ),
        ]
        | None
    ) = None
    scope: Annotated[
        Literal["layer", "global", "sensitivity"],
        Meta(
            description="the same share of every layer; the least important units of all layers together; or more of "
            "the layers that a scan finds can stand it (a scan that is recorded already is used)"
        ),
    ] = "layer"
    importance: Annotated[
        Literal["l2", "taylor"],
        Meta(description="what goes first: filters with the smallest norm, or with the least effect on the loss"),
    ] = "l2"
    round_to: Annotated[
        int, Meta(ge=1, le=128, description="keep widths that are multiples of this; a narrower layer stays as it is")
    ] = 8
    cycles: Annotated[int, Meta(ge=1, le=20, description="cut in so many steps, fine-tuning after each")] = 1
    scan: Annotated[bool, Meta(description="also record how much accuracy each layer costs when cut alone")] = False
    widths: Annotated[
        list[str],
        Meta(description="exact widths (layer=channels), as an earlier search found them; nothing is searched"),
    ] = []


BUDGETS = {
    "keep_macs": "multiply-adds",
    "keep_parameters": "parameters",
    "keep_latency": "time a call takes",
}
"""The budgets that widths can be searched for → what of the uncut network each is a share of."""


def refuse(variant: Variant, model: ModelInfo, hardware: Hardware, parameters: FineTuned | None) -> str | None:
    """Training data is only needed for what the parameters ask for."""
    if parameters is None or "train_data" in model.offers:
        return None
    if parameters.fine_tune_epochs > 0:
        return (
            "Fine-tuning after pruning needs training data: add train_data() to the model file, or set "
            "fine_tune_epochs = 0 and expect to lose accuracy."
        )
    if isinstance(parameters, PruneStructured) and (
        parameters.importance == "taylor" or parameters.scope == "sensitivity" or parameters.scan
    ):
        return "Taylor importance and the sensitivity scan need training data: add train_data() to the model file."
    return None


def refuse_structured(
    variant: Variant, model: ModelInfo, hardware: Hardware, parameters: PruneStructured | None
) -> str | None:
    """A ratio or a budget, and one budget at a time."""
    if parameters is not None:
        budgets = [name for name in BUDGETS if getattr(parameters, name) is not None]
        if len(budgets) > 1:
            return "Give only one of keep_macs, keep_parameters and keep_latency."
        if budgets and parameters.ratio is not None:
            return f"Give ratio or {budgets[0]}, not both: a budget finds out by itself how much has to go."
    return refuse(variant, model, hardware, parameters)


def refuse_unstructured(
    variant: Variant, model: ModelInfo, hardware: Hardware, parameters: PruneUnstructured | None
) -> str | None:
    """A pattern zeroes what it zeroes: a share that was asked for beside it is not ignored in silence."""
    if parameters is not None and parameters.pattern == "2:4":
        default = PruneUnstructured().sparsity
        if parameters.sparsity not in (0.5, default):
            return (
                f"The pattern 2:4 zeroes half of the weights, never {parameters.sparsity:.0%}: leave sparsity out, or "
                'set pattern = "free".'
            )
        if parameters.scope == "global":
            return 'The pattern 2:4 treats every layer alike: leave scope out, or set pattern = "free".'
    return refuse(variant, model, hardware, parameters)


@technique(
    "Unstructured pruning",
    group="pruning",
    parameters=PruneUnstructured,
    needs=Needs.PYTORCH,
    complexity="medium",
    expectation="same size and speed; compresses better; 2:4 brings 1–20 % on GPUs with sparse tensor cores",
    refuse=refuse_unstructured,
)
def prune_unstructured(source: LoadedVariant, parameters: PruneUnstructured, job: JobContext) -> list[VariantFiles]:
    """Set the smallest weights to zero, for good, and fine-tune the others."""
    from ..structure.network import CannotPrune
    from ..structure.zeroing import zero_weights

    try:
        return [zero_weights(source, parameters, job)]
    except CannotPrune as cannot:
        raise Refusal(f"{source.record.name}: {cannot}") from cannot


@technique(
    "Structured pruning",
    group="pruning",
    parameters=PruneStructured,
    needs=Needs.PYTORCH,
    complexity="high",
    expectation="30 % of the channels: half the multiply-adds, 1.3–2× faster, 0–2 % loss after fine-tuning",
    packages=(("torch_pruning", "pip install torch-pruning"),),
    refuse=refuse_structured,
)
def prune_structured(source: LoadedVariant, parameters: PruneStructured, job: JobContext) -> list[VariantFiles]:
    """Remove whole channels, neurons, attention heads and hidden units, and fine-tune what is left."""
    from ..structure.cutting import cut
    from ..structure.network import CannotPrune

    try:
        return [cut(source, parameters, job)]
    except CannotPrune as cannot:
        raise Refusal(f"{source.record.name}: {cannot}") from cannot


def parse_widths(entries: list[str]) -> dict[str, int]:
    """`["blocks.0.conv1=24"]` as a dictionary. Raises Refusal for what is no such entry."""
    widths: dict[str, int] = {}
    for entry in entries:
        name, separator, number = entry.rpartition("=")
        if not separator or not number.strip().isdigit():
            raise Refusal(f"prune-structured: widths: {entry!r} is not of the form layer=channels.")
        if int(number) < 1:
            raise Refusal(f"prune-structured: widths: {entry!r} leaves nothing of the layer: at least one must stay.")
        widths[name.strip()] = int(number)
    return widths
