"""Charts of the hardware and of jobs come back, thinned without hiding a peak, and never cost the engine anything."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import GpuSample, LoadKnobs, LoadMark, LoadSettings, LoadTick, TelemetrySample
from engine.session import history
from engine.session.history import History, lowest_and_highest, thin, thin_ticks


def sample(time, cpu=0.5, **changes):
    return TelemetrySample(time=float(time), cpu=cpu, cores=(0.1, 0.9), memory_used_bytes=int(time) * 10, **changes)


@pytest.fixture
def kept(tmp_path):
    opened = History(tmp_path / "telemetry.db")
    yield opened
    opened.close()


def test_samples_come_back_in_order_after_opening_again(kept):
    gpu = GpuSample(index=0, utilisation=0.7, throttle=("power",), processes=((42, None),))
    samples = [sample(time, gpus=(gpu,), job="a1") for time in range(10)]
    for one in samples:
        kept.add_sample(one)
    kept.close()
    again = History(kept.path)
    assert again.samples(0, 100) == samples
    assert again.samples(7, 100) == samples[7:]
    again.close()


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=300), st.integers(2, 50))
def test_thinning_keeps_every_peak_and_every_dip(loads, limit):
    samples = [sample(time, cpu) for time, cpu in enumerate(loads)]
    thinned = thin(samples, limit)
    assert len(thinned) <= limit
    assert [one.time for one in thinned] == sorted(one.time for one in thinned)
    known = [cpu for cpu in loads if cpu is not None]
    shown = [one.cpu for one in thinned if one.cpu is not None]
    assert (min(known), max(known)) == (min(shown), max(shown)) if known else shown == []


def test_merging_keeps_each_gpu_apart_and_unknown_unknown():
    first = sample(1, gpus=(GpuSample(index=0, utilisation=0.2, power_w=None), GpuSample(index=1, utilisation=0.9)))
    second = sample(2, gpus=(GpuSample(index=0, utilisation=0.6, throttle=("power",)),), job="a1")
    low, high = lowest_and_highest([first, second])
    assert [(gpu.index, gpu.utilisation) for gpu in low.gpus] == [(0, 0.2), (1, 0.9)]
    assert [(gpu.index, gpu.utilisation) for gpu in high.gpus] == [(0, 0.6), (1, 0.9)]
    assert high.gpus[0].throttle == ("power",)
    assert high.gpus[0].power_w is None
    assert (low.time, high.time, high.job) == (1.0, 2.0, "a1")


def test_old_samples_live_on_as_pairs_of_lowest_and_highest(kept, monkeypatch):
    monkeypatch.setattr(history, "DETAIL_SECONDS", 60.0)
    for time in range(600):
        kept.add_sample(sample(time, cpu=1.0 if time == 30 else 0.5))
    rows = kept._connection.execute("SELECT count(*) FROM samples").fetchone()[0]
    assert rows <= 180
    everything = kept.samples(0, 10_000)
    assert max(one.cpu for one in everything) == 1.0
    assert everything[0].time == 0.0
    assert everything[-1].time == 599.0
    assert [one.time for one in everything] == sorted(one.time for one in everything)


def test_curves_come_back_in_order_with_what_was_no_number(kept):
    for step, value in enumerate((0.5, math.nan, math.inf)):
        kept.add_point("a1", ("loss", value, step, 1.0))
    kept.add_point("a2", ("loss", 9.0, 0, 1.0))
    points = kept.points("a1")
    assert [(name, step) for name, _, step, _ in points] == [("loss", 0), ("loss", 1), ("loss", 2)]
    assert points[0][1] == 0.5
    assert math.isnan(points[1][1])
    assert points[2][1] == math.inf
    kept.forget_job("a1")
    assert kept.points("a1") == []
    assert len(kept.points("a2")) == 1


def tick(number, **changes):
    known = {
        "time": 100 + number / 4,
        "seconds": number / 4,
        "span_seconds": 0.25,
        "phase": "measuring",
        "knobs": LoadKnobs(rate=40.0),
        "offered_per_s": 40.0,
        "achieved_per_s": 30.0 + number % 2,
        "completed": 10,
        "rejected": 0,
        "failed": 0,
        "outstanding": 1,
        "queue_depth": 0,
        "p99_ms": 5.0,
    }
    return LoadTick(**(known | changes))


def test_a_load_test_comes_back_with_what_was_asked_of_it_after_opening_again(kept):
    asked = LoadSettings(sweep=True, slo_p99_ms=20.0, sweep_batch_sizes=(1, 8))
    ticks = [tick(number) for number in range(1, 9)]
    kept.add_load("j1", asked)
    for one in ticks:
        kept.add_tick("j1", one)
    kept.close()
    again = History(kept.path)
    assert again.load("j1") == asked
    assert again.ticks("j1") == ticks
    assert (again.load("j2"), again.ticks("j2")) == (None, [])
    again.forget_job("j1")
    assert (again.load("j1"), again.ticks("j1")) == (None, [])
    again.close()


def test_thinned_ticks_keep_the_worst_tail_every_mark_and_the_mean_rate():
    ticks = [tick(number) for number in range(1, 101)]
    ticks[37] = tick(38, p99_ms=900.0, marks=(LoadMark(seconds=9.5, text="rate 80/s"),))
    thinned = thin_ticks(ticks, 10)
    assert len(thinned) == 10
    assert max(one.p99_ms for one in thinned) == 900.0
    assert [mark.text for one in thinned for mark in one.marks] == ["rate 80/s"]
    assert sum(one.completed for one in thinned) == 1000
    assert [one.achieved_per_s for one in thinned] == [30.5] * 10


def test_a_damaged_file_is_replaced_and_said(tmp_path):
    (tmp_path / "telemetry.db").write_bytes(b"garbage" * 2000)
    opened = History(tmp_path / "telemetry.db")
    assert "starts anew" in opened.trouble
    opened.add_sample(sample(1))
    assert len(opened.samples(0, 10)) == 1
    opened.close()


def test_a_full_disk_drops_samples_and_raises_nothing(kept):
    kept._connection.execute("PRAGMA max_page_count = 1")
    for time in range(100):
        kept.add_sample(sample(time, gpus=tuple(GpuSample(index=i) for i in range(50))))
    assert "not being stored" in kept.trouble


def test_nothing_is_asked_of_a_closed_history(kept):
    kept.close()
    kept.add_sample(sample(1))
    assert kept.samples(0, 10) == []
    assert kept.points("a1") == []
