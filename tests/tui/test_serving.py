"""What `trimtab serve` prints and understands."""

import argparse
import json
import subprocess

import pytest

from engine.protocol import ModelInfo, ModelSource, ServeSettings, TensorSpec
from tui.cli import _parser
from tui.serving import OPTIONS, curl_example, row_shape, settings_of
from tui.sessions import UsageError


def model(*inputs: TensorSpec) -> ModelInfo:
    source = ModelSource(path="/m.onnx", kind="onnx", sha256="")
    return ModelInfo(name="m", source=source, inputs=inputs, outputs=(), offers=(), labelled=False)


def spec(name: str, dtype: str, *shape: int | str | None) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{name: given.get(name) for name in OPTIONS})


def test_what_is_not_given_is_the_default():
    assert settings_of(options()) == ServeSettings()
    assert settings_of(options(port=0, max_wait_ms=2.5)) == ServeSettings(port=0, max_wait_ms=2.5)


def test_every_setting_has_its_option():
    assert sorted(OPTIONS) == sorted(ServeSettings.__struct_fields__)
    typed = ["serve", "int8", "--session", "s", "--wait", "always", "--max-queue-size", "7", "--timeout-ms", "2.5"]
    typed += ["--preferred-batch-sizes", "4,8", "--priority-levels", "3"]
    assert settings_of(_parser().parse_args(typed)) == ServeSettings(
        wait="always", max_queue_size=7, timeout_ms=2.5, preferred_batch_sizes=(4, 8), priority_levels=3
    )


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"port": 70000}, "--port"),
        ({"max_batch_size": 0}, "--max-batch-size"),
        ({"grpc_port": -1}, "--grpc-port"),
        ({"wait": "never"}, "--wait"),
        ({"timeout_ms": 0}, "--timeout-ms"),
        ({"preferred_batch_sizes": [4, 0]}, "--preferred-batch-sizes: "),
    ],
)
def test_what_makes_no_sense_is_named_as_it_is_typed(given, word):
    with pytest.raises(UsageError, match=word):
        settings_of(options(**given))


def test_a_row_stands_first_whatever_axis_the_model_has_it_on():
    assert row_shape(spec("x", "float32", 3, "batch", 5)) == [1, 3, 5]
    assert row_shape(spec("x", "float32", "batch", "length", None)) == [1, 8, 8]
    assert row_shape(spec("x", "float32", 4, 5)) == [4, 5]


def test_the_example_is_written_out_for_a_short_row_and_made_for_a_long_one():
    short = curl_example("http://0.0.0.0:8000", model(spec("tokens", "int64", "batch", 2), spec("scale", "float32", 1)))
    assert short == 'curl http://127.0.0.1:8000/predict -d \'{"inputs": {"tokens": [[0, 0]]}}\''
    name = "it's $(touch /tmp/x) `no`"
    long = curl_example("http://127.0.0.1:8000", model(spec(name, "float32", "batch", 3, 40, 30)))
    body = subprocess.run(
        ["bash", "-c", long.partition(" | curl ")[0]], capture_output=True, text=True, check=True
    ).stdout
    rows = json.loads(body)["inputs"][name]
    assert (len(rows), len(rows[0]), len(rows[0][0]), rows[0][0][0]) == (1, 3, 40, [0.0] * 30)
