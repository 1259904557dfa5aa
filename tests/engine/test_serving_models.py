"""What a server says that a model takes and gives, found out by calling the variant: names, types, axes, rows."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from opened_models import baseline_of, linear_graph, opened, save_graph, write

from engine.batching import BatchPolicy
from engine.models import ModelError
from engine.protocol import ServeSettings
from engine.runtimes import RuntimeUnavailable
from engine.runtimes.copies import ModelCopies
from engine.serving.description import describe
from engine.serving.job import _policy
from engine.serving.tensors import ServedTensor

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


def described(path: Path, runtime: str, shapes=None, **settings) -> tuple[list[ServedTensor], list[ServedTensor], int]:
    """(inputs, outputs, rows of the largest batch) of a model file's baseline."""
    model = opened(path, shapes=shapes or {})
    variant = baseline_of(model, path.parent)
    copies = ModelCopies(model, variant, runtime, "cpu", 1)
    policy = _policy(ServeSettings(**settings), model)
    try:
        return *describe(variant, copies, policy), policy.max_batch_size
    finally:
        copies.close()


def test_an_open_batch_takes_any_rows(tmp_path: Path):
    inputs, outputs, rows = described(linear_graph(tmp_path / "net.onnx"), "onnxruntime", max_batch_size=5)
    assert inputs == [ServedTensor("x", F32, (6,))]
    assert outputs == [ServedTensor("scores", F32, (3,))]
    assert inputs[0].wire_shape == [-1, 6]
    assert rows == 5


def test_a_graph_with_a_fixed_batch_takes_just_that_many_rows(tmp_path: Path):
    inputs, outputs, rows = described(linear_graph(tmp_path / "net.onnx", batch=4), "onnxruntime")
    assert (inputs[0].shape, outputs[0].shape, rows) == ((6,), (3,), 4)


def test_axes_that_the_model_leaves_open_stay_open(tmp_path: Path):
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Cast", ["tokens"], ["floats"], to=TensorProto.FLOAT)],
        {"tokens": (TensorProto.INT64, ["batch", "length"])},
        {"floats": (TensorProto.FLOAT, ["batch", "length"])},
    )
    inputs, outputs, _ = described(path, "onnxruntime", shapes={"tokens": ["batch", 12]})
    assert inputs == [ServedTensor("tokens", I64, (None,))]
    assert outputs == [ServedTensor("floats", F32, (None,))]


def test_a_python_model_is_described_too(tmp_path: Path):
    text = """
        import torch

        class Net(torch.nn.Module):
            def forward(self, left, right):
                return {"sum": left + right.sum(1, keepdim=True), "double": left.double()}

        def load_model():
            return Net()

        def example_input(batch_size):
            return {"left": torch.zeros(batch_size, 2), "right": torch.ones(batch_size, 3)}
    """
    inputs, outputs, _ = described(write(tmp_path, text), "pytorch")
    assert inputs == [ServedTensor("left", F32, (2,)), ServedTensor("right", F32, (3,))]
    assert outputs == [ServedTensor("sum", F32, (2,)), ServedTensor("double", np.dtype(np.float64), (2,))]


def test_lengths_that_differ_in_the_data_are_open_in_a_python_model(tmp_path: Path):
    text = """
        import torch

        class Net(torch.nn.Module):
            def forward(self, tokens):
                return tokens.float().cumsum(1), tokens.sum(1, keepdim=True)

        def load_model():
            return Net()

        def example_input(batch_size):
            return torch.zeros(batch_size, 7, dtype=torch.int64)

        def test_data():
            return [(torch.ones(1, length, dtype=torch.int64), torch.zeros(1)) for length in (5, 7, 9)]
    """
    inputs, outputs, _ = described(write(tmp_path, text), "pytorch")
    assert [tensor.shape for tensor in inputs] == [(None,)]
    assert [tensor.shape for tensor in outputs] == [(None,), (1,)]


def test_a_model_that_fails_on_a_large_batch_is_not_served(tmp_path: Path):
    text = """
        import torch

        class Net(torch.nn.Module):
            def forward(self, x):
                assert x.shape[0] <= 8, "too many for me"
                return x

        def load_model():
            return Net()

        def example_input(batch_size):
            return torch.zeros(batch_size, 2)
    """
    with pytest.raises(ModelError, match="too many for me"):
        described(write(tmp_path, text), "pytorch")


def test_the_settings_become_the_batchers_policy(tmp_path: Path):
    model = opened(linear_graph(tmp_path / "net.onnx"))
    settings = ServeSettings(
        wait="always", preferred_batch_sizes=(4, 8), priority_levels=3, max_queue_size=7, timeout_ms=2.5
    )
    assert _policy(settings, model) == BatchPolicy(
        wait="always",
        preferred_batch_sizes=(4, 8),
        priority_levels=3,
        default_priority=2,
        max_queue_size=7,
        default_timeout_ms=2.5,
    )
    with pytest.raises(RuntimeUnavailable, match="preferred batch size of 8 is over the largest batch, 4 rows"):
        _policy(ServeSettings(max_batch_size=4, preferred_batch_sizes=(2, 8)), model)
