"""The one training loop: fine-tuning after pruning, distillation, and fine-tuning with fake quantization.

`train` runs one stage: a module, the user's data and loss, a plan, and if wanted a teacher and a hook after each step.
What stages of one job share (the curves, the progress, the checkpoints) is a `Course`.

What a reader may rely on:
- A step is one optimizer step on one batch; steps count through all stages, so the curves never jump back.
- Curves and checkpoints cost next to nothing: a point at most every `POINT_SECONDS`, and only there is the loss fetched
  from the device; checkpoints take at most a twentieth of the time.
- A killed or cancelled job that is run again goes on at its last checkpoint: weights, optimizer, schedule, random
  numbers, place in the data, and the curve so far, which is sent again so that it is whole.
- The module comes back in eval mode, float32, on the device it was trained on, in its former memory layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from ..context import JobCancelled, JobContext
from ..models import ModelError
from .checkpoints import Checkpoints
from .data import Batch, TrainingData, batch_size
from .losses import moved
from .objectives import Objective, Teaching
from .randomness import random_state, seed_everything, set_random_state

POINT_SECONDS = 0.25
"""A curve gets a point at most this often."""

CHECKPOINT_SECONDS = 15.0
"""A killed job repeats at most about this much work."""

RECOVERED_CHECKS_PER_EPOCH = 2
"""How often the held-out accuracy is looked at."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one stage trains. The rate rises over `warm_up` of the steps, then falls along a cosine to 1 %."""

    epochs: float
    learning_rate: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    warm_up: float = 0.1
    clip_norm: float = 2.0
    """The gradient's L2 norm is cut to this."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    stop_at: float | None = None
    """End early once the held-out accuracy has reached this."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a stage ended with."""

    accuracy: float
    """On the held-out part of the training data, fraction."""
    steps: int
    recovered: bool
    """Ended early because `stop_at` was reached."""


class Course:
    """What the stages of one training job share: curves, progress, checkpoints."""

    def __init__(self, job: JobContext, checkpoints: Checkpoints | None = None, total_steps: int | None = None) -> None:
        self.job, self.checkpoints, self.total_steps = job, checkpoints, total_steps
        self.step = 0
        self.points: list[tuple[str, float, int]] = []
        self._resumed = (checkpoints.load("training") if checkpoints else None) or {}
        if self._resumed:
            self.step, self.points = self._resumed["step"], [tuple(point) for point in self._resumed["points"]]
            for name, value, step in self.points:
                job.metric(name, value, step)
            job.log(f"Going on from the checkpoint at step {self.step}.")

    def point(self, name: str, value: float) -> None:
        """A point of a curve at the present step."""
        self.points.append((name, value, self.step))
        self.job.metric(name, value, self.step)

    def fact(self, name: str, value: float) -> None:
        """A number that holds for the whole job, which the charts are drawn by; sent again when the job goes on.

        "steps_per_epoch" and "total_steps" are the axis (sent by `train`), "accuracy_before" is the held-out accuracy
        of the network before it was changed, which the accuracy limit is counted from (sent by the technique).
        """
        self.job.metric(name, value, self.step)

    def resumed(self, stage: str) -> dict[str, Any] | None:
        """The checkpoint, if it was taken in this stage."""
        return self._resumed if self._resumed.get("stage") == stage else None

    def keep(self, stage: str, state: dict[str, Any]) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save("training", state | {"stage": stage, "step": self.step, "points": self.points})


def train(
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    plan: Plan,
    course: Course,
    *,
    stage: str = "training",
    teaching: Teaching | None = None,
    after_step: Callable[[], None] | None = None,
) -> Outcome:
    """Train `module` in place, on the job's device.

    `after_step` is called after every optimizer step (masks are put back there). `stage` names the checkpoint: two
    stages of one course must have different names.

    Raises JobCancelled, after saving a checkpoint wherever it comes between two steps, and ModelError when the loss
    stops being a number.
    """
    device = torch.device(course.job.spec.device)
    total = max(1, round(plan.epochs * data.steps))
    module.to(device)
    seed_everything(plan.seed)
    precision = Precision(plan.precision, device, course.job.spec.processor.features)
    if teaching is not None:
        teaching.prepare(module, data, objective, device)
    trained = nn.ModuleList([module, *(teaching.trained_modules if teaching else [])])
    optimizer = make_optimizer(trained, plan)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, total, plan.warm_up))
    scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype is torch.float16)

    done, accuracy, stepping = 0, 0.0, False
    saved = course.resumed(stage)
    if saved:
        trained.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        scaler.load_state_dict(saved["scaler"])
        set_random_state(saved["random"])
        done, accuracy = saved["done"], saved["accuracy"]

    def checkpoint() -> None:
        course.keep(
            stage,
            {
                "model": trained.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
                "random": random_state(),
                "done": done,
                "accuracy": accuracy,
            },
        )

    course.fact("steps_per_epoch", data.steps)
    course.fact("total_steps", course.total_steps or course.step - done + total)
    check_every = max(1, data.steps // RECOVERED_CHECKS_PER_EPOCH)
    last_point = last_checkpoint = time.monotonic()
    pause, recent = CHECKPOINT_SECONDS, Recent(device)
    module.train()
    try:
        for index, batch in _steps(data, done, total):
            inputs, labels = moved(batch[0], device), moved(batch[1], device)
            optimizer.zero_grad(set_to_none=True)
            with precision.autocast():
                outputs = objective.forward(module, precision.laid_out(inputs))
                loss = objective.loss(outputs, labels)
                if teaching is not None:
                    loss = teaching.mixed(loss, outputs, inputs, labels, index, precision)
            scaler.scale(loss).backward()
            stepping = True  # from here to the count, weights and counts do not belong together
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained.parameters(), plan.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            if after_step is not None:
                after_step()
            done += 1
            course.step += 1
            stepping = False
            recent.add(loss)
            now = time.monotonic()
            if now - last_point >= POINT_SECONDS or done == total:
                last_point = now
                course.point("loss", recent.mean(f"step {done} of {total}"))
            course.job.progress(course.step, course.total_steps, f"{stage}: step {done} of {total}")
            if done % check_every == 0 or done == total:
                accuracy = held_out_accuracy(module, data, objective, device, precision)
                if objective.scored:
                    course.point("accuracy", accuracy)
                else:
                    course.point("held_out_loss", -accuracy)
                if plan.stop_at is not None and accuracy >= plan.stop_at and done >= plan.warm_up * total:
                    break
            if now - last_checkpoint >= pause:
                checkpoint()
                last_checkpoint = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, 20 * (last_checkpoint - now))
    except JobCancelled:  # may come out of any line: the worker's signal handler raises it
        if not stepping:
            checkpoint()
        raise
    finally:
        module.eval()
        precision.restore_layout(module)
        if teaching is not None:
            teaching.close()
    return Outcome(accuracy=accuracy, steps=done, recovered=done < total)


