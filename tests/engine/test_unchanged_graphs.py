"""No variant is its parent under another name: what a graph computes has a fingerprint, and a worker looks at it."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from technique_jobs import CONVOLUTIONAL, IMAGE, VNNI, apply, open_python

from engine.context import JobContext, VariantFiles
from engine.graphs.fingerprint import fingerprint
from engine.graphs.onnx_graph import Graph, load_graph
from engine.protocol import Changed, JobSpec, RunTechnique
from engine.techniques import Refusal, find_technique
from engine.worker import do_task


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    return apply(open_python(directory, CONVOLUTIONAL, IMAGE), "export-onnx", directory)


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph: other names, other order of constants, another producer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inner = {name for node in copy.graph.node for name in node.output} - {value.name for value in copy.graph.output}
    inner |= {tensor.name for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        node.name = f"{node.name}_again"
        for names in (node.input, node.output):
            names[:] = [f"{name}_again" if name in inner else name for name in names]
    tensors = [numpy_helper.from_array(numpy_helper.to_array(t), f"{t.name}_again") for t in copy.graph.initializer]
    del copy.graph.initializer[:], copy.graph.value_info[:]
    copy.graph.initializer.extend(reversed(tensors))
    copy.producer_name = "somebody else"
    return copy


def test_names_and_order_do_not_change_a_graph_but_a_number_does(exported):
    model = load_graph(exported.path)
    assert fingerprint(renamed(model)) == fingerprint(model)
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    before = fingerprint(model)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert fingerprint(model) != before


def test_an_attribute_or_an_operator_changes_a_graph(exported):
    model = load_graph(exported.path)
    before = fingerprint(model)
    activation = next(node for node in model.graph.node if node.op_type == "Relu")
    activation.op_type = "Elu"
    changed = fingerprint(model)
    activation.attribute.append(helper.make_attribute("alpha", 0.5))
    assert len({before, changed, fingerprint(model)}) == 3


def test_what_is_inside_an_if_counts():
    def branching(number: float) -> onnx.ModelProto:
        inner = helper.make_graph(
            [helper.make_node("Add", ["x", "n"], ["z"])],
            "inner",
            [],
            [helper.make_tensor_value_info("z", 1, None)],
            [numpy_helper.from_array(np.array(number, np.float32), "n")],
        )
        inputs = [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])]
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, [2])])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    assert fingerprint(branching(1)) == fingerprint(branching(1)) != fingerprint(branching(2))


def test_a_job_that_gives_its_parent_again_is_refused(exported, tmp_path, monkeypatch):
    def idle(source, parameters, job):
        path = job.work / "model.onnx"
        onnx.save(renamed(load_graph(source.path)), path)
        return [VariantFiles(format="onnx", files=[path], changed=Changed(summary="nothing"))]

    chosen = msgspec.structs.replace(find_technique("optimize-graph"), function=idle)
    monkeypatch.setattr("engine.techniques.find_technique", lambda tag: chosen)
    spec = JobSpec(
        job="job",
        task=RunTechnique(technique="optimize-graph", parameters={}, source="baseline", target="this-machine"),
        source=exported.model.source,
        variants={},
        baseline="baseline",
        session_directory=str(tmp_path),
        work_directory=str(tmp_path),
        device="cpu",
        processor=VNNI,
        threads=1,
    )
    job = JobContext(spec, exported.model, lambda message: None, variants={"baseline": exported})
    with pytest.raises(Refusal, match="Nothing was changed"):
        do_task(spec.task, job, exported.model)
    assert Graph(load_graph(tmp_path / "model.onnx")).proto.node
