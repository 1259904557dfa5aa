"""The sensitivity scan as a measurement of its own: how much accuracy each layer costs when it alone is made narrower.

It is the scan that structured pruning can make on its way (`engine/structure/sensitivity.py`), asked for without
pruning anything, so that one can look first and choose the ratios afterwards. Judged on held-out training data: ratios
that were chosen by looking at the test data would make the accuracy of what is pruned with them a lie.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import torch
from torch import nn

from ..context import JobContext, LoadedVariant
from ..models import ModelError
from ..protocol import Conditions, LayerSensitivity, Sensitivity
from ..structure.cost import example_call, macs_of
from ..structure.importance import squares, unit_scores
from ..structure.network import CannotPrune, PrunableNetwork
from ..structure.sensitivity import TRIAL_BATCHES, scan
from ..training import held_out_accuracy, reestimate_batch_norm
from ..training.data import TrainingData
from ..training.objectives import Objective
from .conditions import OtherWork, processor_name

RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of units removed: the columns of the heat map."""

ROUND_TO = 8
"""Widths are tried that are multiples of this, as structured pruning leaves them unless told otherwise."""

SCAN_SAMPLES = 1000
"""Held-out samples that each trial is judged by, at most; a layer has seven trials."""

NOTABLE_DROP = 0.01
"""From one point on, half a layer is said to matter."""


def scan_sensitivity(job: JobContext, variant: LoadedVariant) -> Sensitivity:
    """Every prunable layer at every ratio, the least important units (by L2 norm) going first, no fine-tuning.

    A trial is otherwise what pruning does: rounded widths, batch normalisation measured anew (on few batches).

    Raises ModelError when nothing can be made narrower or the labels cannot be scored, JobCancelled.
    """
    others = OtherWork()
    device = torch.device(job.spec.device)
    job.progress(0, None, "following the layers")
    call, samples = example_call(job.model)
    try:
        network = PrunableNetwork(
            variant.module(), call, on_probe=lambda done, total, layer: job.progress(done, total, f"following {layer}")
        )
    except CannotPrune as cannot:
        raise ModelError(f"{variant.record.name}: {cannot}") from cannot
    data, objective = TrainingData(job.model, SCAN_SAMPLES, job.spec.seed), Objective(job.model)

    def judged(module: nn.Module) -> float:
        value = held_out_accuracy(module.to(device), data, objective, device)
        module.to("cpu")
        if not objective.scored:
            raise ModelError("The labels cannot be scored by top-1: add accuracy(outputs, labels) to the model file.")
        return value

    def settle(module: nn.Module) -> None:
        if reestimate_batch_norm(module, data, objective, device, TRIAL_BATCHES):
            module.to("cpu")

    found = scan(
        network,
        {group.name: unit_scores(network, group, "l2", squares) for group in network.groups},
        judged,
        lambda done, total, layer: job.progress(done, total, f"scanning {layer}"),
        RATIOS,
        ROUND_TO,
        settle,
        lambda module: macs_of(module, call, samples),
    )
    layers = tuple(
        LayerSensitivity(
            name=layer["name"],
            kind=layer["kind"],
            width=layer["width"],
            accuracy=tuple(layer["accuracy"]),
            macs=tuple(layer["macs"]),
            kept=tuple(layer["kept"]),
        )
        for layer in found["layers"]
    )
    return Sensitivity(
        id=uuid.uuid4().hex[:12],
        variant=variant.record.id,
        job=job.spec.job,
        created=time.time(),
        conditions=_conditions(job, data, others),
        accuracy=found["accuracy"],
        samples=data.held_out_samples,
        ratios=RATIOS,
        layers=layers,
        macs=found["macs"],
        left=tuple(network.left),
        sentence=_sentence(found),
    )


def _conditions(job: JobContext, data: TrainingData, others: OtherWork) -> Conditions:
    notes = (f"Batch normalisation is measured anew for each trial, on {TRIAL_BATCHES} batches.", *others.note())
    if not data.held_out_exact:
        notes = ("train_data() shuffles by itself: the samples that judge were also trained on.", *notes)
    return Conditions(
        runtime="pytorch",
        device=job.spec.device,
        processor=processor_name(job, job.spec.device),
        threads=job.spec.threads,
        versions={"torch": str(torch.__version__)},
        notes=notes,
    )


def _sentence(found: dict[str, Any]) -> str:
    """The layers that half can be taken from, and the one that minds most."""
    half = found["ratios"].index(0.5)
    drops = {layer["name"]: found["accuracy"] - layer["accuracy"][half] for layer in found["layers"]}
    worst = max(drops, key=lambda name: drops[name])
    easy = sum(drop < NOTABLE_DROP for drop in drops.values())
    return (
        f"{easy} of {len(drops)} layers lose less than a point of accuracy without half of their units; "
        f"{worst} loses most ({100 * drops[worst]:.1f} points)."
    )
