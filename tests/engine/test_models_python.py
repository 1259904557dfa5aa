"""A Python model file works, or is refused with one sentence that says where and what to do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from opened_models import CLASSIFIER, LABELLED, baseline_of, opened, refusal, write

from engine.models import ModelError, file_sha256, open_model
from engine.models.torch_model import load_saved_module, save_module
from engine.protocol import ModelSource


def test_a_minimal_file_opens_and_says_what_it_is(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER))

    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [("features", "float32", ("batch", 6))]
    assert [(spec.name, spec.shape) for spec in model.outputs] == [("output", ("batch", 3))]
    information = model.info()
    assert information.offers == ()
    assert not information.labelled
    assert [layer.type for layer in information.layers] == ["Linear", "ReLU", "Linear"]
    assert {"Gemm", "Relu"} <= set(information.operators)


def test_the_offers_are_the_optional_functions_that_exist(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER + LABELLED))
    assert model.offers == ("calibration_data", "test_data")
    assert model.labelled


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", "net.py has no function load_model()."),
        ("def load_model(): ...", "net.py has no function example_input(batch_size)."),
        ("import nowhere_to_be_found", "importing it failed at net.py line 1: ModuleNotFoundError"),
        ("def load_model(:", "importing it failed at net.py line 1: SyntaxError"),
        ("raise SystemExit(2)", "importing it failed at net.py line 1: SystemExit: 2"),
    ],
)
def test_a_file_that_does_not_keep_the_contract_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(write(tmp_path, text))


def test_an_exception_in_load_model_names_file_line_and_error(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        import torch
        def example_input(batch_size):
            return torch.zeros(batch_size, 2)
        def load_model():
            return open("/no/such/weights")
        """,
    )
    text = refusal(path)
    assert "load_model() failed at net.py line 6 in load_model: FileNotFoundError" in text


def test_load_model_must_return_a_module(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, CLASSIFIER + "\ndef load_model():\n    return {}\n"))
    assert "load_model() returned a dict, not a torch.nn.Module" in text


def test_an_example_of_the_wrong_shape_is_told_with_the_forwards_error(tmp_path: Path) -> None:
    text = refusal(
        write(tmp_path, CLASSIFIER + "\ndef example_input(batch_size):\n    return torch.zeros(batch_size, 5)\n")
    )
    assert "forward failed on inputs features float32 (1, 5)" in text
    assert "net.py line" in text


def test_an_example_that_ignores_the_batch_size_is_refused(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, CLASSIFIER + "\ndef example_input(batch_size):\n    return torch.zeros(4, 6)\n"))
    assert "must make a batch of the size it is asked for" in text


def test_example_input_without_its_parameter_is_told(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, CLASSIFIER + "\ndef example_input():\n    return torch.zeros(1, 6)\n"))
    assert "example_input(1) failed" in text
    assert "TypeError" in text


def test_a_file_that_changed_since_the_session_began_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, CLASSIFIER)
    source = ModelSource(path=str(path), kind="python", sha256="0" * 64)
    with pytest.raises(ModelError, match="not the file this session was made with"):
        open_model(source)


FORWARDS = {
    "tuple": ("return h, h * 2", ["output_0", "output_1"]),
    "list": ("return [h, h * 2]", ["output_0", "output_1"]),
    "dict": ("return {'scores': h, 'more': {'half': h / 2}}", ["scores", "more_half"]),
    "dataclass": ("return Answer(scores=h, loss=None)", ["scores"]),
    "named tuple": ("return Pair(h, h + 1)", ["first", "second"]),
}


@pytest.mark.parametrize("kind", FORWARDS)
def test_outputs_of_every_structure_get_names_and_find_their_way_back(tmp_path: Path, kind: str) -> None:
    statement, names = FORWARDS[kind]
    model = opened(
        write(
            tmp_path,
            f"""
            import collections, dataclasses, torch
            Pair = collections.namedtuple("Pair", "first second")
            @dataclasses.dataclass
            class Answer:
                scores: torch.Tensor
                loss: object
            class Net(torch.nn.Module):
                def forward(self, x):
                    h = x + 1
                    {statement}
            def load_model(): return Net()
            def example_input(batch_size): return torch.zeros(batch_size, 2)
            """,
        )
    )
    assert list(model.output_names) == names
    outputs = model.call(model.module(), model.example(4))
    assert {name: array.shape for name, array in outputs.items()} == dict.fromkeys(names, (4, 2))
    rebuilt = model.output_structure.rebuild(outputs)
    assert type(rebuilt) is type(model.output_structure.template)
    assert torch.equal(model.output_structure.tensors(rebuilt)[names[0]], torch.ones(4, 2))


def test_a_forward_without_any_tensor_is_refused(tmp_path: Path) -> None:
    text = refusal(
        write(
            tmp_path,
            """
            import torch
            class Net(torch.nn.Module):
                def forward(self, x): return 3
            def load_model(): return Net()
            def example_input(batch_size): return torch.zeros(batch_size, 2)
            """,
        )
    )
    assert "returned a int without any tensor in it" in text


