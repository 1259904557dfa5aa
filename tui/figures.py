"""Numbers as the screen shows them: one place, so that a figure reads the same in every pane.

What a caller may rely on: None (unknown, not measured) becomes `UNKNOWN` and never 0; every result is short plain
ASCII plus "×", "–", "…"; the unit is in the text unless the name says otherwise.
"""

import math

UNKNOWN = "–"
"""What stands for a value that nobody measured."""


DISTURBED = "~"
"""Before a time that was taken while other processes worked."""


def milliseconds(value: float | None) -> str:
    """A latency with two or three significant digits and no unit (the column names it): 0.0047, 0.042, 9.80."""
    if value is None:
        return UNKNOWN
    if value < 0.00995:
        return f"{value:.4f}"
    return _three_digits(value)


def per_second(value: float | None) -> str:
    """A rate without unit: 42.0, 816, 12.4k, 3.10M."""
    if value is None:
        return UNKNOWN
    return count(value)


def count(value: float | None) -> str:
    """How many, shortened from ten thousand on: 816, 9876, 12.4k, 3.10M, 1.82G."""
    if value is None:
        return UNKNOWN
    if value < 10_000:
        return f"{value:.0f}" if value >= 100 or value == int(value) else _three_digits(value)
    for letter in "kMGT":
        value /= 1000
        if value < 999.5 or letter == "T":
            return f"{_three_digits(value)}{letter}"
    return UNKNOWN


def size(value: float | None) -> str:
    """Bytes in decimal units, as files are counted: 812 B, 2.93 MB."""
    if value is None:
        return UNKNOWN
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            return f"{_three_digits(value)} {unit}"
    return UNKNOWN


def memory(used: float | None, total: float | None) -> str:
    """Memory in binary units with one unit for both: 7.1/15.6 GiB."""
    if used is None and total is None:
        return UNKNOWN
    scale, unit = (2**30, "GiB") if max(used or 0, total or 0) >= 2**30 else (2**20, "MiB")
    parts = [UNKNOWN if value is None else f"{value / scale:.1f}" for value in (used, total)]
    return f"{parts[0]}/{parts[1]} {unit}"


def percent(value: float | None) -> str:
    """A share in whole percent: 38 %."""
    return UNKNOWN if value is None else f"{value * 100:.0f} %"


def points(value: float | None, sign: bool = False) -> str:
    """A drop in percentage points, two decimals, no unit (the column names it)."""
    if value is None:
        return UNKNOWN
    shown = round(value * 100, 2) + 0.0
    return f"{shown:+.2f}" if sign else f"{shown:.2f}"


def accuracy(value: float | None) -> str:
    """An accuracy in percent, two decimals, no unit."""
    return UNKNOWN if value is None else f"{value * 100:.2f}"


def ratio(value: float | None) -> str:
    """A speed-up: 4.11×, 12.3×."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.2f}×" if value < 10 else f"{_three_digits(value)}×"


def interval(low: float, high: float) -> str:
    """The two ends of a confidence interval of a ratio, with the decimals that `ratio` shows."""
    decimals = 2 if high < 10 else 1 if high < 100 else 0
    return f"{low:.{decimals}f}–{high:.{decimals}f}"


def duration(seconds: float | None) -> str:
    """A time span in at most five characters or so: 0.4 s, 41 s, 2:04, 1:02:03."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def loss(value: float | None) -> str:
    """A loss with three significant digits: 0.312, 2.30, 0.0041."""
    if value is None:
        return UNKNOWN
    return f"{value:.4f}" if 0 < abs(value) < 0.00995 else _three_digits(value)


def number(value: float) -> str:
    """Any value of a metric: whole numbers whole, others with four significant digits."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent."""
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    if magnitude >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if magnitude >= 0.9995 else f"{value:.3f}"
