"""What the field promises stands beside what was measured, and nothing unmeasured is made up."""

from pathlib import Path

import msgspec
from session_makers import add_accuracy, add_latency, add_variant

from engine.exports.expectations import expectation_of, sentence
from engine.exports.explanation import as_data, render
from engine.exports.results import results
from engine.protocol import Conditions, Explanation, Ratio
from engine.session import Session


def test_size_speed_and_loss_stand_beside_the_promise(tmp_path: Path) -> None:
    session = Session.open(tmp_path / "m.trimtab")
    baseline = add_variant(session, "baseline", size_bytes=1000)
    int8 = add_variant(session, "int8", baseline, size_bytes=260)
    add_latency(session, int8, 5.0)
    add_accuracy(session, int8, 0.002)
    found = expectation_of(session, int8)
    assert found is not None
    assert found["expected"] == {"size": 0.25, "speedup": [2.0, 4.0], "drop": [0.005, 0.01]}
    assert found["measured"] == {"size": 0.26, "speedup": 5.0, "drop": 0.002}
    assert found["verdict"] == {"size": "as expected", "speedup": "more", "drop": "less"}
    assert sentence(found) == (
        "Expected: size 25 %, 2–4× faster, 0.5–1 % loss. "
        "Measured: size 26 % (as expected), 5.00× (more), drop 0.20 points (less)."
    )
    assert results(session, "compare")["variants"][1]["expectation"] == found


def test_what_was_not_measured_is_unknown(tmp_path: Path) -> None:
    session = Session.open(tmp_path / "m.trimtab")
    baseline = add_variant(session, "baseline", size_bytes=1000)
    four = add_variant(session, "four", baseline, size_bytes=900)
    found = expectation_of(session, four)
    assert found is not None
    assert found["measured"] == {"size": 0.9, "speedup": None, "drop": None}
    assert found["verdict"] == {"size": "more", "speedup": None, "drop": None}
    assert sentence(found).endswith("Measured: size 90 % (more).")
    assert expectation_of(session, baseline) is None


def test_beside_an_answer_to_why_the_figures_are_of_its_runtime_and_its_own_speed_up(tmp_path: Path) -> None:
    session = Session.open(tmp_path / "m.trimtab")
    baseline = add_variant(session, "baseline", size_bytes=1000)
    half = add_variant(session, "half", baseline, size_bytes=500)
    here, where = (Conditions(runtime=name, device="cpu", processor="avx2") for name in ("onnxruntime", "openvino"))
    add_latency(session, half, 0.99, conditions=here)
    add_latency(session, half, 0.80, conditions=where)
    add_accuracy(session, half, 0.002, conditions=here)
    answer = Explanation(
        id="e1",
        variant=half.id,
        against=baseline.id,
        job="j",
        created=1.0,
        conditions=where,
        against_conditions=where,
        batch_size=8,
        speedup=Ratio(ratio=0.78, low=0.69, high=0.81, verdict="SLOWER", against="baseline"),
        cause="Reorders.",
        cause_kind="operators",
        latency_ms=1.8,
        against_latency_ms=1.3,
        operators=(),
        against_operators=(),
        changes=(),
        remainder_ms=0.0,
        against_remainder_ms=0.0,
    )
    data = as_data(session, answer)
    assert data["expectation"]["measured"] == {"size": 0.5, "speedup": 0.78, "drop": None}
    text = render(session, answer, "markdown")
    assert "0.78× (0.69–0.81) SLOWER, timed in turns · openvino" in text
    assert "Measured under openvino, speed and size against its parent: size 50 % (more), 0.78×" in text
    other = msgspec.structs.replace(answer, against="another")
    assert as_data(session, other)["expectation"]["measured"]["speedup"] == 0.80
