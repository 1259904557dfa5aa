"""A variant runs under its runtimes with the same answers, on the device that was asked for or not at all."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from engines import wait_until
from onnx import TensorProto, helper
from opened_models import CLASSIFIER, baseline_of, linear_graph, opened, save_graph, write

from engine.hardware import read_processor
from engine.protocol import VariantDraft
from engine.runtimes import Runner, RuntimeUnavailable, load, pytorch


@pytest.fixture
def module(tmp_path: Path) -> Runner:
    return load(baseline_of(opened(write(tmp_path, CLASSIFIER)), tmp_path), "pytorch", threads=1)


def test_pytorch_runs_named_arrays(module: Runner, tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    output = module.run({"features": features})["output"]
    assert output.shape == (5, 3)
    assert not np.array_equal(output[0], output[1])
    assert (module.runtime, module.device, module.threads) == ("pytorch", "cpu", 1)
    assert module.versions["torch"] == torch.__version__


def test_a_bound_call_is_the_same_call(module: Runner) -> None:
    features = np.ones((2, 6), np.float32)
    bound = module.bind({"features": features})
    assert np.array_equal(bound().numpy(), module.run({"features": features})["output"])  # type: ignore[attr-defined]
    assert not bound().requires_grad  # type: ignore[attr-defined]


def test_bfloat16_is_allowed_on_a_cpu_with_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = baseline_of(opened(write(tmp_path, CLASSIFIER)), tmp_path)
    plain, half = load(variant, "pytorch", threads=1), load(variant, "pytorch-bfloat16", threads=1)
    features = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    wanted, given = plain.run({"features": features})["output"], half.run({"features": features})["output"]
    assert given.dtype == np.float32, "what comes out is what the baseline gives"
    assert not np.array_equal(wanted, given), "products were rounded"
    assert np.allclose(wanted, given, atol=0.05)
    assert half.runtime == "pytorch-bfloat16"
    assert half.bind({"features": features})().dtype == torch.float32  # type: ignore[attr-defined]
    for features_here, told in (((), True), (("avx2", "amx-bf16"), False)):
        here = msgspec.structs.replace(read_processor(), features=features_here)
        monkeypatch.setattr(pytorch, "read_processor", lambda here=here: here)
        notes = load(variant, "pytorch-bfloat16", threads=1).notes  # type: ignore[attr-defined]
        assert any("no matrix unit for bfloat16" in note for note in notes) is told


def test_under_autocast_outputs_of_every_structure_come_out_in_fp32() -> None:
    @dataclasses.dataclass
    class Answer:
        scores: torch.Tensor
        note: str = "kept"

    class Net(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return Answer(super().forward(x)), [x.long()]

    net = Net(3, 2)
    pytorch._autocast(net, "cpu", torch.bfloat16)
    answer, (whole,) = net(torch.ones(1, 3))
    assert (answer.scores.dtype, answer.note, whole.dtype) == (torch.float32, "kept", torch.int64)


def test_float16_is_refused_on_a_cpu_with_what_to_do(tmp_path: Path) -> None:
    variant = baseline_of(opened(write(tmp_path, CLASSIFIER)), tmp_path)
    with pytest.raises(RuntimeUnavailable, match=r"FP16 is for GPUs: .* Run baseline under pytorch-bfloat16"):
        load(variant, "pytorch-float16")


def test_onnxruntime_runs_named_arrays_and_says_who_ran_them(tmp_path: Path) -> None:
    baseline = baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path)
    runner = load(baseline, "onnxruntime", threads=1)
    x = np.ones((2, 6), np.float32)
    assert runner.run({"x": x})["scores"].shape == (2, 3)
    assert np.array_equal(runner.bind({"x": x})()[0], runner.run({"x": x})["scores"])  # type: ignore[index]
    assert runner.providers == ("CPUExecutionProvider",)
    assert runner.versions == {"onnxruntime": onnxruntime.__version__}


@pytest.mark.parametrize("kind", ["FLOAT16", "INT32", "BOOL", "DOUBLE"])
def test_inputs_are_cast_to_what_the_graph_wants(tmp_path: Path, kind: str) -> None:
    wanted = getattr(TensorProto, kind)
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (wanted, ["batch", 2])},
        {"y": (wanted, ["batch", 2])},
    )
    runner = load(baseline_of(opened(path), tmp_path), "onnxruntime")
    (output,) = runner.run({"x": np.array([[0.0, 1.0]])}).values()
    assert output.tolist() == [[0, 1]]
    assert output.dtype == helper.tensor_dtype_to_np_dtype(wanted)


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    runner = load(baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path), "onnxruntime")
    with pytest.raises(ValueError, match="input x is missing among z"):
        runner.run({"z": np.zeros((1, 6), np.float32)})


def test_sessions_do_not_spin_after_a_run(tmp_path: Path) -> None:
    """A spinning pool burns 20 ms and more of CPU time here; the sum of ten sleeps must stay far below that."""
    weights = {f"w{i}": np.zeros((512, 512), np.float32) for i in range(4)}
    names = ["x", "a", "b", "c", "y"]
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(4)],
        {"x": (TensorProto.FLOAT, ["batch", 512])},
        {"y": (TensorProto.FLOAT, ["batch", 512])},
        weights,
    )
    runner = load(baseline_of(opened(path), tmp_path), "onnxruntime", threads=2)
    x, burnt = np.zeros((64, 512), np.float32), 0.0
    for _ in range(10):
        runner.run({"x": x})
        runner.settle()
        before = time.process_time()
        time.sleep(0.02)
        burnt += time.process_time() - before
    assert burnt < 0.05


def test_pytorch_threads_are_quiet_once_it_has_settled(tmp_path: Path) -> None:
    text = """
    import torch
    def load_model(): return torch.nn.Sequential(*[torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)])
    def example_input(batch_size): return torch.zeros(batch_size, 32, 28, 28)
    """
    model = opened(write(tmp_path, text))
    runner = load(baseline_of(model, tmp_path), "pytorch", threads=2)
    inputs, burnt = model.example(8), 0.0
    for _ in range(10):
        runner.run(inputs)
        runner.settle()
        before = time.process_time()
        time.sleep(0.02)
        burnt += time.process_time() - before
    torch.set_num_threads(1)
    assert burnt < 0.02


def test_a_runtime_that_cannot_run_the_format_says_so(tmp_path: Path) -> None:
    python = baseline_of(opened(write(tmp_path, CLASSIFIER)), tmp_path)
    with pytest.raises(RuntimeUnavailable, match="onnxruntime cannot run baseline, which is pytorch"):
        load(python, "onnxruntime")
    with pytest.raises(RuntimeUnavailable, match="There is no runtime 'magic'"):
        load(python, "magic")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: asking for it is no error")
def test_a_device_that_is_not_there_is_an_error_and_no_slower_figure(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    python = baseline_of(opened(write(tmp_path, CLASSIFIER)), tmp_path / "a")
    with pytest.raises(RuntimeUnavailable, match="sees no CUDA device"):
        load(python, "pytorch", "cuda:0")
    graph = baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path)
    with pytest.raises(RuntimeUnavailable, match="CUDA"):
        load(graph, "onnxruntime", "cuda:0")


def test_a_silent_fall_back_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu does without a driver: it lists CUDA, then makes a CPU session without a word."""
    graph = baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path)
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, ["CPUExecutionProvider"])
    )
    with pytest.raises(RuntimeUnavailable, match="fell back to the CPU instead of cuda:0"):
        load(graph, "onnxruntime", "cuda:0")


def test_a_broken_graph_is_told_in_one_sentence(tmp_path: Path) -> None:
    baseline = baseline_of(opened(linear_graph(tmp_path / "net.onnx")), tmp_path)
    baseline.path.write_bytes(b"broken")
    with pytest.raises(RuntimeUnavailable, match="ONNX Runtime cannot load baseline on cpu"):
        load(baseline, "onnxruntime")


def test_drafts_name_the_format_a_runtime_needs(tmp_path: Path) -> None:
    draft: VariantDraft = opened(linear_graph(tmp_path / "net.onnx")).write_baseline(tmp_path / "b")
    assert (draft.format, draft.files) == ("onnx", ("model.onnx",))


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="OpenMP's helpers are looked at here")
def test_the_openmp_threads_of_a_warm_up_end() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pytorch.end_openmp_threads()
        alone = threads()
        torch.nn.functional.conv2d(torch.ones(8, 8, 64, 64), torch.ones(8, 8, 3, 3))
        assert threads() == alone + 1
        pytorch.end_openmp_threads()
        wait_until(lambda: threads() == alone)
    finally:
        torch.set_num_threads(before)
