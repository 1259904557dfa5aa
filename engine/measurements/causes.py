"""The main cause of a difference in speed, as one sentence with numbers, from the two profiles.

Each possible cause is given the milliseconds it accounts for; the largest is named. Kinds: "too-small", "unfused",
"signed-operands", "unpacked-weights", "slow-integers", "conversions", "casts", "float-operators", "integer-kernels",
"less-work", "fusion", "runtime", "same-operators", "operators", "not-seen". Pure: the profiles go in, the words come
out. Milliseconds are the profiles'; whether there is a gain at all is for the calls timed in turns to say.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable

from ..protocol import OperatorChange, OperatorTime, Ratio, Unfused
from .operator_changes import (
    LESS_WORK,
    Side,
    at_pace,
    by_kind,
    ms,
    node_names,
    pace_of,
    row_text,
    saved_ms,
    slowest_kind,
    time_before,
)

CONVERSION = "conversion"
INTEGERS = {"int8", "int4"}
HALVES = {"float16", "bfloat16"}

SMALL_KERNEL_MS = 0.015
"""Kernels that take less on average mostly cost their launch; ONNX Runtime spends some 5 µs on one (measured)."""

SMALL_REMAINDER = 0.5
"""A call of which so much lies outside its operators is too small to gain by faster operators."""

LITTLE_GAIN = 1.1
"""A speed-up below this needs an excuse more than a reason."""

UNFUSED_SHARE = 0.2
"""Where half of the quantized operators run in float and cost such a share, that is the cause, whatever else is slow:
what was added around them counts as float too (OpenVINO takes a DynamicQuantizeLinear apart into float operators)."""

SAME_KINDS = 0.02
"""Times of kinds of operators that differ by less than this share of the call are the same."""

MOST = 0.5
"""What explains so much of a change is its cause."""

OF_THE_GAIN = 0.4
"""Integers that account for less of a gain are not its cause; nothing else that is named by itself comes near it."""

ROWS = 4
"""Kinds of operators that a sentence names at most."""

PROFILES_APART = 1.15
"""Profiles whose totals miss the interval of the speed-up by more than this factor disagree with it."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the cause may blame."""

    device: str
    features: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cause:
    """The milliseconds a cause accounts for, and the sentence."""

    kind: str
    milliseconds: float
    sentence: str


def main_cause(before: Side, after: Side, speedup: Ratio, unfused: Collection[Unfused], machine: Machine) -> Cause:
    """Why `after` is, or is not, faster than `before`."""
    if not before.operators or not after.operators:
        return _unseen(before, after)
    gained = speedup.ratio >= LITTLE_GAIN and speedup.verdict == "FASTER"
    packed = _unpacked_weights(before, after)
    if not gained and packed and packed[0].milliseconds >= UNFUSED_SHARE * after.latency_ms:
        return packed[0]
    undecided, slowed = speedup.verdict in ("SAME", "UNDECIDED"), speedup.verdict == "SLOWER"
    lost = pace_of(before, after) * after.latency_ms - before.latency_ms if slowed else 0.0
    cause = _only_casts(before, after) if undecided or slowed else None
    cause = cause or (_casts(before, after) if not gained else None)
    if cause and cause.milliseconds >= MOST * lost:
        return cause
    slower = _slower_integers(before, after, machine) if not gained else None
    if undecided and slower is None and (cause := _too_small(before, after)):
        return cause
    if _milliseconds(after, INTEGERS | {CONVERSION}) > _milliseconds(before, INTEGERS | {CONVERSION}):
        hindrances = _integer_hindrances(before, after, unfused, machine)
        if not gained and hindrances:
            first = hindrances[0]
            costly = first.milliseconds >= UNFUSED_SHARE * after.latency_ms
            if first.kind == "unfused" and costly and 2 * len(unfused) >= _total_products(after, unfused):
                return first
            largest = max(hindrances, key=lambda one: one.milliseconds)
            if slower is not None and largest.kind == "float-operators":
                return slower
            # what stayed in float takes its time in both: it bounds a gain, and explains no loss
            if slowed and (largest.kind == "float-operators" or largest.milliseconds < MOST * lost):
                return _operators(before, after, -1)
            return largest
        return _integer_gain(before, after, hindrances)
    if before.macs and after.macs and after.macs < LESS_WORK * before.macs:
        return _less_work(before, after, gained)
    if before.runtime != after.runtime:
        return _other_runtime(before, after)
    return _operators(before, after, -1 if slowed else 0 if undecided else 1)


