"""Export, the command line, the recipe: what a user leaves with."""

from pathlib import Path

import pytest
from driver import dashboard

from engine.protocol import ExportVariants


async def test_export_offers_the_best_variant_and_a_folder() -> None:
    async with dashboard() as seen:
        await seen.press("e")
        await seen.sees("Export", "best: int8", "residual_cnn-export")
        await seen.press("ctrl+s")
        command = await seen.asked(ExportVariants)
        assert command.variants == ("v2",)
        assert command.to == str(Path.cwd() / "residual_cnn-export")
        await seen.sees("2 files written to /work/out")


async def test_an_export_that_is_refused_stays_open_and_says_why() -> None:
    async with dashboard(answers={ExportVariants: "There is an export in that folder already."}) as seen:
        await seen.press("e")
        await seen.sees("best: int8")
        await seen.press("ctrl+s")
        await seen.sees("There is an export in that folder already.", "residual_cnn-export")


async def test_copy_sends_the_command_line_to_the_terminals_clipboard(tmp_path: Path) -> None:
    async with dashboard() as seen:
        await seen.press("down", "down", "y")
        await seen.sees("trimtab apply quantize-static --from onnx --calibration-samples 256", "[[steps]]")
        await seen.press("enter")
        await seen.sees("sent to the terminal's clipboard")
        assert seen.app.clipboard.startswith("trimtab apply quantize-static")


async def test_the_recipe_can_be_written_to_a_file_and_never_over_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with dashboard() as seen:
        await seen.press("down", "down", "y")
        await seen.sees("recipe.toml")
        await seen.press("shift+tab", "ctrl+a", "ctrl+k")
        await seen.type("a.toml")
        await seen.press("enter")
        await seen.until(lambda: (tmp_path / "a.toml").exists(), "the file")
        assert (tmp_path / "a.toml").read_text().startswith('model = "residual_cnn.py"')
        await seen.press("enter")
        await seen.sees("a.toml exists already")
