"""Makes the pictures in this folder from a real run: `make screenshots` (about five minutes on two quiet cores).

A session is made in a temporary directory through the real engine, on the sample network with its real data; the real
dashboard is then driven with keys and saved as SVG. Nothing in a picture is written by hand.
"""

import asyncio
import os
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parent / "sample_models"

SIZE = (110, 32)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="trimtab-screenshots-") as folder:
        os.environ["XDG_STATE_HOME"] = f"{folder}/state"
        os.environ["COLORTERM"] = "truecolor"
        await _make(Path(folder) / "residual_cnn.trimtab")


async def _make(session: Path) -> None:
    from engine.client import connect
    from engine.protocol import ApplyTechnique, RunAccepted, RunRecipe, StopEngine
    from tui.app import TrimtabApp

    client = await connect(session, client="test")
    accepted = await client.request(RunRecipe(request=0, path=str(SAMPLES / "demo.toml")))
    assert isinstance(accepted, RunAccepted)
    await _ended(client, accepted.run.id)

    app = TrimtabApp(session, theme="trimtab-dark")
    async with app.run_test(size=SIZE) as pilot:
        await _until(pilot, lambda: bool(app.connection.snapshot.variants))
        another = ApplyTechnique(
            request=0,
            technique="quantize-static",
            source="export-onnx",
            parameters={"calibration": "entropy"},
            name="int8-entropy",
        )
        running = await client.request(another)
        assert isinstance(running, RunAccepted)
        await asyncio.sleep(4)
        await pilot.press("down", "down")
        await _save(app, pilot, "dashboard")
        for key, name in (("t", "techniques"), ("c", "compare"), ("enter", "details"), ("question_mark", "keys")):
            await pilot.press(key)
            await asyncio.sleep(1.5)
            await _save(app, pilot, name)
            await pilot.press("escape")
            await pilot.pause()
        await _ended(client, running.run.id)
    await client.request(StopEngine(request=0, cancel_jobs=True))
    await client.aclose()


async def _ended(client, run: str) -> None:
    events = client.events()
    while not any(known.id == run and known.finished for known in client.state.runs):
        await anext(events)


async def _until(pilot, condition) -> None:
    while not condition():
        await pilot.pause(0.1)


async def _save(app, pilot, name: str) -> None:
    await pilot.pause()
    app.save_screenshot(filename=f"{name}.svg", path=str(HERE))
    print(f"screenshots/{name}.svg")


if __name__ == "__main__":
    asyncio.run(main())
