"""The main cause of a difference in speed, as one sentence with numbers, from the two profiles.

Each possible cause is given the milliseconds it accounts for; the largest is named. Kinds: "too-small", "unfused",
"signed-operands", "unpacked-weights", "slow-integers", "conversions", "casts", "float-operators", "integer-kernels",
"less-work", "fusion", "runtime", "same-operators", "operators". Pure: the profiles go in, the words come out.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable

from ..protocol import OperatorChange, OperatorTime, Ratio, Unfused

CONVERSION = "conversion"
INTEGERS = {"int8", "int4"}
HALVES = {"float16", "bfloat16"}

SMALL_KERNEL_MS = 0.015
"""Kernels that take less on average mostly cost their launch; ONNX Runtime spends some 5 µs on one (measured)."""

SMALL_REMAINDER = 0.5
"""A call of which so much lies outside its operators is too small to gain by faster operators."""

LITTLE_GAIN = 1.1
"""A speed-up below this needs an excuse more than a reason."""

LESS_WORK = 0.95
"""Multiply-adds below this share of the other's explain a gain by themselves."""

UNFUSED_SHARE = 0.2
"""Where half of the quantized operators run in float and cost such a share, that is the cause, whatever else is slow:
what was added around them counts as float too (OpenVINO takes a DynamicQuantizeLinear apart into float operators)."""

SAME_KINDS = 0.02
"""Times of kinds of operators that differ by less than this share of the call are the same."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One variant as it ran."""

    name: str
    runtime: str
    operators: tuple[OperatorTime, ...]
    latency_ms: float
    remainder_ms: float
    macs: int | None = None


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
    gained = speedup.ratio >= LITTLE_GAIN and speedup.verdict != "SLOWER"
    packed = _unpacked_weights(before, after)
    if not gained and packed and packed[0].milliseconds >= UNFUSED_SHARE * after.latency_ms:
        return packed[0]
    if not gained and (cause := _too_small(before, after)):
        return cause
    if _milliseconds(after, INTEGERS | {CONVERSION}) > _milliseconds(before, INTEGERS | {CONVERSION}):
        hindrances = _integer_hindrances(before, after, unfused, machine)
        if not gained and hindrances:
            first = hindrances[0]
            costly = first.milliseconds >= UNFUSED_SHARE * after.latency_ms
            if first.kind == "unfused" and costly and 2 * len(unfused) >= _total_products(after, unfused):
                return first
            return max(hindrances, key=lambda one: one.milliseconds)
        return _integer_gain(before, after, hindrances)
    if not gained and (cause := _casts(before, after)):
        return cause
    if before.macs and after.macs and after.macs < LESS_WORK * before.macs:
        return _less_work(before, after, gained)
    if before.runtime != after.runtime:
        return _other_runtime(before, after)
    return _operators(before, after, gained)


def changes(before: Collection[OperatorTime], after: Collection[OperatorTime]) -> tuple[OperatorChange, ...]:
    """Times by kind and precision in both, those that changed most first."""
    rows: dict[tuple[str, str | None, str | None], list[list[float]]] = defaultdict(lambda: [[], []])
    for side, operators in enumerate((before, after)):
        for one in operators:
            rows[one.type, one.precision, one.operands][side].append(one.time_ms)
    found = [
        OperatorChange(
            type=kind,
            precision=precision,
            operands=operands,
            before_ms=sum(first) if first else None,
            after_ms=sum(second) if second else None,
            before_calls=len(first),
            after_calls=len(second),
        )
        for (kind, precision, operands), (first, second) in rows.items()
    ]
    return tuple(sorted(found, key=lambda one: -abs((one.before_ms or 0.0) - (one.after_ms or 0.0))))


# --- hindrances ------------------------------------------------------------------------------------


