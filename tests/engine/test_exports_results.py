"""What programs and people get of a session: the JSON of the documentation, CSV, Markdown, exit statuses."""

import csv
import io
import json

import msgspec
import pytest
from session_makers import CONDITIONS, add_accuracy, add_latency, add_variant, make_model

from engine.exports import results
from engine.protocol import Conditions, Failed, Job, Processor, Ratio, RecipeRun, SessionOptions, Step
from engine.session import Session, SessionError

HOSTILE = "conv[/]x\x1b]52;c;AAAA\x07"


@pytest.fixture
def session(tmp_path):
    opened = Session.open(tmp_path / "s")
    opened.set_model(make_model())
    yield opened
    opened.close()


@pytest.fixture
def measured(session):
    base = add_variant(session, "baseline")
    onnx = add_variant(session, "onnx", base, technique="export-onnx")
    int8 = add_variant(session, "int8", onnx)
    for variant, ratio in ((base, 1.0), (onnx, 2.0), (int8, 4.0)):
        add_latency(session, variant, ratio)
        add_latency(session, variant, ratio * 1.5, batch_size=1)
        add_accuracy(session, variant, 0.0 if variant is base else 0.001)
    return session


def run_of(session, *steps, error=None):
    run = RecipeRun(id=session.new_id(), title="r", created=1.0, steps=steps, finished=2.0, error=error)
    session.put_run(run)
    return run.id


def step(status, *variants, kind="technique", word="export-onnx", reason=None):
    return Step(name="s", kind=kind, word=word, status=status, variants=variants, reason=reason)


def test_the_json_has_the_documented_shape(measured):
    int8 = measured.resolve("int8")
    run = run_of(
        measured, step("succeeded", int8.id), step("refused", kind="measurement", word="profile", reason="No.")
    )
    text, _ = results.render(measured, "run", "json", run)
    content = json.loads(text)
    assert content["schema"] == "trimtab/run/1"
    assert content["steps"][0] | {"variants": [], "reused": False} == {
        "name": "s",
        "technique": "export-onnx",
        "status": "succeeded",
        "reason": None,
        "notice": None,
        "variant": int8.id,
        "variants": [],
        "reused": False,
    }
    assert content["steps"][1]["measurement"] == "profile"
    entry = content["variants"][2]
    assert entry["id"] == int8.id
    assert entry["parent"] == measured.resolve("onnx").id
    assert set(entry) >= {
        *("id", "name", "parent", "technique", "parameters", "target", "size_bytes", "parameter_count", "macs"),
        *("complexity", "accuracy", "changed", "measurements", "runtime", "device", "batch_size", "latency_ms"),
        *("throughput_per_s", "speedup"),
    }
    assert set(entry["accuracy"]) >= {"value", "drop", "low", "high", "samples", "verdict"}
    assert entry["accuracy"]["verdict"] == "PASS"
    assert entry["changed"]["left"] == [{"name": "fc", "reason": "too sensitive"}]
    assert len(entry["measurements"]) == 2
    assert set(entry["measurements"][0]) >= {
        *("runtime", "device", "processor", "threads", "batch_size", "latency_ms", "throughput_per_s", "speedup"),
        "speedup_over_parent",
    }
    assert set(entry["latency_ms"]) == {"p50", "p90", "p99"}
    assert set(entry["speedup"]) == {"ratio", "low", "high", "verdict", "against"}
    baseline = content["variants"][0]
    assert baseline["parent"] is None
    assert baseline["technique"] is None


def test_the_flat_figures_are_those_of_the_largest_batch_size_asked_for(measured):
    entry = results.results(measured, "compare")["variants"][2]
    assert entry["batch_size"] == 8
    assert entry["speedup"]["ratio"] == 4.0
    measured.set_options(SessionOptions(batch_sizes=(1,)))
    assert results.results(measured, "compare")["variants"][2]["batch_size"] == 1


def over(name, ratio, runtime, **changes):
    """A ratio that was measured in turn with this variant under this runtime."""
    words = f"{name} · {runtime} · cpu · batch 8"
    facts = {"ratio": ratio, "low": ratio * 0.98, "high": ratio * 1.02, "verdict": "FASTER", "against": words}
    return Ratio(**(facts | changes))


