"""Two profiles beside each other: what each kind of operator took before and after, and the machine's pace in both.

Times are milliseconds of one call. Pure: the profiles go in, rows and words come out.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Collection

from ..protocol import OperatorChange, OperatorTime

LESS_WORK = 0.95
"""Multiply-adds below this share of the other's explain a gain by themselves."""

AROUND = "time around operators"
"""What stands for a kind of operator in the row of what a call takes beside them."""

ALIKE = 3
"""From so many operators that both run alike on, their times tell how the machine's pace differed between profiles."""

PACE_SHARE = 0.2
"""And from such a share of the call on."""

NOTABLE_PACE = 1.05
"""Paces that differ by more are told."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One variant as it ran."""

    name: str
    runtime: str
    operators: tuple[OperatorTime, ...]
    latency_ms: float
    remainder_ms: float
    macs: int | None = None


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


def time_before(before: Side, operators: Collection[OperatorTime]) -> float | None:
    """What the nodes of these operators took before; None where the profiles cannot be matched.

    A node that was taken apart (`fc/MatMul` into `fc/MatMul/scale`, …) is found by the name its parts share.
    """
    names = node_names(operators)
    matched = [one for one in before.operators if names & set(one.nodes)]
    return sum(one.time_ms for one in matched) if matched else None


def node_names(operators: Collection[OperatorTime]) -> set[str]:
    """The nodes of these operators, and those whose parts they are."""
    names = {name for one in operators for name in one.nodes}
    return names | {name.rpartition("/")[0] for name in names}


def slowest_kind(operators: Collection[OperatorTime]) -> tuple[str, float, int]:
    """(kind, milliseconds, how many) of the kind that takes longest."""
    sums: dict[str, list[float]] = defaultdict(list)
    for one in operators:
        sums[one.type].append(one.time_ms)
    kind = max(sums, key=lambda name: sum(sums[name]), default="operators")
    return kind, sum(sums.get(kind, [])), len(sums.get(kind, []))


def by_kind(before: Side, after: Side) -> list[OperatorChange]:
    """By kind whatever the precision, so that one kind is one row, and what lies around them; the largest first."""
    plain = [
        tuple(OperatorTime(name=op.name, type=op.type, time_ms=op.time_ms) for op in one.operators)
        for one in (before, after)
    ]
    rows = [*changes(*plain)]
    if before.remainder_ms or after.remainder_ms:
        around = OperatorChange(
            type=AROUND,
            precision=None,
            operands=None,
            before_ms=before.remainder_ms,
            after_ms=after.remainder_ms,
            before_calls=0,
            after_calls=0,
        )
        rows.append(around)
    return sorted(rows, key=lambda one: -abs(saved_ms(one)))


def saved_ms(row: OperatorChange, pace: float = 1.0) -> float:
    """Milliseconds, with the second profile at the pace of the first."""
    return (row.before_ms or 0.0) - pace * (row.after_ms or 0.0)


def pace_of(before: Side, after: Side) -> float:
    """How many times as long the machine took for the same work in the first profile as in the second.

    The median over operators that both run alike, the shorter half of them left out; 1 where there are too few.
    """
    if before.runtime != after.runtime or (before.macs and after.macs and after.macs < LESS_WORK * before.macs):
        return 1.0
    alike = {(one.name, one.type, one.precision, one.operands): one.time_ms for one in before.operators}
    pairs = [
        (alike[key], one.time_ms)
        for one in after.operators
        if (key := (one.name, one.type, one.precision, one.operands)) in alike and alike[key] and one.time_ms
    ]
    longest = sorted(pairs, reverse=True)[: max(ALIKE, len(pairs) // 2)]
    share = sum(was for was, _ in pairs) / before.latency_ms
    if len(pairs) < ALIKE or share < PACE_SHARE:
        return 1.0
    return statistics.median(was / now for was, now in longest)


def at_pace(pace: float) -> str:
    """A clause, where the machine's pace differed between the profiles."""
    if 1 / NOTABLE_PACE <= pace <= NOTABLE_PACE:
        return ""
    return f" (what both run alike took {pace:.2f}× as long in the first profile: that is the machine, and left out)"


def row_text(row: OperatorChange) -> str:
    """ "Conv: 2 in 8.00 ms → 1 in 4.00 ms"."""

    def part(spent: float | None, calls: int) -> str:
        if spent is not None and row.type == AROUND:
            return ms(spent)
        return "none" if spent is None else f"{calls} in {ms(spent)}"

    return f"{row.type}: {part(row.before_ms, row.before_calls)} → {part(row.after_ms, row.after_calls)}"


def ms(value: float) -> str:
    """Milliseconds as people read them."""
    return f"{value:.3f} ms" if value < 1 else f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"