def _too_small(before: Side, after: Side) -> Cause | None:
    for one in (before, after):
        count = len(one.operators)
        kernel = sum(op.time_ms for op in one.operators) / max(count, 1)
        if kernel >= SMALL_KERNEL_MS and one.remainder_ms < SMALL_REMAINDER * one.latency_ms:
            return None
    kernels = len(after.operators)
    return Cause(
        "too-small",
        after.latency_ms,
        f"The model is too small for this to matter: a call takes {_ms(after.latency_ms)} for {kernels} operators, "
        f"{1000 * sum(op.time_ms for op in after.operators) / max(kernels, 1):.0f} µs each, which is about what it "
        f"costs to start one; {_ms(after.remainder_ms)} are outside of them. A larger batch would show more.",
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
        was_float = _time_before(before, [OperatorTime(name="", type="", time_ms=0.0, nodes=tuple(names))])
        found.append(
            Cause(
                "unfused",
                conversions + in_float,
                f"{share} quantized operators run in float, because their Quantize and Dequantize pairs were not fused "
                f"({unfused_names(unfused)}): {_ms(in_float)} in float"
                f"{f' ({_ms(was_float)} before)' if was_float is not None else ''} and {_ms(conversions)} for the "
                f"pairs, of {_ms(after.latency_ms)}; reason for {'all' if count == len(unfused) else count}: {reason}.",
            )
        )
    found += _unpacked_weights(before, after)
    integers = [one for one in after.operators if one.precision in INTEGERS]
    integer_ms = sum(one.time_ms for one in integers)
    was_ms = _time_before(before, integers)
    signed = [one for one in integers if one.operands == "int8×int8"]
    no_gain = was_ms is None or integer_ms > 0.8 * was_ms
    was = f"{_ms(was_ms)} in float" if was_ms is not None else "float"
    if signed and machine.device == "cpu" and no_gain:
        found.append(
            Cause(
                "signed-operands",
                sum(one.time_ms for one in signed),
                f"{len(signed)} operators multiply signed by signed bytes (int8×int8), for which this CPU has no fast "
                f"instruction: {_ms(sum(one.time_ms for one in signed))} against {was}. "
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
                f"take {_ms(integer_ms)} against {was}.",
            )
        )
    if conversions:
        count = sum(one.precision == CONVERSION for one in after.operators)
        found.append(
            Cause(
                "conversions",
                conversions,
                f"{count} conversions between float and integers take {_ms(conversions)} of "
                f"{_ms(after.latency_ms)}; the integer operators, {_ms(integer_ms)} against {was}, do not win it back.",
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
    spent, was = sum(one.time_ms for one in packed), _time_before(before, packed)
    if not packed or was is None or spent <= was / LITTLE_GAIN:
        return []
    kind, _, count = _slowest_kind(packed)
    return [
        Cause(
            "unpacked-weights",
            spent,
            f"{count} {kind} unpack their 4-bit weights in every call: {_ms(spent)} against {_ms(was)} in float. It "
            "pays where reading weights takes the time: few rows (small batches), large matrices.",
        )
    ]


def _float_operators(before: Side, after: Side, floats: list[OperatorTime], was_ms: float | None) -> Cause:
    """The time that nothing was done about, by its slowest kind."""
    total = sum(one.time_ms for one in floats)
    kind, spent, count = _slowest_kind(floats)
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
        f"{_ms(spent)} of {_ms(after.latency_ms)} to {count} {kind}{most}.",
    )


def _casts(before: Side, after: Side) -> Cause | None:
    """FP16 or BF16 where the device computes in FP32: conversions around every operator."""
    was, spent = (
        sum(op.time_ms for op in one.operators if op.type in ("Cast", "Convert", "Reorder")) for one in (before, after)
    )
    if spent <= was + SAME_KINDS * after.latency_ms or not any(one.precision in HALVES for one in after.operators):
        return None
    count = sum(op.type in ("Cast", "Convert") for op in after.operators)
    casts = "1 cast takes" if count == 1 else f"{count} casts take"
    return Cause(
        "casts",
        spent - was,
        f"{after.runtime} computes in FP32 on this device and converts on the way: {casts} {_ms(spent)} of "
        f"{_ms(after.latency_ms)}, {_ms(was)} before.",
    )


# --- gains -----------------------------------------------------------------------------------------


def _integer_gain(before: Side, after: Side, hindrances: list[Cause]) -> Cause:
    integers = [one for one in after.operators if one.precision in INTEGERS]
    spent, was = sum(one.time_ms for one in integers), _time_before(before, integers)
    operands = ", ".join(sorted({one.operands for one in integers if one.operands}))
    kind, _, count = _slowest_kind(integers) if integers else ("", 0.0, 0)
    gain = f"from {_ms(was)} to {_ms(spent)}" if was is not None else f"now {_ms(spent)}"
    text = f"{len(integers)} operators run in integers ({f'{operands}; ' if operands else ''}{count} {kind}): {gain}, "
    text += f"of {_ms(before.latency_ms)} → {_ms(after.latency_ms)} for the call"
    if before.runtime != after.runtime:
        text += f", which also changed from {before.runtime} to {after.runtime}"
    worst = max(hindrances, key=lambda one: one.milliseconds, default=None)
    if worst is not None and worst.milliseconds > 0.1 * after.latency_ms:
        text += f"; most of what is left: {_ms(worst.milliseconds)} {_LEFT[worst.kind]}"
    return Cause("integer-kernels", abs((was or before.latency_ms) - spent), text + ".")


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
    row = _largest_change(before, after)
    text = f"{after.name} has {100 * smaller:.0f} % of the multiply-adds of {before.name}"
    text += f", {_row(row)}" if row is not None else ""
    if not gained:
        text += "; but the time does not depend on them here"
    return Cause("less-work", abs(before.latency_ms - after.latency_ms), text + ".")


def _unseen(before: Side, after: Side) -> Cause:
    """Where a profile has no operators: what is known all the same."""
    blind = " and ".join(dict.fromkeys(one.runtime for one in (before, after) if not one.operators))
    text = f"{_ms(before.latency_ms)} under {before.runtime} became {_ms(after.latency_ms)} under {after.runtime}"
    if blind == "torch-compile":
        text += "; torch.compile fuses operators into kernels of its own, which cannot be set beside layers"
    else:
        text += f"; {blind} tells no times by operator"
    return Cause("runtime", abs(before.latency_ms - after.latency_ms), text + ".")


def _other_runtime(before: Side, after: Side) -> Cause:
    kind, spent, count = _slowest_kind(after.operators)
    return Cause(
        "runtime",
        abs(before.latency_ms - after.latency_ms),
        f"The same network in another runtime: {len(before.operators)} operators and {_ms(before.remainder_ms)} around "
        f"them under {before.runtime} became {len(after.operators)} and {_ms(after.remainder_ms)} under "
        f"{after.runtime}; {_ms(spent)} of {_ms(after.latency_ms)} now go to {count} {kind}.",
    )


def _operators(before: Side, after: Side, gained: bool) -> Cause:
    row = _largest_change(before, after)
    difference = abs((row.before_ms or 0.0) - (row.after_ms or 0.0)) if row is not None else 0.0
    kinds = [sorted((op.type, op.precision or "") for op in one.operators) for one in (before, after)]
    if kinds[0] == kinds[1] and not gained:
        return Cause(
            "same-operators",
            difference,
            f"Both run the same {len(after.operators)} operators in the same precision, "
            f"{_ms(before.latency_ms)} and {_ms(after.latency_ms)}: nothing that costs time was changed.",
        )
    if row is None:
        return Cause("operators", 0.0, "Neither profile shows an operator.")
    if len(after.operators) < len(before.operators):
        text = f"{len(before.operators)} operators became {len(after.operators)}; the largest change is {_row(row)}"
        return Cause("fusion", difference, text + ".")
    return Cause("operators", difference, f"The largest change is {_row(row)}.")


# --- figures ---------------------------------------------------------------------------------------


def unfused_names(unfused: Iterable[Unfused]) -> str:
    """The first few names."""
    names = [one.node for one in unfused]
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _milliseconds(side: Side, precisions: set[str]) -> float:
    return sum(one.time_ms for one in side.operators if one.precision in precisions)


def _total_products(after: Side, unfused: Collection[Unfused]) -> int:
    """Quantized operators with weights: those in integers and those that are not."""
    return sum(one.precision in INTEGERS and one.operands is not None for one in after.operators) + len(unfused)


def _time_before(before: Side, operators: Collection[OperatorTime]) -> float | None:
    """What the nodes of these operators took before; None where the profiles cannot be matched.

    A node that was taken apart (`fc/MatMul` into `fc/MatMul/scale`, …) is found by the name its parts share.
    """
    names = {name for one in operators for name in one.nodes}
    names |= {name.rpartition("/")[0] for name in names}
    matched = [one for one in before.operators if names & set(one.nodes)]
    return sum(one.time_ms for one in matched) if matched else None


def _slowest_kind(operators: Collection[OperatorTime]) -> tuple[str, float, int]:
    """(kind, milliseconds, how many) of the kind that takes longest."""
    sums: dict[str, list[float]] = defaultdict(list)
    for one in operators:
        sums[one.type].append(one.time_ms)
    kind = max(sums, key=lambda name: sum(sums[name]), default="operators")
    return kind, sum(sums.get(kind, [])), len(sums.get(kind, []))


def _largest_change(before: Side, after: Side) -> OperatorChange | None:
    """By kind whatever the precision, so that one kind is one row."""
    plain = [
        tuple(OperatorTime(name=op.name, type=op.type, time_ms=op.time_ms) for op in one.operators)
        for one in (before, after)
    ]
    return next(iter(changes(*plain)), None)


def _row(row: OperatorChange) -> str:
    def part(spent: float | None, calls: int) -> str:
        return "none" if spent is None else f"{calls} in {_ms(spent)}"

    return f"{row.type}: {part(row.before_ms, row.before_calls)} → {part(row.after_ms, row.after_calls)}"


def _commonest(reasons: Iterable[str]) -> tuple[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counts[reason] += 1
    best = max(counts, key=lambda reason: counts[reason])
    return best, counts[best]


def _ms(value: float) -> str:
    """Milliseconds as people read them."""
    return f"{value:.3f} ms" if value < 1 else f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"
