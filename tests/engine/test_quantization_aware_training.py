"""Quantization-aware training: it rounds as the graph does, writes what it trained, wins back what static loses."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine.context import JobCancelled
from engine.hardware import read_processor
from engine.protocol import FileRecord, Hardware, Logged, ModelInfo, ModelSource, Progressed, Variant
from engine.targets import resolve_target
from engine.techniques import Refusal, describe, find_technique, parse_parameters
from engine.techniques.quantization_aware_training import (
    QuantizeAware,
    _summary,
    quantize_aware_training,
    worse_than_static,
)
from engine.training.checkpoints import checkpoints_for

from .learning_models import CNN_FILE, RECURRENT_FILE, TRANSFORMER_FILE, baseline, make_job, open_text, points
from .technique_jobs import VNNI
from .test_pruning import trained_file

HARD = {"weight_bits": 2, "per_channel": False}
"""A setting in which plain static quantization of the small network loses much: three levels, one scale."""


def run(model, directory, **parameters):
    """(what the technique made, messages), trained for a VNNI machine whatever this one is."""
    asked = parse_parameters("quantize-aware-training", parameters)
    job, messages = vnni_job(model, directory)
    (files,) = quantize_aware_training(baseline(model, directory), asked, job)
    return files, messages


def vnni_job(model, directory, target="this-machine"):
    job, messages = make_job(model, directory)
    task = msgspec.structs.replace(job.spec.task, target=target)
    job.spec = msgspec.structs.replace(job.spec, task=task, processor=VNNI)
    return job, messages


def variant(format_: str) -> Variant:
    return Variant(
        id="v", name="mine", parent=None, technique=None, parameters={}, format=format_, size_bytes=1, created=0.0,
        files=(FileRecord(path="model", sha256="", size_bytes=1),), target="this-machine", processor="",
    )  # fmt: skip


def info(*offers: str, operators: tuple[str, ...] = ("Conv",)) -> ModelInfo:
    source = ModelSource(path="net.py", kind="python", sha256="")
    return ModelInfo(
        name="net", source=source, inputs=(), outputs=(), offers=offers, labelled=True, layers=(), operators=operators
    )


def listed(format_: str, model: ModelInfo):
    hardware = Hardware(hostname="here", processor=read_processor())
    return next(t for t in describe(variant(format_), model, hardware) if t.tag == "quantize-aware-training")


# --- what the user is offered ---------------------------------------------------------------------


def test_it_is_listed_with_a_form():
    found = listed("pytorch", info("train_data"))
    assert found.unavailable is None
    assert found.group == "quantization"
    assert {"epochs", "weight_bits", "per_channel", "distillation"} <= {field.name for field in found.fields}
    bits = next(field for field in found.fields if field.name == "weight_bits")
    assert (bits.kind, bits.optional, bits.minimum, bits.maximum) == ("integer", True, 2, 8)
    assert all(field.description for field in found.fields)
    assert find_technique(found.tag).complexity == "high"


def test_an_onnx_model_is_refused_because_it_cannot_be_trained():
    assert "works on a PyTorch module; mine is ONNX" in listed("onnx", info("train_data")).unavailable


def test_without_training_data_it_says_what_to_add():
    assert "add train_data()" in listed("pytorch", info("test_data")).unavailable


def test_a_network_without_any_product_is_refused_before_it_runs():
    assert (
        "no convolution and no matrix product" in listed("pytorch", info("train_data", operators=("LSTM",))).unavailable
    )


def test_a_layer_to_exclude_that_is_not_there_is_named(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    with pytest.raises(Refusal, match=r"no layer 'blocks\.9\.\*'"):
        run(model, tmp_path, exclude=["blocks.9.*"])


# --- end to end -----------------------------------------------------------------------------------


def test_it_wins_back_what_plain_static_quantization_loses(tmp_path):
    files, messages = run(trained_file(CNN_FILE, tmp_path), tmp_path, epochs=4, learning_rate=2e-3, **HARD)
    figures = files.changed.figures
    assert figures["held_out_accuracy_static"] < figures["held_out_accuracy_before"] - 0.05
    assert figures["held_out_accuracy"] > figures["held_out_accuracy_static"] + 0.03
    assert figures["simulation_cosine"] > 0.9999  # what was trained is what is deployed
    assert figures["held_out_accuracy"] == pytest.approx(figures["held_out_accuracy_simulated"], abs=0.02)
    assert figures["folded_batch_norms"] == 4
    assert not files.changed.left
    assert files.target == "cpu-vnni"
    assert files.label is None  # the first of the front takes the step's name
    assert points(messages, "loss")[-1][0] == figures["steps"]
    assert points(messages, "accuracy")
    weights = [t for t in onnx.load(files.files[0]).graph.initializer if t.name.endswith(".weight_quantized")]
    assert len(weights) == 6
    for tensor in weights:
        assert set(np.unique(numpy_helper.to_array(tensor))) <= {-1, 0, 1}


def test_a_training_that_makes_it_worse_is_refused_with_the_figures(tmp_path):
    """A learning rate that ruins the network at once."""
    model = trained_file(CNN_FILE, tmp_path)
    with pytest.raises(Refusal, match=r"worse in INT8, .*% with plain quantize-static, .*% in float"):
        run(model, tmp_path, epochs=0.3, learning_rate=0.3)


@pytest.mark.parametrize(("after", "said"), [(0.84, "does better here"), (0.85, "does as well here"), (0.86, None)])
def test_plain_static_quantization_is_called_better_where_it_is(after, said):
    accuracies = {"held_out_accuracy": after, "held_out_accuracy_static": 0.85, "held_out_accuracy_before": 0.9}
    rest = {"quantized_nodes": 3, "trained_nodes": 3, "quantized_weight_share": 1.0, "steps": 7}
    text = _summary(resolve_target("cpu-vnni", VNNI), accuracies | rest)
    assert text.endswith(f"plain quantize-static {said}" if said else "in float")


def test_only_a_loss_beyond_the_limit_and_chance_counts_as_worse():
    accuracies = {"held_out_accuracy": 0.78, "held_out_accuracy_static": 0.85, "held_out_accuracy_before": 0.9}
    assert worse_than_static(accuracies | {"held_out_samples": 2000}, 0.05)
    assert not worse_than_static(accuracies | {"held_out_samples": 2000}, 0.1)
    assert not worse_than_static(accuracies | {"held_out_samples": 64}, 0.05)


def test_everything_it_quantizes_runs_in_integers(tmp_path):
    from engine.graphs.verification import executed_graph

    files, _ = run(open_text(tmp_path, CNN_FILE), tmp_path, epochs=0.2)
    executed = {node.op_type for node in executed_graph(files.files[0]).node}
    assert {"QLinearConv", "QLinearAdd", "QGemm"} <= executed
    assert not executed & {"Conv", "FusedConv", "Add", "Relu", "Gemm", "Clip"}


def test_a_stopped_training_goes_on_with_its_ranges(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    asked, source = QuantizeAware(epochs=2), baseline(model, tmp_path)
    job, _ = vnni_job(model, tmp_path)
    send = job.send

    def cancel_at_step_12(message):
        send(message)
        if isinstance(message, Progressed) and message.done == 12:
            job.cancel()

    job.send = cancel_at_step_12
    with pytest.raises(JobCancelled):
        quantize_aware_training(source, asked, job)
    job, messages = vnni_job(model, tmp_path)
    key = {"target": "cpu-vnni", **msgspec.to_builtins(asked)}
    kept = checkpoints_for(job, "quantize-aware-training", key, source)
    state = kept.load("training")["model"]
    assert any(value.any() for name, value in state.items() if name.endswith("stretch"))
    (files,) = quantize_aware_training(source, asked, job)
    steps = [message.done for message in messages if isinstance(message, Progressed) and message.total]
    assert steps[0] == 14
    assert files.changed.figures["steps"] == 30
    assert not kept.directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize("text", [TRANSFORMER_FILE, RECURRENT_FILE], ids=["transformer", "recurrent"])
def test_other_families_are_trained_as_they_are_deployed(text, tmp_path):
    files, _ = run(open_text(tmp_path, text), tmp_path, epochs=1, learning_rate=1e-3)
    figures = files.changed.figures
    assert figures["simulation_cosine"] > 0.999
    assert figures["trained_nodes"] == figures["quantized_nodes"]
    assert figures["quantized_weight_share"] > 0.9


@pytest.mark.slow
def test_excluded_layers_stay_in_float_and_are_named(tmp_path):
    files, _ = run(open_text(tmp_path, CNN_FILE), tmp_path, epochs=0.2, exclude=["stem", "blocks.0.*"])
    left = {one.name: one.reason for one in files.changed.left}
    assert left["stem/Conv"] == "kept in float on request"
    assert {"blocks.0.conv1/Conv", "blocks.0.conv2/Conv"} <= set(left)
    assert not {"stem/Conv", "blocks.0.conv1/Conv"} & set(files.changed.touched)
    assert {"blocks.1.conv1/Conv", "blocks.1.conv2/Conv", "head/Gemm"} <= set(files.changed.touched)


@pytest.mark.slow
def test_a_portable_target_gets_seven_bits(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, _ = vnni_job(model, tmp_path, "cpu-portable")
    (files,) = quantize_aware_training(baseline(model, tmp_path), QuantizeAware(epochs=0.2), job)
    assert files.changed.figures["weight_bits"] == 7
    for tensor in onnx.load(files.files[0]).graph.initializer:
        if tensor.name.endswith(".weight_quantized"):
            assert np.abs(numpy_helper.to_array(tensor)).max() == 63


@pytest.mark.slow
def test_a_gpu_target_gets_signed_symmetric_numbers(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, _ = vnni_job(model, tmp_path, "cuda")
    (files,) = quantize_aware_training(baseline(model, tmp_path), QuantizeAware(epochs=0.5, learning_rate=1e-3), job)
    graph = onnx.load(files.files[0]).graph
    zeros = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if "zero_point" in tensor.name}
    assert zeros
    assert all(zero.dtype in (np.int8, np.int32) and not zero.any() for zero in zeros.values())
    assert files.changed.figures["simulation_cosine"] > 0.999


@pytest.mark.slow
def test_several_devices_train_it_together(tmp_path):
    model = open_text(tmp_path, CNN_FILE)
    job, messages = vnni_job(model, tmp_path)
    job.spec = msgspec.structs.replace(job.spec, devices=("cpu", "cpu"))
    asked = QuantizeAware(epochs=2, learning_rate=1e-3, distillation=0.5)
    (files,) = quantize_aware_training(baseline(model, tmp_path), asked, job)
    assert any("2 processes" in message.text for message in messages if isinstance(message, Logged))
    figures = files.changed.figures
    assert figures["simulation_cosine"] > 0.9999
    assert figures["held_out_accuracy"] == pytest.approx(figures["held_out_accuracy_simulated"], abs=0.02)
    assert points(messages, "loss")


@pytest.mark.slow
def test_attention_in_one_function_is_trained_by_its_weights_and_says_so(tmp_path):
    text = TRANSFORMER_FILE.replace(
        "self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))",
        "self.layers = nn.TransformerEncoderLayer(width, heads, 64, batch_first=True, dropout=0.1)",
    )
    files, _ = run(open_text(tmp_path, text), tmp_path, epochs=0.5)
    reasons = [one.reason for one in files.changed.left if "hidden inside a larger function" in one.reason]
    assert reasons
    assert files.changed.figures["trained_nodes"] == files.changed.figures["quantized_nodes"] - len(reasons)
    assert files.changed.figures["simulation_cosine"] > 0.999


@pytest.mark.slow
def test_half_a_batch_norm_that_cannot_be_folded_keeps_its_statistics(tmp_path):
    text = CNN_FILE.replace(
        "return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)",
        "return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))",  # normalised first
    )
    files, _ = run(open_text(tmp_path, text), tmp_path, epochs=1)
    assert files.changed.figures["folded_batch_norms"] == 2
    assert files.changed.figures["simulation_cosine"] > 0.999


AFFINE_FILE = CNN_FILE.replace(
    "self.blocks(self.stem(images))", "self.blocks(nn.functional.hardswish(self.stem(images) * self.gain + 0.25) * 2)"
).replace(
    "        self.head =",
    "        self.gain = nn.Parameter(torch.linspace(0.5, 2, width).reshape(-1, 1, 1))\n        self.head =",
)


def test_factors_and_hard_activations_are_folded_as_in_static_quantization(tmp_path):
    from engine.graphs.verification import executed_graph

    assert AFFINE_FILE.count("hardswish") == 1
    files, _ = run(open_text(tmp_path, AFFINE_FILE), tmp_path, epochs=0.2)
    executed = {node.op_type for node in executed_graph(files.files[0]).node}
    assert not executed & {"Conv", "FusedConv", "HardSwish", "Add", "Mul", "Div"}
    figures = files.changed.figures
    assert figures["quantized_weight_share"] > 0.95
    assert figures["simulation_cosine"] > 0.999
    untrained = {one.name for one in files.changed.left}
    assert "stem/Conv" not in untrained, "its scales follow the factor that was folded into its weights"
