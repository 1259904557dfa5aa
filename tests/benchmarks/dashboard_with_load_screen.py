"""The load-test screen as the cost benchmark runs it: a real process on a real terminal, fed as by a load test.

Twice a second two ticks, the newest progress and a sample of the hardware, in one go: what an engine sends. Knobs are
turned now and then. What it costs is measured from outside, by `test_dashboard_load_cost.py`; run by hand it can be
looked at.
"""

import asyncio
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "tui")]

import load_scenes as loads  # noqa: E402
import scenes  # noqa: E402

from engine.protocol import JobChanged, LoadMark, LoadTicked, Running, TelemetrySampled  # noqa: E402
from tui.app import TrimtabApp  # noqa: E402
from tui.screens.load_test import LoadTestScreen  # noqa: E402

SETTINGS = msgspec.structs.replace(loads.SETTINGS, seconds=120.0)


async def feed(engine: Any, seconds: float) -> None:
    """What an engine says while a load test runs."""
    start, sample = time.time(), engine.state.telemetry[-1]
    number = 0
    while time.time() < start + seconds:
        number += 1
        noise = math.sin(number * 1.7) + math.sin(number * 0.31)
        marks = (LoadMark(seconds=number / 4, text="rate 440/s"),) if number % 40 == 0 else ()
        tick = loads.tick(
            number,
            SETTINGS,
            start,
            p99_ms=9.0 + 2.0 * noise,
            p50_ms=3.0 + 0.3 * noise,
            queue_depth=int(5 + 2 * noise),
            achieved_per_s=398 + 8 * noise,
            cpu=0.7 + 0.1 * noise,
            batch_sizes={str(int(8 + 3 * noise)): 12, "4": 3, "16": 2},
            marks=marks,
        )
        engine.push(LoadTicked(seq=0, job="j8", tick=tick))
        if number % 2 == 0:
            state = Running(
                started=start, pid=1, done=number / 4, total=120, message=f"measuring · {398 + noise:.1f}/s"
            )
            engine.push(JobChanged(seq=0, job=loads.job(state=state, created=start)))
            cpu = 0.5 + 0.2 * noise
            engine.push(TelemetrySampled(seq=0, sample=msgspec.structs.replace(sample, time=time.time(), cpu=cpu)))
            await asyncio.sleep(max(start + number / 4 - time.time(), 0.0))


class FedApp(TrimtabApp):
    """The dashboard with the wall clock, the load-test screen open, and an engine that talks."""

    async def on_mount(self) -> None:  # Textual calls the base class's on_mount too
        seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
        self.run_worker(feed(self.engine, seconds), group="feed")  # type: ignore[attr-defined]
        await self.push_screen(LoadTestScreen("j8", settings=SETTINGS))


def main() -> None:
    """Run until the terminal goes or the user quits."""
    engine = scenes.SceneEngine(
        loads.snapshot(jobs=(loads.job(),)), scenes.replies() | loads.answers(settings=SETTINGS)
    )

    async def connect(session_directory: Path, start: bool) -> scenes.SceneEngine:
        return engine

    app = FedApp(Path("/tmp/cnn.trimtab"), connect=connect, theme=os.environ.get("TRIMTAB_THEME", "trimtab-dark"))
    app.engine = engine  # type: ignore[attr-defined]
    app.run()


if __name__ == "__main__":
    main()
