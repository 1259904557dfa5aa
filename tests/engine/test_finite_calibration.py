"""Calibration samples that hold NaN or infinity: left out and told, or refused where most are such."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from technique_jobs import CONVOLUTIONAL, IMAGE, open_baseline, open_python, run_technique

from engine.models import file_sha256
from engine.models.finite import finite_calibration, finite_rows
from engine.protocol import Logged, ModelSource
from engine.techniques import Refusal

RANDOM = np.random.default_rng(0)


@pytest.fixture
def source_with(tmp_path):
    """A small graph with 24 samples to test and to calibrate on, of which the given ones hold a NaN."""

    def make(spoiled):
        constants = {
            "first": RANDOM.standard_normal((32, 256)).astype(np.float32),
            "second": RANDOM.standard_normal((256, 32)).astype(np.float32),
        }
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "first"], ["a"], "one"),
                helper.make_node("Relu", ["a"], ["b"], "relu"),
                helper.make_node("MatMul", ["b", "second"], ["y"], "two"),
            ],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path, data = tmp_path / "net.onnx", tmp_path / "data.npz"
        path.write_bytes(model.SerializeToString())
        x = RANDOM.standard_normal((24, 32)).astype(np.float32)
        x[spoiled, 3] = np.nan
        np.savez(data, x=x)
        return open_baseline(
            ModelSource(
                path=str(path), kind="onnx", sha256=file_sha256(path), data=str(data), calibration_data=str(data)
            ),
            tmp_path,
        )

    return make


TELLS = "2 of 24 calibration samples hold NaN or infinity (input 'x'): they are left out."


@pytest.mark.parametrize(
    ("technique", "options"),
    [
        ("quantize-static", {}),
        ("quantize-dynamic", {}),
        ("quantize-int4", {"method": "gptq"}),
        ("quantize-fp8", {"target": "tensorrt"}),
    ],
)
def test_a_few_such_samples_are_left_out_and_told(source_with, tmp_path, technique, options):
    run = run_technique(source_with([5, 17]), technique, tmp_path, **options)
    assert TELLS in [message.text for message in run.messages if isinstance(message, Logged)]
    figures = run.variants[0].record.changed.figures
    assert figures.get("calibration_samples", 22) == 22
    assert figures.get("calibration_cosine", 1) > 0.99
    assert figures["cosine"] > 0.99


@pytest.mark.parametrize("technique", ["quantize-static", "quantize-dynamic"])
def test_most_such_samples_are_refused(source_with, tmp_path, technique):
    with pytest.raises(
        Refusal, match=r"13 of 24 calibration samples hold NaN or infinity \(input 'x'\): mend the data"
    ):
        run_technique(source_with(range(13)), technique, tmp_path)


def test_examples_are_drawn_from_the_others(source_with):
    model = source_with(range(20)).model
    assert all(np.isfinite(model.example(8, seed=seed)["x"]).all() for seed in range(5))


def test_batches_are_filled_up_again(tmp_path, monkeypatch):
    model = open_python(tmp_path, CONVOLUTIONAL, IMAGE).model
    batches = list(model.calibration_batches(batch_size=16, limit=64))
    batches[1]["image"][3] = np.inf
    monkeypatch.setattr(model, "calibration_batches", lambda batch_size, limit: iter(batches))
    told = []
    kept = finite_calibration(model, 16, 64, told.append)
    assert [len(batch["image"]) for batch in kept] == [16, 16, 16, 15]
    assert told == ["1 of 64 calibration samples hold NaN or infinity (input 'image'): they are left out."]


def test_the_infinity_of_a_mask_is_a_number_like_others():
    mask = np.where(RANDOM.random((4, 6)) < 0.5, 0, -np.inf).astype(np.float32)
    assert finite_rows("bias", mask, 0).all()
    mask[2, 1] = 0.5
    assert finite_rows("attention_mask", mask, 0).all()
    assert not finite_rows("bias", mask, 0).all()
    mask[3, 2] = np.nan
    assert finite_rows("attention_mask", mask, 0).tolist() == [True, True, True, False]
