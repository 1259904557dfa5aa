"""Accuracy of a variant on the same samples as the baseline, judged against the accuracy limit.

Four cases, the first that applies:
- "metric": the model file has `metric(all_outputs, all_labels)`; the drop's interval is a paired bootstrap.
- "accuracy": there are labels. With right/wrong answers the interval of the paired drop is Tango's score interval;
  with shares (pixels, tokens) a bootstrap of the per-sample differences.
- "agreement": no labels. The drop is the share of samples whose answer changed; that is change, not loss.
- The baseline itself: its own value, no drop.

The verdict is a non-inferiority test on the interval, not on the point: PASS when even its high end is within the
limit, FAIL when even its low end is not, else NOT ENOUGH DATA, with the number of samples that would settle it.
Calibration samples are never among those measured.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..context import JobContext, LoadedVariant
from ..models import Arrays, Model, ModelError, samples_in
from ..protocol import Accuracy
from ..runtimes import Runner, load
from .agreement import Agreement, all_finite
from .baseline_outputs import BaselineOutputs
from .conditions import conditions
from .statistics import (
    Interval,
    mean_interval,
    paired_difference_interval,
    resampled_interval,
    samples_needed,
)

BATCH_BYTES = 64 * 2**20
"""Batches are made so small that their inputs stay below this."""

LARGEST_BATCH = 64

METRIC_SECONDS = 20.0
"""A bootstrap of the user's metric stops there, after at least `FEWEST_RESAMPLES`."""

FEWEST_RESAMPLES, MOST_RESAMPLES = 50, 1000

Verdict = Literal["PASS", "FAIL", "NOT ENOUGH DATA"]


@dataclass
class Tally:
    """What was seen so far, sample by sample."""

    base_right: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)
    base_outputs: list[Arrays] = field(default_factory=list)
    outputs: list[Arrays] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    samples: int = 0
    not_finite: int = 0
    """Batches in which the variant gave something that is no finite number and the baseline did not."""


def measure_accuracy(
    job: JobContext, variant: LoadedVariant, runtime: str, limit: float, samples: int | None = None
) -> Accuracy:
    """Run the variant and the baseline over the test data. `limit`: largest accepted drop, a fraction.

    `samples`: at most so many (default: all). Raises RuntimeUnavailable, ModelError (no test data left, labels that
    fit no output), JobCancelled.
    """
    model = job.model
    baseline = job.variants[job.spec.baseline or variant.record.id]
    is_baseline = variant.record.id == baseline.record.id and runtime == model.own_runtime
    job.progress(0, None, f"loading {variant.record.name} under {runtime}")
    size = batch_size_for(model)
    known = BaselineOutputs(job, baseline, size)
    runner = known.runner() if is_baseline else load(variant, runtime, job.spec.device, job.spec.threads)
    try:
        tally = _run(job, known, runner, is_baseline, size, samples)
        notes = ("The samples are made-up inputs, not data.",) if model.synthetic_data else ()
        return _judged(job, variant, tally, limit, is_baseline, runner, notes)
    finally:
        known.close()
        if not is_baseline:
            runner.close()