def profiles_disagree(speedup: Ratio, before_ms: float, after_ms: float) -> str:
    """Which figure to trust, where the profiles' totals say another thing than the calls timed in turns; else ""."""
    if not before_ms or not after_ms:
        return ""
    profiled = before_ms / after_ms
    near = speedup.low / PROFILES_APART <= profiled <= speedup.high * PROFILES_APART
    other_way = {"FASTER": profiled < 1, "SLOWER": profiled > 1}.get(speedup.verdict, False)
    if near and not other_way:
        return ""
    return (
        f"Trust the speed-up of {speedup.ratio:.2f}×: both were timed in turns. The profiles were taken one after the "
        f"other and give {profiled:.2f}× ({ms(before_ms)} → {ms(after_ms)}): other work on the machine, or what a "
        "profiler adds, stretched one of them."
    )


# --- hindrances ------------------------------------------------------------------------------------


def _too_small(before: Side, after: Side) -> Cause | None:
    for one in (before, after):
        count = len(one.operators)
        kernel = sum(op.time_ms for op in one.operators) / max(count, 1)
        if kernel >= SMALL_KERNEL_MS and one.remainder_ms < SMALL_REMAINDER * one.latency_ms:
            return None
    kernels = len(after.operators)
    each = 1000 * sum(op.time_ms for op in after.operators) / max(kernels, 1)
    return Cause(
        "too-small",
        after.latency_ms,
        f"The model is too small for this to matter: in the profile a call takes {ms(after.latency_ms)} for {kernels} "
        f"operators, {each:.0f} µs each, which is about what it costs to start one; {ms(after.remainder_ms)} are "
        "outside of them. A larger batch would show more.",
    )


def _integer_hindrances(before: Side, after: Side, unfused: Collection[Unfused], machine: Machine) -> list[Cause]:
    """What keeps integers from paying off, each with its milliseconds."""
    found = []
    conversions = _milliseconds(after, {CONVERSION})
    if unfused:
        names = {one.node for one in unfused}
        in_float = sum(one.time_ms for one in after.operators if names & set(one.nodes))
        reason, count = _commonest(one.reason for one in unfused)
        products = _total_products(after, unfused)
        share = f"{len(unfused)} of {products}" if products >= len(unfused) else str(len(unfused))
        was_float = time_before(before, [OperatorTime(name="", type="", time_ms=0.0, nodes=tuple(names))])
        found.append(
            Cause(
                "unfused",
                conversions + in_float,
                f"{share} quantized operators run in float, because their Quantize and Dequantize pairs were not fused "
                f"({unfused_names(unfused)}): {ms(in_float)} in float"
                f"{f' ({ms(was_float)} before)' if was_float is not None else ''} and {ms(conversions)} for the "
                f"pairs, of {ms(after.latency_ms)}; reason for {'all' if count == len(unfused) else count}: {reason}.",
            )
        )
    found += _unpacked_weights(before, after)
    integers = [one for one in after.operators if one.precision in INTEGERS]
    integer_ms = sum(one.time_ms for one in integers)
    was_ms = time_before(before, integers)
    signed = [one for one in integers if one.operands == "int8×int8"]
    no_gain = was_ms is None or integer_ms > 0.8 * was_ms
    was = f"{ms(was_ms)} in float" if was_ms is not None else "float"
    if signed and machine.device == "cpu" and no_gain:
        found.append(
            Cause(
                "signed-operands",
                sum(one.time_ms for one in signed),
                f"{len(signed)} operators multiply signed by signed bytes (int8×int8), for which this CPU has no fast "
                f"instruction: {ms(sum(one.time_ms for one in signed))} against {was}. "
                "Quantize activations as uint8 for a CPU.",
            )
        )
    elif (
        any(one.precision == "int8" for one in integers)
        and machine.device == "cpu"
        and no_gain
        and not {"vnni", "dotprod"} & set(machine.features)
    ):
        found.append(
            Cause(
                "slow-integers",
                integer_ms,
                f"This CPU has no VNNI, so INT8 products are no faster than FP32: {len(integers)} integer operators "
                f"take {ms(integer_ms)} against {was}.",
            )
        )
    if conversions:
        count = sum(one.precision == CONVERSION for one in after.operators)
        found.append(
            Cause(
                "conversions",
                conversions,
                f"{count} conversions between float and integers take {ms(conversions)} of "
                f"{ms(after.latency_ms)}; the integer operators, {ms(integer_ms)} against {was}, do not win it back.",
            )
        )
    converted = {unfused_one.node for unfused_one in unfused}
    floats = [
        one
        for one in after.operators
        if one.precision not in (*INTEGERS, CONVERSION) and not converted & set(one.nodes)
    ]
    if floats:
        found.append(_float_operators(before, after, floats, was_ms))
    return found


