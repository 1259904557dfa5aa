"""Knowledge distillation: a small student learns from the large network's answers, not from the labels alone.

loss = alpha · T² · KL(teacher ‖ student, both softened by the temperature T) + (1 − alpha) · the user's loss
(Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network"). The student is the user's own
`student_model()`, or one derived from the teacher: the same network, narrower or shallower, starting from the teacher's
weights. With alpha = 0 the same student is trained without a teacher, to see what the teacher was worth.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from ..protocol import Hardware, ModelInfo, Variant
from . import Needs, Parameters, Refusal, technique

if TYPE_CHECKING:
    from ..context import JobContext, LoadedVariant, VariantFiles


class Distill(Parameters, frozen=True, tag="distill"):
    """Train a student."""

    temperature: Annotated[
        float, Meta(gt=0, le=20, description="how soft the teacher's answers are made; higher shows more of its doubts")
    ] = 3.0
    alpha: Annotated[
        float,
        Meta(ge=0, le=1, description="share of the teacher's answers in the loss; 0: labels alone, 1: teacher alone"),
    ] = 0.5
    student: Annotated[
        Literal["auto", "user", "derived"],
        Meta(description="the model file's student_model() or one made from the teacher; auto: the user's if any"),
    ] = "auto"
    student_width: Annotated[
        float, Meta(gt=0, le=1, description="for a derived student: share of the teacher's channels, heads and neurons")
    ] = 0.45
    student_depth: Annotated[
        float, Meta(gt=0, le=1, description="for a derived student: share of the blocks in every stack of like blocks")
    ] = 1.0
    epochs: Annotated[float, Meta(gt=0, le=10_000, description="passes over the training data")] = 10.0
    learning_rate: Annotated[float, Meta(gt=0, description="peak learning rate (AdamW)")] = 2e-3
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="pull of the weights towards zero")] = 0.05
    feature_weight: Annotated[
        float, Meta(ge=0, le=100, description="weight of matching features inside the networks; 0: not matched")
    ] = 0.0
    features: Annotated[
        Literal["last", "blocks"],
        Meta(description="which are matched: those before the output layer, or what each block gives as well"),
    ] = "last"
    protect: Annotated[
        list[str], Meta(description="for a derived student: layers to keep as they are, by pattern")
    ] = []
    round_to: Annotated[int, Meta(ge=1, le=128, description="for a derived student: widths are multiples of this")] = 8
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Meta(description="number format of the training")] = (
        "auto"
    )


FOR_DERIVED = ("student_width", "student_depth", "protect", "round_to")
"""Parameters that say how a student is derived."""


def refuse(variant: Variant, model: ModelInfo, hardware: Hardware, parameters: Distill | None) -> str | None:
    """The user's student was asked for, and there is none; or something is asked for that would count nothing."""
    if parameters is not None and parameters.student == "user" and "student_model" not in model.offers:
        return "There is no student_model() in the model file: add one, or set student = derived."
    if parameters is not None and parameters.features != "last" and not parameters.feature_weight:
        return f"features = {parameters.features} counts nothing with feature_weight = 0: set it above 0 (1, say)."
    if parameters is not None and takes_users(parameters, model.offers):
        default = Distill()
        ignored = [name for name in FOR_DERIVED if getattr(parameters, name) != getattr(default, name)]
        if ignored:
            return (
                f"With the student_model() of the model file nothing is derived, so {' and '.join(ignored)} would "
                f"count nothing: set student = derived, or leave {'them' if len(ignored) > 1 else 'it'} out."
            )
    return None


def takes_users(parameters: Distill, offers: Collection[str]) -> bool:
    """The student is the model file's, which offers these functions; else one is derived."""
    return parameters.student == "user" or (parameters.student == "auto" and "student_model" in offers)


@technique(
    "Knowledge distillation",
    group="distillation",
    parameters=Distill,
    needs=Needs.PYTORCH | Needs.TRAIN_DATA,
    complexity="high",
    expectation="4–10× smaller, 2–5× faster, 1–3 % loss",
    refuse=refuse,
)
def distill(source: LoadedVariant, parameters: Distill, job: JobContext) -> list[VariantFiles]:
    """Train a smaller student on the labels and on the teacher's answers."""
    from ..structure.network import CannotPrune
    from ..structure.teaching import teach

    try:
        return [teach(source, parameters, job)]
    except CannotPrune as cannot:
        raise Refusal(f"No student can be derived from {source.record.name}: {cannot}") from cannot
