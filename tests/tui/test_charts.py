"""Charts keep gaps as gaps and zero as zero, and a finished column never changes."""

from hypothesis import given
from hypothesis import strategies as st

from tui import charts

VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=40)


def test_zero_is_a_thin_line_and_unknown_is_nothing() -> None:
    assert charts.history([0.0, 0.0], 1) == ["⣀"]
    assert charts.history([None, None], 1) == [" "]
    assert charts.history([1.0, None], 2) == ["⡇", "⡇"]


@given(VALUES, st.integers(1, 5))
def test_every_line_of_a_history_is_equally_wide(values: list[float | None], rows: int) -> None:
    lines = charts.history(values, rows)
    assert len(lines) == rows
    assert {len(line) for line in lines} == {(len(values) + 1) // 2}


def test_a_spike_is_not_averaged_away() -> None:
    samples = [(0.0, 0.1), (0.5, 1.0), (1.0, 0.1), (1.5, 0.2)]
    assert charts.bucketed(samples, lambda s: s[0], lambda s: s[1], 2.0, 1.0, 2) == [1.0, 0.2]


def test_one_missed_sample_is_bridged_and_a_long_silence_is_not() -> None:
    one = [(0.0, 0.5), (2.0, 0.7)]
    assert charts.bucketed(one, lambda s: s[0], lambda s: s[1], 3.0, 1.0, 3) == [0.5, 0.7, 0.7]
    long = [(0.0, 0.5), (3.0, 0.7)]
    assert charts.bucketed(long, lambda s: s[0], lambda s: s[1], 4.0, 1.0, 4) == [0.5, None, None, 0.7]


def test_a_finished_column_stays_what_it_was_when_time_goes_on() -> None:
    samples = [(t / 2, (t % 7) / 7) for t in range(100)]
    now = charts.bucketed(samples[:80], lambda s: s[0], lambda s: s[1], 40.0, 2.0, 10)
    later = charts.bucketed(samples[:84], lambda s: s[0], lambda s: s[1], 42.0, 2.0, 10)
    assert later[:-1] == now[1:]


def test_the_window_fits_the_cells() -> None:
    for cells in range(5, 200):
        assert charts.bucket_seconds(120, cells) * 2 * cells >= 120


@given(st.floats(0.01, 100), st.floats(0, 0.5), st.integers(6, 40))
def test_an_interval_bar_has_its_width_and_marks_the_point_once(ratio: float, spread: float, width: int) -> None:
    low, high = ratio * (1 - spread), ratio * (1 + spread)
    scale = charts.LogScale(min(low, 0.5), max(high, 4.0), width)
    parts = charts.interval_bar(ratio, low, high, scale, width)
    assert sum(len(text) for text, _ in parts) == width
    assert [kind for _, kind in parts].count("point") == 1


def test_half_as_fast_and_twice_as_fast_are_equally_far_from_one() -> None:
    scale = charts.LogScale(0.25, 4.0, 41)
    assert scale.cell(1.0) - scale.cell(0.5) == scale.cell(2.0) - scale.cell(1.0)


def test_progress_of_something_unknown_is_an_empty_track() -> None:
    assert charts.progress(None, 4) == ("", "────")
    assert charts.progress(0.5, 4) == ("━━", "──")
    assert charts.progress(1.0, 4) == ("━━━━", "")
