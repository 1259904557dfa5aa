"""Names that would be markup, write to the clipboard or turn the writing direction harm no pane and no screen."""

import ast
import re
from pathlib import Path

import pytest
import scenes
from driver import Dashboard, dashboard

from engine.protocol import (
    ApplyTechnique,
    CheckParameters,
    GetRecipe,
    JobChanged,
    ListTechniques,
    ParametersChecked,
    ReadLog,
    Text,
)
from tui import theme

TUI = Path(theme.__file__).parent
SINKS = ("update", "notify", "add_row", "border_title", "border_subtitle")
"""Where Textual reads a plain str as markup."""

ANSWERS = {
    ReadLog: lambda command: Text(
        text=(scenes.HOSTILE + "\n" + "x" * 100_000 + "\n")[command.offset :], next_offset=100_100
    ),
    GetRecipe: Text(text=scenes.HOSTILE),
    ListTechniques: scenes.hostile_techniques(),
    CheckParameters: ParametersChecked(errors={scenes.HOSTILE: scenes.HOSTILE, "": scenes.HOSTILE}),
    ApplyTechnique: scenes.HOSTILE,
}


def harmless(seen: Dashboard) -> None:
    """Nothing on the screen is obeyed by a terminal or hidden from the eye."""
    drawn = seen.text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", drawn)
    assert all(len(line) <= seen.app.size.width for line in drawn.split("\n"))


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 50)])
async def test_the_main_screen_draws_them_harmlessly(size: tuple[int, int]) -> None:
    async with dashboard(scenes.hostile(), ANSWERS, size=size) as seen:
        await seen.sees("conv[/]x␛]52")
        harmless(seen)
        for number in "1234":
            await seen.press(number, number)
            harmless(seen)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("down", "enter"), "What changed"),
        (("c", "down", "space", "end"), "A → B"),
        (("down", "y"), "command line"),
        (("down", "down", "down", "d"), "Delete this variant?"),
        (("x",), "Cancel this job?"),
        (("q",), "A job is running"),
        (("e",), "Export"),
        (("a",), "Options"),
        (("L",), "esc back"),
        (("question_mark",), "Variant"),
        (("ctrl+p",), "Search"),
    ],
)
async def test_every_other_screen_draws_them_harmlessly(keys: tuple[str, ...], expected: str) -> None:
    async with dashboard(scenes.hostile(), ANSWERS, size=(120, 40)) as seen:
        await seen.press(*keys)
        await seen.sees(expected)
        harmless(seen)


async def test_a_techniques_form_and_its_errors_are_harmless() -> None:
    async with dashboard(scenes.hostile(), ANSWERS, size=(120, 40)) as seen:
        await seen.press("t", "enter")
        await seen.sees("trimtab apply")
        await seen.type("1")
        harmless(seen)
        await seen.press("ctrl+s")
        await seen.sees("conv[/]x␛]52")
        harmless(seen)


async def test_a_hostile_end_of_a_job_is_harmless() -> None:
    async with dashboard(scenes.work(), ANSWERS) as seen:
        failed = scenes.Failed(started=scenes.NOW, finished=scenes.NOW, reason=scenes.HOSTILE)
        seen.engine.push(JobChanged(seq=0, job=scenes.Job(id="h", kind="x", title="x", created=0, state=failed)))
        await seen.sees("x: conv[/]x␛]52")
        seen.app.say(scenes.HOSTILE, severity="error")
        await seen.pilot.pause()
        harmless(seen)


async def test_files_with_hostile_names_can_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conv[red]x\x1b]52;c;AAAA\x07.py").write_text("")
    (tmp_path / "[red]").mkdir()
    monkeypatch.chdir(tmp_path)
    async with dashboard(scenes.fresh(), ANSWERS) as seen:
        await seen.sees("conv[red]x␛]52;c;AAAA␇.py", "[red]")
        harmless(seen)


def test_no_file_hands_a_formatted_string_to_a_sink_that_reads_markup() -> None:
    """Foreign text reaches Textual as Content. An f-string in one of the sinks is how it would not."""
    found = []
    for path in sorted(TUI.rglob("*.py")):
        source = path.read_text()
        assert "from_markup" not in source, path
        assert "markup.escape" not in source, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SINKS:
                found += [f"{path.name}:{node.lineno}" for one in node.args if isinstance(one, ast.JoinedStr)]
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.JoinedStr):
                names = [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
                found += [f"{path.name}:{node.lineno}" for name in names if name in SINKS]
    assert found == []
