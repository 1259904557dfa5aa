"""A PyTorch model becomes an ONNX graph with its names, an open batch axis and the same answers, or a sentence."""

import numpy as np
import onnx
import pytest
from technique_jobs import CONVOLUTIONAL, IMAGE, RECURRENT, ROWS, TOKENS, TRANSFORMER, apply, open_python, run_technique

from engine.graphs.exporting import explain_failure
from engine.graphs.verification import compare_outputs, run_graph
from engine.protocol import Logged
from engine.techniques import Refusal


def assert_same_answers(baseline, exported, sizes=(1, 5)):
    module = baseline.module()
    for size in sizes:
        inputs = baseline.model.example(size, seed=7)
        (outputs,) = run_graph(exported.path, [inputs])
        assert compare_outputs([baseline.model.call(module, inputs)], [outputs]).relative < 1e-4


@pytest.mark.parametrize(
    ("body", "example"),
    [(CONVOLUTIONAL, IMAGE), (TRANSFORMER, TOKENS), (RECURRENT.format(kind="LSTM"), ROWS)],
    ids=["convolutional", "transformer", "lstm"],
)
def test_the_graph_gives_pytorchs_answers_at_any_batch_size(tmp_path, body, example):
    baseline = open_python(tmp_path, body, example)
    exported = apply(baseline, "export-onnx", tmp_path)
    assert_same_answers(baseline, exported)
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == list(baseline.model.input_names)
    assert [value.name for value in model.graph.output] == list(baseline.model.output_names)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    figures = exported.record.changed.figures
    assert figures["nodes"] == len(model.graph.node) == len(exported.record.changed.touched)
    assert figures["folded_nodes"] > 0
    assert figures["opset"] == model.opset_import[0].version == 20


def test_nodes_are_called_after_their_layers_and_weights_are_stored_once(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.second = nn.Linear(8, 8)
            self.second.weight = self.first.weight
        def forward(self, x):
            return self.second(torch.relu(self.first(x)))
    """
    baseline = open_python(tmp_path, body, "torch.randn(batch_size, 8)")
    model = onnx.load(apply(baseline, "export-onnx", tmp_path).path)
    assert [node.name for node in model.graph.node] == ["first/Gemm", "Relu", "second/Gemm"]
    assert sum(list(tensor.dims) == [8, 8] for tensor in model.graph.initializer) == 1


BUFFER_NAMED_AS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("{name}", torch.randn(4))
        self.layer = nn.Linear(4, 4)
    def forward(self, x, mask):
        return self.layer((x - self.{name})) - x.mean(1, keepdim=True) * mask
"""

WEIGHTS_IN_BRANCHES = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
    def forward(self, x, mask):
        return mask + torch.cond(x.sum() > 0, lambda x: self.first(x), lambda x: self.second(x), (x,))
"""


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (BUFFER_NAMED_AS.format(name="mean"), {"layer.weight", "layer.bias", "module.mean"}),
        (BUFFER_NAMED_AS.format(name="mask"), {"layer.weight", "layer.bias", "module.mask"}),
        (WEIGHTS_IN_BRANCHES, {"first.weight", "first.bias", "second.weight", "second.bias"}),
    ],
    ids=["of a value", "of an input", "in branches"],
)
def test_weights_keep_their_names_where_nothing_else_has_them(tmp_path, body, names):
    baseline = open_python(tmp_path, body, "(torch.randn(batch_size, 4), torch.randn(batch_size, 4))")
    exported = apply(baseline, "export-onnx", tmp_path)
    assert exported.record.changed.figures["exporter"] == "torch.export"
    assert names <= {tensor.name for tensor in onnx.load(exported.path).graph.initializer}
    assert_same_answers(baseline, exported)


def test_dictionaries_in_and_nested_outputs_keep_their_names(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)
        def forward(self, left, right):
            return {"sum": self.a(left) + self.b(right), "parts": (self.a(left), self.b(right))}
    """
    baseline = open_python(tmp_path, body, '{"left": torch.randn(batch_size, 4), "right": torch.randn(batch_size, 6)}')
    exported = apply(baseline, "export-onnx", tmp_path)
    assert_same_answers(baseline, exported)
    model = onnx.load(exported.path)
    assert [value.name for value in model.graph.output] == ["sum", "parts_0", "parts_1"]


def test_what_the_new_exporter_cannot_trace_goes_through_torchscript_and_says_so(tmp_path):
    # an in-place change of a Python list of tensors by index that depends on a tensor's value
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
        def forward(self, x):
            y = self.layer(x)
            if float(self.layer.weight.sum().detach().numpy()) > 1e9:
                return y * 2
            return y
    """
    baseline = open_python(tmp_path, body, "torch.randn(batch_size, 4)")
    exported = apply(baseline, "export-onnx", tmp_path)
    assert_same_answers(baseline, exported)
    assert exported.record.changed.figures["exporter"] == "TorchScript"
    assert "TorchScript" in exported.record.changed.summary
    assert "torch.export: " in exported.record.changed.summary


def test_a_module_that_rolls_dice_is_refused(tmp_path):
    body = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
        def forward(self, x):
            return self.layer(x) + torch.rand_like(x)
    """
    baseline = open_python(tmp_path, body, "torch.randn(batch_size, 4)")
    with pytest.raises(Refusal, match=r"does not give PyTorch's answers: at batch size 2"):
        apply(baseline, "export-onnx", tmp_path)


def test_a_graph_that_answers_in_other_classes_than_pytorch_is_refused(tmp_path):
    body = """
    class Net(nn.Module):
        def forward(self, x):
            return (x + 100 * torch.rand_like(x)).argmax(1)
    """
    baseline = open_python(tmp_path, body, "torch.randn(batch_size, 50)")
    with pytest.raises(Refusal, match=r"PyTorch's answers: at batch size 2 they differ in .* of the whole numbers"):
        apply(baseline, "export-onnx", tmp_path)


def test_an_operator_without_onnx_form_is_named(tmp_path):
    body = """
    class Net(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x @ x.transpose(1, 2)).real
    """
    baseline = open_python(tmp_path, body, "torch.randn(batch_size, 4, 4)")
    with pytest.raises(Refusal, match="linalg_eig"):
        apply(baseline, "export-onnx", tmp_path)


def test_what_the_exporter_prints_goes_to_the_jobs_log(tmp_path, capfd):
    body = """
    class Net(nn.Module):
        def forward(self, x):
            print("hello from the model")
            return x * 2
    """
    baseline = open_python(tmp_path, body, "torch.randn(batch_size, 4)")
    capfd.readouterr()
    run = run_technique(baseline, "export-onnx", tmp_path)
    logged = "\n".join(message.text for message in run.messages if isinstance(message, Logged))
    assert "hello from the model" in logged
    assert "torchvision is not installed" not in capfd.readouterr().err


def test_an_unknown_failure_is_told_by_its_first_line():
    assert explain_failure(ValueError("first\nsecond")) == "ValueError: first"


def test_a_value_that_is_not_finite_on_one_side_only_is_no_match():
    wanted, got = {"y": np.array([1.0, -np.inf], np.float32)}, {"y": np.array([1.0, 2.0], np.float32)}
    with pytest.raises(ValueError, match="not finite"):
        compare_outputs([wanted], [got])
    assert compare_outputs([wanted], [wanted]).cosine == pytest.approx(1.0)
