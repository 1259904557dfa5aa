"""The comparison of two variants: only what ran in turn is called faster; anything else is marked."""

from typing import Any

import msgspec
import scenes
from driver import dashboard

from engine.protocol import Latency, Ratio, Snapshot
from tui.screens.compare import side_by_side


def pair(snapshot: Snapshot, one: str, other: str) -> str:
    named = {variant.name: variant for variant in snapshot.variants}
    return side_by_side(snapshot, named[one], named[other]).plain


def change(snapshot: Snapshot, one: str, other: str, label: str = "p50 batch 8") -> str:
    """What stands in the last column of a line."""
    line = next(line for line in pair(snapshot, one, other).splitlines() if line.strip().startswith(label))
    return line[61:].strip()


def with_pair(snapshot: Snapshot, variant: str, **changes: Any) -> Snapshot:
    """Another ratio over the parent at every batch size."""
    measurements: list[Any] = []
    for one in snapshot.measurements:
        ratio: Ratio | None = getattr(one, "speedup_over_parent", None)
        if one.variant == variant and ratio is not None:
            one = msgspec.structs.replace(one, speedup_over_parent=msgspec.structs.replace(ratio, **changes))
        measurements.append(one)
    return msgspec.structs.replace(snapshot, measurements=tuple(measurements))


def test_a_child_is_compared_with_its_parent_by_what_ran_in_turn() -> None:
    slower = with_pair(scenes.work(), "v2", ratio=0.8, low=0.78, high=0.82, verdict="SLOWER")
    assert change(scenes.work(), "onnx", "int8") == "1.83× faster"
    assert change(scenes.work(), "int8", "onnx") == "1.83× slower"
    assert change(slower, "onnx", "int8") == "1.25× slower", "the quotient of two jobs, 4.11 / 2.28, says 1.80× faster"


def test_against_the_baseline_its_own_ratio_counts_and_the_product_of_the_steps_stands_below() -> None:
    assert change(scenes.work(), "baseline", "int8") == "4.11× faster"
    assert "onnx 2.28× · int8 1.83× = 4.17×" in pair(scenes.work(), "baseline", "int8")


def test_along_parents_the_gains_are_multiplied_and_called_a_product() -> None:
    tuned = scenes.variant("v5", "tuned", "v2", "optimize-graph", 2_900_000, 10)
    snapshot = scenes.work()
    snapshot = msgspec.structs.replace(
        snapshot,
        variants=(*snapshot.variants, tuned),
        measurements=(*snapshot.measurements, scenes.latency("v5", 8, 2.0, 4.0, parent=("int8", 1.1))),
    )
    assert change(snapshot, "onnx", "tuned") == "2.01× faster (product)"
    assert "int8 1.83× · tuned 1.10× = 2.01×" in pair(snapshot, "onnx", "tuned")


def test_what_no_pair_links_is_marked_as_indirect() -> None:
    assert change(scenes.work(), "int8-dynamic", "int8").startswith("≈ 5.41× faster")
    assert "≈ not measured in turn" in pair(scenes.work(), "int8-dynamic", "int8")
    assert "≈" not in pair(scenes.work(), "onnx", "int8")


def test_what_is_not_sure_is_neither_faster_nor_slower() -> None:
    unsure = with_pair(scenes.work(), "v2", ratio=1.04, low=0.98, high=1.1, verdict="UNDECIDED")
    assert change(unsure, "onnx", "int8") == "? 1.04× undecided"


def test_why_a_ratio_wholly_above_1_is_undecided_is_said() -> None:
    unsure = with_pair(scenes.work(), "v2", ratio=1.01, low=1.004, high=1.015, verdict="UNDECIDED")
    assert "part of it is within the noise floor, 1.1 %" in pair(unsure, "onnx", "int8")
    assert "all of it is below 1" in pair(unsure, "int8", "onnx")


def test_without_a_ratio_on_either_side_nothing_is_said() -> None:
    bare = tuple(
        msgspec.structs.replace(one, speedup=None, speedup_over_parent=None) if hasattr(one, "speedup") else one
        for one in scenes.MEASUREMENTS
    )
    snapshot = msgspec.structs.replace(scenes.work(), measurements=bare)
    assert change(snapshot, "onnx", "int8") == "not measured against each other"


def busy() -> Snapshot:
    """int8 was measured while other processes worked."""
    notes = ("Disturbed: other processes kept 1.5 cores busy meanwhile.",)
    measurements = tuple(
        msgspec.structs.replace(one, conditions=msgspec.structs.replace(one.conditions, notes=notes))
        if isinstance(one, Latency) and one.variant == "v2"
        else one
        for one in scenes.MEASUREMENTS
    )
    return msgspec.structs.replace(scenes.work(), measurements=measurements)


async def test_times_of_a_busy_machine_are_marked_in_every_table() -> None:
    async with dashboard(busy(), size=(120, 40)) as seen:
        await seen.sees("~2.38", "~ timed on a busy machine", " 4.30")
        await seen.press("c")
        await seen.sees("Comparison", "~2.38", "~0.61", "~ timed on a busy machine")


async def test_the_mark_stands_only_where_a_time_has_it() -> None:
    async with dashboard(size=(120, 40)) as seen:
        await seen.sees("2.38")
        await seen.sees_not("busy machine")


async def test_question_mark_opens_the_help_of_the_comparison() -> None:
    async with dashboard(size=(120, 50)) as seen:
        await seen.press("c")
        await seen.sees("Comparison", "? help")
        await seen.press("question_mark")
        await seen.sees("Make the variant under the cursor A")
        await seen.press("escape")
        await seen.sees_not("Make the variant under the cursor A")


async def test_question_mark_opens_the_help_of_a_job() -> None:
    async with dashboard(size=(120, 50)) as seen:
        await seen.press("L")
        await seen.sees("? help   esc back")
        await seen.press("question_mark")
        await seen.sees("Leave the job; it goes on.")
