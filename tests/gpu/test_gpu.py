"""What only a machine with an NVIDIA GPU can show. One command, a few minutes: `make test-gpu`.

Every test here fails, not skips, when the GPU or its packages are missing: whoever runs it wants to know.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(540)]

REPOSITORY = Path(__file__).resolve().parents[2]

RECIPE = """
model = "residual_cnn.py"
device = "cuda:0"
batch_sizes = [1, 32]

[[steps]]
technique = "export-onnx"
"""


def test_telemetry_reads_the_real_gpu():
    from engine.telemetry import Telemetry, read_hardware

    hardware = read_hardware()
    assert hardware.gpus, hardware.gpu_status
    telemetry = Telemetry()
    try:
        gpu = telemetry.sample().gpus[0]
    finally:
        telemetry.close()
    assert gpu.memory_total_bytes
    assert gpu.memory_total_bytes > 2**30
    assert gpu.temperature_c is not None


def test_the_sample_network_runs_on_the_gpu_under_pytorch_and_onnx_runtime(tmp_path):
    recipe = tmp_path / "gpu.toml"
    recipe.write_text(RECIPE.replace("residual_cnn.py", str(REPOSITORY / "sample_models" / "residual_cnn.py")))
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    trimtab = Path(sys.executable).with_name("trimtab")
    done = subprocess.run(
        [trimtab, "run", str(recipe), "--json", "--session", str(tmp_path / "gpu.trimtab")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    subprocess.run([trimtab, "stop", "--session", str(tmp_path / "gpu.trimtab"), "--cancel-jobs"], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)
    for variant in results["variants"]:
        assert variant["measurements"], variant["name"]
        assert {measured["device"] for measured in variant["measurements"]} == {"cuda:0"}