def chain(session):
    """Pruned in PyTorch, exported, quantized: the export changes the runtime, so no pair stands for it."""
    eager = Conditions(runtime="pytorch", device="cpu", processor="avx2 vnni", threads=2)
    base = add_variant(session, "baseline")
    add_latency(session, base, 1.0, conditions=eager, speedup=None)
    pruned = add_variant(session, "pruned", base)
    add_latency(
        session,
        pruned,
        2.0,
        conditions=eager,
        speedup=over("baseline", 2.0, "pytorch"),
        speedup_over_parent=over("baseline", 2.0, "pytorch"),
    )
    onnx = add_variant(session, "onnx", pruned)
    add_latency(session, onnx, 3.0)
    int8 = add_variant(session, "int8", onnx)
    add_latency(session, int8, 5.0, speedup_over_parent=over("onnx", 1.8, "onnxruntime"))


def test_the_gains_of_a_chain_are_multiplied_and_what_was_not_measured_in_turn_is_marked(session):
    chain(session)
    text, _ = results.render(session, "compare", "markdown")
    assert "- int8: pruned 2.00× · onnx ≈1.50× · int8 1.80× ≈ 5.40×; measured as a whole 5.00×\n" in text
    assert "- onnx: pruned 2.00× · onnx ≈1.50× ≈ 3.00×; measured as a whole 3.00×\n" in text
    assert "≈: the two sides of that step were not measured in turn" in text
    gains = results.results(session, "compare")["variants"][3]["gains"]
    assert [one["measured"] for one in gains["steps"]] == [True, False, True]
    assert gains["product"]["ratio"] == pytest.approx(5.4)


def test_times_of_a_busy_machine_are_marked_and_the_mark_is_explained(measured):
    assert "~" not in results.render(measured, "compare", "markdown")[0]
    busy = msgspec.structs.replace(CONDITIONS, notes=("Disturbed: other processes kept 1.5 cores busy meanwhile.",))
    add_latency(measured, measured.resolve("int8"), 4.0, created=9.0, conditions=busy)
    text = results.render(measured, "compare", "markdown")[0]
    assert " ~2.00 |" in text
    assert "~ Other processes worked meanwhile" in text
    entry = results.results(measured, "compare")["variants"][2]
    assert entry["disturbed"] is True
    assert entry["measurements"][1]["notes"] == list(busy.notes)


def test_why_an_interval_above_1_is_undecided_is_said(measured):
    unsure = over("baseline", 1.05, "pytorch", low=1.02, high=1.08, verdict="UNDECIDED")
    add_latency(measured, measured.resolve("int8"), 1.05, created=9.0, speedup=unsure, noise_floor=0.062)
    text = results.render(measured, "compare", "markdown")[0]
    assert (
        "- int8: the speed-up is UNDECIDED though all of it is above 1: "
        "part of it is within the noise floor, 6.2 %" in text
    )
    across = msgspec.structs.replace(unsure, low=0.98)
    add_latency(measured, measured.resolve("int8"), 1.05, created=10.0, speedup=across, noise_floor=0.062)
    assert "UNDECIDED though" not in results.render(measured, "compare", "markdown")[0]


def test_complexity_is_that_of_deploying_it(measured):
    header, _, row = results.render(measured, "compare", "markdown")[0].splitlines()[2:5]
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (header, row))))
    assert cells["to deploy"] == "low complexity"


def test_a_single_step_is_no_chain(measured):
    assert "multiplied" not in results.render(measured, "compare", "markdown")[0]


def test_what_was_not_measured_is_null(session):
    add_variant(session, "baseline")
    entry = json.loads(results.render(session, "compare", "json")[0])["variants"][0]
    assert [entry[key] for key in ("accuracy", "latency_ms", "speedup", "runtime", "changed")] == [None] * 5
    assert entry["measurements"] == []
    assert "| – " in results.render(session, "compare", "markdown")[0]


def test_no_figure_is_a_number_that_json_does_not_know(measured):
    add_latency(measured, measured.resolve("int8"), 4.0, p99_ms=float("inf"), created=9.0)
    content = json.loads(results.render(measured, "compare", "json")[0], parse_constant=pytest.fail)
    assert content["variants"][2]["latency_ms"]["p99"] is None


def test_only_the_variants_asked_for_are_shown(measured):
    content = results.results(measured, "compare", variants=["best", "baseline"])
    assert [entry["name"] for entry in content["variants"]] == ["int8", "baseline"]
    with pytest.raises(SessionError, match="Known: baseline, onnx, int8"):
        results.results(measured, "compare", variants=["nothing"])


