"""Numbers read the same everywhere, and unknown is never 0."""

import pytest

from tui import figures


@pytest.mark.parametrize(
    "format",
    [
        figures.milliseconds,
        figures.per_second,
        figures.count,
        figures.size,
        figures.percent,
        figures.points,
        figures.accuracy,
        figures.ratio,
        figures.duration,
    ],
)
def test_unknown_is_a_dash_and_never_zero(format: object) -> None:
    assert format(None) == figures.UNKNOWN  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (figures.milliseconds(0.042), "0.042"),
        (figures.milliseconds(9.8), "9.80"),
        (figures.milliseconds(99.96), "100"),
        (figures.milliseconds(0.00471), "0.0047"),
        (figures.per_second(816.4), "816"),
        (figures.per_second(12_431), "12.4k"),
        (figures.count(2_797_610), "2.80M"),
        (figures.count(999_600), "1.00M"),
        (figures.size(812), "812 B"),
        (figures.size(11_214_000), "11.2 MB"),
        (figures.memory(7.1 * 2**30, 15.6 * 2**30), "7.1/15.6 GiB"),
        (figures.memory(None, 2**30), "–/1.0 GiB"),
        (figures.points(0.00214), "0.21"),
        (figures.points(-0.000001), "0.00"),
        (figures.accuracy(0.9241), "92.41"),
        (figures.ratio(4.114), "4.11×"),
        (figures.ratio(12.34), "12.3×"),
        (figures.ratio(float("nan")), "–"),
        (figures.interval(2.21, 2.35), "2.21–2.35"),
        (figures.interval(9.7, 10.4), "9.7–10.4"),
        (figures.duration(0.04), "0.0 s"),
        (figures.duration(59.7), "1:00"),
        (figures.duration(41), "41 s"),
        (figures.duration(124), "2:04"),
        (figures.duration(3723), "1:02:03"),
        (figures.duration(-3), "0.0 s"),
    ],
)
def test_a_figure_is_written_as_the_field_writes_it(text: str, expected: str) -> None:
    assert text == expected
