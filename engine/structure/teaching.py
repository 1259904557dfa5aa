"""Distillation from end to end: choose the student, train it, and record what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn

from ..context import JobContext, LoadedVariant, VariantFiles
from ..models.torch_model import save_module
from ..protocol import Changed
from ..training import Course, Plan, Precision, held_out_accuracy, train
from ..training.checkpoints import checkpoints_for
from ..training.data import TrainingData
from ..training.objectives import Objective, Teaching
from .cost import example_call, macs_of, parameters_of
from .students import derive

if TYPE_CHECKING:
    from ..techniques.distillation import Distill


def teach(source: LoadedVariant, parameters: Distill, job: JobContext) -> VariantFiles:
    """The technique `distill`. Raises CannotPrune when no student can be derived."""
    model, device = job.model, torch.device(job.spec.device)
    teacher = source.module()
    call, samples = example_call(model)
    torch.manual_seed(job.spec.seed)
    student, origin, done = _student(parameters, job, teacher, call)
    data, objective = TrainingData(model, seed=job.spec.seed), Objective(model)
    precision = Precision(parameters.precision, device, job.spec.processor.features)
    teacher_accuracy = held_out_accuracy(teacher.to(device), data, objective, device, precision)
    checkpoints = checkpoints_for(job, "distill", msgspec.to_builtins(parameters), source)
    course = Course(job, checkpoints, total_steps=max(1, round(parameters.epochs * data.steps)))
    if objective.scored:
        course.fact("accuracy_before", teacher_accuracy)
    plan = Plan(
        epochs=parameters.epochs,
        learning_rate=parameters.learning_rate,
        weight_decay=parameters.weight_decay,
        precision=parameters.precision,
        seed=job.spec.seed,
    )
    teaching = None
    if parameters.alpha > 0 or parameters.feature_weight > 0:
        teaching = Teaching(teacher, parameters.alpha, parameters.temperature, parameters.feature_weight)
    outcome = train(student, data, objective, plan, course, stage="distillation", teaching=teaching)
    path = job.work / "model.pt"
    save_module(student.cpu(), path)
    teacher.cpu()
    macs, macs_before = macs_of(student, call, samples), macs_of(teacher, call, samples)
    figures: dict[str, Any] = {
        "student": origin,
        "parameter_count_before": parameters_of(teacher),
        "parameter_count": parameters_of(student),
        "macs_before": macs_before,
        "macs": macs,
        "held_out_accuracy_before": teacher_accuracy,
        "held_out_accuracy": outcome.accuracy,
        "teacher_answers_kept": teaching.cached if teaching else None,
    }
    checkpoints.remove()
    return VariantFiles(
        format="pytorch",
        files=[path],
        changed=Changed(summary=_summary(figures, parameters), touched=tuple(done), figures=figures),
        parameter_count=figures["parameter_count"],
        macs=macs,
    )


def _student(parameters: Distill, job: JobContext, teacher: nn.Module, call: Any) -> tuple[nn.Module, str, list[str]]:
    """(module, in words where it comes from, what was changed to get it)"""
    model: Any = job.model
    wanted = parameters.student
    if wanted == "user" or (wanted == "auto" and "student_model" in model.offers):
        return model.student(), "student_model()", ["a network of its own"]
    student, done = derive(
        teacher, call, parameters.student_width, parameters.student_depth, parameters.protect, parameters.round_to
    )
    return student, "derived from the teacher", done


def _summary(figures: dict[str, Any], parameters: Distill) -> str:
    times = figures["parameter_count_before"] / max(1, figures["parameter_count"])
    how = f"alpha {parameters.alpha:g}, temperature {parameters.temperature:g}" if parameters.alpha else "no teacher"
    return (
        f"Student ({figures['student']}) with {times:.1f}× fewer parameters, trained with {how}; accuracy on "
        f"held-out training data {figures['held_out_accuracy']:.2%}, "
        f"the teacher's {figures['held_out_accuracy_before']:.2%}."
    )
