"""Which figures stand for a variant, where it stands, and which one is best."""

import msgspec
import scenes

from engine.protocol import Latency, Snapshot
from tui.comparison import Figures, best_variant, figures_for, lineage, ordered, tree
from tui.panes.variants import unusual_runtime
from tui.view import default_batch_size


def names(branches: list) -> list[str]:  # type: ignore[type-arg]
    return [branch.variant.name for branch in branches]


def test_the_tree_puts_every_variant_under_its_parent() -> None:
    branches = tree(scenes.VARIANTS)
    assert [branch.prefix + branch.variant.name for branch in branches] == [
        "baseline",
        "├ onnx",
        "│ ├ int8",
        "│ └ int8-dynamic",
        "└ prune 50 %",
    ]


def test_a_variant_whose_parent_is_gone_is_still_listed() -> None:
    assert set(names(tree(scenes.VARIANTS[2:]))) == {"int8", "int8-dynamic", "prune 50 %"}


def test_the_best_is_the_fastest_that_passes_the_limit() -> None:
    best = best_variant(scenes.work(), 8)
    assert best is not None
    assert best.name == "int8"


def test_what_breaks_the_limit_or_lacks_data_is_never_best() -> None:
    snapshot = scenes.work()
    judged = tuple(
        msgspec.structs.replace(one, verdict="NOT ENOUGH DATA") if hasattr(one, "verdict") else one
        for one in snapshot.measurements
    )
    assert best_variant(msgspec.structs.replace(snapshot, measurements=judged), 8) is None


def test_figures_of_another_batch_size_are_not_shown() -> None:
    snapshot = scenes.work()
    assert figures_for(snapshot, "v2", 8).latency.p50_ms == 2.38  # type: ignore[union-attr]
    assert figures_for(snapshot, "v2", 32).latency is None


def test_a_newer_measurement_replaces_an_older_one() -> None:
    snapshot = scenes.work()
    newer = msgspec.structs.replace(scenes.latency("v2", 8, 1.5, 6.0), id="newer", created=scenes.NOW)
    snapshot = msgspec.structs.replace(snapshot, measurements=(*snapshot.measurements, newer))
    assert figures_for(snapshot, "v2", 8).latency is newer


def test_sorting_by_speed_puts_the_unmeasured_last() -> None:
    snapshot = scenes.work()
    assert names(ordered(snapshot, 8, "speed"))[0] == "int8"
    assert names(ordered(snapshot, 8, "drop"))[-1] == "prune 50 %"
    assert names(ordered(snapshot, 8, "size"))[0] == "int8"
    without = tuple(one for one in snapshot.measurements if one.variant != "v4")
    assert names(ordered(msgspec.structs.replace(snapshot, measurements=without), 8, "speed"))[-1] != "int8"


def test_a_filter_keeps_the_ancestors_in_the_tree() -> None:
    assert names(ordered(scenes.work(), 8, "tree", "dynamic")) == ["baseline", "onnx", "int8-dynamic"]
    assert names(ordered(scenes.work(), 8, "size", "dynamic")) == ["int8-dynamic"]
    assert ordered(scenes.work(), 8, "tree", "nothing like it") == []


def test_lineage_leads_from_the_baseline() -> None:
    assert [one.name for one in lineage(scenes.work(), scenes.VARIANTS[2])] == ["baseline", "onnx", "int8"]


def test_a_variant_that_is_only_perhaps_faster_is_never_best() -> None:
    snapshot = scenes.work()
    undecided = tuple(
        msgspec.structs.replace(one, speedup=msgspec.structs.replace(one.speedup, verdict="UNDECIDED"))
        if getattr(one, "speedup", None)
        else one
        for one in snapshot.measurements
    )
    assert best_variant(msgspec.structs.replace(snapshot, measurements=undecided), 8) is None


def test_a_new_limit_judges_what_was_measured_again() -> None:
    snapshot = scenes.work()
    loose = msgspec.structs.replace(snapshot, options=msgspec.structs.replace(snapshot.options, accuracy_limit=0.05))
    assert figures_for(snapshot, "v4", 8).verdict == "FAIL"
    assert figures_for(loose, "v4", 8).verdict == "PASS"
    strict = msgspec.structs.replace(snapshot, options=msgspec.structs.replace(snapshot.options, accuracy_limit=0.0005))
    assert figures_for(strict, "v2", 8).verdict == "NOT ENOUGH DATA"


def test_a_verdict_that_did_not_come_from_the_interval_stays_at_any_limit() -> None:
    doubtful = msgspec.structs.replace(scenes.accuracy("v2", 0.92, 0.002, "NOT ENOUGH DATA"), created=scenes.NOW)
    snapshot = msgspec.structs.replace(scenes.work(), measurements=(*scenes.MEASUREMENTS, doubtful))
    loose = msgspec.structs.replace(snapshot, options=msgspec.structs.replace(snapshot.options, accuracy_limit=0.5))
    assert figures_for(loose, "v2", 8).verdict == "NOT ENOUGH DATA"


def of_two_runtimes() -> Snapshot:
    """int8 is the fastest under ONNX Runtime by its ratio, and served more under OpenVINO in another job."""
    snapshot = scenes.work()
    runtime = scenes.CONDITIONS["onnxruntime"]
    other = msgspec.structs.replace(
        scenes.latency("v2", 8, 1.90, 0.90),
        id="under-openvino",
        conditions=msgspec.structs.replace(runtime, runtime="openvino"),
        throughput_per_s=9999.0,
    )
    return msgspec.structs.replace(snapshot, measurements=(*snapshot.measurements, other))


def test_under_several_runtimes_the_greatest_speed_up_stands_for_a_variant() -> None:
    snapshot = of_two_runtimes()
    latency = figures_for(snapshot, "v2", 8).latency
    assert latency is not None
    assert latency.conditions.runtime == "onnxruntime"
    best = best_variant(snapshot, 8)
    assert best is not None
    assert best.name == "int8"


def test_a_row_under_another_runtime_than_usual_says_so_where_the_column_is_hidden() -> None:
    snapshot = of_two_runtimes()
    int8 = next(one for one in snapshot.variants if one.id == "v2")
    (latency,) = (one for one in snapshot.measurements if one.id == "under-openvino")
    assert unusual_runtime(int8, Figures(latency)) == " · OpenVINO"  # type: ignore[arg-type]
    assert unusual_runtime(int8, figures_for(snapshot, "v2", 8)) == ""
    assert unusual_runtime(int8, Figures()) == ""


def test_the_dashboard_begins_with_a_batch_size_that_was_measured() -> None:
    snapshot = scenes.work()
    fixed = tuple(
        msgspec.structs.replace(one, batch_size=4)
        for one in snapshot.measurements
        if isinstance(one, Latency) and one.batch_size == 8
    )
    assert default_batch_size(snapshot) == 8
    assert default_batch_size(msgspec.structs.replace(snapshot, measurements=fixed)) == 4
    assert default_batch_size(msgspec.structs.replace(snapshot, measurements=())) == 8
