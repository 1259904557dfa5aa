"""Graphs with their weights in a file beside them, small or beyond what one message holds: everything works on them."""

import dataclasses

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from technique_jobs import CONVOLUTIONAL, IMAGE, TOKENS, apply, cosine, open_python

from engine.context import LoadedVariant
from engine.graphs import onnx_graph
from engine.graphs.calibration import Calibrator
from engine.graphs.graph_optimization import candidates
from engine.graphs.onnx_graph import Graph, load_graph, save_graph
from engine.graphs.preparation import prepare, with_shapes
from engine.graphs.sensitivity import Judge, node_times
from engine.graphs.verification import executed_graph, run_graph
from engine.protocol import FileRecord

TRANSFORMER = """
class Net(nn.Module):
    def __init__(self, width=128, words=200):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 256, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 4)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(dim=1))
"""


def beside(variant: LoadedVariant, directory) -> LoadedVariant:
    """The same graph with its weights in a file whose name says nothing about the graph's."""
    directory.mkdir()
    onnx.save(
        load_graph(variant.path),
        directory / "my model.onnx",
        save_as_external_data=True,
        location="odd-name.bin",
        size_threshold=256,
    )
    graph = onnx.load(directory / "my model.onnx", load_external_data=False).graph
    assert any(uses_external_data(tensor) for tensor in graph.initializer)
    files = tuple(FileRecord(path=name, sha256="", size_bytes=0) for name in ("my model.onnx", "odd-name.bin"))
    record = msgspec.structs.replace(variant.record, files=files)
    return dataclasses.replace(variant, directory=directory, record=record)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("transformer")
    exported = apply(open_python(directory, TRANSFORMER, TOKENS), "export-onnx", directory)
    return beside(exported, directory / "beside")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    directory = tmp_path_factory.mktemp("convolutional")
    exported = apply(open_python(directory, CONVOLUTIONAL, IMAGE), "export-onnx", directory)
    return beside(exported, directory / "beside")


@pytest.mark.parametrize(
    ("tag", "options"),
    [
        ("quantize-dynamic", {}),
        ("quantize-static", {}),
        ("quantize-int4", {}),
        ("quantize-fp16", {}),
        ("quantize-bf16", {"target": "cuda"}),
        ("quantize-fp8", {"target": "tensorrt"}),
        ("optimize-graph", {"optimiser": "attention"}),
        ("optimize-graph", {"optimiser": "onnxruntime"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()) or "default",
)
def test_every_technique_reads_weights_from_a_file_of_any_name(transformer, tmp_path, tag, options):
    made = apply(transformer, tag, tmp_path, **options)
    if tag not in ("quantize-bf16", "quantize-fp8"):  # which the CPU does not run
        assert cosine(transformer, made) > 0.97


@pytest.mark.parametrize("target", ["cpu-portable", "tensorrt"])
def test_convolutions_too(convolutional, tmp_path, target):
    made = apply(convolutional, "quantize-static", tmp_path, target=target)
    assert cosine(convolutional, made) > 0.97


def test_no_optimiser_fails_for_where_the_weights_are(transformer):
    for candidate in candidates(transformer.path):
        assert "external" not in (candidate.failure or ""), candidate.sentence()
        assert "odd-name" not in (candidate.failure or ""), candidate.sentence()


def test_a_graph_too_large_for_one_message_is_run_timed_observed_and_searched(convolutional, tmp_path, monkeypatch):
    """Too large is what the threshold says; no message may be made of such a graph."""
    model = prepare(convolutional.path, True)
    batches = [convolutional.model.example(4, seed=seed) for seed in (1, 2)]
    expected = run_graph(model, batches)
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 2500)
    written: list[int] = []
    real = onnx.save

    def counted(proto, path, **options):
        written.append(len(proto.SerializeToString()))
        real(proto, path, **options)

    monkeypatch.setattr(onnx, "save", counted)
    before = [tensor.SerializeToString() for tensor in model.graph.initializer]
    again = run_graph(model, batches)
    for first, second in zip(expected, again, strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    assert written, "it went through a file"
    assert [tensor.SerializeToString() for tensor in model.graph.initializer] == before, "and is what it was"
    assert executed_graph(model).node
    assert node_times(model, batches[0])
    assert Judge(model, batches, 1).answers(model).changed == 0
    value = model.graph.node[0].output[0]
    assert Calibrator(model, lambda: batches).ranges([value])
    assert Graph(prepare(convolutional.path, True)).shape(value)
    made = apply(convolutional, "quantize-static", tmp_path)
    assert cosine(convolutional, made) > 0.97


def test_shapes_are_inferred_without_the_weights(monkeypatch):
    weights = numpy_helper.from_array(np.ones((64, 32), np.float32), "w")
    shape = numpy_helper.from_array(np.array([-1, 4, 8]), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "product"),
        helper.make_node("Reshape", ["product", "shape"], ["y"], "reshape"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_empty_tensor_value_info("y")],
        [weights, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 1000)
    shaped = Graph(with_shapes(model))
    assert shaped.shape("product") == ("batch", 32)
    assert shaped.shape("y")[1:] == (4, 8)
    assert (shaped.constant("w") == 1).all()


def test_weights_in_subgraphs_go_to_the_file_too(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 1000)
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((64, 64), np.float32), "w")],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    files = save_graph(model, tmp_path / "model.onnx")
    assert files[0].stat().st_size < 2000 < files[1].stat().st_size
    feed = {"x": np.ones((1, 64), np.float32), "c": np.array(True)}
    assert (run_graph(model, [feed])[0]["y"] == 64).all()


def test_texts_stay_in_a_graph_whose_weights_go_to_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 1000)
    words = [f"word {number:06}".encode() for number in range(300)]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["words", "index"], ["word"]), helper.make_node("Add", ["x", "weights"], ["y"])],
        "labelled",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [600]),
        ],
        [
            helper.make_tensor_value_info("word", TensorProto.STRING, ["n"]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [600]),
        ],
        [
            helper.make_tensor("words", TensorProto.STRING, [len(words)], words),
            numpy_helper.from_array(np.ones(600, np.float32), "weights"),
        ],
    )
    path, data = save_graph(helper.make_model(graph), tmp_path / "model.onnx")
    assert data.stat().st_size == 2400
    held = {tensor.name: tensor for tensor in load_graph(path).graph.initializer}
    assert list(held["words"].string_data) == words
    assert numpy_helper.to_array(held["weights"]).sum() == 600
