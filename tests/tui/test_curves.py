"""Curves stay small without losing an extreme, and their charts say what is in them."""

import math
from itertools import pairwise

import msgspec
import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import Running, Succeeded
from tui import plots
from tui.curves import BUCKETS, Course, Curve, Curves, course_of, is_training

values = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.tuples(st.integers(0, 100_000), values), min_size=1, max_size=300))
def test_no_extreme_is_lost_and_no_point_counts_twice(points: list[tuple[int, float]]) -> None:
    once, twice = Curve(), Curve()
    for step, value in points:
        once.add(step, value)
        twice.add(step, value)
    for step, value in points:
        twice.add(step, value)
    for curve in (once, twice):
        assert min(one.low for one in curve.buckets) == min(value for _, value in points)
        assert max(one.high for one in curve.buckets) == max(value for _, value in points)
    assert [one.step for one in once.buckets] == [one.step for one in twice.buckets]


def test_a_day_of_points_takes_no_more_room_than_an_hour() -> None:
    curve = Curve()
    for step in range(0, 400_000, 3):
        curve.add(step, 1e3 if step == 120_000 else math.sin(step))
    assert len(curve.buckets) <= BUCKETS
    assert max(one.high for one in curve.buckets) == 1e3
    assert curve.buckets[-1].step == 399_999
    assert [one.step for one in curve.buckets] == sorted(one.step for one in curve.buckets)


def test_what_is_no_number_is_left_out() -> None:
    curve = Curve()
    for value in (math.nan, math.inf, 2.0):
        curve.add(1, value)
    assert [(one.low, one.high) for one in curve.buckets] == [(2.0, 2.0)]


@pytest.mark.parametrize(("slope", "trend"), [(-0.1, -1), (0.1, 1), (0.0, 0)])
def test_the_trend_is_read_from_the_newest_points(slope: float, trend: int) -> None:
    curve = Curve()
    for step in range(200):
        curve.add(step, 9.0 if step < 100 else 2.0 + slope * (step - 190))
    assert curve.trend == trend


def test_a_job_that_says_its_epochs_has_them_on_the_axis() -> None:
    curves = Curves()
    curves.extend(scenes.curve_points())
    assert curves.names == ["loss", "accuracy"], "facts are no curves"
    course = course_of(scenes.TRAINING_JOB, curves)
    assert (course.total, course.epoch) == (1000, "3/5")
    assert plots.axis(course, 70)[1][0].split() == ["0", "1", "2", "3", "4", "5"]
    assert is_training(scenes.TRAINING_JOB)
    assert not any(is_training(job) for job in scenes.JOBS)


def test_a_job_that_stopped_early_is_drawn_to_its_last_step() -> None:
    curves = Curves()
    curves.extend(scenes.curve_points())
    assert isinstance(scenes.TRAINING_JOB.state, Running)
    ended = msgspec.structs.replace(scenes.TRAINING_JOB, state=Succeeded(started=1.0, finished=2.0))
    assert course_of(ended, curves).total == 520


def test_the_scans_of_a_job_do_not_count_as_its_training() -> None:
    state = Running(started=1.0, done=39, total=40, message="scanning stem")
    job = msgspec.structs.replace(scenes.TRAINING_JOB, state=state)
    assert course_of(job, None).step == 0


def test_a_falling_curve_falls_from_the_upper_left_and_keeps_its_place() -> None:
    curve = Curve()
    for step in range(0, 500):
        curve.add(step, 2.0 - step / 250)
    lines = [
        "".join(text for text, _ in line)
        for line in plots.chart(curve.buckets, Course(499, 1000, 200, None), 47, 4, "chart")
    ]
    drawn = [line[plots.LABEL :] for line in lines]
    assert [line[: plots.LABEL].strip() for line in lines] == ["2.0", "", "", "0.0"]
    first = [min(x for x, character in enumerate(line) if character != " ") for line in drawn]
    assert first == sorted(first)
    assert max(x for line in drawn for x, character in enumerate(line) if character != " ") <= 20, (
        "half of it is to come"
    )


def test_a_steep_fall_between_distant_points_has_no_gap() -> None:
    curve = Curve()
    for step, value in ((0, 10.0), (500, 0.0), (1000, 0.0)):
        curve.add(step, value)
    found = plots.columns(curve.buckets, 1000, 20)
    levels = [(plots.level(low, 10, (0, 10)), plots.level(high, 10, (0, 10))) for low, high in filter(None, found)]
    assert len(levels) == 20
    assert all(later[1] >= before[0] - 1 for before, later in pairwise(levels))


def test_one_spike_is_seen_however_narrow_the_chart_is() -> None:
    curve = Curve()
    for step in range(5000):
        curve.add(step, 100.0 if step == 2500 else 1.0)
    drawn = plots.chart(curve.buckets, Course(5000, 5000, None, None), 20, 5, "chart")
    assert drawn[0][1][0].strip(), "the highest row has the spike"


def test_the_limit_is_a_dashed_line_with_its_value_at_the_left() -> None:
    curve = Curve()
    curve.add(100, 0.80)
    curve.add(200, 0.92)
    lines = plots.chart(curve.buckets, Course(200, 1000, 200, 0.93), 40, 5, "chart-accuracy", 0.91, percent=True)
    (line,) = [line for line in lines if any(role == "limit" for _, role in line)]
    assert line[0][0].strip() == "91 %"
    assert any("╌" in text and role == "limit" for text, role in line)


@given(st.lists(values, min_size=1, max_size=20), st.integers(1, 14), st.integers(8, 220))
def test_any_curve_fits_its_place(numbers: list[float], rows: int, width: int) -> None:
    curve = Curve()
    for step, value in enumerate(numbers):
        curve.add(step, value)
    lines = plots.chart(curve.buckets, Course(20, 20, 3, None), width, rows, "chart", numbers[0])
    assert len(lines) == rows
    assert {sum(len(text) for text, _ in line) for line in [*lines, plots.axis(Course(20, 20, 3, None), width)]} == {
        max(width, plots.LABEL + 2)
    }
