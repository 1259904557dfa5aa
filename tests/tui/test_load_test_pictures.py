"""Pictures of the load-test screen, compared cell by cell with the ones that a person has looked at."""

from collections.abc import Callable
from typing import Any

import load_scenes as loads
import msgspec
import pytest
from test_pictures import Compare, settled
from textual.pilot import Pilot

from engine.protocol import Snapshot


def app_of(snapshot: Snapshot, answers: dict[type, Any], **options: Any) -> Any:
    return loads.scenes.app_of(snapshot, answers, **options)


def opened(*keys: str) -> Callable[[Pilot[Any]], Any]:
    """The load test on the screen, its history read and drawn, then keys."""

    async def prepare(pilot: Pilot[Any]) -> None:
        app: Any = pilot.app
        await settled("v")(pilot)
        for _ in range(500):
            if any(course.complete for course in app.connection.loads.values()):
                break
            await pilot.pause(0.01)
        for key in keys:
            await pilot.press(key)
            await pilot.pause(0.1)
        app.paint()
        await pilot.pause(0.1)

    return prepare


@pytest.mark.parametrize("size", [(80, 24), (100, 30)])
def test_a_load_test_that_runs(snap_compare: Compare, size: tuple[int, int]) -> None:
    app = app_of(loads.snapshot(jobs=(loads.job(),)), loads.answers(loads.ticks(48)))
    assert snap_compare(app, terminal_size=size, run_before=opened())


def test_a_finished_sweep_in_the_light_theme(snap_compare: Compare) -> None:
    settings = msgspec.structs.replace(loads.SETTINGS, rate=None, sweep=True, slo_p99_ms=30.0)
    scene = loads.snapshot(*loads.sweep(), jobs=(loads.job(ended=True),))
    app = app_of(scene, loads.answers(loads.ticks(48), settings), theme="trimtab-light")
    assert snap_compare(app, terminal_size=(110, 34), run_before=opened())