def _unpacked_weights(before: Side, after: Side) -> list[Cause]:
    """Products with 4-bit weights that take longer than float ones: they pay where reading weights takes the time."""
    packed = [one for one in after.operators if one.precision == "int4"]
    spent, was = sum(one.time_ms for one in packed), time_before(before, packed)
    if not packed or was is None or spent <= was / LITTLE_GAIN:
        return []
    kind, _, count = slowest_kind(packed)
    return [
        Cause(
            "unpacked-weights",
            spent,
            f"{count} {kind} unpack their 4-bit weights in every call: {ms(spent)} against {ms(was)} in float. It "
            "pays where reading weights takes the time: few rows (small batches), large matrices.",
        )
    ]


def _float_operators(before: Side, after: Side, floats: list[OperatorTime], was_ms: float | None) -> Cause:
    """The time that nothing was done about, by its slowest kind."""
    total = sum(one.time_ms for one in floats)
    kind, spent, count = slowest_kind(floats)
    most = ""
    if was_ms is not None and 0 < was_ms < before.latency_ms:
        most = (
            f"; what became integers was {100 * was_ms / before.latency_ms:.0f} % of the time, so at most "
            f"{before.latency_ms / (before.latency_ms - was_ms):.2f}× was to be had"
        )
    return Cause(
        "float-operators",
        total,
        f"{100 * total / after.latency_ms:.0f} % of the time goes to operators that stayed in float, "
        f"{ms(spent)} of {ms(after.latency_ms)} to {count} {kind}{most}.",
    )


def _slower_integers(before: Side, after: Side, machine: Machine) -> Cause | None:
    """Integer operators that take longer than the float ones in their place, by what explains most of the change."""
    integers = [one for one in after.operators if one.precision in INTEGERS]
    was = time_before(before, integers)
    if not integers or was is None:
        return None
    pace = pace_of(before, after)
    spent = sum(one.time_ms for one in integers)
    lost = pace * spent - was
    change = abs(before.latency_ms - pace * after.latency_ms)
    if lost < max(MOST * change, SAME_KINDS * after.latency_ms):
        return None
    kind, _, count = slowest_kind(integers)
    lacking = ""
    if machine.device == "cpu" and not {"vnni", "dotprod", "neon"} & set(machine.features):
        lacking = " This CPU has no VNNI."
    return Cause(
        "slow-integers",
        lost,
        f"{len(integers)} integer operators ({count} {kind}) take longer than the float ones in their place: "
        f"{ms(spent)} against {ms(was)} in the profile.{lacking}",
    )


MOVES = ("Cast", "Convert", "Reorder")
"""Operators that only hand values on in another form."""


def _only_casts(before: Side, after: Side) -> Cause | None:
    """FP16 or BF16 weights of which the runtime makes float ones before the first call: nothing but casts is new."""
    count, was = _cast_count(after), _cast_count(before)
    kinds = [
        sorted((op.type, op.precision or "") for op in one.operators if op.type not in MOVES) for one in (before, after)
    ]
    if kinds[0] != kinds[1] or count <= was or before.runtime != after.runtime:
        return None
    floats = " and ".join(sorted({name for _, name in kinds[1] if name.startswith(("float", "bfloat"))}))
    return Cause(
        "casts",
        _milliseconds_of(after, MOVES) - _milliseconds_of(before, MOVES),
        f"{after.runtime} computes every operator in {floats or 'the same precision'} as before: only casts are new, "
        f"{_casts_take(after)} in the profile. It saves memory, not time.",
    )


def _casts(before: Side, after: Side) -> Cause | None:
    """FP16 or BF16 where the device computes in FP32: conversions around every operator."""
    was, spent = (_milliseconds_of(one, MOVES) for one in (before, after))
    precisions = {one.precision for one in after.operators}
    if spent <= was + SAME_KINDS * after.latency_ms or not precisions & HALVES or precisions & INTEGERS:
        return None
    return Cause(
        "casts",
        spent - was,
        f"{after.runtime} computes in FP32 on this device and converts on the way: {_casts_take(after)}, {ms(was)} "
        "before.",
    )


