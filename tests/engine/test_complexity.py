"""Multiply-adds are counted as one counts them by hand, in modules and in graphs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from opened_models import linear_graph, save_graph
from torch import nn

from engine.complexity import count_macs, file_macs, module_operators

FLOAT = TensorProto.FLOAT

MODULES = {
    "linear": (nn.Linear(6, 4), (1, 5, 6), 5 * 6 * 4, {"Gemm"}),
    "convolution": (nn.Conv2d(4, 8, 3, padding=1, groups=2), (1, 4, 10, 10), 8 * 100 * 2 * 9, {"Conv"}),
    "transposed": (nn.ConvTranspose2d(4, 8, 2, stride=2), (1, 4, 5, 5), 4 * 25 * 8 * 4, {"ConvTranspose"}),
    "lstm": (nn.LSTM(28, 16, 2, bidirectional=True), (7, 1, 28), 7 * 2 * 64 * (28 + 16 + 32 + 16), {"LSTM"}),
    "gru": (nn.GRU(8, 16, batch_first=True), (1, 5, 8), 5 * 3 * 16 * 24, {"GRU"}),
    "transformer": (
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
        (1, 10, 32),
        10 * 32 * 96 + 2 * 100 * 32 + 10 * 32 * 32 + 2 * 10 * 32 * 64,
        {"Gemm", "LayerNormalization", "Attention"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODULES)
def test_a_modules_count_is_that_by_hand(kind: str) -> None:
    module, shape, macs, operators = MODULES[kind]
    module.eval()

    def call() -> None:
        with torch.no_grad():
            module(torch.zeros(shape))

    assert count_macs(module, call) == macs
    assert operators <= set(module_operators(module, call))


def test_a_graphs_count_is_per_sample(tmp_path: Path) -> None:
    path = linear_graph(tmp_path / "net.onnx")
    assert file_macs(path, {"x": np.zeros((4, 6), np.float32)}, samples=4) == 18


def test_convolutions_and_recurrent_nodes_are_counted(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [
            helper.make_node("Conv", ["x", "kernel"], ["maps"], pads=[1, 1, 1, 1], group=2),
            helper.make_node("LSTM", ["steps", "w", "r"], ["", "", "last"], hidden_size=5),
        ],
        {"x": (FLOAT, ["batch", 4, 8, 8]), "steps": (FLOAT, [3, "batch", 6])},
        {"maps": (FLOAT, ["batch", 8, 8, 8]), "last": (FLOAT, [1, "batch", 5])},
        {
            "kernel": np.zeros((8, 2, 3, 3), np.float32),
            "w": np.zeros((1, 20, 6), np.float32),
            "r": np.zeros((1, 20, 5), np.float32),
        },
    )
    inputs = {"x": np.zeros((1, 4, 8, 8), np.float32), "steps": np.zeros((3, 1, 6), np.float32)}
    assert file_macs(path, inputs) == 8 * 64 * 2 * 9 + 3 * 20 * (6 + 5)


def test_shapes_that_inference_does_not_find_are_seen_by_running(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [
            helper.make_node("FusedMatMul", ["x", "w"], ["h"], domain="com.microsoft"),
            helper.make_node("MatMul", ["h", "v"], ["y"]),
        ],
        {"x": (FLOAT, ["batch", 6])},
        {"y": (FLOAT, ["batch", 2])},
        {"w": np.zeros((6, 4), np.float32), "v": np.zeros((4, 2), np.float32)},
    )
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    assert file_macs(path, {"x": np.zeros((1, 6), np.float32)}) == 24 + 8


def test_a_loop_of_unknown_length_has_no_count(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "square"], ["next"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, [1, 4]),
        ],
    )
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        {"x": (FLOAT, [1, 4]), "times": (TensorProto.INT64, [])},
        {"y": (FLOAT, [1, 4])},
        {"square": np.zeros((4, 4), np.float32)},
    )
    assert file_macs(path, {"x": np.zeros((1, 4), np.float32), "times": np.array(2)}) is None