def test_another_limit_is_judged_without_measuring_again(measured):
    measured.set_options(SessionOptions(accuracy_limit=0.0005))
    verdicts = [entry["accuracy"]["verdict"] for entry in results.results(measured, "compare")["variants"]]
    assert verdicts == ["NOT ENOUGH DATA"] * 3
    add_accuracy(measured, measured.resolve("int8"), 0.01, created=9.0)
    assert results.results(measured, "compare")["variants"][2]["accuracy"]["verdict"] == "FAIL"


def test_csv_has_one_row_a_variant_and_full_figures(measured):
    rows = list(csv.DictReader(io.StringIO(results.render(measured, "compare", "csv")[0])))
    assert [row["name"] for row in rows] == ["baseline", "onnx", "int8"]
    assert rows[2]["speedup"] == "4.0"
    assert rows[2]["accuracy_verdict"] == "PASS"
    assert float(rows[2]["p50_ms"]) == 2.0
    assert rows[0]["parent"] == ""


def test_the_markdown_table_is_whole_and_readable(measured):
    over = Ratio(ratio=2.0, low=1.9, high=2.1, verdict="FASTER", against="onnx")
    add_latency(measured, measured.resolve("int8"), 4.0, created=9.0, speedup_over_parent=over)
    text = results.render(measured, "compare", "markdown")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert len({line.count("|") for line in lines}) == 1
    row = next(line for line in lines if "int8" in line)
    for figure in ("4.00× (3.88–4.12) FASTER", "2.00× FASTER", "0.10 (-0.10 to 0.30)", "PASS", "2.00", "91.90 %"):
        assert figure in row
    assert "accuracy limit 1.00 points" in text
    assert "speed-ups against baseline · pytorch · cpu · batch 8" in text


def test_a_run_shows_the_steps_that_did_not_succeed(measured):
    run = run_of(measured, step("succeeded"), step("refused", reason="No data | none."))
    text = results.render(measured, "run", "markdown", run)[0]
    assert "- s: refused. No data \\| none." in text
    assert text.count("- s:") == 1
    assert "- s:" not in results.render(measured, "compare", "markdown")[0]