@torch.no_grad()
def held_out_accuracy(
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    device: torch.device | str = "cpu",
    precision: Precision | None = None,
    samples: int | None = None,
) -> float:
    """Accuracy (fraction) on the held-out batches, or on the first `samples` of them. Keeps the module's mode.

    Where the labels cannot be scored (regression without accuracy() in the model file) it is minus the mean loss.
    """
    was_training = module.training
    module.eval()
    right, seen = 0.0, 0
    precision = precision or Precision("float32", torch.device(device), ())
    for batch in data.held_out:
        inputs, labels = moved(batch[0], device), moved(batch[1], device)
        with precision.autocast():
            outputs = objective.forward(module, precision.laid_out(inputs))
        right += objective.quality(outputs, labels)
        seen += batch_size(batch)
        if samples is not None and seen >= samples:
            break
    module.train(was_training)
    return right / seen


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module, data: TrainingData, objective: Objective, device: torch.device | str = "cpu", batches: int = 20
) -> int:
    """Measure the running mean and variance of every batch normalisation anew on training batches.

    After channels were removed or zeroed the old statistics are those of another network. Returns how many layers
    were re-estimated; the module comes back in eval mode.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        return 0
    module.to(device).eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # None: the plain average over all batches seen
        layer.train()
    for index, (inputs, _) in enumerate(data.batches()):
        if index >= batches:
            break
        objective.forward(module, moved(inputs, device))
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    module.eval()
    return len(layers)


def rate_factor(step: int, total: int, warm_up: float) -> float:
    """The learning rate at a step, as a share of its peak: linear warm-up, then a cosine down to 1 %."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        return (step + 1) / rising
    through = min(1.0, (step - rising) / max(1, total - rising))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * through))


def make_optimizer(module: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Weight decay falls on matrices and filters only, not on biases, norms and tokens."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=plan.learning_rate)


class Precision:
    """Mixed precision where the device gains by it, with the memory layout that suits it.

    "auto": bfloat16 on a GPU that has it (else float16 with loss scaling) and on a processor with AMX (there measured
    2.5 times as fast as float32 on a convolutional network); float32 elsewhere.
    """

    def __init__(self, wanted: str, device: torch.device, features: tuple[str, ...]) -> None:
        self.device = device
        self.dtype = torch.float32
        if wanted == "bfloat16":
            self.dtype = torch.bfloat16
        elif wanted == "auto" and device.type == "cuda":
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        elif wanted == "auto" and "amx-bf16" in features:
            self.dtype = torch.bfloat16

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def laid_out(self, inputs: Any) -> Any:
        """Images with the channels last in memory where low precision is used: convolutions want them so there."""
        if self.dtype is not torch.float32 and isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def restore_layout(self, module: nn.Module) -> None:
        """Weights back to the ordinary layout, so that later timings compare like with like."""
        for parameter in module.parameters():
            parameter.grad = None
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()


class Recent:
    """The mean loss since the last point of the curve, kept on the device until it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sum, self._count = torch.zeros((), device=device), 0

    def add(self, loss: torch.Tensor) -> None:
        self._sum += loss.detach().float()
        self._count += 1

    def mean(self, where: str) -> float:
        value = float(self._sum) / self._count
        self._sum.zero_()
        self._count = 0
        if not math.isfinite(value):
            raise ModelError(f"Training diverged: the loss is not a number at {where}. Try a lower learning_rate.")
        return value


def _steps(data: TrainingData, done: int, total: int) -> Iterator[tuple[int, Batch]]:
    """(index within the pass, batch) from step `done` up to `total`, pass after pass."""
    while done < total:
        skip = done % data.steps
        got = 0
        for index, batch in enumerate(data.batches(skip), start=skip):
            if done >= total:
                return
            yield index, batch
            done, got = done + 1, got + 1
        if not got:
            raise ModelError("train_data() gave nothing on a later pass: it must be possible to go through it again.")
