"""A recipe is read as written, or refused with one sentence that says where and what was probably meant."""

import pytest

from engine.recipes.files import RecipeError, read_recipe
from engine.techniques import Refusal, parse_parameters, with_defaults

WHOLE = """
model = "nets/residual_cnn.py"
data = "test.npz"
calibration_data = "/data/calib.npz"
accuracy_limit = 0.02
shapes = { x = ["batch", 3, 48, 320] }
target = "cpu-portable"
batch_sizes = [1, 8]
runtimes = ["pytorch", "onnxruntime"]
device = "cpu"

[[steps]]
technique = "export-onnx"

[[steps]]
technique = "quantize-static"
from = "export-onnx"
name = "int8"
samples = 100
exclude = ["/fc"]
[steps.recorded]
speedup = 3.0

[[steps]]
technique = "quantize-static"
from = "baseline"

[[steps]]
measurement = "load-test"
rate = 200
seconds = 20
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_every_key_is_read_and_paths_are_relative_to_the_recipe(tmp_path):
    recipe = read_recipe(write(tmp_path, WHOLE))
    assert recipe.model == tmp_path / "nets/residual_cnn.py"
    assert recipe.data == tmp_path / "test.npz"
    assert str(recipe.calibration_data) == "/data/calib.npz"
    assert (recipe.accuracy_limit, recipe.target, recipe.device) == (0.02, "cpu-portable", "cpu")
    assert (recipe.batch_sizes, recipe.runtimes) == ((1, 8), ("pytorch", "onnxruntime"))
    assert recipe.shapes == {"x": ["batch", 3, 48, 320]}
    assert [step.name for step in recipe.steps] == ["export-onnx", "int8", "quantize-static", "load-test"]
    int8 = recipe.steps[1]
    assert int8.source == "export-onnx"
    assert int8.parameters == {"samples": 100, "exclude": ["/fc"]}
    assert int8.recorded == {"speedup": 3.0}
    assert recipe.steps[3].kind == "measurement"
    assert recipe.steps[3].parameters == {"rate": 200, "seconds": 20}


def test_what_a_recipe_leaves_out_is_unknown_and_not_a_default(tmp_path):
    recipe = read_recipe(write(tmp_path, 'model = "m.py"'))
    assert recipe.steps == ()
    assert recipe.accuracy_limit is recipe.batch_sizes is recipe.target is None


STEP = 'model = "m.py"\n[[steps]]\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model = ", "recipe.toml is not valid TOML"),
        ("accuracy_limit = 0.01", "names no model"),
        ('model = "m.py"\nbatchsizes = [1]', "no key batchsizes. Did you mean batch_sizes?"),
        ('model = "m.py"\naccuracy_limit = 5', "is a fraction: 0.01 is one percentage point"),
        ('model = "m.py"\naccuracy_limit = true', "accuracy_limit must be a fraction"),
        ('model = "m.py"\nbatch_sizes = [0]', "0 is no batch size"),
        ('model = "m.py"\nbatch_sizes = 8', r"batch_sizes must be a list such as \[1, 8\]"),
        ('model = "m.py"\nruntimes = ["onnxruntim"]', "no runtime onnxruntim. Did you mean onnxruntime?"),
        ('model = "m.py"\ntarget = "cpu-vnny"', "no target cpu-vnny. Did you mean cpu-vnni?"),
        ('model = "m.py"\ndevice = "gpu"', "no device gpu"),
        ('model = "m.py"\nshapes = { x = 3 }', "shapes.x is a list"),
        ('model = "m.py"\nsteps = 3', r"begin each step with a line \[\[steps\]\]"),
        (
            STEP + 'technique = "quantise-static"',
            "step 1: there is no technique quantise-static. Did you mean quantize",
        ),
        (STEP + 'tecnique = "export-onnx"', "Did you mean that with tecnique?"),
        (STEP + 'technique = "export-onnx"\nmeasurement = "latency"', "either technique"),
        (STEP + 'technique = "quantize-static"\nsample = 3', "Did you mean samples?"),
        (STEP + 'technique = "quantize-static"\nsamples = 0', "samples"),
        (STEP + 'measurement = "latency"\nbatch = [1]', "latency has no key batch. Did you mean batch_sizes?"),
        (STEP + 'technique = "export-onnx"\nname = "best"', "the name best"),
        (STEP + 'technique = "export-onnx"\nname = "a"\n[[steps]]\ntechnique = "export-onnx"\nname = "a"', "step 2"),
        ('model = "m.py"\n"\\u001b]52;c;A\\u0007" = 1', "no key ␛]52;c;A␇"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, text, sentence):
    with pytest.raises(RecipeError, match=sentence) as error:
        read_recipe(write(tmp_path, text))
    assert "recipe.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(tmp_path / "binary.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(RecipeError, match="longer than 1 MB"):
        read_recipe(tmp_path / "huge.toml")


def test_a_technique_of_a_later_version_is_read(tmp_path):
    recipe = read_recipe(write(tmp_path, STEP + 'technique = "distill"\ntemperature = 3.0'))
    assert recipe.steps[0].word == "distill"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"scope": "foo"}, "prune-structured: scope: 'foo' is none of layer, global, sensitivity."),
        (
            {"protect": True},
            'prune-structured: protect: it is a list: names with commas between them, or JSON such as ["a',
        ),
    ],
)
def test_a_parameter_that_is_none_of_the_allowed_says_what_is(parameters, sentence):
    with pytest.raises(Refusal) as caught:
        parse_parameters("prune-structured", parameters)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(("text", "names"), [("fc", ["fc"]), ("fc,blocks.*.conv1", ["fc", "blocks.*.conv1"])])
def test_a_list_may_be_written_as_words(text, names):
    made = with_defaults(parse_parameters("prune-structured", {"protect": text}))
    assert list(made["protect"]) == names
