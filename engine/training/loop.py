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

import itertools
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..context import JobCancelled
from ..models import ModelError
from .course import Course
from .data import Batch, TrainingData
from .judging import held_out_accuracy, lone_samples_accepted
from .losses import moved
from .objectives import Objective
from .parallel import train_in_parallel
from .plan import Outcome, Plan, make_optimizer, rate_factor, unfrozen
from .precision import Precision
from .randomness import random_state, seed_everything, set_random_state
from .teacher import Teaching
from .team import StepLoss, Team

POINT_SECONDS = 0.25
"""A curve gets a point at most this often."""

CHECKPOINT_SECONDS = 15.0
"""A killed job repeats at most about this much work."""

RECOVERED_CHECKS_PER_EPOCH = 2
"""How often the held-out accuracy is looked at."""


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

    The module comes back with its gradients gone, trained on `job.spec.device`, or, where the job has several
    `devices`, by one process on each of them (see `parallel`): then `after_step` must be one that can be pickled, a
    `functools.partial` of a function at the top of a module.

    Raises JobCancelled, after saving a checkpoint wherever it comes between two steps, and ModelError when the loss
    stops being a number.
    """
    device = torch.device(course.job.spec.device)
    if len(course.job.spec.devices) > 1:
        outcome = train_in_parallel(module, data, plan, course, stage, teaching, after_step)
        if outcome is not None:
            module.to(device)
            return outcome
    return train_as(Team(device), module, data, objective, plan, course, stage, teaching, after_step)


def train_as(
    team: Team,
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    plan: Plan,
    course: Course,
    stage: str,
    teaching: Teaching | None,
    after_step: Callable[[], None] | None,
) -> Outcome:
    """`train` as one rank of a team; only the leading one judges, reports and keeps checkpoints."""
    with unfrozen(module) as was_frozen, lone_samples_accepted(module):
        if was_frozen:
            course.job.log("All parameters of the network were frozen: all of them are trained.")
        return _train(team, module, data, objective, plan, course, stage, teaching, after_step)


def _train(
    team: Team,
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    plan: Plan,
    course: Course,
    stage: str,
    teaching: Teaching | None,
    after_step: Callable[[], None] | None,
) -> Outcome:
    device = team.device
    total = plan.steps(data.steps)
    module.to(device)
    seed_everything(plan.seed)
    precision = Precision(plan.precision, device, course.job.spec.processor.features)
    if teaching is not None:
        teaching.prepare(module, data, objective, device)
    step = StepLoss(module, objective, teaching, precision)
    trained = step.trained
    optimizer = make_optimizer(trained, plan)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, total, plan.warm_up))
    scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype is torch.float16)

    done, accuracy, judged = 0, 0.0, -1
    stepping = finished = False
    saved = course.resumed(stage)
    if saved:
        trained.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        scaler.load_state_dict(saved["scaler"])
        done, accuracy, finished = saved["done"], saved["accuracy"], saved.get("finished", False)
    joined = team.joined(step)

    def tell_axis() -> None:
        course.fact("steps_per_epoch", data.steps)
        course.fact("total_steps", course.total_steps or course.step - done + total)

    def shorten(steps: int) -> None:
        nonlocal total
        earlier = course.step - done
        if course.total_steps is not None:
            course.total_steps = earlier + round((course.total_steps - earlier) * steps / data.steps)
        data.steps = steps
        total = max(done, plan.steps(steps))
        tell_axis()

    if saved and saved.get("steps_per_epoch", data.steps) < data.steps:
        shorten(saved["steps_per_epoch"])

    def checkpoint() -> None:
        if team.leads:
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
                    "finished": finished,
                    "steps_per_epoch": data.steps,
                },
            )

    def judge() -> None:
        nonlocal accuracy, judged
        judged = done
        if team.leads:
            accuracy = held_out_accuracy(module, data, objective, device, precision, teaching=teaching)
            course.judged(accuracy, objective.scored)

    def begin(number: int) -> None:
        team.begin_pass(plan.seed, number)

    def go_on() -> None:
        if saved:  # only after the samples that were seen are skipped: drawing them draws random numbers, too
            set_random_state(saved["random"])

    def fell_short(steps: int) -> None:
        course.job.log(
            f"A pass over train_data() gave {steps:,} batches to train on where {data.steps:,} were expected, by its "
            "length or by an earlier pass: the training goes by what came."
        )
        shorten(steps)

    tell_axis()
    last_point = last_checkpoint = time.monotonic()
    pause, recent = CHECKPOINT_SECONDS, Recent(device)
    module.train()
    try:
        for batch in _steps(data, done, lambda: total, begin, go_on, fell_short) if not finished else ():
            own, weight = team.share(batch)
            inputs, labels = moved(own[0], device), moved(own[1], device)
            optimizer.zero_grad(set_to_none=True)
            loss = joined(inputs, labels, teaching.key(own[0]) if teaching else None) * weight
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
            recent.add(team.mean(loss))
            now = time.monotonic()
            if team.leads and (now - last_point >= POINT_SECONDS or done == total):
                last_point = now
                mean = recent.mean()
                if not math.isfinite(mean):
                    raise _diverged(data, f"step {done} of {total}")
                course.point("loss", mean)
            course.job.progress(course.step, course.total_steps, f"{stage}: step {done} of {total}{course.going_on}")
            if done % max(1, data.steps // RECOVERED_CHECKS_PER_EPOCH) == 0 or done == total:
                judge()
                good = plan.stop_at is not None and accuracy >= plan.stop_at and done >= plan.warm_up * total
                if team.agreed(good):
                    break
            if now - last_checkpoint >= pause:
                checkpoint()
                last_checkpoint = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, 20 * (last_checkpoint - now))
        if not finished:
            if judged != done:  # stopped between the last step and the last judgement, and resumed
                judge()
            finished = True
            checkpoint()  # what follows (another cut, another stage) may be stopped, too: the curve up to here stays
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


class Recent:
    """The mean loss since the last point of the curve, kept on the device until it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sum, self._count = torch.zeros((), device=device), 0

    def add(self, loss: torch.Tensor) -> None:
        self._sum += loss.detach().float()
        self._count += 1

    def mean(self) -> float:
        value = float(self._sum) / self._count
        self._sum.zero_()
        self._count = 0
        return value


