"""Distillation from end to end: choose the student, train it, and record what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn

from ..context import JobContext, LoadedVariant, VariantFiles
from ..models import ModelError
from ..models.tensors import tensors_by_path
from ..models.torch_model import save_module
from ..protocol import Changed, Left
from ..training import Course, Plan, Precision, held_out_accuracy, train
from ..training.checkpoints import checkpoints_for
from ..training.data import INEXACT, TrainingData
from ..training.losses import main_output
from ..training.objectives import Objective
from ..training.teacher import Teaching
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
    student, origin, done, left = _student(parameters, job, teacher, call)
    _refuse_other_answers(student, teacher, call, origin)
    size, theirs = parameters_of(student), parameters_of(teacher)
    if size >= theirs:
        job.log(f"The student ({origin}) has {_size_in_words(size, theirs)}: it is not smaller than the teacher.")
    data, objective = TrainingData(model, seed=job.spec.seed), Objective(model)
    precision = Precision(parameters.precision, device, job.spec.processor.features)
    if not data.held_out_exact:
        job.log(INEXACT)
    teacher_accuracy = None
    objective.scored = data.labelled
    if data.labelled or parameters.alpha < 1:  # without labels the teacher is the truth
        teacher_accuracy = held_out_accuracy(teacher.to(device), data, objective, device, precision)
    checkpoints = checkpoints_for(job, "distill", msgspec.to_builtins(parameters), source)
    course = Course(job, checkpoints, total_steps=max(1, round(parameters.epochs * data.steps)))
    if objective.scored and teacher_accuracy is not None:
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
        teaching = Teaching(
            teacher, parameters.alpha, parameters.temperature, parameters.feature_weight, parameters.features
        )
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
        **_judgement(outcome.accuracy, teacher_accuracy, objective.scored),
        "teacher_answers_kept": teaching.cached if teaching else None,
    }
    checkpoints.remove()
    return VariantFiles(
        format="pytorch",
        files=[path],
        changed=Changed(summary=_summary(figures, parameters), touched=tuple(done), left=tuple(left), figures=figures),
        parameter_count=figures["parameter_count"],
        macs=macs,
    )


def _student(
    parameters: Distill, job: JobContext, teacher: nn.Module, call: Any
) -> tuple[nn.Module, str, list[str], list[Left]]:
    """(module, in words where it comes from, what was changed to get it, what was left and why)"""
    from ..techniques.distillation import takes_users

    model: Any = job.model
    if takes_users(parameters, model.offers):
        return model.student(), "student_model()", ["a network of its own"], []
    student, done, left = derive(
        teacher, call, parameters.student_width, parameters.student_depth, parameters.protect, parameters.round_to
    )
    return student, "derived from the teacher", done, left


def _refuse_other_answers(student: nn.Module, teacher: nn.Module, call: Any, origin: str) -> None:
    """Raises ModelError unless the student's outputs are of the teacher's structure, and the main one of its shape.

    The student takes the teacher's place, so whatever reads the outputs (the accuracy, an exported graph's names) must
    find there what it found before. Other outputs may differ in shape: features of a narrower network do.
    """
    with torch.no_grad():
        theirs = call(teacher.eval())
        try:
            ours = call(student.eval())
        except Exception as error:  # whatever the user's forward raises
            raise ModelError(f"The student ({origin}) fails on example_input(): {error}") from error
    if tensors_by_path(ours).keys() != tensors_by_path(theirs).keys():
        raise ModelError(
            f"The student ({origin}) returns {_described(ours)} and the model {_described(theirs)}: "
            "let the student's forward return what the model's does."
        )
    mine, wanted = tuple(main_output(ours).shape), tuple(main_output(theirs).shape)
    if mine != wanted:
        raise ModelError(
            f"The student ({origin}) answers in the shape {mine} and the model in {wanted}: make it the same."
        )


def _described(outputs: Any) -> str:
    """An output's structure in words."""
    if isinstance(outputs, torch.Tensor):
        return "a tensor"
    names = ["_".join(str(key) for key in path) for path in tensors_by_path(outputs)]
    return f"a {type(outputs).__name__} with {', '.join(names) or 'no tensor'}"


def _judgement(quality: float, before: float | None, scored: bool) -> dict[str, float | None]:
    """What judged on the held-out data: accuracies, or losses where labels cannot be scored."""
    if scored:
        return {"held_out_accuracy_before": before, "held_out_accuracy": quality}
    return {"held_out_loss_before": None if before is None else -before, "held_out_loss": -quality}


def _size_in_words(count: int, teachers: int) -> str:
    """ "4.0× fewer parameters" than the teacher, or how many where it has not fewer."""
    if count == teachers:
        return "as many parameters as the teacher"
    if count > teachers:
        return f"{count / max(1, teachers):.2f}× as many parameters as the teacher"
    return f"{teachers / max(1, count):.1f}× fewer parameters"


def _summary(figures: dict[str, Any], parameters: Distill) -> str:
    size = _size_in_words(figures["parameter_count"], figures["parameter_count_before"])
    how = f"alpha {parameters.alpha:g}, temperature {parameters.temperature:g}" if parameters.alpha else "no teacher"
    text = f"Student ({figures['student']}) with {size}, trained with {how}; "
    if "held_out_accuracy" in figures:
        value, before = figures["held_out_accuracy"], figures["held_out_accuracy_before"]
        return f"{text}accuracy on held-out training data {value:.2%}, the teacher's {before:.2%}."
    value, before = figures["held_out_loss"], figures["held_out_loss_before"]
    if before is None:
        return f"{text}there are no labels; its distance from the teacher on held-out training data is {value:.4g}."
    return f"{text}loss on held-out training data {value:.4g}, the teacher's {before:.4g}."
