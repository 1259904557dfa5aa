"""What the README promises first: `make demo` and `trimtab demo --headless`, on the trained sample network."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_headless_demo_makes_the_cnn_twice_as_fast_within_a_point(shell):
    results = shell.json("demo", "--headless", timeout=850)
    assert results["schema"] == "trimtab/demo/1"
    good = [
        (variant["name"], measured["speedup"])
        for variant in results["variants"]
        if variant["technique"] and variant["accuracy"]["verdict"] == "PASS" and variant["accuracy"]["drop"] <= 0.01
        for measured in variant["measurements"]
        if measured["batch_size"] == 8 and measured["runtime"] == "onnxruntime"
    ]
    assert any(speedup["ratio"] >= 2 for _, speedup in good), good


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
@pytest.mark.timeout(300)
def test_make_demo_reaches_a_usable_dashboard_in_a_terminal(tmp_path):
    terminal = Tmux(tmp_path / "tmux.sock", columns=100, rows=30)
    environment = f"XDG_STATE_HOME={tmp_path}/state"
    try:
        terminal.start(f"cd {tmp_path} && env {environment} make -C {REPOSITORY} demo DEMO_DIRECTORY={tmp_path}")
        terminal.wait_for("baseline", seconds=120)
        terminal.keys("?")
        terminal.wait_for("apply a technique", seconds=30)
        terminal.keys("Escape")
        terminal.wait_until_gone("apply a technique", seconds=30)
        terminal.keys("q")
        terminal.wait_until_ended_or_asks(seconds=60)
    finally:
        terminal.kill()
        session = tmp_path / "residual_cnn.trimtab"
        subprocess.run(
            [REPOSITORY / ".venv/bin/trimtab", "stop", "--session", session, "--cancel-jobs"],
            env={"XDG_STATE_HOME": f"{tmp_path}/state", "PATH": "/usr/bin:/bin"},
            timeout=60,
        )


class Tmux:
    """A terminal of a given size that a test can type into and read."""

    def __init__(self, socket: Path, columns: int, rows: int) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self._size = ["-x", str(columns), "-y", str(rows)]

    def start(self, command: str) -> None:
        subprocess.run([*self._tmux, "new-session", "-d", "-s", "test", *self._size, command], check=True)

    def keys(self, *names: str) -> None:
        subprocess.run([*self._tmux, "send-keys", "-t", "test", *names], check=True)

    def screen(self) -> str:
        done = subprocess.run([*self._tmux, "capture-pane", "-p", "-t", "test"], capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    def alive(self) -> bool:
        return subprocess.run([*self._tmux, "has-session", "-t", "test"], capture_output=True).returncode == 0

    def wait_for(self, text: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if text.lower() in self.screen().lower():
                return
            assert self.alive(), f"the terminal ended before it showed {text!r}"
            time.sleep(0.2)
        raise AssertionError(f"{text!r} did not appear within {seconds} s:\n{self.screen()}")

    def wait_until_gone(self, text: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while text.lower() in self.screen().lower():
            assert time.monotonic() < deadline, f"{text!r} is still there after {seconds} s:\n{self.screen()}"
            time.sleep(0.2)

    def wait_until_ended_or_asks(self, seconds: float) -> None:
        """Quitting ends the dashboard, or with a job running asks what to do with it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.alive() or "running" in self.screen().lower():
                return
            time.sleep(0.2)
        raise AssertionError(f"q neither ended the dashboard nor asked:\n{self.screen()}")

    def kill(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True)
