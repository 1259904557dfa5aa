"""What cutting and zeroing share: the data, the uncut network as teacher and yardstick, the fine-tuning, the result.

Everything heavy is made when it is first asked for, so a technique that needs no data never opens any.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..context import JobContext, LoadedVariant
from ..training import Course, Outcome, Plan, Precision, held_out_accuracy, reestimate_batch_norm, train
from ..training.checkpoints import checkpoints_for
from ..training.data import INEXACT, TrainingData
from ..training.objectives import Objective
from ..training.teacher import Teaching
from .cost import parameters_of

if TYPE_CHECKING:
    from ..techniques.pruning import FineTuned


SETTLE_BATCHES = 20
"""Training batches that batch normalisation is measured on anew."""


class Retraining:
    """The training side of one pruning job."""

    def __init__(self, source: LoadedVariant, parameters: FineTuned, job: JobContext, technique: str) -> None:
        import msgspec

        self.source, self.parameters, self.job = source, parameters, job
        self.has_data = "train_data" in job.model.offers
        self.original = source.module()
        self.checkpoints = checkpoints_for(job, technique, msgspec.to_builtins(parameters), source)
        self.course = Course(job, self.checkpoints if parameters.fine_tune_epochs > 0 else None)
        self.objective = Objective(job.model)
        self.device = torch.device(job.spec.device)

    @functools.cached_property
    def data(self) -> TrainingData:
        data = TrainingData(self.job.model, seed=self.job.spec.seed)
        if not data.held_out_exact:
            self.job.log(INEXACT)
        return data

    @functools.cached_property
    def whole_accuracy(self) -> float | None:
        """Of the uncut network on the held-out training data; None without data."""
        return self.accuracy(self.original) if self.has_data else None

    def accuracy(self, module: nn.Module, samples: int | None = None) -> float:
        """On the held-out training data, on the job's device; the module comes back on the CPU."""
        precision = Precision(self.parameters.precision, self.device, self.job.spec.processor.features)
        module.to(self.device)
        value = held_out_accuracy(module, self.data, self.objective, self.device, precision, samples)
        precision.restore_layout(module)
        module.to("cpu")
        return value

    def settle(self, module: nn.Module, batches: int = SETTLE_BATCHES) -> None:
        """Batch normalisation measured anew after a cut, where there is data to measure it with."""
        if self.has_data and reestimate_batch_norm(module, self.data, self.objective, self.device, batches):
            module.to("cpu")

    def fine_tune(
        self, module: nn.Module, epochs: float, stage: str, after_step: Callable[[], None] | None = None
    ) -> Outcome:
        """Fine-tune in place; the module comes back on the CPU."""
        asked = self.parameters
        plan = Plan(
            epochs=epochs,
            learning_rate=asked.learning_rate or usual_rate(module),
            precision=asked.precision,
            stop_at=self.whole_accuracy if asked.stop_when_recovered else None,
            seed=self.job.spec.seed,
        )
        teaching = None
        if asked.distillation > 0:
            teaching = Teaching(copy.deepcopy(self.original), asked.distillation, asked.temperature)
        if self.course.total_steps is None:
            self.course.total_steps = max(1, round(asked.fine_tune_epochs * self.data.steps))
        if self.whole_accuracy is not None and self.objective.scored:
            self.course.fact("accuracy_before", self.whole_accuracy)
        outcome = train(
            module,
            self.data,
            self.objective,
            plan,
            self.course,
            stage=stage,
            teaching=teaching,
            after_step=after_step,
        )
        module.to("cpu")
        return outcome

    def figures(self, module: nn.Module, macs: int | None) -> dict[str, Any]:
        """Before and after, for the record of what changed."""
        before, after = parameters_of(self.original), parameters_of(module)
        figures: dict[str, Any] = {
            "parameter_count_before": before,
            "parameter_count": after,
        }
        if macs is not None:
            figures["macs"] = macs
        return figures

    def held_out_figures(self, after_cut: float | None, end: float | None) -> dict[str, float | None]:
        """What the held-out data say of the network before, after the cut and at the end, None without data.

        Accuracies (fractions); where the labels cannot be scored, losses, and called so.
        """
        values = {"_before": self.whole_accuracy, "_after_cut": after_cut, "": end}
        if self.objective.scored:
            return {f"held_out_accuracy{when}": value for when, value in values.items()}
        return {f"held_out_loss{when}": None if value is None else -value for when, value in values.items()}


def usual_rate(module: nn.Module) -> float:
    """A peak learning rate for AdamW that suits fine-tuning a network of this size: the larger, the gentler."""
    count = parameters_of(module)
    return 1e-3 if count < 20e6 else 1e-4 if count < 100e6 else 3e-5
