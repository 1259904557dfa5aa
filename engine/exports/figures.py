"""Figures as people read them: one place that gives units and digits, and turns None into a mark.

The table, the report and the terminal all use these, so that a figure looks the same everywhere. Input is SI (bytes,
fractions, milliseconds); output is plain ASCII and Latin punctuation that needs no cleaning.
"""

UNKNOWN = "–"
"""What stands where nothing was measured. Never 0."""


def size(value: int | None) -> str:
    """Bytes, decimal units as disks have them: "2.9 MB"."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def count(value: int | None) -> str:
    """Parameters or multiply-adds: "2.8 M"."""
    return _scaled(value, ("", "k", "M", "G", "T"))


def percent(value: float | None, digits: int = 2) -> str:
    """A share: "92.41 %"."""
    return UNKNOWN if value is None else f"{value * 100:.{digits}f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points: "0.21"."""
    if value is None:
        return UNKNOWN
    text = f"{value * 100:.2f}"
    return "0.00" if text == "-0.00" else text


def milliseconds(value: float | None) -> str:
    """A time with three significant digits: "4.30", "0.0123"."""
    return UNKNOWN if value is None else _significant(value)


def rate(value: float | None) -> str:
    """Samples a second: "1860"."""
    return UNKNOWN if value is None else _significant(value) if value < 100 else f"{value:.0f}"


def times(value: float | None) -> str:
    """A speed-up: "2.28×"."""
    return UNKNOWN if value is None else f"{value:.2f}×"


def seconds(value: float | None) -> str:
    """How long something took: "41 s", "3 min 20 s"."""
    if value is None:
        return UNKNOWN
    if value < 120:
        return f"{_significant(value) if value < 10 else f'{value:.0f}'} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def _significant(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _scaled(value: int | None, units: tuple[str, ...]) -> str:
    if value is None:
        return UNKNOWN
    scaled, unit = float(value), 0
    while abs(scaled) >= 999.5 and unit < len(units) - 1:
        scaled, unit = scaled / 1000, unit + 1
    number = f"{scaled:.0f}" if unit == 0 or scaled >= 100 else f"{scaled:.1f}"
    return f"{number} {units[unit]}".strip()
