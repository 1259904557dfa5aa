"""The chain that multiplies gains: prune, export, quantize; for every sample network, with the table that shows it."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SAMPLES = Path(__file__).parents[2] / "sample_models"

MODEL = """
# The sample with so little data that the whole chain takes a minute: it is about what comes out, not how good it is.
import sys
sys.path.insert(0, {samples!r})
import fashion_mnist
from {name} import *

def train_data():
    return fashion_mnist.Batches("train", 64, SAMPLE_SHAPE, indices=range(768))

def validation_data():
    return fashion_mnist.Batches("train", 100, SAMPLE_SHAPE, indices=range(1000, 1200))

def calibration_data():
    return fashion_mnist.Batches("train", 32, SAMPLE_SHAPE, indices=range(800, 864))

def test_data():
    return fashion_mnist.Batches("test", 100, SAMPLE_SHAPE, indices=range(300))
"""

RECIPE = """
model = "{name}_small.py"
accuracy_limit = 0.9
batch_sizes = [8]

[[steps]]
technique = "prune-structured"
name = "pruned"
keep_macs = 0.5
fine_tune_epochs = 1.0

[[steps]]
technique = "export-onnx"
name = "exported"

[[steps]]
technique = "{quantization}"
name = "int8"
"""

BETWEEN_PROCESSES = 1.1
"""The gains come from two jobs: what is drawn once a process (memory, threads' places) is in neither's interval."""

QUANTIZATION = {
    "residual_cnn": "quantize-static",
    "vision_transformer": "quantize-static",
    "lstm": "quantize-dynamic",
}
"""Sample → how it becomes INT8 on a processor."""


@pytest.mark.parametrize("name", QUANTIZATION)
def test_every_sample_is_pruned_exported_and_quantized_and_the_table_shows_what_each_step_brought(name, shell):
    (shell.directory / f"{name}_small.py").write_text(MODEL.format(name=name, samples=str(SAMPLES)))
    (shell.directory / "recipe.toml").write_text(RECIPE.format(name=name, quantization=QUANTIZATION[name]))
    run = shell.json("run", "recipe.toml")
    assert [step["status"] for step in run["steps"]] == ["succeeded"] * 3, run["steps"]
    baseline, pruned, exported, int8, *others = run["variants"]  # quantizing may leave a front of several
    assert [variant["parent"] for variant in (pruned, exported, int8, *others)] == [
        variant["id"] for variant in (baseline, pruned, exported, *(exported for _ in others))
    ]
    assert pruned["macs"] <= 0.5 * baseline["macs"]
    assert pruned["parameter_count"] < 0.75 * baseline["parameter_count"]
    assert int8["size_bytes"] < 0.45 * exported["size_bytes"] < 0.45 * baseline["size_bytes"]

    gain, over_parent = int8["speedup"], int8["speedup_over_parent"]
    assert gain["ratio"] > 0
    assert over_parent["ratio"] > 0
    before = next(one for one in exported["measurements"] if one["runtime"] == int8["runtime"])
    low, high = (before["speedup"][end] * over_parent[end] for end in ("low", "high"))
    assert low <= BETWEEN_PROCESSES * gain["high"], "the gain is that of the graph times that of INT8"
    assert gain["low"] <= BETWEEN_PROCESSES * high, "the gain is that of the graph times that of INT8"

    table = shell.trimtab("compare").stdout
    header = next(line for line in table.splitlines() if "over parent" in line)
    assert "speed-up" in header
    row = next(line for line in table.splitlines() if "int8" in line)
    assert row.count("×") >= 2
