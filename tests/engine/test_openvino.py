"""OpenVINO runs the same graphs with the same answers, in the precision and with the threads that it states."""

import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from opened_models import baseline_of, linear_graph, opened, save_graph
from session_makers import add_variant
from technique_jobs import CONVOLUTIONAL, IMAGE, apply, open_python

from engine import runtimes
from engine.recipes.steps import why_not_under
from engine.runtimes import RuntimeUnavailable, load, runtimes_for
from engine.session import Session

pytest.importorskip("openvino")


def test_it_gives_onnx_runtimes_answers_at_every_batch_size(tmp_path: Path) -> None:
    baseline = baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path)
    ours, reference = load(baseline, "openvino", threads=1), load(baseline, "onnxruntime", threads=1)
    for size in (1, 3, 1):
        x = np.random.default_rng(size).standard_normal((size, 6)).astype(np.float32)
        assert np.allclose(ours.run({"x": x})["scores"], reference.run({"x": x})["scores"], atol=1e-5)
    assert (ours.runtime, ours.device, ours.threads) == ("openvino", "cpu", 1)
    assert set(ours.versions) == {"openvino"}


def test_a_bound_call_sees_its_own_inputs_only(tmp_path: Path) -> None:
    runner = load(baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path), "openvino", threads=1)
    ones, zeros = {"x": np.ones((2, 6), np.float32)}, {"x": np.zeros((2, 6), np.float32)}
    first, second = runner.bind(ones), runner.bind(zeros)
    first(), second()
    assert np.array_equal(first().get_output_tensor(0).data, runner.run(ones)["scores"])  # type: ignore[attr-defined]
    assert np.array_equal(second().get_output_tensor(0).data, runner.run(zeros)["scores"])  # type: ignore[attr-defined]


def test_a_quantized_graph_runs_in_integers_and_float_ones_in_full_precision(tmp_path: Path) -> None:
    exported = apply(open_python(tmp_path, CONVOLUTIONAL, IMAGE), "export-onnx", tmp_path)
    quantized = apply(exported, "quantize-static", tmp_path, search="never")
    inputs = exported.model.example(4, seed=5)
    for variant, limit in ((exported, 0.99999), (quantized, 0.98)):
        runner = load(variant, "openvino", threads=1)
        reference = load(exported, "onnxruntime", threads=1).run(inputs)
        (got,), (wanted,) = runner.run(inputs).values(), reference.values()
        assert list(runner.run(inputs)) == list(reference)
        cosine = float((got * wanted).sum() / np.linalg.norm(got) / np.linalg.norm(wanted))
        assert cosine > limit
        assert "float operators in f32" in runner.notes[0]  # type: ignore[attr-defined]


def test_it_is_never_the_runtime_one_gets_without_asking() -> None:
    assert runtimes_for("onnx")[0] == "onnxruntime"
    assert "openvino" in runtimes_for("onnx")


def test_nodes_of_onnx_runtime_are_refused_by_name(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        {"x": (TensorProto.FLOAT, ["batch", 4])},
        {"y": (TensorProto.FLOAT, ["batch", 4])},
    )
    with pytest.raises(RuntimeUnavailable, match="OpenVINO cannot run baseline: Gelu is a node that only ONNX Runtime"):
        load(baseline_of(opened(path), tmp_path), "openvino")


def test_the_last_portable_ancestor_is_named_before_a_job_is_made(tmp_path: Path) -> None:
    session = Session.open(tmp_path / "m.trimtab")
    baseline = add_variant(session, "baseline")
    exported = add_variant(session, "onnx", baseline)
    fused = add_variant(session, "fused", exported, portable=False)
    smaller = add_variant(session, "int4", fused, portable=False)
    assert why_not_under(session, smaller, "onnxruntime") is None
    assert why_not_under(session, exported, "openvino") is None
    assert str(why_not_under(session, smaller, "openvino")).endswith("Its last portable ancestor is onnx.")


def test_a_missing_package_is_one_sentence_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path)
    monkeypatch.setitem(runtimes.NEEDS_PACKAGE, "openvino", "no_such_package")
    with pytest.raises(RuntimeUnavailable, match=r"^openvino is not installed: pip install trimtab\[openvino\]$"):
        load(baseline, "openvino")


def test_another_device_is_refused(tmp_path: Path) -> None:
    baseline = baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path)
    with pytest.raises(RuntimeUnavailable, match="runs on the CPU here, not on cuda:0"):
        load(baseline, "openvino", "cuda:0")


def test_its_threads_are_quiet_once_it_has_settled(tmp_path: Path) -> None:
    exported = apply(open_python(tmp_path, CONVOLUTIONAL, IMAGE), "export-onnx", tmp_path)
    runner = load(exported, "openvino", threads=2)
    inputs, burnt = exported.model.example(64), 0.0
    call = runner.bind(inputs)
    for _ in range(10):
        call()
        runner.settle()
        before = time.process_time()
        time.sleep(0.02)
        burnt += time.process_time() - before
    assert burnt < 0.05
