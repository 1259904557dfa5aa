"""The PyTorch way of quantize-dynamic and quantize-int4: the module itself, by torchao, for torch.compile."""

import numpy as np
import pytest
from technique_jobs import CONVOLUTIONAL, IMAGE, RECURRENT, ROWS, TOKENS, apply, open_python, run_technique

from engine import runtimes
from engine.protocol import Hardware, Logged, ModelInfo, Processor
from engine.runtimes import RuntimeUnavailable, load, runtimes_for, why_not_installed
from engine.techniques import Refusal, find_technique, parse_parameters, pytorch_weights, why_unavailable

pytest.importorskip("torchao")

WIDE = """
class Net(nn.Module):
    def __init__(self, width=128, words=200):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.up, self.down = nn.Linear(width, 256), nn.Linear(256, width)
        self.head = nn.Linear(width, 8)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(dim=1))
"""


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return open_python(tmp_path_factory.mktemp("wide"), WIDE, TOKENS)


def stored(variant):
    """The variant as the session has it: with the file's hash, without which no module is opened."""
    import dataclasses

    import msgspec

    from engine.models import file_sha256

    (file,) = variant.record.files
    file = msgspec.structs.replace(file, sha256=file_sha256(variant.path))
    return dataclasses.replace(variant, record=msgspec.structs.replace(variant.record, files=(file,)))


def answers(variant, runtime="pytorch"):
    batch = variant.model.example(6, seed=99)
    (output,) = load(variant, runtime, threads=1).run(batch).values()
    return output


def cosine(first, second):
    return float((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize(
    ("technique", "options", "least", "size"),
    [
        ("quantize-dynamic", {"activations": "float"}, 0.999, 0.55),
        ("quantize-dynamic", {"activations": "int8"}, 0.999, 0.55),
        ("quantize-int4", {"block_size": 32}, 0.97, 0.5),
    ],
)
def test_linear_layers_get_smaller_and_the_variant_runs_under_pytorch(
    baseline, tmp_path, technique, options, least, size
):
    made = run_technique(baseline, technique, tmp_path, format="pytorch", **options)
    variant = stored(made.variants[0])
    assert variant.record.format == "pytorch"
    assert set(variant.record.changed.touched) == {"up", "down"}
    left = {one.name: one.reason for one in variant.record.changed.left}
    assert "too few" in left["head"]
    assert "Embedding" in left["embedding"]
    assert variant.path.stat().st_size < size * baseline.path.stat().st_size
    assert cosine(answers(baseline), answers(variant)) > least
    assert not np.array_equal(answers(baseline), answers(variant))
    said = [message.text for message in made.messages if isinstance(message, Logged)]
    assert any("eager mode on a CPU" in text for text in said), "the truth beforehand"
    assert "for torch.compile" in variant.record.changed.summary
    with pytest.raises(Refusal, match="quantized already"):
        apply(variant, technique, tmp_path, format="pytorch")


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_recurrent_layers_go_through_pytorchs_own_quantization(tmp_path, kind):
    source = open_python(tmp_path, RECURRENT.format(kind=kind).replace("24", "64").replace("48", "128"), ROWS)
    variant = stored(apply(source, "quantize-dynamic", tmp_path, format="pytorch"))
    assert variant.record.changed.touched == ("recurrent",)
    assert variant.record.changed.figures["quantized_weight_share"] > 0.95
    assert variant.path.stat().st_size < 0.4 * source.path.stat().st_size
    assert cosine(answers(source), answers(variant)) > 0.99


def test_layers_can_be_left_in_float(baseline, tmp_path):
    made = apply(baseline, "quantize-dynamic", tmp_path, format="pytorch", exclude=["up"])
    assert made.record.changed.touched == ("down",)
    with pytest.raises(Refusal, match="no layer 'nowhere'"):
        apply(baseline, "quantize-dynamic", tmp_path, format="pytorch", exclude=["nowhere"])


def test_convolutions_alone_are_refused(tmp_path):
    source = open_python(tmp_path, CONVOLUTIONAL, IMAGE)
    with pytest.raises(Refusal, match="torchao quantizes linear layers, and this is Conv2d"):
        apply(source, "quantize-dynamic", tmp_path, format="pytorch")


def sentence(tag, variant, target="this-machine", **parameters):
    processor = Processor(name="p", features=(), physical_cores=1, logical_cores=1, memory_bytes=1)
    model = ModelInfo(name="m", source=variant.model.source, inputs=(), outputs=(), offers=(), labelled=False)
    chosen = parse_parameters(tag, parameters) if parameters else None
    hardware = Hardware(hostname="h", processor=processor)
    return why_unavailable(find_technique(tag), variant.record, model, hardware, chosen, target)


@pytest.mark.parametrize("tag", ["quantize-dynamic", "quantize-int4"])
def test_the_format_must_go_with_the_variant(baseline, tmp_path, monkeypatch, tag):
    assert sentence(tag, baseline) is None, "the form offers both ways"
    assert sentence(tag, baseline, format="pytorch") is None
    assert "apply export-onnx to baseline first (or set format = pytorch" in sentence(tag, baseline, format="onnx")
    exported = apply(baseline, "export-onnx", tmp_path)
    assert sentence(tag, exported) is None
    assert "is ONNX already" in sentence(tag, exported, format="pytorch")
    for target in ("cuda", "tensorrt"):
        assert sentence(tag, baseline, target) is None, "a module may still choose PyTorch's way, which is for GPUs"
        assert sentence(tag, baseline, target, format="pytorch") is None
    if tag == "quantize-dynamic":
        assert "cuda has no kernel for it" in sentence(tag, exported, "cuda")
    monkeypatch.setattr(pytorch_weights.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'trimtab[torchao]'" in pytorch_weights.why_not("INT4 weights", baseline.record, "pytorch")
    assert "apply export-onnx" in pytorch_weights.why_not("INT4 weights", baseline.record, None)


def test_a_profile_names_the_precision_of_quantized_layers(baseline, tmp_path):
    from engine.measurements.pytorch_profile import _precision

    eight = stored(apply(baseline, "quantize-dynamic", tmp_path, format="pytorch")).module()
    four = stored(apply(baseline, "quantize-int4", tmp_path, format="pytorch")).module()
    assert [_precision(module.up) for module in (baseline.module(), eight, four)] == ["float32", "int8", "int4"]


def test_torch_compile_is_never_what_one_gets_without_asking_and_needs_a_compiler(monkeypatch):
    assert runtimes_for("pytorch")[0] == "pytorch"
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in why_not_installed("torch-compile")


def test_torch_compile_refuses_a_gpu_that_is_not_there(baseline):
    with pytest.raises(RuntimeUnavailable, match=r"no CUDA device|There is no cuda:7"):
        load(baseline, "torch-compile", device="cuda:7")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(why_not_installed("torch-compile") is not None, reason="no C++ compiler")
def test_torch_compile_gives_the_answers_of_eager_mode(baseline, tmp_path):
    variant = stored(apply(baseline, "quantize-dynamic", tmp_path, format="pytorch"))
    for one in (baseline, variant):
        runner = load(one, "torch-compile", threads=1)
        batch = one.model.example(6, seed=99)
        (output,) = runner.run(batch).values()
        assert cosine(output, answers(one)) > 0.9999
        assert runner.bind(batch)() is not None
        assert runner.runtime == "torch-compile"
        runner.close()
