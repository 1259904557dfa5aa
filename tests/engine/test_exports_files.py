"""An export is a directory that explains itself, holds what was asked for, and never damages what was there."""

import json
import tomllib

import msgspec
import pytest
from session_makers import CONDITIONS, add_accuracy, add_latency, add_variant, make_model

from engine.exports import export_variants, recipe_text
from engine.protocol import Left, ModelSource
from engine.recipes.files import read_recipe
from engine.session import Session, SessionError
from engine.session.variant_files import sha256_of
from engine.techniques import parse_parameters, with_defaults

HOSTILE = 'conv[/]x\x1b]52;c;AAAA\x07 "]\n=cmd()|`'


@pytest.fixture
def session(tmp_path):
    model = tmp_path / "net.py"
    model.write_text("def load_model(): ...")
    opened = Session.open(tmp_path / "s")
    source = ModelSource(path=str(model), kind="python", sha256=sha256_of(model))
    opened.set_model(msgspec.structs.replace(make_model(), source=source))
    base = add_variant(opened, "baseline")
    onnx = add_variant(
        opened, "onnx", base, technique="export-onnx", parameters=with_defaults(parse_parameters("export-onnx", {}))
    )
    static = with_defaults(parse_parameters("quantize-static", {"samples": 77, "exclude": ["/fc", HOSTILE]}))
    int8 = add_variant(opened, "int8", onnx, content=b"int8 weights", parameters=static)
    other = add_variant(opened, "other", onnx, technique="quantize-dynamic")
    for variant, ratio, drop in ((base, 1.0, 0.0), (onnx, 2.0, 0.0), (int8, 4.0, 0.001), (other, 3.0, 0.3)):
        add_latency(opened, variant, ratio)
        add_accuracy(opened, variant, drop)
    yield opened
    opened.close()


def test_without_names_the_best_and_the_baseline_are_exported(session, tmp_path):
    exported = export_variants(session, (), tmp_path / "out")
    out = tmp_path / "out"
    assert set(exported.files) == {
        *("int8/model.onnx", "baseline/weights.safetensors", "model/net.py"),
        *("results.json", "results.csv", "report.md", "recipe.toml"),
    }
    assert (out / "int8/model.onnx").read_bytes() == b"int8 weights"
    assert [v["name"] for v in json.loads((out / "results.json").read_text())["variants"]] == ["int8", "baseline"]
    assert not list(tmp_path.glob(".out*"))


def test_the_recipe_reads_back_with_every_step_pinned(session, tmp_path):
    export_variants(session, (session.resolve("int8"),), tmp_path / "out")
    recipe = read_recipe(tmp_path / "out/recipe.toml")
    assert recipe.model == tmp_path / "out/model/net.py"
    assert recipe.original_model == tmp_path / "net.py"
    assert recipe.model_sha256 == sha256_of(recipe.model)
    assert [(step.word, step.name, step.source) for step in recipe.steps] == [
        ("export-onnx", "onnx", None),
        ("quantize-static", "int8", None),
    ]
    assert recipe.steps[1].parameters == session.resolve("int8").parameters
    recorded = recipe.steps[1].recorded
    assert recorded["speedup"] == 4.0
    assert recorded["accuracy_drop"] == 0.001
    assert recorded["processor"] == "avx2 vnni"
    assert (recipe.accuracy_limit, recipe.batch_sizes, recipe.target) == (0.01, (1, 8), "cpu-vnni")


def test_the_recipe_of_several_variants_says_what_each_is_built_on(session, tmp_path):
    export_variants(session, (session.resolve("int8"), session.resolve("other")), tmp_path / "out")
    recipe = read_recipe(tmp_path / "out/recipe.toml")
    assert [(step.name, step.source) for step in recipe.steps] == [("onnx", None), ("int8", None), ("other", "onnx")]


def test_a_step_beyond_the_limit_that_others_were_built_on_stays_buildable(session):
    child = add_variant(session, "rescued", session.resolve("other"))
    steps = tomllib.loads(recipe_text(session, child))["steps"]
    assert [step.get("beyond_limit") for step in steps] == [None, True, None]


@pytest.mark.parametrize("name", [HOSTILE, "int8/fast", "baseline-2", "größe", 'a"b\\c', "step: [x]"])
def test_any_name_gives_a_recipe_that_reads_back(session, tmp_path, name):
    bad = add_variant(session, "bad", session.resolve("onnx"), name=name)
    (tmp_path / "r.toml").write_text(recipe_text(session, bad))
    text = (tmp_path / "r.toml").read_text()
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert len(read_recipe(tmp_path / "r.toml").steps) == 2


def test_a_recipe_of_a_search_pins_what_was_found(session):
    found = with_defaults(parse_parameters("quantize-static", {"exclude": ["/a", "/b"]}))
    made = add_variant(session, "searched", session.resolve("onnx"), parameters=found, requested={"how_hard": 3})
    steps = tomllib.loads(recipe_text(session, made))["steps"]
    assert steps[1]["exclude"] == ["/a", "/b"]
    assert "how_hard" not in steps[1]


def test_the_report_says_what_was_done_on_what_and_how_to_repeat_it(session, tmp_path):
    export_variants(session, (session.resolve("int8"),), tmp_path / "out")
    report = (tmp_path / "out/report.md").read_text()
    for text in (
        "# residual_cnn: optimisation report",
        "### 1. onnx",
        "### 2. int8",
        "`samples` = `77`",
        "Changed: 12 of 14 nodes quantized",
        "`fc`: too sensitive",
        "Expected: size 25 %",
        "4.00× (3.88–4.12) against baseline",
        "drop 0.10 points on 10000 samples",
        "onnxruntime on cpu, processor avx2 vnni, 2 threads",
        "over parent, that the parent was not measured under the same runtime",
        "trimtab run recipe.toml",
    ):
        assert text in report, text
    assert report.index("### 1. onnx") < report.index("### 2. int8")
    assert "other" not in report


