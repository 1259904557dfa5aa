"""How fast one variant is beside another, from the ratios in the records; which of several is best.

Two times of two jobs say little about each other: the machine was not as busy at either. A ratio whose two sides ran in
turn in one job does, and a record holds two of them: over the baseline, and over the parent under the same runtime.
Here, and nowhere else, they are put together, so that the dashboard, the tables and `export best` agree.
Pure functions of records, for the client and the engine.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from .measurements import LEAST_DELTA, Accuracy, Latency, Ratio
from .records import Variant

LatenciesOf = Callable[[str], Iterable[Latency]]
"""A variant's id → its newest latency for each runtime, device and batch size."""


class Gain(NamedTuple):
    """How many times faster one variant is than another, with a 95 % interval."""

    ratio: float
    low: float
    high: float
    verdict: Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]
    how: Literal["pair", "product", "indirect"]
    """"pair": the two ran in turn. "product": every step between them did. "indirect": the quotient of two ratios over
    the baseline, of two jobs."""
    noise_floor: float | None = None
    """Of the job of a pair, see `Latency`."""


class Step(NamedTuple):
    """One variant on the way down the tree, and its gain over the one before; None: nothing links the two."""

    variant: Variant
    gain: Gain | None


class Candidate(NamedTuple):
    """A variant that may be called the best, with the measurements that stand for it."""

    variant: Variant
    latency: Latency
    accuracy: Accuracy | None = None


def gain_between(
    one: Latency, other: Latency, variants: Mapping[str, Variant], latencies_of: LatenciesOf
) -> Gain | None:
    """How many times faster `other` is than `one`; None when nothing was measured that says it.

    Pairs come first (`related_gain`), else the indirect quotient of the two ratios over the baseline.
    """
    if not _comparable(one, other):
        return None
    return related_gain(one, other, variants, latencies_of) or _quotient(one, other, variants)


def related_gain(
    one: Latency, other: Latency, variants: Mapping[str, Variant], latencies_of: LatenciesOf
) -> Gain | None:
    """As `gain_between`, from pairs alone; None as soon as one link between the two was not measured in turn.

    The ratio over the baseline where `one` is the baseline as the record names it, over the parent where it is that;
    further up, under one runtime, the product. Where `one` is the descendant, the other way round.
    """
    if not _comparable(one, other):
        return None
    if _reaches(other.variant, one.variant, variants):
        return _descent(one, other, variants, latencies_of)
    if _reaches(one.variant, other.variant, variants):
        found = _descent(other, one, variants, latencies_of)
        return None if found is None else _inverse(found)
    return None


def steps_between(
    one: Latency, other: Latency, variants: Mapping[str, Variant], latencies_of: LatenciesOf
) -> list[Step]:
    """What each step from the ancestor `one` to `other` gained; empty where `one` is no ancestor of it.

    A step where the runtime changes (an export) has a pair only from the baseline; else its gain is indirect.
    """
    steps: list[Step] = []
    at: Latency | None = other
    for child, parent in _way_up(other.variant, one.variant, variants):
        before = one if parent.id == one.variant else _as_measured(at, latencies_of(parent.id))
        gain = None
        if at is not None and before is not None:
            gain = _pair(before, at, child, parent) or _quotient(before, at, variants)
        steps.insert(0, Step(child, gain))
        at = before
    return steps if _reaches(other.variant, one.variant, variants) else []


def product(gains: Sequence[Gain]) -> Gain:
    """Gains in a row as one. The interval is that of the ends, which is wider than it must be.

    Raises ValueError for none.
    """
    if not gains:
        raise ValueError("There are no gains to multiply.")
    ratio, low, high = (math.prod(ends) for ends in zip(*((one.ratio, one.low, one.high) for one in gains)))
    words = {one.verdict for one in gains}
    verdict = _verdict(low, high)
    if "UNDECIDED" in words:
        verdict = "UNDECIDED"
    elif words == {"SAME"}:
        verdict = "SAME"
    how: Literal["product", "indirect"] = "indirect" if any(one.how == "indirect" for one in gains) else "product"
    return Gain(ratio, low, high, verdict, how)


def best_candidate(
    candidates: Sequence[Candidate], variants: Mapping[str, Variant], latencies_of: LatenciesOf
) -> Variant | None:
    """The fastest over the baseline among those that no relative beats; None when there is none.

    Speed-ups over the baseline come from different jobs, so between a candidate and its ancestor their pair (or the
    product of the pairs between them) decides: the descendant wins above 1, the ancestor below. Called SAME, the
    smaller one wins, then the one with the lower drop, then the ancestor. Of equals the first wins: it has fewer steps
    behind it.
    """
    beaten: set[str] = set()
    candidate = {one.variant.id: one for one in candidates}
    for descendant in candidates:
        for _, parent in _way_up(descendant.variant.id, "", variants):
            ancestor = candidate.get(parent.id)
            if ancestor is None:
                continue
            gain = related_gain(ancestor.latency, descendant.latency, variants, latencies_of)
            if gain is not None:
                wins = _better_of_equals(descendant, ancestor) if gain.verdict == "SAME" else gain.ratio > 1
                beaten.add(ancestor.variant.id if wins else descendant.variant.id)
    # Pairs of noisy jobs can go round in a circle; then the baseline's ratios have to do.
    left = [one for one in candidates if one.variant.id not in beaten] or list(candidates)
    best = max(left, key=lambda one: one.latency.speedup.ratio if one.latency.speedup else 1.0, default=None)
    return None if best is None else best.variant


