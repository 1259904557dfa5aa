"""A profile says where the time of a call goes, in the words of the variant's own file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from profile_jobs import GraphMaker, graph_variant, job_for
from technique_jobs import CONVOLUTIONAL, IMAGE, apply, open_python

from engine.context import LoadedVariant
from engine.measurements.onnxruntime_profile import _own_times
from engine.measurements.profiling import measure_profile
from engine.protocol import Profile
from engine.runtimes import RuntimeUnavailable


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedVariant, LoadedVariant, LoadedVariant]:
    directory = tmp_path_factory.mktemp("variants")
    baseline = open_python(directory, CONVOLUTIONAL, IMAGE)
    exported = apply(baseline, "export-onnx", directory)
    return baseline, exported, apply(exported, "quantize-static", directory, search="never")


def adds_up(profile: Profile) -> bool:
    """Operators and remainder are the call, but for what other processes took from it."""
    total = sum(one.time_ms for one in profile.operators) + profile.remainder_ms
    shares = sum(one.share or 0.0 for one in profile.operators) + profile.remainder_ms / total
    return 0 < total <= profile.latency_ms * 1.001 and abs(shares - 1) < 1e-6


def test_fused_operators_are_told_by_the_nodes_they_came_from(tmp_path: Path, variants) -> None:
    profile = measure_profile(job_for(tmp_path, variants[1]), variants[1], "onnxruntime", 4)
    nodes = {name: one for one in profile.operators for name in one.nodes}
    assert nodes["stem.0/Conv"] is nodes["stem.2/Clip"]
    assert nodes["pointwise/Conv"] is nodes["Add"]
    wanted = {node.name for node in onnx.load(variants[1].path).graph.node}
    assert set(nodes) == wanted
    assert {one.precision for one in profile.operators} == {"float32"}
    assert adds_up(profile)


def test_integer_operators_say_what_they_multiply(tmp_path: Path, variants) -> None:
    profile = measure_profile(job_for(tmp_path, variants[2]), variants[2], "onnxruntime", 4)
    nodes = {name: one for one in profile.operators for name in one.nodes}
    for name in ("stem.0/Conv", "depthwise/Conv", "pointwise/Conv", "head/Gemm"):
        assert (nodes[name].precision, nodes[name].operands, nodes[name].full_range) == ("int8", "uint8×int8", True)
    assert nodes["image/QuantizeLinear"].precision == "conversion"
    assert "hardtanh/QuantizeLinear" in nodes["stem.0/Conv"].nodes
    assert adds_up(profile)


def test_openvino_says_the_same_of_the_same_graph(tmp_path: Path, variants) -> None:
    pytest.importorskip("openvino")
    profile = measure_profile(job_for(tmp_path, variants[2]), variants[2], "openvino", 4)
    nodes = {name: one for one in profile.operators for name in one.nodes}
    assert {nodes[name].precision for name in ("stem.0/Conv", "depthwise/Conv", "pointwise/Conv")} == {"int8"}
    plain = measure_profile(job_for(tmp_path, variants[1]), variants[1], "openvino", 4)
    assert {one.precision for one in plain.operators if one.nodes} == {"float32"}
    assert adds_up(profile)


def test_pytorch_is_told_by_module(tmp_path: Path, variants) -> None:
    import torch

    before = torch.nn.Module.__call__
    profile = measure_profile(job_for(tmp_path, variants[0]), variants[0], "pytorch", 4)
    types = {one.name: one.type for one in profile.operators}
    assert types["stem.0"] == "Conv2d"
    assert types["depthwise"] == "Conv2d"
    assert types["add"] == "add"
    assert types["head"] == "Linear"
    assert next(one.precision for one in profile.operators if one.name == "stem.0") == "float32"
    assert torch.nn.Module.__call__ is before
    assert adds_up(profile)


def test_the_slow_operator_is_found(tmp_path: Path) -> None:
    maker = GraphMaker()
    value = maker.add("Relu", [maker.convolution("x", "small")], "after")
    for turn in range(6):
        value = maker.add("Erf", [value], f"slow{turn}")
    variant = graph_variant(tmp_path, "net", maker.model(value))
    profile = measure_profile(job_for(tmp_path, variant), variant, "onnxruntime", 4)
    spent = {kind: sum(o.time_ms for o in profile.operators if o.type == kind) for kind in ("Erf", "Conv")}
    assert spent["Erf"] > 0
    assert profile.operators[0].time_ms == max(one.time_ms for one in profile.operators)
    assert sum(one.type == "Erf" for one in profile.operators) == 6


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    maker = GraphMaker()
    value = maker.convolution(maker.convolution("x", "one"), "two")
    model = maker.model(value)
    for node in model.graph.node:
        node.name = ""
    variant = graph_variant(tmp_path, "net", model)
    profile = measure_profile(job_for(tmp_path, variant), variant, "onnxruntime", 2)
    assert {name for one in profile.operators for name in one.nodes} == {"Conv:one", "Conv:two"}


def test_a_loops_body_is_not_counted_twice(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32) * 0.5, "w")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"], "inner"),
            helper.make_node("Identity", ["go_on"], ["still"], "still"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 64]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", 64]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "", "x"], ["y"], "loop", body=body)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(np.array(50, np.int64), "turns"), weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    variant = graph_variant(tmp_path, "net", model)
    profile = measure_profile(job_for(tmp_path, variant), variant, "onnxruntime", 8)
    kinds = {one.type for one in profile.operators}
    assert {"MatMul", "Loop"} <= kinds
    assert adds_up(profile)


def test_what_lies_inside_another_event_is_taken_from_it() -> None:
    def event(name: str, ts: int, dur: int) -> dict[str, object]:
        return {"name": name, "ts": ts, "dur": dur, "tid": 1}

    events = [event("loop", 0, 100), event("a", 10, 20), event("b", 40, 30), event("after", 120, 5)]
    assert {one["name"]: own for one, own in _own_times(events)} == {"loop": 50, "a": 20, "b": 30, "after": 5}


def test_a_runtime_whose_profile_nobody_reads_is_refused(tmp_path: Path, variants) -> None:
    with pytest.raises(RuntimeUnavailable, match="reads no profile of torch-compile"):
        measure_profile(job_for(tmp_path, variants[0]), variants[0], "torch-compile", 4)


def test_under_autocast_the_layers_that_multiply_are_told_in_its_precision(variants, tmp_path: Path) -> None:
    profile = measure_profile(job_for(tmp_path, variants[0]), variants[0], "pytorch-bfloat16", 4)
    precisions = {one.type: one.precision for one in profile.operators}
    assert precisions["Conv2d"] == precisions["Linear"] == "bfloat16"
    assert profile.conditions.runtime == "pytorch-bfloat16"
