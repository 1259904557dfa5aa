"""The promise: a session that any version of Trimtab wrote opens in every later one, with everything in it.

`tests/data/session-v1` is what a real run of the first version left behind. It is never edited: when a test here
fails, the reader is wrong. How a session of a newer version is refused is tested in `test_session_survives.py`.
"""

import shutil
from pathlib import Path

import pytest
from session_makers import add_latency, add_variant, is_whole

from engine.exports import recipe_text, results
from engine.session import Session

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def directory(tmp_path):
    copy = tmp_path / "old.trimtab"
    shutil.copytree(DATA / "session-v1", copy)
    return copy


def check(session):
    """The facts that are in the frozen session, whether it was opened or rebuilt."""
    assert [variant.name for variant in session.variants.values()] == ["baseline", "export-onnx", "int8", "doomed"]
    assert is_whole(session) == []
    assert session.model.name == "tiny_cnn"
    assert session.model.labelled
    baseline, onnx, int8, _ = session.variants.values()
    assert (baseline.parent, onnx.parent, int8.parent) == (None, baseline.id, onnx.id)
    assert int8.technique == "quantize-static"
    assert int8.parameters["samples"] == 100
    assert int8.changed.touched
    assert int8.files[0].size_bytes == 12766
    assert len(session.measurements) == 12
    entry = results.results(session, "compare")["variants"][2]
    assert entry["accuracy"]["samples"] == 1200
    assert entry["accuracy"]["verdict"] == "PASS"
    assert {measured["batch_size"] for measured in entry["measurements"]} == {1, 4}
    assert entry["measurements"][0]["speedup"]["against"] == "baseline · pytorch · cpu · batch 1"
    assert 'technique = "quantize-static"' in recipe_text(session, int8)


def test_a_session_of_the_first_version_opens_with_everything_in_it(directory):
    session = Session.open(directory)
    assert session.notices == []
    check(session)
    assert session.options.accuracy_limit == 0.02
    assert session.options.batch_sizes == (1, 4)
    assert len(session.jobs) == 12
    assert all(job.is_done for job in session.jobs.values())
    recipe, apply = session.runs.values()
    assert [step.status for step in recipe.steps] == ["succeeded", "succeeded", "refused", "skipped", "refused"]
    assert apply.title == "export-onnx from baseline"
    samples = session.telemetry(0, 50)
    assert len(samples) == 50
    assert samples[0].memory_total_bytes > 0
    export = next(job for job in session.jobs.values() if job.kind == "export-onnx")
    assert session.log_path(export.id).read_text()


def test_work_goes_on_in_it(directory):
    session = Session.open(directory)
    child = add_variant(session, "int8", session.resolve("int8"))
    add_latency(session, child, 2.0)
    assert child.id > max(id for id in session.variants if id != child.id)
    assert child.name == "int8-2"
    session.close()
    again = Session.open(directory)
    assert is_whole(again) == []
    assert again.resolve("int8-2") == child


def test_it_can_be_rebuilt_without_its_database(directory):
    (directory / "session.db").unlink()
    session = Session.open(directory)
    check(session)