def _cast_count(side: Side) -> int:
    return sum(op.type in ("Cast", "Convert") for op in side.operators)


def _casts_take(side: Side) -> str:
    """ "34 casts take 0.242 ms of 5.16 ms"."""
    count = _cast_count(side)
    spent = f"{ms(_milliseconds_of(side, MOVES))} of {ms(side.latency_ms)}"
    return f"1 cast takes {spent}" if count == 1 else f"{count} casts take {spent}"


# --- gains -----------------------------------------------------------------------------------------


def _integer_gain(before: Side, after: Side, hindrances: list[Cause]) -> Cause:
    """What integers gained; or, where they account for less than half of it, what did."""
    integers = [one for one in after.operators if one.precision in INTEGERS]
    spent, was = sum(one.time_ms for one in integers), time_before(before, integers)
    operands = ", ".join(sorted({one.operands for one in integers if one.operands}))
    kind, _, count = slowest_kind(integers) if integers else ("", 0.0, 0)
    run = f"{len(integers)} operators run in integers ({f'{operands}; ' if operands else ''}{count} {kind})"
    call = f"{ms(before.latency_ms)} → {ms(after.latency_ms)}"
    worst = max(hindrances, key=lambda one: one.milliseconds, default=None)
    left = ""
    if worst is not None and worst.milliseconds > 0.1 * after.latency_ms:
        left = f"; most of what is left: {ms(worst.milliseconds)} {_LEFT[worst.kind]}"
    if before.runtime != after.runtime:
        changed = f"from {ms(was)} to {ms(spent)}" if was is not None else f"now {ms(spent)}"
        text = f"{run}: {changed}, of {call} for the call in the profile, which also changed from {before.runtime} to "
        text += f"{after.runtime}: how much each of the two gained, these profiles cannot tell{left}."
        return Cause("integer-kernels", abs((was or before.latency_ms) - spent), text)
    if was is None:
        return Cause("integer-kernels", spent, f"{run}: now {ms(spent)}, of {call} for the call in the profile{left}.")
    pace = pace_of(before, after)
    converting = pace * _milliseconds(after, {CONVERSION}) - _milliseconds(before, {CONVERSION})
    won = was - pace * spent - converting
    if won < OF_THE_GAIN * (before.latency_ms - pace * after.latency_ms):
        rest = _operators(_without(before, integers), _without(after, integers), 1, pace)
        text = f"{run}, but most of the gain lies elsewhere: they went from {ms(was)} to {ms(spent)}, the call from "
        return dataclasses.replace(
            rest,
            sentence=f"{text}{ms(before.latency_ms)} to {ms(after.latency_ms)} in the "
            f"profile. Beside them, {rest.sentence[0].lower()}{rest.sentence[1:]}",
        )
    gain = f"{run}: from {ms(was)} to {ms(spent)}, of {call} for the call in the profile"
    return Cause("integer-kernels", won, f"{gain}{left}{at_pace(pace)}.")


def _without(side: Side, integers: Collection[OperatorTime]) -> Side:
    """The side without its conversions and without these operators, or those they stand for."""
    names = node_names(integers)
    kept = tuple(
        one for one in side.operators if one.precision not in (*INTEGERS, CONVERSION) and not names & set(one.nodes)
    )
    latency_ms = sum(one.time_ms for one in kept) + side.remainder_ms
    return dataclasses.replace(side, operators=kept, latency_ms=latency_ms)


_LEFT = {
    "unfused": "in quantized operators that were not fused",
    "signed-operands": "in signed products",
    "slow-integers": "in the integer operators",
    "unpacked-weights": "in products that unpack their weights",
    "conversions": "converting",
    "float-operators": "in operators that stayed in float",
}
"""What a hindrance is called when there was a gain all the same."""


def _less_work(before: Side, after: Side, gained: bool) -> Cause:
    smaller = (after.macs or 0) / (before.macs or 1)
    row = next(iter(by_kind(before, after)), None)
    text = f"{after.name} has {100 * smaller:.0f} % of the multiply-adds of {before.name}"
    text += f", {row_text(row)}" if row is not None else ""
    if not gained:
        text += "; but the time does not depend on them here"
    return Cause("less-work", abs(before.latency_ms - after.latency_ms), text + ".")


