"""What is expected of a technique stands beside what was measured: in the details of a variant, and in the form."""

import json
from typing import Any

import pytest
import scenes
from driver import dashboard

from engine.protocol import GetResults, MeasurementAdded, Text
from tui import expectations


def results(**changes: Any) -> str:
    """The engine's results for int8, as `engine.exports.results` writes them."""
    found = {
        "text": "size 25 %, 2–4× faster, 0.5–1 % loss",
        "expected": {"size": 0.25, "speedup": [2.0, 4.0], "drop": [0.005, 0.01]},
        "measured": {"size": 0.262, "speedup": 1.8, "drop": 0.0021},
        "verdict": {"size": "as expected", "speedup": "less", "drop": "less"},
    }
    int8 = {"name": "int8", "technique": "quantize-static", "expectation": found | changes}
    return json.dumps({"variants": [{"name": "baseline", "technique": None, "expectation": None}, int8]})


def test_expected_and_measured_stand_side_by_side() -> None:
    (one,) = expectations.read(results())
    shown = expectations.table(one).plain
    assert [line.split() for line in shown.splitlines()[1:3]] == [
        ["size", "25", "%", "26.2", "%", "as", "expected"],
        ["speed", "2–4×", "1.80×", "slower", "than", "expected"],
    ]
    assert "0.5–1 pt" in shown
    assert "better than expected" in shown
    assert expectations.phrase(one) == "int8: size 26.2 %, 1.80× the speed, 0.21 pt drop"


def test_a_drop_below_nothing_is_called_a_gain() -> None:
    (one,) = expectations.read(results(measured={"size": None, "speedup": None, "drop": -0.0016}))
    assert expectations.phrase(one) == "int8: 0.16 pt gain"


def test_what_was_not_measured_says_so() -> None:
    (one,) = expectations.read(
        results(measured={"size": None, "speedup": None, "drop": None}, verdict={"size": None, "speedup": None})
    )
    assert expectations.table(one).plain.count("not yet") == 3
    assert expectations.phrase(one) == ""


def test_a_technique_that_promises_nothing_by_number_has_its_phrase() -> None:
    (one,) = expectations.read(results(expected=None, verdict=None, text="same size and speed"))
    assert "same size and speed" in expectations.table(one).plain
    assert "as expected" not in expectations.table(one).plain


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", '{"variants": [{"expectation": {"measured": 3}}]}', "not json"])
def test_what_cannot_be_read_is_left_out(text: str) -> None:
    assert expectations.read(text) == []


async def test_a_variants_details_have_both_and_follow_new_measurements() -> None:
    texts = [results(measured={"size": 0.262, "speedup": None, "drop": None}), results()]
    answers = {GetResults: lambda command: Text(text=texts[0] if len(texts) == 1 else texts.pop(0))}
    async with dashboard(answers=answers) as seen:
        await seen.press("down", "down", "enter")
        await seen.sees("Expected of quantize-static, and measured", "26.2 %", "not yet")
        seen.engine.push(MeasurementAdded(seq=0, measurement=scenes.accuracy("v2", 0.92, 0.002, "PASS")))
        await seen.sees("slower than expected", "better than expected")


async def test_the_form_has_what_was_measured_here() -> None:
    async with dashboard(answers={GetResults: Text(text=results())}) as seen:
        await seen.press("down", "t")
        await seen.sees("Expect: size 25 %", "Measured here: int8: size 26.2 %, 1.80× the speed")


async def test_the_help_of_a_field_is_in_sight_on_a_small_terminal() -> None:
    async with dashboard(size=(80, 24)) as seen:
        await seen.press("down", "t", "enter")
        await seen.sees("Samples the ranges are taken from (from 8 to 10000)")
