"""Which layer can lose how much? Look at the heat map, choose, and go to the prune form with the choice filled in."""

import re

import msgspec
import pytest
import scenes
from driver import dashboard

from engine.protocol import (
    ApplyTechnique,
    Field,
    ListTechniques,
    MeasurementAdded,
    MeasureVariant,
    TechniqueInfo,
    Techniques,
)
from tui.theme import choose_theme

PRUNING = Techniques(
    techniques=(
        *scenes.techniques().techniques,
        TechniqueInfo(
            tag="prune-structured",
            title="Structured pruning",
            group="pruning",
            summary="Whole channels gone.",
            fields=(
                Field(name="ratio", kind="number", default=0.3),
                Field(name="widths", kind="list", default=[], description="exact widths"),
            ),
        ),
    )
)


async def test_a_known_scan_is_there_at_once_and_the_cursor_reads_it() -> None:
    for size in ((80, 24), (100, 30), (200, 50)):
        async with dashboard(scenes.scanned(), size=size) as seen:
            await seen.press("home", "h")
            await seen.sees("Layers baseline", "stages.0.0.conv1", "1,000 samples")
            await seen.press("down", "right", "right", "right")
            await seen.sees("stages.0.0.conv1 −50 %: 16 of 32 channels left, −0.73 points, −10.0 % MACs", "0.73]")
            assert not any(isinstance(one, MeasureVariant) for one in seen.engine.asked)
            await seen.press("escape")
            await seen.sees("1 Variants")


async def test_chosen_ratios_fill_the_prune_form() -> None:
    async with dashboard(scenes.scanned(), {ListTechniques: PRUNING}, size=(110, 40)) as seen:
        await seen.press("home", "h")
        await seen.sees("Nothing chosen yet")
        await seen.press("right", "right", "right", "space", "down", "down", "left", "left", "space")
        await seen.sees("◆ 2 of 6 layers chosen, together up to 15 % fewer MACs")
        await seen.press("enter")
        await seen.sees("Structured pruning", "stem.conv=16", "stages.0.1.conv1=48")
        await seen.press("ctrl+s")
        command = await seen.asked(ApplyTechnique)
        assert (command.technique, command.source) == ("prune-structured", "v0")
        assert command.parameters["widths"] == ["stem.conv=16", "stages.0.1.conv1=48"]
        await seen.sees("1 Variants")
        await seen.press("t", "end", "enter")
        await seen.sees("Structured pruning", '"stages.0.1.conv1=48"')  # to run it again, should it be stopped


async def test_with_nothing_chosen_enter_takes_the_cell_under_the_cursor() -> None:
    async with dashboard(scenes.scanned(), {ListTechniques: PRUNING}) as seen:
        await seen.press("home", "h", "right", "enter")
        await seen.sees("stem.conv=24")
        await seen.press("escape", "escape")
        await seen.sees("Layers baseline")


async def test_all_layers_can_be_chosen_by_the_limit_and_none_again() -> None:
    async with dashboard(scenes.scanned()) as seen:
        await seen.press("home", "h", "a")
        await seen.sees("◆ 6 of 6 layers chosen")
        await seen.press("n")
        await seen.sees("Nothing chosen yet")
        await seen.press("space", "space")
        await seen.sees("Nothing chosen yet")


async def test_a_scan_of_few_samples_is_not_chosen_by_without_a_word() -> None:
    work = scenes.work()
    few = msgspec.structs.replace(
        work, measurements=(*work.measurements, msgspec.structs.replace(scenes.scan(), samples=16))
    )
    async with dashboard(few, size=(80, 24)) as seen:
        await seen.press("home", "h")
        await seen.sees("16 samples are too few for this limit: one is 6.25 points.")
        await seen.press("a")
        await seen.sees("may be chance")


async def test_an_unknown_scan_is_asked_for_once_and_appears() -> None:
    async with dashboard() as seen:
        await seen.press("home", "h")
        command = await seen.asked(MeasureVariant)
        assert (command.variant, command.kinds) == ("v0", ("sensitivity",))
        await seen.sees("made narrower by itself")
        seen.engine.push(MeasurementAdded(seq=0, measurement=scenes.scan()))
        await seen.sees("stages.1.1.conv1", "Nothing chosen yet")
        assert sum(isinstance(one, MeasureVariant) for one in seen.engine.asked) == 1
        await seen.press("down", "right")
        await seen.sees("stages.0.0.conv1 −25 %")


async def test_many_layers_scroll_and_a_narrow_map_does_without_numbers() -> None:
    scan = scenes.scan()
    ratios = tuple(number / 20 for number in range(1, 16))
    layers = tuple(
        msgspec.structs.replace(scan.layers[0], name=f"blocks.{number}[/]", accuracy=(0.9,) * 15, macs=())
        for number in range(60)
    )
    work = scenes.work()
    wide = msgspec.structs.replace(scan, ratios=ratios, layers=layers, macs=None)
    known = msgspec.structs.replace(work, measurements=(*work.measurements, wide))
    async with dashboard(known, size=(80, 24)) as seen:
        await seen.press("home", "h")
        await seen.sees("blocks.0[/]", "[▒]")
        await seen.press("end", "right")
        await seen.sees("blocks.59[/] −10 %", "−2.00 points")


@pytest.mark.parametrize("no_color", [True, False])
async def test_it_reads_without_colours_and_with_sixteen(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    theme = choose_theme({"NO_COLOR": "1"} if no_color else {"TERM": "linux"})
    async with dashboard(scenes.scanned(), theme=theme) as seen:
        await seen.press("home", "h", "space")
        await seen.sees("◆", "░", "▒", "▓", "█")
        segments = [segment for strip in seen.app.screen._compositor.render_strips() for segment in strip]
        colours = [one.style.color for one in segments if one.style and re.search(r"▓ *\d\.", one.text)]
        assert colours
        if no_color:
            assert all(colour is None or colour.is_default for colour in colours)
        else:
            assert all(colour is not None and colour.number is not None and colour.number < 16 for colour in colours)