HOSTILE_NAMES = (HOSTILE, '=HYPERLINK("x")|[b]', "a\nb|c", "\x9b2J\u202e", "<script>", "x" * 5000)


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=[f"name {number}" for number in range(len(HOSTILE_NAMES))])
def test_a_hostile_name_harms_no_export(session, name):
    base = add_variant(session, "baseline")
    bad = add_variant(session, "int8", base, name=name, technique="quantize-static")
    add_latency(session, bad, 2.0)
    run = run_of(session, Step(name=name, kind="technique", word="x", status="failed", reason=name), error=name)
    for format in ("json", "csv", "markdown"):
        text = results.render(session, "run", format, run)[0]
        assert not [c for c in text if (ord(c) < 32 and c not in "\r\n") or 0x7F <= ord(c) < 0xA0 or c == "\u202e"]
    rows = list(csv.DictReader(io.StringIO(results.render(session, "compare", "csv")[0])))
    assert len(rows) == 2
    assert not rows[1]["name"].startswith("=")
    table = [line for line in results.render(session, "compare", "markdown")[0].splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert "<" not in "".join(table)
    assert json.loads(results.render(session, "run", "json", run)[0])["variants"][1]["name"] == name


def test_exit_statuses(measured):
    base, onnx, int8 = (measured.resolve(name) for name in ("baseline", "onnx", "int8"))
    bad = add_variant(measured, "bad", onnx)
    unknown = add_variant(measured, "unknown", onnx)
    add_accuracy(measured, bad, 0.2)

    def status(*steps, error=None):
        return results.exit_status(measured, run_of(measured, *steps, error=error))

    assert results.exit_status(measured, None) == 0
    assert status() == 0
    assert status(step("succeeded", onnx.id), step("succeeded", int8.id)) == 0
    assert status(step("succeeded", onnx.id), step("succeeded", bad.id), step("skipped")) == 0
    assert status(step("succeeded", bad.id)) == 3
    assert status(step("succeeded", bad.id), step("skipped")) == 3
    assert status(step("succeeded", unknown.id)) == 0
    assert status(step("succeeded", base.id, kind="measurement", word="latency")) == 0
    assert status(step("succeeded", onnx.id), step("refused")) == 1
    assert status(step("failed")) == 1
    assert status(step("cancelled"), error="Cancelled by the user.") == 130
    assert status(step("skipped"), error="This session belongs to x.") == 2
    with pytest.raises(SessionError):
        results.exit_status(measured, "nothing")


def test_a_cancelled_step_is_called_cancelled(measured):
    run = run_of(measured, step("cancelled"), error="Cancelled by the user.")
    assert [one["status"] for one in results.results(measured, "run", run)["steps"]] == ["cancelled"]


@pytest.mark.parametrize(
    ("kind", "cause", "expected"), [("open-model", "error", 2), ("open-model", "signal", 1), ("accuracy", "error", 1)]
)
def test_a_model_file_that_cannot_be_used_is_unreadable_input(measured, kind, cause, expected):
    run = run_of(measured, step("skipped"), error="net.py has no load_model().")
    state = Failed(started=1.0, finished=2.0, reason="x", cause=cause)
    job = Job(id=measured.new_id(), kind=kind, title="t", created=1.0, state=state, recipe_run=run)
    measured.put_job(job)
    assert results.exit_status(measured, run) == expected


@pytest.mark.parametrize(
    ("target", "features", "measured_on", "sentence"),
    [
        ("cpu-vnni", ("avx2",), "avx2,vnni", "Made for cpu-vnni with weights of 8 bits; this is x86-64 without VNNI"),
        ("cpu-portable", ("avx2",), "avx2,vnni", "Measured on x86-64 with VNNI; this is x86-64 without VNNI"),
        ("cpu-vnni", ("avx2", "vnni"), "avx2,vnni", None),
    ],
)
def test_int8_from_another_class_of_processor_is_compared_with_a_warning(
    session, monkeypatch, target, features, measured_on, sentence
):
    here = Processor(name="here", features=features, physical_cores=2, logical_cores=2, memory_bytes=1)
    monkeypatch.setattr(results, "read_processor", lambda: here)
    base = add_variant(session, "baseline")
    onnx = add_variant(session, "onnx", base, technique="export-onnx", target=target)
    int8 = add_variant(session, "int8", onnx, target=target)
    held = msgspec.structs.replace(CONDITIONS, processor=measured_on)
    for variant in (onnx, int8):
        add_latency(session, variant, 2.0, conditions=held)
    warnings = [one["warning"] for one in results.results(session, "compare")["variants"]]
    assert warnings[:2] == [None, None]
    assert (warnings[2] or "").startswith(sentence or "") is True
    assert (warnings[2] is None) is (sentence is None)
    text, _ = results.render(session, "compare", "markdown")
    assert ("- int8: " in text) is (sentence is not None)


def test_what_was_measured_under_another_runtime_is_named_and_can_be_seen(measured):
    here = Conditions(runtime="openvino", device="cpu", processor="avx2")
    over = Ratio(ratio=1.53, low=1.4, high=1.6, verdict="FASTER", against="onnx · openvino · cpu · batch 8")
    add_latency(measured, measured.resolve("int8"), 3.0, conditions=here, speedup_over_parent=over)
    text = results.render(measured, "compare", "markdown")[0]
    assert "Also measured under openvino: int8 (trimtab compare --runtime openvino)." in text
    rows = list(csv.DictReader(io.StringIO(results.render(measured, "compare", "csv")[0])))
    assert [row["other_runtimes"] for row in rows] == ["", "", "openvino"]
    under = results.results(measured, "compare", runtime="openvino")
    assert [entry["runtime"] for entry in under["variants"]] == [None, None, "openvino"]
    assert under["variants"][2]["speedup"]["ratio"] == 3.0
    assert "Also measured" not in results.render(measured, "compare", "markdown", runtime="openvino")[0]
    with pytest.raises(SessionError, match=r"Nothing was measured under tensorrt\. Measured: onnxruntime, openvino"):
        results.results(measured, "compare", runtime="tensorrt")


def test_a_gain_over_the_parent_under_another_runtime_than_the_parents_row_says_under_which(measured):
    here = Conditions(runtime="openvino", device="cpu", processor="avx2")
    over = Ratio(ratio=1.53, low=1.4, high=1.6, verdict="FASTER", against="onnx · openvino · cpu · batch 8")
    add_latency(measured, measured.resolve("int8"), 6.0, conditions=here, speedup_over_parent=over)
    text = results.render(measured, "compare", "markdown")[0]
    assert "1.53× FASTER, both openvino" in next(line for line in text.splitlines() if line.startswith("| int8"))
    over_onnx = msgspec.structs.replace(over, against="onnx · onnxruntime · cpu · batch 8")
    add_latency(measured, measured.resolve("int8"), 7.0, created=9.0, speedup_over_parent=over_onnx)
    text = results.render(measured, "compare", "markdown")[0]
    assert "both" not in next(line for line in text.splitlines() if line.startswith("| int8"))
