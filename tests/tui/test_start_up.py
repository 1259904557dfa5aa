"""The dashboard starts without the heavy libraries, and its files stay small enough to read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tui

TUI = Path(tui.__file__).parent

LEAVES = "from tui.headless import leave, print_result; print_result('table'); leave(3)"
LISTS = "from tui.cli import main; main(['ls'])"

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "transformers", "textual_plot", "psutil", "pynvml")


def test_importing_the_dashboard_imports_nothing_heavy() -> None:
    script = f"import sys, tui.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_screens_other_than_the_main_one_are_imported_when_they_are_first_shown() -> None:
    script = "import sys, tui.app; print(sorted(name for name in sys.modules if name.startswith('tui.screens.')))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "['tui.screens.main']"


def test_files_are_short_and_say_at_their_top_what_they_are_for() -> None:
    for path in TUI.rglob("*.py"):
        source = path.read_text()
        assert source.startswith('"""'), path
        assert len(source.split("\n")) <= (250 if path.name == "app.py" else 400), path


@pytest.mark.parametrize(("script", "stream", "status"), [(LEAVES, "stdout", 3), (LISTS, "stderr", 141)])
def test_a_pipe_whose_reader_has_gone_is_no_error(tmp_path, script, stream, status) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writes}
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, **streams, env=environment, text=True)  # type: ignore[call-overload]
    os.close(writes)
    assert (ended.returncode, ended.stdout or "", ended.stderr or "") == (status, "", "")
