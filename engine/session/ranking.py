"""Which measurement stands for a variant, what its verdict is, and which variant is best.

One place for these choices, so that `best` on the command line, the flat figures of the JSON and the report agree.
Everything is computed from records; nothing is measured here. None means that it was not measured.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..devices import first_device
from ..protocol import Accuracy, Latency, Measurement, SessionOptions, Variant
from ..protocol.paired import Candidate, best_candidate

Verdict = Literal["PASS", "FAIL", "NOT ENOUGH DATA"]


class Figures(NamedTuple):
    """What is known of one variant: the newest measurement under each set of conditions."""

    latencies: tuple[Latency, ...]
    """By runtime, device and batch size; in this order."""
    best: Latency | None
    """The one that stands for the variant (see `best_latency`)."""
    accuracy: Accuracy | None
    """The newest one taken under `best`'s runtime, else the newest."""
    verdict: Verdict | None
    """Against the limit asked for, which may be another than the one it was measured with."""


def figures_of(variant: Variant, measurements: Iterable[Measurement], options: SessionOptions) -> Figures:
    """What is known of a variant, judged by the session's accuracy limit."""
    mine = [m for m in measurements if m.variant == variant.id]
    latencies = newest_latencies(m for m in mine if isinstance(m, Latency))
    best = best_latency(latencies, options)
    accuracies = sorted((m for m in mine if isinstance(m, Accuracy)), key=lambda m: (m.created, m.id))
    same = [m for m in accuracies if best is not None and m.conditions.runtime == best.conditions.runtime]
    accuracy = same[-1] if same else accuracies[-1] if accuracies else None
    verdict = verdict_at(accuracy, options.accuracy_limit) if accuracy else None
    return Figures(latencies, best, accuracy, verdict)


def newest_latencies(latencies: Iterable[Latency]) -> tuple[Latency, ...]:
    """The newest latency for each runtime, device, processor, thread count and batch size, in this order."""
    newest: dict[tuple[str, str, str, int, int], Latency] = {}
    for one in sorted(latencies, key=lambda m: (m.created, m.id)):
        where = one.conditions
        newest[(where.runtime, where.device, where.processor, where.threads or 0, one.batch_size)] = one
    return tuple(newest[key] for key in sorted(newest))


def best_latency(latencies: Iterable[Latency], options: SessionOptions) -> Latency | None:
    """The measurement that stands for a variant: at the session's largest batch size, the greatest speed-up.

    Variants are compared at one batch size and on the session's device; where a variant was not measured there,
    the nearest thing it has.
    """
    main = max(options.batch_sizes, default=0)

    def rank(one: Latency) -> tuple[bool, bool, float, float]:
        right_device = one.conditions.device == first_device(options.device)
        return (right_device, one.batch_size == main, one.speedup.ratio if one.speedup else 0.0, one.throughput_per_s)

    return max(latencies, key=rank, default=None)


def verdict_at(accuracy: Accuracy, limit: float) -> Verdict:
    """The verdict of a measured drop against this limit.

    A measurement whose verdict does not come from its interval (outputs that are not finite, no honest calibration
    data) keeps it at any limit.
    """
    if accuracy.verdict != judge(accuracy.low, accuracy.high, accuracy.limit):
        return accuracy.verdict
    return judge(accuracy.low, accuracy.high, limit)


def judge(low: float, high: float, limit: float) -> Verdict:
    """A non-inferiority test on the 95 % interval of a drop; all three are fractions.

    PASS when the whole interval is within the limit, FAIL when the whole of it is beyond, else not enough data.
    """
    if high <= limit:
        return "PASS"
    return "FAIL" if low > limit else "NOT ENOUGH DATA"


def best_variant(
    variants: Iterable[Variant], measurements: Iterable[Measurement], options: SessionOptions
) -> Variant | None:
    """The fastest variant that passes the accuracy limit, by `best_candidate`'s rule; None when nothing was measured.

    The baseline passes by definition, so where nothing else is faster it is the best there is.
    """
    by_id = {variant.id: variant for variant in variants}
    timed: dict[str, tuple[Latency, ...]] = {}
    candidates = []
    known = list(measurements)
    for variant in by_id.values():
        figures = figures_of(variant, known, options)
        timed[variant.id] = figures.latencies
        if figures.best is not None and (variant.parent is None or figures.verdict == "PASS"):
            candidates.append(Candidate(variant, figures.best, figures.accuracy))
    return best_candidate(candidates, by_id, lambda id: timed[id])
