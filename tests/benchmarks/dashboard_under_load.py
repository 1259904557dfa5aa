"""The dashboard as the cost benchmark runs it: a real process on a real terminal, fed like in the middle of a job.

Two samples a second for every chart, ten progress messages a second, a log line with each, and a measurement that
arrives every other second, so that the table changes too. What it costs is measured from outside, by
`test_dashboard_cost.py`; `python tests/benchmarks/dashboard_under_load.py [SECONDS]` shows it to a person.
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

import scenes  # noqa: E402

from engine.protocol import JobChanged, JobLogged, MeasurementAdded, TelemetrySampled  # noqa: E402
from tui.app import TrimtabApp  # noqa: E402


async def feed(engine: Any, seconds: float) -> None:
    """What an engine says while a job runs."""
    start = time.time()
    shift = start - scenes.NOW
    sample = engine.state.telemetry[-1]
    job = next(job for job in engine.state.jobs if job.id == "j4")
    job = msgspec.structs.replace(job, state=msgspec.structs.replace(job.state, started=start))
    figures = [one for one in scenes.MEASUREMENTS if hasattr(one, "p50_ms") and one.speedup is not None]
    tick = 0
    while (now := time.time()) < start + seconds:
        tick += 1
        wave = 0.5 + 0.4 * math.sin(tick / 23) + 0.1 * math.sin(tick * 1.7)
        done = (tick * 0.1) % 64
        message = f"calibrating batch {int(done)} of 64"
        state = msgspec.structs.replace(job.state, done=done, message=message)
        engine.push(JobChanged(seq=0, job=msgspec.structs.replace(job, state=state)))
        engine.push(JobLogged(seq=0, job="j4", lines=(message,)))
        if tick % 5 == 0:
            cores = tuple(min(max(wave + 0.2 * math.sin(tick + core), 0.0), 1.0) for core in range(8))
            gpus = tuple(
                msgspec.structs.replace(gpu, utilisation=wave, power_w=300 + 200 * wave) for gpu in sample.gpus
            )
            engine.push(
                TelemetrySampled(
                    seq=0,
                    sample=msgspec.structs.replace(
                        sample,
                        time=now,
                        cpu=wave,
                        cores=cores,
                        memory_used_bytes=int((6 + wave) * 2**30),
                        gpus=gpus,
                    ),
                )
            )
        if tick % 20 == 0:
            old = figures[(tick // 20) % len(figures)]
            fresh = msgspec.structs.replace(old, id=f"m{tick}", created=now + shift, p50_ms=old.p50_ms * (1 + wave / 9))
            engine.push(MeasurementAdded(seq=0, measurement=fresh))
        await asyncio.sleep(0.1)


class FedApp(TrimtabApp):
    """The dashboard with the wall clock and an engine that talks."""

    def on_mount(self) -> None:  # Textual calls the base class's on_mount too
        engine = self.engine  # type: ignore[attr-defined]
        self.run_worker(feed(engine, float(sys.argv[1]) if len(sys.argv) > 1 else 60.0), group="feed")


def main() -> None:
    """Run until the terminal goes or the user quits."""
    shift = time.time() - scenes.NOW
    scene = scenes.work(1)
    samples = tuple(msgspec.structs.replace(one, time=one.time + shift) for one in scene.telemetry)
    began = time.time()

    def read_log(command: Any) -> scenes.Text:
        """Ten lines a second of 24 bytes each."""
        size = 24 * (100 + int((time.time() - began) * 10))
        text = "".join(f"line {n:>5}: calibrating\n" for n in range(command.offset // 24, size // 24))
        return scenes.Text(text=text, next_offset=size)

    engine = scenes.SceneEngine(
        msgspec.structs.replace(scene, telemetry=samples), scenes.replies() | {scenes.ReadLog: read_log}
    )

    async def connect(session_directory: Path, start: bool) -> scenes.SceneEngine:
        return engine

    app = FedApp(
        Path("/tmp/residual_cnn.trimtab"), connect=connect, theme=os.environ.get("TRIMTAB_THEME", "trimtab-dark")
    )
    app.engine = engine  # type: ignore[attr-defined]
    app.run()


if __name__ == "__main__":
    main()
