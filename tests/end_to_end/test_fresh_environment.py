"""What a newcomer has: a clean clone, no virtual environment. Catches install steps that only this machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The tracked files as they are now, in an empty folder."""
    folder = tmp_path_factory.mktemp("clone") / "trimtab"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        source = REPOSITORY / name
        if source.exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())
    return folder


def test_make_setup_in_a_clean_clone_gives_a_trimtab_that_optimises(clone, tmp_path):
    subprocess.run(["make", "setup", f"PYTHON={sys.executable}"], cwd=clone, check=True, timeout=600)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
    model = clone / "tests" / "models" / "tiny_cnn.py"

    def trimtab(*arguments):
        return subprocess.run(
            [clone / ".venv/bin/trimtab", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    try:
        opened = trimtab("open", str(model), "--headless")
        assert opened.returncode == 0, opened.stderr
        applied = trimtab("apply", "export-onnx")
        assert applied.returncode == 0, applied.stderr
        assert "export-onnx" in applied.stdout
    finally:
        trimtab("stop", "--cancel-jobs")


def test_a_wheel_holds_the_stylesheets_and_the_sample_models(clone, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, clone], check=True, timeout=300
    )
    (wheel,) = tmp_path.glob("trimtab-*.whl")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout
    assert "tui/app.tcss" in names
    assert "sample_models/residual_cnn.py" in names
    assert "sample_models/weights/residual_cnn.safetensors" in names
    assert "sample_models/data/test-images.xz" in names
    assert "engine/__main__.py" in names
    assert "tests/" not in names
