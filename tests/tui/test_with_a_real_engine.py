"""From a model file to a variant in the table with a real engine and worker; leaving and coming back loses nothing."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driver import Dashboard

from engine.client import connect
from engine.protocol import ApplyTechnique, OpenModel, StopEngine, Variant
from tui.app import TrimtabApp

MODEL = """
import torch

def load_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)).eval()

def example_input(batch_size):
    return torch.linspace(-1, 1, batch_size * 16).reshape(batch_size, 16)
"""


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Path]:
    """A session directory beside a model file; its engine is stopped at the end."""
    (tmp_path / "tiny.py").write_text(MODEL)
    yield tmp_path / "tiny.trimtab"
    client = await connect(tmp_path / "tiny.trimtab", client="test")
    await client.request(StopEngine(request=0, cancel_jobs=True))
    await client.aclose()


@contextlib.asynccontextmanager
async def attached(session: Path, open_model: OpenModel | None = None) -> AsyncIterator[Dashboard]:
    """The real dashboard on the real engine."""
    app = TrimtabApp(session, open_model, theme="trimtab-dark")
    app.engine = None  # type: ignore[attr-defined]
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        seen = Dashboard(app, pilot, patience=120.0)
        await seen.until(lambda: app.connection.link == "connected", "attaching")
        yield seen


@pytest.mark.timeout(300)
async def test_open_export_leave_and_come_back(session: Path) -> None:
    model = str(session.parent / "tiny.py")
    async with attached(session, OpenModel(request=0, path=model, measure=False)) as seen:
        await seen.sees("● baseline", "Open tiny.py", "✓")
        await seen.press("t")
        await seen.sees("Technique for baseline", "export-onnx")
        table = seen.app.screen.query_one("#technique-list")
        await seen.until(lambda: table.key is not None, "the list")  # type: ignore[attr-defined]
        table.select("export-onnx")  # type: ignore[attr-defined]
        await seen.press("enter")
        await seen.sees("trimtab apply export-onnx --from baseline")
        await seen.press("ctrl+s")
        await seen.sees_not("Technique for baseline")
        await seen.sees("└ export-onnx")
    async with attached(session) as seen:
        await seen.sees("● baseline", "└ export-onnx", "CPU", "tiny")
        await seen.press("end", "enter")
        await seen.sees("baseline → export-onnx", "What changed", "0/Gemm, 1/Relu")


def _made(seen: Dashboard) -> dict[str, Variant]:
    return {one.name: one for one in seen.app.connection.snapshot.variants}


@pytest.mark.timeout(300)
async def test_the_layer_that_loses_most_is_left_in_float_with_one_key(session: Path) -> None:
    model = str(session.parent / "tiny.py")
    async with attached(session, OpenModel(request=0, path=model, measure=False)) as seen:
        await seen.sees("● baseline", "✓")
        for technique, source in (("export-onnx", "baseline"), ("quantize-dynamic", "export-onnx")):
            await seen.app.ask(ApplyTechnique(request=0, technique=technique, source=source, measure=False))
            await seen.sees(f"└ {technique}")
        await seen.press("end", "w")
        await seen.sees("Why? quantize-dynamic against export-onnx", "2/Gemm", "0/Gemm")
        await seen.press("x")
        await seen.press("escape")
        names = {"quantize-dynamic-less-0", "quantize-dynamic-less-2"}
        await seen.until(lambda: names & set(_made(seen)), "the variant made again")
        (made,) = (variant for name, variant in _made(seen).items() if name in names)
        assert made.parameters["exclude"] == [f"{made.name[-1]}/Gemm"]
        assert made.changed is not None
        assert len(made.changed.touched) == 1


@pytest.mark.timeout(120)
async def test_a_model_that_does_not_open_says_why(session: Path) -> None:
    (session.parent / "broken.py").write_text("raise RuntimeError('weights are missing')\n")
    broken = str(session.parent / "broken.py")
    async with attached(session, OpenModel(request=0, path=broken, measure=False)) as seen:
        await seen.sees("weights are missing")