def batch_size_for(model: Model) -> int:
    """How many samples to run at once: bounded by memory; a fixed batch is what it is."""
    if model.fixed_batch is not None:
        return model.fixed_batch
    one = sum(array.nbytes for array in model.example(1).values())
    return int(max(1, min(LARGEST_BATCH, BATCH_BYTES // max(1, one))))


def _run(
    job: JobContext, known: BaselineOutputs, runner: Runner, is_baseline: bool, size: int, limit: int | None
) -> Tally:
    tally, model = Tally(), job.model
    total = known.expected_samples if limit is None else limit
    for position, (inputs, labels) in enumerate(model.test_batches(size, limit)):
        job.progress(tally.samples, total, f"{tally.samples:,} samples")
        reference = known.outputs(position, inputs)
        outputs = reference if is_baseline else runner.run(inputs)
        tally.samples += len(labels) if labels is not None else samples_in(inputs, model.inputs, model.fixed_batch)
        if not is_baseline:
            tally.agreement.add(reference, outputs)
            tally.not_finite += all_finite(reference) and not all_finite(outputs)
        if labels is None:
            continue
        tally.labels.append(labels)
        if model.metric is not None:
            tally.base_outputs.append(reference)
            tally.outputs.append(outputs)
        else:
            right = model.score(reference, labels)
            tally.base_right.append(right)
            tally.right.append(right if is_baseline else model.score(outputs, labels))
    if tally.samples == 0:
        raise ModelError(f"{model.path.name} has no test samples left to measure on: add test data.")
    known.keep(tally.samples if limit is None else None)
    return tally


def _judged(
    job: JobContext,
    variant: LoadedVariant,
    tally: Tally,
    limit: float,
    is_baseline: bool,
    runner: Runner,
    notes: tuple[str, ...],
) -> Accuracy:
    kind: Literal["accuracy", "metric", "agreement"]
    lost = gained = None
    base_value: float | None = None
    if tally.outputs:
        kind = "metric"
        base_value, value, drop, discordant = _by_metric(job, tally, is_baseline)
    elif tally.right:
        kind = "accuracy"
        base, mine = np.concatenate(tally.base_right), np.concatenate(tally.right)
        base_value, value = float(base.mean()), float(mine.mean())
        if _binary(base) and _binary(mine):
            lost, gained = int(((base == 1) & (mine == 0)).sum()), int(((base == 0) & (mine == 1)).sum())
            drop = paired_difference_interval(lost, gained, len(base))
        else:
            drop = mean_interval(base - mine)
        discordant = float(((base - mine) ** 2).mean())
    else:
        kind = "agreement"
        drop = Interval(0.0, 0.0, 0.0) if is_baseline else tally.agreement.changed()
        value, discordant = 1 - drop.value, drop.value
    if is_baseline:
        drop = Interval(0.0, 0.0, 0.0)
        lost, gained = (None if lost is None else 0), (None if gained is None else 0)
    verdict = drop_verdict(drop, limit)
    sentence = _sentence(kind, drop, limit, verdict, tally.samples, discordant, is_baseline)
    if tally.not_finite:
        verdict = "FAIL"
        sentence = f"{variant.record.name} gives outputs that are not finite numbers where the baseline's are."
    return Accuracy(
        id=uuid.uuid4().hex[:12],
        variant=variant.record.id,
        job=job.spec.job,
        created=time.time(),
        conditions=conditions(job, runner, notes),
        kind=kind,
        value=value,
        samples=tally.samples,
        drop=drop.value,
        low=drop.low,
        high=drop.high,
        limit=limit,
        verdict=verdict,
        baseline_value=base_value,
        flipped_to_wrong=lost,
        flipped_to_right=gained,
        cosine=None if is_baseline else tally.agreement.cosine,
        sqnr_db=None if is_baseline else tally.agreement.sqnr_db,
        sentence=" ".join((sentence, *notes)),
    )


def drop_verdict(drop: Interval, limit: float) -> Verdict:
    """Non-inferiority: the whole interval within the limit, the whole interval beyond it, or neither."""
    if drop.high <= limit:
        return "PASS"
    return "FAIL" if drop.low > limit else "NOT ENOUGH DATA"


def _by_metric(job: JobContext, tally: Tally, is_baseline: bool) -> tuple[float, float, Interval, float]:
    """The user's metric of both, the drop with its paired bootstrap, and its variance per sample."""
    model = job.model
    base, mine = _whole(tally.base_outputs), _whole(tally.outputs)
    labels = np.concatenate(tally.labels)
    base_value = model.metric_value(base, labels)
    if is_baseline:
        return base_value, base_value, Interval(0.0, 0.0, 0.0), 0.0
    began = time.monotonic()
    value = model.metric_value(mine, labels)
    seconds = max(1e-4, 2 * (time.monotonic() - began))
    resamples = int(min(MOST_RESAMPLES, max(FEWEST_RESAMPLES, METRIC_SECONDS / seconds)))
    done = 0

    def drop_of(rows: np.ndarray) -> float:
        nonlocal done
        done += 1
        job.progress(min(done, resamples), resamples, "bootstrap of the metric")
        chosen = labels[rows]
        return model.metric_value({n: a[rows] for n, a in base.items()}, chosen) - model.metric_value(
            {n: a[rows] for n, a in mine.items()}, chosen
        )

    drop = resampled_interval(drop_of, len(labels), resamples)
    return base_value, value, drop, len(labels) * (drop.half_width / 1.96) ** 2


def _whole(batches: list[Arrays]) -> Arrays:
    try:
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    except ValueError as error:
        raise ModelError(f"metric() needs outputs of one shape for all batches: {error}.") from error


def _binary(values: np.ndarray) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _sentence(
    kind: str, drop: Interval, limit: float, verdict: Verdict, samples: int, discordant: float, is_baseline: bool
) -> str:
    """The verdict in words: what was seen, on how much, and what would settle it."""
    if is_baseline:
        return f"Measured on {samples:,} samples; every drop is counted from here."
    scale = 1 if kind == "metric" else 100
    unit = "of the metric" if kind == "metric" else "points"
    what = "Answers changed" if kind == "agreement" else "Drop"
    seen = (
        f"{what} {scale * drop.value:.2f} {unit} (95 % interval {scale * drop.low:.2f} to {scale * drop.high:.2f}) on "
        f"{samples:,} samples"
    )
    bound = f"the limit of {scale * limit:g} {unit if scale * limit != 1 else unit.rstrip('s')}"
    if verdict == "PASS":
        return f"{seen}: within {bound}."
    if verdict == "FAIL":
        return f"{seen}: beyond {bound}."
    needed = samples_needed(drop.value, discordant, limit)
    more = f"about {_round_up(max(needed, samples + 1)):,}" if needed < 1_000_000 else "more than a million"
    return f"{seen}: that neither keeps nor breaks {bound}; {more} samples would tell."


def _round_up(count: int) -> int:
    """To two digits: an estimate should look like one."""
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step
