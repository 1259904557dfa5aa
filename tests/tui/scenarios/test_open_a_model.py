"""Open a Python file, an .onnx with data, or a pickle that must be trusted first."""

from pathlib import Path

import pytest
import scenes
from driver import dashboard

from engine.protocol import OpenModel


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("net.py", "net.onnx", "net.pt", "notes.txt"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_a_fresh_session_asks_for_a_model_and_only_lists_models(models: Path) -> None:
    async with dashboard(scenes.fresh()) as seen:
        await seen.sees("Open a model", "net.onnx", "net.py")
        assert "notes.txt" not in seen.text
        await seen.type("net.py")
        await seen.press("enter")
        command = await seen.asked(OpenModel)
        assert (command.path, command.trusted) == (str(models / "net.py"), False)


async def test_an_onnx_takes_data(models: Path) -> None:
    async with dashboard(scenes.fresh()) as seen:
        await seen.sees("Open a model")
        await seen.type("net.onnx")
        await seen.sees("calibration")
        await seen.press("tab", "tab")
        await seen.type("test.npz")
        await seen.press("enter")
        assert (await seen.asked(OpenModel)).data == str(models / "test.npz")


async def test_a_pickle_is_only_opened_when_it_is_trusted(models: Path) -> None:
    async with dashboard(scenes.fresh()) as seen:
        await seen.sees("Open a model")
        await seen.type("net.pt")
        await seen.sees("runs the code inside it")
        await seen.press("enter")
        assert not any(isinstance(one, OpenModel) for one in seen.engine.asked)
        await seen.press("tab", "tab", "space", "shift+tab", "shift+tab", "enter")
        assert (await seen.asked(OpenModel)).trusted is True


async def test_what_cannot_be_opened_is_explained(models: Path) -> None:
    async with dashboard(scenes.fresh(), answers={OpenModel: "net.py has no load_model()."}) as seen:
        await seen.sees("Open a model")
        await seen.type("nothing.py")
        await seen.sees("There is no such file.")
        await seen.press("ctrl+a", "ctrl+k")
        await seen.type("notes.txt")
        await seen.sees("A model is a .py")
        await seen.press("ctrl+a", "ctrl+k")
        await seen.type("net.py")
        await seen.press("enter")
        await seen.sees("net.py has no load_model().")


async def test_a_model_named_on_the_command_line_is_opened_without_asking(models: Path) -> None:
    asked_for = OpenModel(request=0, path=str(models / "net.py"))
    async with dashboard(scenes.fresh(), open_model=asked_for) as seen:
        assert (await seen.asked(OpenModel)).path == str(models / "net.py")


async def test_a_pickle_named_on_the_command_line_is_asked_about(models: Path) -> None:
    asked_for = OpenModel(request=0, path=str(models / "net.pt"))
    async with dashboard(scenes.fresh(), open_model=asked_for) as seen:
        await seen.sees("Trust this file?")
        await seen.press("y")
        assert (await seen.asked(OpenModel)).trusted is True
