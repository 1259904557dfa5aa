"""The main job, headless: open a model, export it, quantize it, compare, export the best, run again."""

import csv
import io
import json
import tomllib

import pytest

pytestmark = pytest.mark.timeout(600)

RECIPE = """
model = "tiny_cnn.py"
accuracy_limit = 0.02
batch_sizes = [4]

[[steps]]
technique = "export-onnx"

[[steps]]
technique = "quantize-static"
name = "int8"
"""


def test_a_recipe_runs_to_a_table_and_a_second_run_reuses_everything(shell, tiny_cnn):
    (shell.directory / "recipe.toml").write_text(RECIPE)
    first = shell.json("run", "recipe.toml")
    assert first["schema"] == "trimtab/run/1"
    assert [step["status"] for step in first["steps"]] == ["succeeded", "succeeded"]
    by_name = {variant["name"]: variant for variant in first["variants"]}
    assert set(by_name) == {"baseline", "export-onnx", "int8"}
    assert by_name["baseline"]["parent"] is None
    assert by_name["baseline"]["technique"] is None
    int8 = by_name["int8"]
    assert int8["parent"] == by_name["export-onnx"]["id"]
    assert int8["accuracy"]["verdict"] == "PASS"
    assert int8["accuracy"]["samples"] >= 1000
    assert int8["size_bytes"] < by_name["export-onnx"]["size_bytes"]
    measured = int8["measurements"][0]
    assert measured["batch_size"] == 4
    assert measured["latency_ms"]["p50"] > 0
    assert measured["speedup"]["low"] <= measured["speedup"]["ratio"] <= measured["speedup"]["high"]
    assert int8["latency_ms"] == measured["latency_ms"]

    again = shell.json("run", "recipe.toml")
    assert [variant["id"] for variant in again["variants"]] == [variant["id"] for variant in first["variants"]]
    assert again["variants"] == first["variants"]


def test_apply_compare_and_export_work_on_the_only_session_here(shell, tiny_cnn):
    shell.json("open", "tiny_cnn.py", "--headless")
    shell.json("apply", "export-onnx")
    refused = shell.json("apply", "quantize-dynamic", "--from", "baseline", status=1)
    assert refused["steps"][0]["status"] == "refused"
    assert "export-onnx" in refused["steps"][0]["reason"]
    shell.json("apply", "quantize-static", "--from", "export-onnx", "--name", "int8", "--search", "never")

    table = shell.trimtab("compare")
    assert table.returncode == 0
    assert "int8" in table.stdout
    rows = list(csv.DictReader(io.StringIO(shell.trimtab("compare", "--csv").stdout)))
    assert [row["name"] for row in rows] == ["baseline", "export-onnx", "int8"]

    exported = shell.trimtab("export", "int8", "--to", "release")
    assert exported.returncode == 0, exported.stderr
    release = shell.directory / "release"
    names = {path.name for path in release.iterdir()}
    assert {"results.json", "results.csv", "report.md", "recipe.toml"} <= names
    assert json.loads((release / "results.json").read_text())["variants"]
    recipe = tomllib.loads((release / "recipe.toml").read_text())
    assert [step["technique"] for step in recipe["steps"] if "technique" in step] == ["export-onnx", "quantize-static"]
    assert list(release.rglob("*.onnx"))


@pytest.mark.slow
def test_an_exported_recipe_makes_the_variant_again_elsewhere(shell, tiny_cnn):
    shell.json("open", "tiny_cnn.py", "--headless")
    shell.json("apply", "export-onnx")
    shell.json("apply", "quantize-static", "--from", "export-onnx", "--name", "int8")
    assert shell.trimtab("export", "int8", "--to", "release").returncode == 0
    remade = shell.json("run", "release/recipe.toml", "--session", "elsewhere.trimtab")
    assert "int8" in {variant["name"] for variant in remade["variants"]}


def test_no_variant_within_the_limit_is_status_3(shell, tiny_cnn):
    """A limit below what the sample can prove: every verdict but the baseline's is not a pass."""
    recipe = RECIPE.replace("accuracy_limit = 0.02", "accuracy_limit = 0.0000001")
    (shell.directory / "strict.toml").write_text(recipe)
    shell.json("run", "strict.toml", status=3)


def test_wrong_usage_is_one_sentence_and_with_json_one_object(shell, tiny_cnn):
    assert shell.trimtab("compare").returncode == 2
    plain = shell.trimtab("run", "missing.toml")
    assert plain.returncode == 2
    assert "missing.toml" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "missing.toml" in shell.json("run", "missing.toml", status=2)["error"]
    (shell.directory / "broken.toml").write_text('model = "tiny_cnn.py"\nsteps = 3\n')
    assert shell.trimtab("run", "broken.toml").returncode == 2
    assert shell.trimtab("open", "nothing.py", "--headless").returncode == 2
    assert shell.trimtab("frobnicate-this").returncode == 2


def test_an_unknown_technique_or_parameter_names_the_known_ones(shell, tiny_cnn):
    shell.json("open", "tiny_cnn.py", "--headless")
    unknown = shell.trimtab("apply", "quantize-magic")
    assert unknown.returncode != 0
    assert "quantize-static" in unknown.stdout + unknown.stderr
    wrong = shell.trimtab("apply", "export-onnx", "--nonsense", "3")
    assert wrong.returncode != 0
    assert "nonsense" in wrong.stdout + wrong.stderr


def test_an_engine_py_on_the_python_path_does_not_shadow_ours(shell):
    (shell.directory / "engine.py").write_text("raise RuntimeError('the wrong engine')\n")
    shell.environment["PYTHONPATH"] = str(shell.directory)
    listed = shell.trimtab("ls")
    assert listed.returncode == 0, listed.stderr
