"""A hostile `.onnx` file is refused with its reason, before ONNX Runtime reads it."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from opened_models import linear_graph, opened, refusal, save_graph

from engine.models import ModelError
from engine.models.onnx_safety import contained


def external(directory: Path) -> tuple[Path, onnx.ModelProto]:
    """A good graph whose weight lies in net.data, to be spoilt."""
    path = linear_graph(directory / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    return path, onnx.load(path, load_external_data=False)


def with_location(directory: Path, location: str) -> Path:
    path, model = external(directory)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret.data", "/etc/passwd", "a/../../secret.data", "..\\secret.data", ""])
def test_weights_outside_the_models_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.data").write_bytes(b"\0" * 100)
    (tmp_path / "inside").mkdir()
    assert "outside its own folder: refused" in refusal(with_location(tmp_path / "inside", location))


def test_weights_behind_links_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "secret.data").write_bytes(b"\0" * 100)
    os.symlink(tmp_path / "secret.data", tmp_path / "soft.data")
    assert "symbolic link: copy the model" in refusal(with_location(tmp_path, "soft.data"))
    os.link(tmp_path / "secret.data", tmp_path / "hard.data")
    assert "hard link" in refusal(with_location(tmp_path, "hard.data"))
    (tmp_path / "folder").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="symbolic link"):
        contained(tmp_path, "folder/net.data")


def test_missing_or_short_weights_are_told(tmp_path: Path) -> None:
    assert "are missing" in refusal(with_location(tmp_path, "lost.data"))
    path, _ = external(tmp_path)
    (tmp_path / "net.data").write_bytes(b"\0" * 10)
    assert "lies outside its data file" in refusal(path)


def test_bytes_that_do_not_match_the_shape_are_refused(tmp_path: Path) -> None:
    path = linear_graph(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 2**40
    path.write_bytes(model.SerializeToString())
    assert "impossible shape" in refusal(path)
    model.graph.initializer[0].dims[0] = 7
    path.write_bytes(model.SerializeToString())
    assert "its shape needs 84" in refusal(path)
    model.graph.initializer[0].dims[0] = -6
    path.write_bytes(model.SerializeToString())
    assert "impossible shape" in refusal(path)


def test_declared_shapes_that_no_machine_holds_are_refused(tmp_path: Path) -> None:
    path = linear_graph(tmp_path / "net.onnx", batch=2**62)
    assert "no machine can hold" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"PK\x03\x04 zip", b"\xff" * 1000])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    assert "is not an ONNX file" in refusal(tmp_path / "net.onnx")


def test_operators_of_custom_libraries_are_refused(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Magic", ["x"], ["y"], domain="evil.corp")],
        {"x": (TensorProto.FLOAT, ["batch", 2])},
        {"y": (TensorProto.FLOAT, ["batch", 2])},
    )
    assert "uses Magic of 'evil.corp', an operator that only a custom library provides" in refusal(path)


def test_functions_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = linear_graph(tmp_path / "net.onnx")
    model = onnx.load(path)
    for name, other in (("A", "B"), ("B", "A")):
        node = helper.make_node(other, ["a"], ["b"], domain="own")
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], [node], [helper.make_opsetid("own", 1)]))
    path.write_bytes(model.SerializeToString())
    assert "call each other in a circle" in refusal(path)


def test_graphs_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    outputs = [helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], outputs)
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], outputs)
    (tmp_path / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert "more than 16 deep" in refusal(tmp_path / "net.onnx")


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    def field(number: int, content: bytes) -> bytes:
        size, rest = b"", len(content)
        while rest >= 128:
            size, rest = size + bytes([rest % 128 + 128]), rest // 128
        return bytes([number << 3 | 2]) + size + bytes([rest]) + content

    graph = b""
    for _ in range(1000):
        graph = field(1, field(5, field(6, graph)))  # node, attribute, graph
    (tmp_path / "net.onnx").write_bytes(b"\x08\x09" + field(7, graph))
    assert "nested without end" in refusal(tmp_path / "net.onnx")


def test_a_graph_of_nothing_is_refused(tmp_path: Path) -> None:
    path = save_graph(tmp_path / "net.onnx", [], {"x": (TensorProto.FLOAT, [1])}, {"x": (TensorProto.FLOAT, [1])})
    assert "no node" in refusal(path)
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Identity", ["w"], ["y"])],
        {},
        {"y": (TensorProto.FLOAT, [1])},
        {"w": np.ones(1, np.float32)},
    )
    assert "has no inputs" in refusal(path)


def test_a_layer_with_a_hostile_name_is_only_a_name(tmp_path: Path) -> None:
    path = linear_graph(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.node[0].name = "conv[/]x\x1b]52;c;AAAA\x07"
    path.write_bytes(model.SerializeToString())
    assert opened(path).layers[0].name == "conv[/]x\x1b]52;c;AAAA\x07"