INPUTS = {
    "a tuple": ("return torch.zeros(batch_size, 2), torch.ones(batch_size, 3)", "self, a, b", ["a", "b"]),
    "a dict": ("return {'b': torch.ones(batch_size, 3), 'a': torch.zeros(batch_size, 2)}", "self, a, b", ["b", "a"]),
    "a dict as one argument": (
        "return {'a': torch.zeros(batch_size, 2), 'b': torch.ones(batch_size, 3)}",
        "self, both",
        ["a", "b"],
    ),
    "unnamed arguments": (
        "return torch.zeros(batch_size, 2), torch.ones(batch_size, 3)",
        "self, *both",
        ["input_0", "input_1"],
    ),
    "a constant between": (
        "return torch.zeros(batch_size, 2), None, torch.ones(batch_size, 3)",
        "self, a, c, b",
        ["a", "b"],
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_of_every_structure_reach_the_forward(tmp_path: Path, kind: str) -> None:
    example, signature, names = INPUTS[kind]
    unpack = {"self, both": "a, b = both['a'], both['b']", "self, *both": "a, b = both"}.get(signature, "pass")
    model = opened(
        write(
            tmp_path,
            f"""
            import torch
            class Net(torch.nn.Module):
                def forward({signature}):
                    {unpack}
                    return torch.cat([a, b], dim=1)
            def load_model(): return Net()
            def example_input(batch_size): {example}
            """,
        )
    )
    assert list(model.input_names) == names
    (output,) = model.call(model.module(), model.example(3)).values()
    assert np.array_equal(output, np.tile([0, 0, 1, 1, 1], (3, 1)))


def test_an_input_whose_batch_axis_is_not_the_first_is_understood(tmp_path: Path) -> None:
    model = opened(
        write(
            tmp_path,
            """
            import torch
            class Net(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.gru = torch.nn.GRU(3, 4)
                def forward(self, steps, state): return self.gru(steps, state)
            def load_model(): return Net()
            def example_input(batch_size): return torch.zeros(5, batch_size, 3), torch.zeros(1, batch_size, 4)
            """,
        )
    )
    assert [spec.shape for spec in model.inputs] == [(5, "batch", 3), (1, "batch", 4)]
    assert "GRU" in model.operators


def test_examples_repeat_for_the_same_seed_and_leave_the_users_chance_alone(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER))
    before = torch.random.get_rng_state()
    first, again, other = model.example(4), model.example(4), model.example(4, seed=1)
    assert np.array_equal(first["features"], again["features"])
    assert not np.array_equal(first["features"], other["features"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_modules_come_in_eval_mode_and_can_still_be_trained(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER))
    module = model.module()
    assert not module.training
    assert module is not model.module()
    model.call(module, model.example(2))
    module(torch.zeros(2, 6)).sum().backward()
    assert next(module.parameters()).grad is not None


def test_the_baseline_is_made_again_from_its_stored_weights(tmp_path: Path) -> None:
    path = write(tmp_path, CLASSIFIER.replace("torch.manual_seed(0)", "pass"))  # other weights at each load_model()
    model = opened(path)
    baseline = baseline_of(model, tmp_path)

    assert baseline.path.name == "weights.safetensors"
    assert (baseline.directory / "model.py").read_bytes() == path.read_bytes()
    one, two = baseline.module().state_dict(), baseline.module().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_baselines_draft_counts_weights_and_multiply_adds(tmp_path: Path) -> None:
    draft = opened(write(tmp_path, CLASSIFIER)).write_baseline(tmp_path / "baseline")
    assert draft.deployed_files == ("weights.safetensors",)
    assert draft.parameter_count == 6 * 16 + 16 + 16 * 3 + 3
    assert draft.macs == 6 * 16 + 16 * 3


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = opened(
        write(
            tmp_path,
            """
            import torch
            class Net(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.embedding = torch.nn.Embedding(20, 4)
                    self.head = torch.nn.Linear(4, 20, bias=False)
                    self.head.weight = self.embedding.weight
                def forward(self, tokens): return self.head(self.embedding(tokens))
            def load_model(): return Net()
            def example_input(batch_size): return torch.zeros(batch_size, 3, dtype=torch.int64)
            """,
        )
    )
    baseline = baseline_of(model, tmp_path)
    assert baseline.record.size_bytes < 2 * 20 * 4 * 4
    module = baseline.module()
    assert module.head.weight is module.embedding.weight


def test_weights_that_no_longer_fit_the_file_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, CLASSIFIER)
    baseline = baseline_of(opened(path), tmp_path)
    wider = opened(write(tmp_path, CLASSIFIER.replace("16", "24")))
    with pytest.raises(ModelError, match="do not fit what load_model"):
        wider.load_module(baseline)


def test_a_derived_module_is_saved_and_read_back_only_with_its_hash(tmp_path: Path) -> None:
    model = opened(write(tmp_path, CLASSIFIER))
    path = tmp_path / "pruned.pt"
    save_module(model.module(), path)

    module = load_saved_module(path, file_sha256(path))
    assert torch.equal(module(torch.ones(1, 6)), model.module()(torch.ones(1, 6)))
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_saved_module(path, "0" * 64)


def test_a_module_that_cannot_be_pickled_leaves_no_file(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    module.trick = lambda: None  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be saved"):
        save_module(module, tmp_path / "module.pt")
    assert list(tmp_path.iterdir()) == []