def _unseen(before: Side, after: Side) -> Cause:
    """Where a profile has no operators: what is known all the same."""
    blind = " and ".join(dict.fromkeys(one.runtime for one in (before, after) if not one.operators))
    text = f"{ms(before.latency_ms)} under {before.runtime} became {ms(after.latency_ms)} under {after.runtime}"
    if blind == "torch-compile":
        text += "; torch.compile fuses operators into kernels of its own, which cannot be set beside layers"
    else:
        text += f"; {blind} tells no times by operator"
    return Cause("runtime", abs(before.latency_ms - after.latency_ms), text + ".")


def _other_runtime(before: Side, after: Side) -> Cause:
    kind, spent, count = slowest_kind(after.operators)
    return Cause(
        "runtime",
        abs(before.latency_ms - after.latency_ms),
        f"The same network in another runtime: {len(before.operators)} operators and {ms(before.remainder_ms)} around "
        f"them under {before.runtime} became {len(after.operators)} and {ms(after.remainder_ms)} under "
        f"{after.runtime}; {ms(spent)} of {ms(after.latency_ms)} now go to {count} {kind}.",
    )


def _operators(before: Side, after: Side, direction: int, pace: float | None = None) -> Cause:
    """By the kinds of operators that changed most. `direction`: 1 a gain, -1 a loss, 0 neither for sure."""
    kinds = [sorted((op.type, op.precision or "") for op in one.operators) for one in (before, after)]
    rows = by_kind(before, after)
    pace = pace_of(before, after) if pace is None else pace
    if kinds[0] == kinds[1] and direction <= 0:
        return Cause(
            "same-operators",
            abs(before.latency_ms - after.latency_ms),
            f"Both run the same {len(after.operators)} operators in the same precision, "
            f"{ms(before.latency_ms)} and {ms(after.latency_ms)} in the profile: nothing that costs time was "
            "changed.",
        )
    total = before.latency_ms - pace * after.latency_ms
    if direction * (before.latency_ms - after.latency_ms) < 0 and direction * total < 0:
        return _not_seen(before, after)
    sign = direction or (1 if total >= 0 else -1)
    ranked = sorted(rows, key=lambda row: -sign * saved_ms(row, pace))
    named: list[OperatorChange] = []
    for row in ranked[:ROWS]:
        if sign * saved_ms(row, pace) > 0 and sum(sign * saved_ms(one, pace) for one in named) < abs(total):
            named.append(row)
    if not named:
        return _not_seen(before, after)
    text = f"the largest change{'s are' if len(named) > 1 else ' is'} {', '.join(row_text(row) for row in named)}"
    opposed = ranked[-1]
    if -sign * saved_ms(opposed, pace) > UNFUSED_SHARE * abs(total):
        text += f", against {row_text(opposed)}"
    text += f", of {ms(before.latency_ms)} → {ms(after.latency_ms)} in the profile"
    fewer = len(after.operators) < len(before.operators)
    text = f"{len(before.operators)} operators became {len(after.operators)}; {text}" if fewer else f"T{text[1:]}"
    explained = sum(abs(saved_ms(row, pace)) for row in named)
    if explained < MOST * abs(total):
        text += "; the rest is spread over many kinds"
    return Cause("fusion" if fewer else "operators", explained, text + at_pace(pace) + ".")


def _not_seen(before: Side, after: Side) -> Cause:
    """Profiles that went the other way than calls timed in turns cannot tell why."""
    row = next(iter(by_kind(before, after)), None)
    largest = f" What differs most in them is {row_text(row)}." if row is not None else ""
    return Cause(
        "not-seen",
        0.0,
        f"The profiles ({ms(before.latency_ms)} → {ms(after.latency_ms)}) do not show the difference that calls "
        f"timed in turns have, so they cannot tell its cause: measure again on a quieter machine.{largest}",
    )


# --- figures ---------------------------------------------------------------------------------------


def unfused_names(unfused: Iterable[Unfused]) -> str:
    """The first few names."""
    names = [one.node for one in unfused]
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _milliseconds(side: Side, precisions: set[str]) -> float:
    return sum(one.time_ms for one in side.operators if one.precision in precisions)


def _milliseconds_of(side: Side, kinds: Collection[str]) -> float:
    return sum(one.time_ms for one in side.operators if one.type in kinds)


def _total_products(after: Side, unfused: Collection[Unfused]) -> int:
    """Quantized operators with weights: those in integers and those that are not."""
    return sum(one.precision in INTEGERS and one.operands is not None for one in after.operators) + len(unfused)


def _commonest(reasons: Iterable[str]) -> tuple[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counts[reason] += 1
    best = max(counts, key=lambda reason: counts[reason])
    return best, counts[best]
