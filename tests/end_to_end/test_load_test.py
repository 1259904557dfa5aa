"""Load tests from the command line: one load, knobs turned from another terminal, the highest rate, a sweep."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRIMTAB = Path(sys.executable).with_name("trimtab")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def exported(shell, tiny_cnn):
    """A session with a tiny CNN, exported."""
    shell.json("open", "tiny_cnn.py", "--headless")
    shell.json("apply", "export-onnx")
    return shell


def test_loads_are_measured_steered_and_read_again(exported):
    shell = exported
    found = shell.json("load-test", "export-onnx", "--concurrency", "4", "--seconds", "1", "--warm-up-seconds", "0.2")
    assert found["schema"] == "trimtab/load-test/1"
    assert found["valid"] is True
    assert found["completed"] > 0
    assert found["failed"] == found["rejected"] == 0
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["p999"]
    assert sum(found["batch_sizes"].values()) > 0
    assert 0 <= found["utilization"]["cpu"] <= 1
    assert found["runtime"] == "onnxruntime"

    wrong = shell.trimtab("load-test", "export-onnx", "--rate", "5", "--offline")
    assert wrong.returncode == 2
    assert "exclude each other" in wrong.stderr
    assert shell.trimtab("load-test", "export-onnx").returncode == 2
    assert shell.trimtab("load-test", "export-onnx", "--rate", "fast").stderr.startswith("trimtab: --rate: expected")
    nothing = shell.trimtab("steer", "--rate", "5")
    assert nothing.returncode == 2
    assert "No load test is running" in nothing.stderr

    running = subprocess.Popen(
        [str(TRIMTAB), "load-test", "export-onnx", "--rate", "20", "--seconds", "120", "--json"],
        cwd=shell.directory,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while (turned := shell.trimtab("steer", "--rate", "40", "--max-batch-size", "2")).returncode != 0:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert turned.stdout == "Load test of export-onnx · onnxruntime: rate 40, max batch size 2.\n"
        assert shell.trimtab("steer", "--max-batch-size", "0").returncode == 2
        assert shell.trimtab("steer").returncode == 2
        refused = shell.trimtab("steer", "--concurrency", "4")
        assert refused.returncode == 2
        assert "has no concurrency: change its rate." in refused.stderr
        assert refused.stdout == ""
        time.sleep(1.5)  # for some requests to be sent at the new rate
        assert shell.json("steer", "--stop")["schema"] == "trimtab/steer/1"
        output, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    steered = json.loads(output)
    assert [mark["text"] for mark in steered["marks"]][:2] == ["rate 40/s", "max batch 2"]
    assert steered["seconds"] < 60
    assert any("changed while it ran" in note for note in steered["notes"])


@pytest.mark.slow
def test_the_highest_rate_and_a_sweep(exported):
    shell = exported
    searched = shell.trimtab(
        "load-test", "export-onnx", "--slo-p99", "2000", "--seconds", "2", "--warm-up-seconds", "0.2", "--json"
    )
    assert searched.returncode in (0, 3)  # on a busy machine no rate may be confirmed
    search = json.loads(searched.stdout)["search"]
    assert search["kind"] == "rate"
    assert search["capacity_per_s"] > 0
    if searched.returncode == 0:
        assert search["best_rate_per_s"] <= search["capacity_per_s"] * 1.01
        assert search["seeds_passed"] == search["seeds_tried"] == 3

    options = ("--seconds", "1", "--warm-up-seconds", "0.2", "--sweep-batch-sizes", "1,4", "--sweep-waits-ms", "0")
    swept = shell.json("load-test", "export-onnx", "--sweep", *options, "--sweep-instances", "1")
    assert [point["max_batch_size"] for point in swept["search"]["points"]] == [1, 4]
    assert swept["search"]["recommended"] in swept["search"]["front"]
    began = time.monotonic()
    again = shell.json("load-test", "export-onnx", "--sweep", *options, "--sweep-instances", "1")
    assert time.monotonic() - began < 30
    assert again["search"]["points"] == swept["search"]["points"]


def test_a_load_test_is_a_step_of_a_recipe(shell, tiny_cnn):
    (shell.directory / "recipe.toml").write_text(
        'model = "tiny_cnn.py"\nbatch_sizes = [1]\n'
        '[[steps]]\ntechnique = "export-onnx"\n'
        '[[steps]]\nmeasurement = "load-test"\nconcurrency = 2\nseconds = 0.6\nwarm_up_seconds = 0.1\n'
    )
    ran = shell.json("run", "recipe.toml")
    assert [(step["name"], step["status"]) for step in ran["steps"]] == [
        ("export-onnx", "succeeded"),
        ("load-test", "succeeded"),
    ]
