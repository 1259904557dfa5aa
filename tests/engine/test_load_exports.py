"""Load tests as they leave the session: JSON that outsiders rely on, words for people, a section of the report."""

import json
from pathlib import Path

import msgspec
import pytest
from session_makers import add_variant

from engine.exports import load_tests
from engine.exports.report import report
from engine.exports.results import results
from engine.protocol import (
    Conditions,
    LoadMark,
    LoadPoint,
    LoadSearch,
    LoadSettings,
    LoadSummary,
    LoadTest,
    Percentile,
    Use,
)
from engine.session import Session

WHERE = Conditions(runtime="onnxruntime", device="cpu", processor="avx2,vnni", threads=2)


def a_test(variant, **changes) -> LoadTest:
    summary = LoadSummary(
        scenario="Server",
        valid=True,
        seconds=9.0,
        offered_per_s=200.0,
        achieved_per_s=199.0,
        rows_per_s=199.0,
        completed=1791,
        rejected=3,
        failed=1,
        unanswered=0,
        latency_ms={name: Percentile(value=ms) for name, ms in (("p50", 4.0), ("p90", 6.0), ("p95", 7.0))}
        | {"p99": Percentile(value=9.0, low=8.0, high=10.0, at_most=10.5), "p999": Percentile(value=12.0)},
        requests_for_p99=459,
        queue_ms={"mean": 1.0, "p50": 0.8, "p99": 4.0},
        compute_ms={"mean": 3.0, "p50": 3.0, "p99": 5.0},
        batch_sizes={"1": 100, "8": 20},
        slo_ms=20.0,
        verdict="PASS",
    )
    test = LoadTest(
        id="t1",
        variant=variant.id,
        job="j1",
        created=1.0,
        conditions=WHERE,
        settings=LoadSettings(rate=200.0, slo_p99_ms=20.0, max_batch_size=8),
        summary=summary,
        use=Use(cpu=0.5, energy_j=120.0, energy_per_1000_requests_j=67.0, power_w=13.0),
        marks=(LoadMark(seconds=3.0, text="rate 300/s"),),
    )
    return msgspec.structs.replace(test, **changes)


@pytest.fixture
def session(tmp_path: Path):
    session = Session.open(tmp_path / "m.trimtab")
    yield session
    session.close()


def test_the_json_has_the_promised_keys(session: Session) -> None:
    variant = add_variant(session, "baseline")
    session.add_measurement(a_test(variant))
    found = json.loads(load_tests.render(session, variant, None, "json"))
    assert found["schema"] == "trimtab/load-test/1"
    promised = "valid reason offered_per_s achieved_per_s latency_ms queue_ms compute_ms batch_sizes completed rejected"
    assert set(promised.split()) | {"failed", "utilization"} <= set(found)
    assert found["latency_ms"] == {"p50": 4.0, "p90": 6.0, "p95": 7.0, "p99": 9.0, "p999": 12.0}
    assert found["latency_bounds_ms"]["p99"] == {"low": 8.0, "high": 10.0, "at_most": 10.5}
    assert found["batch_sizes"] == {"1": 100, "8": 20}
    assert found["reason"] is None
    assert found["utilization"]["energy_per_1000_requests_j"] == 67.0
    assert found["settings"] == {
        "max_batch_size": 8,
        "max_wait_ms": 10.0,
        "instances": 1,
        "rate": 200.0,
        "slo_p99_ms": 20.0,
    }
    assert found["marks"] == [{"seconds": 3.0, "text": "rate 300/s"}]


def test_the_words_hold_the_bound_and_the_verdict(session: Session) -> None:
    variant = add_variant(session, "baseline")
    session.add_measurement(a_test(variant))
    words = load_tests.render(session, variant, None, "markdown")
    assert "achieved 199.0 requests/s of 200.0 offered" in words
    assert "p99 is at most 10.5 ms (99 % confidence); limit 20 ms: PASS" in words
    assert "67.0 J per 1,000 requests" in words
    assert "120, 2.2 rows on average, largest 8" in words


def test_an_invalid_test_says_why_first_and_hostile_text_is_escaped(session: Session) -> None:
    variant = add_variant(session, "base|line")
    summary = msgspec.structs.replace(a_test(variant).summary, valid=False, reasons=("the load generator fell behind",))
    session.add_measurement(a_test(variant, summary=summary, notes=("Failed: [x](javascript:1)\x1b[31m.",)))
    words = load_tests.render(session, variant, None, "markdown")
    assert words.index("**INVALID**: the load generator fell behind") < words.index("achieved")
    assert "\x1b" not in words
    assert "[x](" not in words


def test_a_search_shows_its_points_and_stands_before_its_tests(session: Session) -> None:
    variant = add_variant(session, "baseline")
    session.add_measurement(a_test(variant, purpose="probe", search="rate-1"))
    point = LoadPoint(
        settings=LoadSettings(rate=200.0),
        offered_per_s=200.0,
        achieved_per_s=199.0,
        rows_per_s=199.0,
        p50_ms=4.0,
        p99_ms=9.0,
        verdict="PASS",
    )
    search = LoadSearch(
        id="s1",
        variant=variant.id,
        job="j1",
        created=2.0,
        conditions=WHERE,
        settings=LoadSettings(slo_p99_ms=20.0),
        search="rate-1",
        sentence="200 requests/s keep p99 under 20 ms.",
        points=(point,),
        capacity_per_s=400.0,
        best_rate_per_s=200.0,
        confirmed=(3, 3),
    )
    session.add_measurement(search)
    found = json.loads(load_tests.render(session, None, "j1", "json"))
    assert found["search"]["best_rate_per_s"] == 200.0
    assert found["search"]["seeds_passed"] == 3
    assert found["achieved_per_s"] == 199.0
    assert load_tests.of_variant(session, variant) == [search]
    assert "200 requests/s keep p99 under 20 ms." in load_tests.render(session, None, "j1", "markdown")


def test_results_and_report_hold_the_load_tests(session: Session) -> None:
    variant = add_variant(session, "baseline")
    assert results(session, "compare")["variants"][0]["load_tests"] == []
    assert "## Load tests" not in report(session, [variant], "here")
    session.add_measurement(a_test(variant))
    (entry,) = results(session, "compare")["variants"][0]["load_tests"]
    assert entry["achieved_per_s"] == 199.0
    assert "## Load tests" in report(session, [variant], "here")


def test_nothing_is_said_where_there_are_none(session: Session) -> None:
    variant = add_variant(session, "baseline")
    assert load_tests.render(session, variant, None, "json") == ""


def test_they_survive_a_restart_of_the_engine(tmp_path: Path) -> None:
    session = Session.open(tmp_path / "m.trimtab")
    variant = add_variant(session, "baseline")
    session.add_measurement(a_test(variant))
    session.close()
    again = Session.open(tmp_path / "m.trimtab")
    (kept,) = again.measurements.values()
    assert kept == a_test(variant)
    again.close()
