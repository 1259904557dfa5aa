"""Which figures stand for a variant, and what another accuracy limit makes of a drop that was measured."""

import pytest
from session_makers import CONDITIONS, add_accuracy, add_latency, add_variant

from engine.protocol import Conditions, Ratio, SessionOptions
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


def over(parent, ratio, verdict, runtime="onnxruntime"):
    """A ratio over the parent, measured in turn with it."""
    words = f"{parent.name} · {runtime} · cpu · batch 8"
    return Ratio(
        ratio=ratio, low=ratio * 0.99, high=ratio * 1.01, verdict=verdict, against=words, against_variant=parent.id
    )


def family(session, verdict, ratio, child_bytes=b"less"):
    """A parent, and a child that seems faster because the baseline was slower in its job."""
    base = add_variant(session, "baseline")
    parent = add_variant(session, "onnx", base, content=b"weights")
    child = add_variant(session, "int8", parent, content=child_bytes)
    add_latency(session, parent, 4.0)
    add_latency(session, child, 4.4, speedup_over_parent=over(parent, ratio, verdict))
    for variant in (parent, child):
        add_accuracy(session, variant, 0.001)
    return parent, child


def best(session):
    return best_variant(session.variants.values(), session.measurements.values(), SessionOptions(batch_sizes=(8,)))


def test_a_child_that_is_slower_than_its_parent_in_turn_is_not_the_best(session):
    parent, _ = family(session, "SLOWER", 0.9)
    assert best(session) == parent


def test_a_child_that_is_perhaps_slower_is_not_the_best_either(session):
    parent, _ = family(session, "UNDECIDED", 0.98)
    assert best(session) == parent


def test_a_child_that_is_as_fast_as_its_parent_is_best_only_if_it_is_smaller(session):
    _, child = family(session, "SAME", 0.999)
    assert best(session) == child


def test_a_child_that_is_as_fast_and_as_big_gives_way_to_its_parent(session):
    parent, _ = family(session, "SAME", 1.004, child_bytes=b"weights")
    assert best(session) == parent


def test_a_child_that_is_faster_in_turn_is_best_though_its_job_was_slow(session):
    base = add_variant(session, "baseline")
    parent = add_variant(session, "onnx", base)
    child = add_variant(session, "int8", parent)
    grandchild = add_variant(session, "int8-tuned", child)
    add_latency(session, parent, 4.0)
    add_latency(session, child, 3.8, speedup_over_parent=over(parent, 1.2, "FASTER"))
    add_latency(session, grandchild, 3.7, speedup_over_parent=over(child, 1.1, "FASTER"))
    for variant in (parent, child, grandchild):
        add_accuracy(session, variant, 0.001)
    assert best(session) == grandchild


def test_a_pair_under_another_runtime_says_nothing_about_the_two(session):
    base = add_variant(session, "baseline")
    parent = add_variant(session, "onnx", base)
    child = add_variant(session, "int8", parent)
    add_latency(session, parent, 4.0)
    add_latency(session, child, 4.4, speedup_over_parent=over(parent, 0.9, "SLOWER", runtime="openvino"))
    for variant in (parent, child):
        add_accuracy(session, variant, 0.001)
    assert best(session) == child