def why_undecided(ratio: Ratio | Gain, noise_floor: float | None) -> str | None:
    """Why a ratio is UNDECIDED although its whole interval is on one side of 1, as a sentence; None where it is not."""
    if ratio.verdict != "UNDECIDED" or ratio.low <= 1 <= ratio.high:
        return None
    side, word = ("above", "FASTER") if ratio.low > 1 else ("below", "SLOWER")
    if noise_floor is None or noise_floor <= LEAST_DELTA:
        return f"UNDECIDED though all of it is {side} 1: part of it is within 1 %, which is never called {word}."
    return (
        f"UNDECIDED though all of it is {side} 1: part of it is within the noise floor, {100 * noise_floor:.1f} % "
        f"(the baseline against itself in that job)."
    )


def _comparable(one: Latency, other: Latency) -> bool:
    """On the same processor or GPU, at the same batch size."""
    a, b = one.conditions, other.conditions
    return (a.device, a.processor, one.batch_size) == (b.device, b.processor, other.batch_size)


def _descent(one: Latency, other: Latency, variants: Mapping[str, Variant], latencies_of: LatenciesOf) -> Gain | None:
    ancestor = variants[one.variant]
    if ancestor.parent is None and _is_over(other.speedup, one):
        return _as_gain(other.speedup, other)
    gains = [step.gain for step in steps_between(one, other, variants, latencies_of)]
    paired = [gain for gain in gains if gain is not None and gain.how == "pair"]
    if not paired or len(paired) < len(gains):
        return None
    return paired[0] if len(paired) == 1 else product(paired)


def _pair(before: Latency, after: Latency, child: Variant, parent: Variant) -> Gain | None:
    """The ratio whose two sides ran in turn, if the record has it."""
    if _is_over(after.speedup_over_parent, before):
        return _as_gain(after.speedup_over_parent, after)
    return _as_gain(after.speedup, after) if parent.parent is None and _is_over(after.speedup, before) else None


def _is_over(ratio: Ratio | None, before: Latency) -> bool:
    """A record says in words what it was measured against, and under which conditions."""
    where = before.conditions
    under = f" · {where.runtime} · {where.device} · batch {before.batch_size}"
    return ratio is not None and ratio.against.endswith(under) and ratio.against_variant in ("", before.variant)


def _as_gain(ratio: Ratio | None, measured: Latency) -> Gain | None:
    if ratio is None:
        return None
    return Gain(ratio.ratio, ratio.low, ratio.high, ratio.verdict, "pair", measured.noise_floor)


def _quotient(one: Latency, other: Latency, variants: Mapping[str, Variant]) -> Gain | None:
    """Of the two ratios over the baseline, with an interval that holds only if the machine was as quiet both times."""
    ends = []
    for latency in (one, other):
        speedup, variant = latency.speedup, variants.get(latency.variant)
        if speedup is None and variant is not None and variant.parent is None:
            ends.append((1.0, 1.0, 1.0))
        elif speedup is not None and min(speedup.low, speedup.ratio) > 0:
            ends.append((speedup.ratio, speedup.low, speedup.high))
        else:
            return None
    (a, a_low, a_high), (b, b_low, b_high) = ends
    low, high = b_low / a_high, b_high / a_low
    return Gain(b / a, low, high, _verdict(low, high), "indirect")


def _inverse(gain: Gain) -> Gain:
    verdict = {"FASTER": "SLOWER", "SLOWER": "FASTER"}.get(gain.verdict, gain.verdict)
    return Gain(1 / gain.ratio, 1 / gain.high, 1 / gain.low, verdict, gain.how, gain.noise_floor)  # type: ignore[arg-type]


def _verdict(low: float, high: float) -> Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]:
    """Of ends that were put together, for which nobody knows a noise floor."""
    if low > 1 + LEAST_DELTA:
        return "FASTER"
    if high < 1 / (1 + LEAST_DELTA):
        return "SLOWER"
    return "SAME" if low >= 1 / (1 + LEAST_DELTA) and high <= 1 + LEAST_DELTA else "UNDECIDED"


def _way_up(start: str, end: str, variants: Mapping[str, Variant]) -> Iterable[tuple[Variant, Variant]]:
    """Child and parent, from a variant up to an ancestor or the root."""
    at = variants.get(start)
    for _ in variants:
        parent = variants.get((at.parent or "") if at else "")
        if at is None or at.id == end or parent is None:
            return
        yield at, parent
        at = parent


def _reaches(start: str, end: str, variants: Mapping[str, Variant]) -> bool:
    """The variant `start` descends from `end`."""
    return any(parent.id == end for _, parent in _way_up(start, end, variants))


def _as_measured(at: Latency | None, found: Iterable[Latency]) -> Latency | None:
    """The latency of a variant between two others: under the runtime of the one below it, else the fastest."""
    if at is None:
        return None
    comparable = [one for one in found if _comparable(one, at)]
    same = [one for one in comparable if one.conditions.runtime == at.conditions.runtime]
    return min(same or comparable, key=lambda one: one.p50_ms, default=None)


def _better_of_equals(descendant: Candidate, ancestor: Candidate) -> bool:
    def worth(one: Candidate) -> tuple[int, float]:
        return one.variant.size_bytes, one.accuracy.drop if one.accuracy else math.inf

    return worth(descendant) < worth(ancestor)
