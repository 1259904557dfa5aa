"""What our processes have imported, read from `sys.modules` of real ones.

The static contracts (import-linter) cannot see imports inside functions, which is how a heavy library usually gets
into a process that must stay light. The engine has to answer while a job burns every core and to be idle for free;
the dashboard has to paint within half a second.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

HEAVY = {"torch", "onnx", "transformers", "onnxruntime", "numpy", "onnxscript", "tensorrt", "openvino", "scipy"}
"""What lives in workers and only there."""

SCREEN = {"textual", "rich", "tui"}
"""What lives in the client and only there."""

USER_NAMES = {"engine", "tui"}
"""Names that belong to the user's own modules in our engine's processes."""

IMPORTS = [
    ("import tui.app", HEAVY),
    ("import tui.cli", HEAVY | {"textual", "rich"}),
    ("import engine.client", HEAVY | SCREEN | {"engine.session", "engine.server", "engine.techniques", "psutil"}),
    ("import engine.protocol", HEAVY | SCREEN | {"asyncio"}),
    ("from engine.techniques import all_techniques; all_techniques()", HEAVY | SCREEN),
    ("import engine.recipes, engine.exports", HEAVY | SCREEN),
    ("import engine.telemetry, engine.hardware, engine.targets", HEAVY | SCREEN),
    ("from engine.batching import BatchPolicy, QueueFull", HEAVY | SCREEN | {"asyncio"}),
]
"""A statement, and what must not be in `sys.modules` after it."""


def modules_after(code: str, *options: str) -> set[str]:
    """`sys.modules` of a fresh interpreter that ran `code`, which may print lines of its own before."""
    code += "\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    ran = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(("statement", "forbidden"), IMPORTS)
def test_an_import_brings_nothing_heavy(statement, forbidden):
    assert modules_after(statement) & forbidden == set()


def test_the_batcher_itself_comes_when_it_is_asked_for():
    assert "numpy" in modules_after("from engine.batching import DynamicBatcher; DynamicBatcher(lambda inputs: inputs)")


ENGINE_AT_WORK = """
import asyncio, os, runpy, sys, threading
sys.path = [entry for entry in sys.path if entry not in ("", os.getcwd())]
main = runpy.run_path({main!r})
main["load_package"]()
server = sys.modules["_trimtab_engine"].__name__ + ".server.server"
import importlib
server = importlib.import_module(server)
from _trimtab_engine.session import Session
from _trimtab_engine.paths import lock_session
from _trimtab_engine import protocol
from _trimtab_engine.server import commands
from pathlib import Path

async def live():
    directory = Path({session!r})
    directory.mkdir()
    engine = server.Engine(Session.open(directory), lock_session(directory))
    running = asyncio.create_task(engine.run())
    for command in (
        protocol.ListTechniques(request=1),
        protocol.CheckParameters(request=2, technique="quantize-static", parameters={{}}),
        protocol.SetOptions(request=3, accuracy_limit=0.02),
        protocol.GetResults(request=4, format="json"),
        protocol.ReadTelemetry(request=5, since=0.0),
        protocol.ReadLog(request=6),
    ):
        reply = await commands.answer(engine, None, command)
        assert reply.error is None, reply
    engine.sampler.keep(engine.sampler._telemetry.sample())
    engine.snapshot()
    engine.stop("the test is over")
    await running

asyncio.run(live())
"""


def test_the_engine_at_work_holds_nothing_heavy_and_leaves_the_users_names_alone(tmp_path, monkeypatch):
    """A whole engine in a process of its own: it listens, answers commands, samples, and stops."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    code = ENGINE_AT_WORK.format(main=str(ROOT / "engine" / "__main__.py"), session=str(tmp_path / "m.trimtab"))
    modules = modules_after(code, "-P")
    assert "_trimtab_engine.server.server" in modules
    assert modules & (HEAVY | SCREEN | USER_NAMES) == set()