def test_the_report_says_what_disturbed_a_measurement(session, tmp_path):
    busy = msgspec.structs.replace(CONDITIONS, notes=("Disturbed: other processes kept 1.5 cores busy meanwhile.",))
    add_latency(session, session.resolve("int8"), 4.0, created=9.0, conditions=busy)
    export_variants(session, (session.resolve("int8"),), tmp_path / "out")
    report = (tmp_path / "out/report.md").read_text()
    assert report.count("onnxruntime on cpu, processor avx2 vnni") == 1
    assert "- int8, onnxruntime, batch 8: Disturbed: other processes" in report
    assert "~ Other processes worked meanwhile" in report


def test_a_hostile_layer_name_harms_no_file_of_an_export(session, tmp_path):
    onnx = session.resolve("onnx")
    changed = msgspec.structs.replace(
        onnx.changed, summary=HOSTILE, touched=(HOSTILE,), left=(Left(name=HOSTILE, reason=HOSTILE),)
    )
    bad = add_variant(session, "bad", onnx, name=HOSTILE, changed=changed, technique="quantize-static")
    exported = export_variants(session, (bad,), tmp_path / "out")
    for file in exported.files:
        assert "\n" not in file
        assert "\x1b" not in file
    for name in ("results.json", "results.csv", "report.md", "recipe.toml"):
        text = (tmp_path / "out" / name).read_text()
        assert not [c for c in text if ord(c) < 32 and c not in "\r\n"], name
    assert read_recipe(tmp_path / "out/recipe.toml").steps[-1].kind == "technique"


def test_files_in_the_way_are_kept_unless_overwriting_is_allowed(session, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("mine")
    (out / "notes.txt").write_text("mine too")
    with pytest.raises(SessionError, match=r"holds report\.md already"):
        export_variants(session, (), out)
    assert sorted(p.name for p in out.iterdir()) == ["notes.txt", "report.md"]
    export_variants(session, (), out, overwrite=True)
    assert "optimisation report" in (out / "report.md").read_text()
    assert (out / "notes.txt").read_text() == "mine too"
    export_variants(session, (), out, overwrite=True)


def test_an_export_next_to_other_files_is_added_to_them(session, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    export_variants(session, (), tmp_path / "out")
    assert (tmp_path / "out" / "report.md").exists()


def test_an_export_does_not_follow_links_out_of_its_directory(session, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "int8").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SessionError, match="symbolic link"):
        export_variants(session, (), tmp_path / "out", overwrite=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_variant_that_has_changed_on_the_disk_is_not_exported(session, tmp_path):
    file = session.directory / "variants" / session.resolve("int8").id / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(b"INT8 weights")
    with pytest.raises(SessionError, match="has changed since it was made"):
        export_variants(session, (), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_places_that_make_no_sense_are_refused(session, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (session.directory, session.directory / "variants" / "x", tmp_path / "file"):
        with pytest.raises(SessionError):
            export_variants(session, (), place)
    export_variants(session, (), session.directory / "exports" / "one")


def test_variants_with_names_that_look_alike_get_folders_of_their_own(session, tmp_path):
    onnx = session.resolve("onnx")
    pair = tuple(add_variant(session, "x", onnx, name=name) for name in ("a b", "a/b"))
    exported = export_variants(session, pair, tmp_path / "out")
    assert len([file for file in exported.files if file.endswith("model.onnx")]) == 2


def test_moving_to_another_class_of_processor_is_pointed_out(session, tmp_path, monkeypatch):
    from engine.protocol import Processor

    here = Processor(name="Old CPU", features=("avx2",), physical_cores=2, logical_cores=2, memory_bytes=1)
    monkeypatch.setattr("engine.exports.export.read_processor", lambda: here)
    exported = export_variants(session, (), tmp_path / "out")
    assert len(exported.notices) == 1
    assert "int8: Made for cpu-vnni" in exported.notices[0]
    report = (tmp_path / "out/report.md").read_text()
    assert "## To know before deploying" in report
    assert "Old CPU" in report


def test_a_model_file_that_has_changed_since_is_not_carried_along(session, tmp_path):
    (tmp_path / "net.py").write_text("changed")
    exported = export_variants(session, (), tmp_path / "out")
    assert "model/net.py" not in exported.files
    assert "has changed since it was opened" in " ".join(exported.notices)


def test_an_onnx_model_is_carried_with_its_data(session, tmp_path):
    base = session.baseline
    (tmp_path / "test set.npz").write_bytes(b"data")
    source = ModelSource(
        path=str(tmp_path / "net.onnx"), kind="onnx", sha256=base.files[0].sha256, data=str(tmp_path / "test set.npz")
    )
    (tmp_path / "net.onnx").write_bytes(b"weights")
    session.set_model(msgspec.structs.replace(session.model, source=source))
    export_variants(session, (), tmp_path / "out")
    recipe = read_recipe(tmp_path / "out/recipe.toml")
    assert recipe.model.read_bytes() == b"weights"
    assert recipe.data.read_bytes() == b"data"
    assert recipe.data.is_relative_to(tmp_path / "out")


def test_nothing_to_export_is_said(tmp_path):
    empty = Session.open(tmp_path / "empty")
    with pytest.raises(SessionError, match="no model has been opened"):
        export_variants(empty, (), tmp_path / "out")
