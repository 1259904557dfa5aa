"""Pictures of the dashboard in its main states, compared cell by cell with the ones that a person has looked at.

`pytest tests/tui/test_pictures.py --snapshot-update` makes them anew; look at `snapshot_report.html` before you do.
Everything that could change by itself is fixed: size, theme, clock, blinking, animations.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import scenes
from textual.pilot import Pilot

WAITED_FOR = ("log", "details", "check", "curves", "expectation", "measured")
"""Workers of the dashboard that fetch what a picture shows."""

Compare = Callable[..., bool]


def settled(*keys: str) -> Callable[[Pilot[Any]], Any]:
    """Wait until the dashboard is connected and drawn, then press keys and let them take effect."""

    async def prepare(pilot: Pilot[Any]) -> None:
        app: Any = pilot.app
        for _ in range(500):
            await pilot.pause(0.01)
            variants = app.main.query_one("#variants")
            snapshot = app.connection.snapshot
            drawn = variants.key or (snapshot.seq and not variants.keys)
            if variants.size and drawn and (app.main.chosen_job() or not snapshot.jobs):
                break
        for key in keys:
            await pilot.press(key)
            for _ in range(500):
                await pilot.pause(0.01)
                if not any(one.is_running for one in app.workers if one.group in WAITED_FOR):
                    break
            await pilot.pause(0.2 if key in ("t", "enter", "end") else 0.05)
        app.paint()
        await pilot.pause(0.1)

    return prepare


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 50)])
def test_main_screen(snap_compare: Compare, size: tuple[int, int]) -> None:
    assert snap_compare(scenes.app_of(scenes.work()), terminal_size=size, run_before=settled("down", "down"))


def test_main_screen_with_two_gpus(snap_compare: Compare) -> None:
    assert snap_compare(scenes.app_of(scenes.work(2)), terminal_size=(140, 40), run_before=settled("3"))


def test_main_screen_in_the_light_theme(snap_compare: Compare) -> None:
    app = scenes.app_of(scenes.work(1), theme="trimtab-light")
    assert snap_compare(app, terminal_size=(100, 30), run_before=settled("down"))


def test_main_screen_in_sixteen_colours(snap_compare: Compare) -> None:
    app = scenes.app_of(scenes.work(), theme="trimtab-ansi")
    assert snap_compare(app, terminal_size=(100, 30), run_before=settled("down"))


def test_hostile_names(snap_compare: Compare) -> None:
    assert snap_compare(scenes.app_of(scenes.hostile()), terminal_size=(100, 30), run_before=settled())


def test_old_telemetry(snap_compare: Compare) -> None:
    snapshot = scenes.work()
    old = tuple(msgspec.structs.replace(sample, time=sample.time - 40) for sample in snapshot.telemetry)
    app = scenes.app_of(msgspec.structs.replace(snapshot, telemetry=old, notices=("The disk is nearly full.",)))
    assert snap_compare(app, terminal_size=(100, 30), run_before=settled())


@pytest.mark.parametrize(
    "keys",
    [
        ("down", "t", "enter"),
        ("down", "t", "enter", "5"),
        ("down", "down", "enter"),
        ("c", "down", "down", "space", "down", "down"),
        ("question_mark",),
        ("q",),
        ("e",),
        ("a",),
        ("down", "down", "y"),
        ("L",),
        ("4", "4"),
    ],
    ids=lambda keys: "-".join(keys),
)
def test_screens(snap_compare: Compare, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert snap_compare(scenes.app_of(scenes.work()), terminal_size=(100, 30), run_before=settled(*keys))


@pytest.mark.parametrize(
    ("size", "theme"), [((80, 24), "trimtab-dark"), ((100, 30), "trimtab-light"), ((160, 40), "trimtab-dark")]
)
def test_a_training_job(snap_compare: Compare, size: tuple[int, int], theme: str) -> None:
    app = scenes.app_of(scenes.training(), theme=theme)
    assert snap_compare(app, terminal_size=size, run_before=settled("L"))


def test_a_training_job_among_the_others(snap_compare: Compare) -> None:
    assert snap_compare(scenes.app_of(scenes.training()), terminal_size=(100, 30), run_before=settled())


@pytest.mark.parametrize(
    ("size", "theme"), [((80, 24), "trimtab-ansi"), ((100, 30), "trimtab-dark"), ((100, 30), "trimtab-light")]
)
def test_what_each_layer_costs(snap_compare: Compare, size: tuple[int, int], theme: str) -> None:
    app = scenes.app_of(scenes.scanned(), theme=theme)
    assert snap_compare(app, terminal_size=size, run_before=settled("home", "h", "a", "down", "right", "right"))


def test_open_screen(snap_compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    (folder / "weights").mkdir(parents=True)
    for name in ("residual_cnn.py", "detector.onnx", "legacy.pt"):
        (folder / name).write_text("")
    monkeypatch.chdir(folder)
    app = scenes.app_of(scenes.fresh())
    assert snap_compare(app, terminal_size=(100, 30), run_before=settled(*"legacy", "full_stop", "p", "t"))
