"""End-to-end tests use the installed `trimtab`, real engine processes and real workers, in a directory of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TRIMTAB = Path(sys.executable).with_name("trimtab")


class Shell:
    """Runs `trimtab` in one directory, with its state beside it, and ends the engines it started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"XDG_STATE_HOME": str(directory / "state"), "NO_COLOR": "1"}

    def trimtab(self, *arguments: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(TRIMTAB), *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def json(self, *arguments: str, status: int = 0, timeout: float = 500) -> dict:
        """The one object on standard output; fails with both streams when the exit status is another."""
        done = self.trimtab(*arguments, "--json", timeout=timeout)
        assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def stop_all(self) -> None:
        for session in self.directory.rglob("*.trimtab"):
            self.trimtab("stop", "--session", str(session), "--cancel-jobs")


@pytest.fixture
def shell(tmp_path: Path):
    shell = Shell(tmp_path)
    yield shell
    shell.stop_all()


@pytest.fixture
def tiny_cnn(tmp_path: Path) -> Path:
    """A copy of the tiny model file in the test's own directory."""
    copy = tmp_path / "tiny_cnn.py"
    copy.write_text((REPOSITORY / "tests" / "models" / "tiny_cnn.py").read_text())
    return copy
