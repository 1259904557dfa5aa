"""A scan as a heat map: colours by the limit, widths as pruning takes them, and recorded scans read back."""

import json
from typing import Any

import msgspec
import pytest
import scenes

from engine.protocol import Changed, LayerSensitivity
from tui import heat

SCAN = scenes.scan()


@pytest.mark.parametrize(
    ("drop", "level"), [(-0.01, 0), (0.002, 0), (0.009, 1), (0.02, 2), (0.05, 3), (0.1, 3), (0.11, 4), (0.9, 4)]
)
def test_how_hot_a_cell_is_goes_by_the_limit(drop: float, level: int) -> None:
    assert heat.heat(drop, 0.01) == level


@pytest.mark.parametrize(
    ("width", "kind", "ratio", "stay"),
    [
        (64, "channels", 0.5, 32),
        (64, "channels", 0.125, 56),
        (16, "channels", 0.875, 8),
        (6, "heads", 0.5, 3),
        (6, "channels", 0.5, 6),
        (20, "channels", 0.01, 20),
    ],
)
def test_widths_are_rounded_as_pruning_rounds_them(width: int, kind: str, ratio: float, stay: int) -> None:
    layer = LayerSensitivity(name="x", kind=kind, width=width, accuracy=(0.9,))
    scan = msgspec.structs.replace(SCAN, ratios=(ratio,), layers=(layer,))
    assert heat.kept(scan, layer, 0) == stay


def test_choosing_within_the_limit_stops_before_the_first_cut_that_breaks_it() -> None:
    layer = LayerSensitivity(name="x", kind="channels", width=64, accuracy=(0.919, 0.90, 0.919))
    scan = msgspec.structs.replace(SCAN, ratios=(0.25, 0.5, 0.75), layers=(layer,))
    assert heat.within(scan, 0.01) == {"x": 0}, "a strong cut that looks better by chance is not trusted"
    assert heat.widths(scan, {"x": 0}) == ["x=48"]


@pytest.mark.parametrize(("samples", "coarse"), [(0, False), (16, True), (400, True), (500, False), (1000, False)])
def test_a_scan_of_too_few_samples_for_the_limit_says_so(samples: int, coarse: bool) -> None:
    said = heat.too_coarse(msgspec.structs.replace(SCAN, samples=samples), 0.01)
    assert (said is not None) == coarse
    if samples == 16:
        assert said == "16 samples are too few for this limit: one is 6.25 points."


def test_a_choice_that_comes_to_nothing_says_what_stays() -> None:
    layers = (
        LayerSensitivity(name="attention", kind="heads", width=4, accuracy=(0.9,)),
        LayerSensitivity(name="stem", kind="channels", width=16, accuracy=(0.9,)),
    )
    scan = msgspec.structs.replace(SCAN, ratios=(0.125,), layers=layers)
    assert heat.nothing_goes(scan, {"attention": 0}) == (
        "Rounded to whole heads, all 4 heads of attention stay: choose a stronger cut."
    )
    assert "16 channels of stem" in heat.nothing_goes(scan, {"attention": 0, "stem": 0})


def test_what_rounding_leaves_whole_is_not_cut() -> None:
    layer = LayerSensitivity(name="x", kind="channels", width=16, accuracy=(0.92,))
    scan = msgspec.structs.replace(SCAN, ratios=(0.125,), layers=(layer,))
    assert heat.widths(scan, {"x": 0}) == []
    assert heat.within(scan, 0.01) == {}


def pruned(figure: Any) -> Any:
    child = msgspec.structs.replace(
        scenes.VARIANTS[4], changed=Changed(summary="narrower", figures={"sensitivity": figure})
    )
    return msgspec.structs.replace(scenes.work(), variants=(*scenes.VARIANTS[:4], child))


def test_what_pruning_recorded_on_its_way_is_a_scan_of_its_source() -> None:
    layers = [{"name": "stem", "kind": "channels", "width": 32, "accuracy": [0.9, 0.5]}]
    text = json.dumps({"accuracy": 0.92, "ratios": [0.25, 0.5], "layers": layers})
    found = heat.scan_of(pruned(text), scenes.VARIANTS[0])
    assert found is not None
    assert [one.name for one in found.layers] == ["stem"]
    assert heat.drop(found, found.layers[0], 1) == pytest.approx(0.42)
    assert heat.scan_of(pruned(text), scenes.VARIANTS[1]) is None


def test_what_pruning_tried_with_another_rounding_is_what_is_shown_and_chosen() -> None:
    layers = [{"name": "stem", "kind": "channels", "width": 32, "kept": [28, 20], "accuracy": [0.92, 0.92]}]
    text = json.dumps({"accuracy": 0.92, "ratios": [0.125, 0.375], "layers": layers})
    found = heat.scan_of(pruned(text), scenes.VARIANTS[0])
    assert found is not None
    assert [heat.kept(found, found.layers[0], at) for at in range(2)] == [28, 20]
    assert heat.widths(found, heat.within(found, 0.01)) == ["stem=20"]


UNREADABLE_KEPT = (
    '{"accuracy": 1, "ratios": [0.5], "layers": [{"name": "a", "kind": "b", "width": 8, "accuracy": [1], "kept": %s}]}'
)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"accuracy": 1, "ratios": [0.5], "layers": [{"name": 1}]}', 7, None),
        *(UNREADABLE_KEPT % kept for kept in ("[4, 4]", "4", "[[]]")),
    ],
)
def test_what_is_no_scan_is_none(text: Any) -> None:
    assert heat.scan_of(pruned(text), scenes.VARIANTS[0]) is None
