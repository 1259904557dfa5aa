"""Details, comparison, deleting and measuring of a variant."""

import json

import msgspec
import scenes
from driver import dashboard

from engine.protocol import Changed, DeleteVariant, GetResults, MeasurementAdded, MeasureVariant, SetOptions, Text


async def test_enter_shows_lineage_changes_and_figures() -> None:
    async with dashboard(size=(120, 60)) as seen:
        await seen.press("down", "down", "enter")
        await seen.sees("baseline → onnx → int8", "56 of 64 nodes run in INT8.", "no INT8 kernel in ONNX Runtime")
        await seen.sees("node_softmax", "quantized weight share", "FASTER", "2.38", "✓ PASS", "61 answers became wrong")
        await seen.press("escape")
        await seen.sees("1 Variants")


async def test_millions_in_a_techniques_figures_read_as_elsewhere() -> None:
    variants = [*scenes.VARIANTS]
    figures = {"macs": 1_597_000.0, "steps": 128, "macs_before": 36_000_000}
    variants[2] = msgspec.structs.replace(variants[2], changed=Changed(summary="s", touched=("x",), figures=figures))
    async with dashboard(msgspec.structs.replace(scenes.work(), variants=tuple(variants)), size=(120, 60)) as seen:
        await seen.press("down", "down", "enter")
        await seen.sees("1.60M", "36.0M", "128")


async def test_the_details_end_with_recipe() -> None:
    async with dashboard(size=(120, 80)) as seen:
        await seen.press("down", "down", "enter")
        await seen.sees("Recipe", 'technique = "quantize-static"')


async def test_details_take_in_a_measurement_that_arrives() -> None:
    async with dashboard(size=(120, 60)) as seen:
        await seen.press("down", "down", "enter")
        await seen.sees("baseline → onnx → int8")
        fresh = msgspec.structs.replace(scenes.latency("v2", 32, 7.77, 5.5), id="new")
        seen.engine.push(MeasurementAdded(seq=0, measurement=fresh))
        await seen.sees("7.77", "5.50×")


async def test_two_variants_stand_side_by_side() -> None:
    async with dashboard(size=(120, 40)) as seen:
        await seen.press("c")
        await seen.sees("Comparison", "PyTorch cpu", "ORT cpu")
        await seen.sees("3.82× smaller", "0.21 pt lower")  # begins with the best beside the baseline
        await seen.press("home", "down", "down", "space", "end")
        await seen.sees("onnx", "prune 50 %", "A → B", "3.59× smaller", "1.39 pt lower")
        await seen.press("home", "space", "down")
        await seen.sees("the same")


async def test_a_narrow_comparison_keeps_the_verdict() -> None:
    async with dashboard(size=(80, 40)) as seen:
        await seen.press("c")
        await seen.sees("Comparison", "✓ PASS", "✗ FAIL", "? TOO FEW")


async def test_deleting_asks_and_names_the_variant() -> None:
    async with dashboard() as seen:
        await seen.press("end", "d")
        await seen.sees("Delete this variant?", "prune 50 %")
        await seen.press("d")
        assert (await seen.asked(DeleteVariant)).variant == "v4"
        await seen.sees("prune 50 % is deleted.")


async def test_a_variant_with_children_cannot_be_deleted() -> None:
    async with dashboard() as seen:
        await seen.press("down", "d")
        await seen.sees("Other variants were made from this one")


async def test_measure_again() -> None:
    async with dashboard() as seen:
        await seen.press("down", "m")
        assert (await seen.asked(MeasureVariant)).variant == "v1"


async def test_options_are_checked_and_sent() -> None:
    async with dashboard() as seen:
        await seen.press("a")
        await seen.sees("accuracy limit", "batch sizes")
        await seen.type("2%")
        await seen.press("tab")
        await seen.type("1 16")
        await seen.press("ctrl+s")
        command = await seen.asked(SetOptions)
        assert (command.accuracy_limit, command.batch_sizes, command.target) == (0.02, (1, 16), "cpu-vnni")


async def test_a_variant_from_another_class_of_processor_is_shown_with_a_warning() -> None:
    sentence = "Made for cpu-vnni with weights of 8 bits; this is x86-64 without VNNI, where their sums saturate."
    found = Text(text=json.dumps({"variants": [{"id": "v2", "name": "int8", "warning": sentence}]}))
    async with dashboard(size=(130, 60), answers={GetResults: found}) as seen:
        await seen.press("down", "down", "enter")
        await seen.sees("Moved", "where their sums saturate")
        await seen.press("escape", "c", "home", *["down"] * 4)
        await seen.sees("B: Made for cpu-vnni", "where their sums saturate")
