"""Which figures stand for a variant, and what another accuracy limit makes of a drop that was measured."""

import pytest
from session_makers import CONDITIONS, add_accuracy, add_latency, add_variant

from engine.protocol import Conditions, SessionOptions
from engine.session import Session
from engine.session.ranking import best_variant, figures_of, judge, verdict_at


@pytest.fixture
def session(tmp_path):
    opened = Session.open(tmp_path / "s")
    yield opened
    opened.close()


def figures(session, variant, **options):
    return figures_of(variant, session.measurements.values(), SessionOptions(**options))


def test_a_drop_passes_only_when_its_whole_interval_is_within_the_limit():
    assert judge(low=-0.01, high=0.0099, limit=0.01) == "PASS"
    assert judge(low=-0.01, high=0.02, limit=0.01) == "NOT ENOUGH DATA"
    assert judge(low=0.011, high=0.02, limit=0.01) == "FAIL"


def test_a_verdict_that_is_not_from_the_interval_stays_at_any_limit(session):
    base = add_variant(session, "baseline")
    not_finite = add_accuracy(session, base, 0.0, verdict="FAIL")
    synthetic = add_accuracy(session, base, 0.0, verdict="NOT ENOUGH DATA")
    assert verdict_at(not_finite, 0.5) == "FAIL"
    assert verdict_at(synthetic, 0.5) == "NOT ENOUGH DATA"


def test_the_newest_measurement_under_the_same_conditions_counts(session):
    base = add_variant(session, "baseline")
    add_latency(session, base, 3.0, created=9.0)
    add_latency(session, base, 2.0, created=1.0)
    known = figures(session, base)
    assert len(known.latencies) == 1
    assert known.best.speedup.ratio == 3.0


def test_the_sessions_device_and_largest_batch_size_come_first(session):
    base = add_variant(session, "baseline")
    gpu = Conditions(runtime="onnxruntime", device="cuda:0", processor="H100")
    add_latency(session, base, 50.0, conditions=gpu)
    add_latency(session, base, 9.0, batch_size=1)
    add_latency(session, base, 2.0, batch_size=8)
    assert figures(session, base, batch_sizes=(1, 8)).best.speedup.ratio == 2.0
    assert figures(session, base, batch_sizes=(1,)).best.speedup.ratio == 9.0
    assert figures(session, base, device="cuda:0").best.conditions.device == "cuda:0"


def test_accuracy_under_the_runtime_of_the_speed_is_shown(session):
    base = add_variant(session, "baseline")
    other = Conditions(runtime="openvino", device="cpu", processor="avx2")
    add_accuracy(session, base, 0.001, conditions=CONDITIONS)
    add_accuracy(session, base, 0.5, conditions=other, created=9.0)
    assert figures(session, base).accuracy.drop == 0.5
    add_latency(session, base, 2.0)
    assert figures(session, base).accuracy.drop == 0.001


def test_what_was_not_measured_is_unknown_and_never_best(session):
    base = add_variant(session, "baseline")
    fast = add_variant(session, "fast", base)
    add_latency(session, fast, 10.0)
    assert figures(session, base) == ((), None, None, None)
    assert best_variant([base, fast], session.measurements.values(), session.options) is None