def _diverged(data: TrainingData, where: str) -> ModelError:
    """Why the loss stopped being a number: by what the data hold, else by the steps."""
    if data.finite():
        return ModelError(f"Training diverged: the loss is not a number at {where}. Try a lower learning_rate.")
    return ModelError(
        f"The loss is not a number at {where}, because train_data() gives NaN or infinity. Leave such samples out."
    )


def _steps(
    data: TrainingData,
    done: int,
    total: Callable[[], int],
    begin: Callable[[int], None],
    go_on: Callable[[], None],
    fell_short: Callable[[int], None],
) -> Iterator[Batch]:
    """The batches of the steps from `done` up to `total`, pass after pass.

    `begin` is called with the number of every pass before anything of it is drawn, `go_on` once what a resumed pass had
    already given is skipped, `fell_short` with what a pass gave that was shorter than said: `total` may change by it.
    """
    number, skip = divmod(done, data.steps)
    while done < total():
        begin(number)
        batches = data.batches(number=number)
        # seen before the stop; drawn again so that the generators are where they were
        came = sum(1 for _ in itertools.islice(batches, skip))
        if skip:
            go_on()
        for batch in batches:
            if done >= total():
                return
            yield batch
            done, came = done + 1, came + 1
        if not came:
            raise ModelError("train_data() gave nothing on a later pass: it must be possible to go through it again.")
        if came < data.steps:
            fell_short(came)
        number, skip = number + 1, 0
