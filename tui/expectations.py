"""What the field expects of a technique beside what was measured here, as the engine's results (JSON) say it.

    of quantize-static   expected     measured
      size               25 %         26 %       as expected
      speed              2–4×         1.80×      slower than expected
      accuracy drop      0.5–1 pt     0.21 pt    better than expected

Size and speed are against the variant it was made from, the drop (percentage points) against the baseline. None means
not measured, or not promised by number. What is read here is our own engine's, but may be an older or newer one's:
whatever does not look as expected is left out.
"""

import json
from typing import Any, NamedTuple

from textual.content import Content

from . import figures
from .text import clean, fit

LABELS = {"size": "size", "speedup": "speed", "drop": "accuracy drop"}
"""Key in the engine's results → what the user reads."""

WORDS = {
    ("size", "less"): ("smaller than expected", "$success"),
    ("size", "more"): ("larger than expected", "$warning"),
    ("speedup", "less"): ("slower than expected", "$warning"),
    ("speedup", "more"): ("faster than expected", "$success"),
    ("drop", "less"): ("better than expected", "$success"),
    ("drop", "more"): ("worse than expected", "$warning"),
}
"""(what, the engine's word) → words and colour; else it is as expected."""


class Row(NamedTuple):
    """One of size, speed and accuracy."""

    key: str
    expected: str
    """"" where nothing is promised by number."""
    measured: str
    verdict: str | None
    """"less", "more", "as expected"; None where there is nothing to compare."""


class Expectation(NamedTuple):
    """Of one variant."""

    variant: str
    """Its name."""
    technique: str
    text: str
    """What is promised, in a phrase."""
    rows: tuple[Row, ...]


def read(results: str) -> list[Expectation]:
    """Every expectation in the engine's results; none from what cannot be read."""
    try:
        variants = json.loads(results)["variants"]
        return [one for variant in variants if (one := _of(variant)) is not None]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _of(variant: dict[str, Any]) -> Expectation | None:
    found = variant.get("expectation")
    if not found:
        return None
    expected, measured, verdict = found.get("expected") or {}, found["measured"], found.get("verdict") or {}
    shown = {
        "size": _percent(expected.get("size")),
        "speedup": _range(expected.get("speedup"), 1, "×"),
        "drop": _range(expected.get("drop"), 100, " pt"),
    }
    values = {
        "size": _percent(measured["size"]),
        "speedup": "" if measured["speedup"] is None else figures.ratio(measured["speedup"]),
        "drop": "" if measured["drop"] is None else f"{figures.points(measured['drop'])} pt",
    }
    rows = tuple(Row(key, shown[key], values[key], verdict.get(key)) for key in LABELS)
    return Expectation(str(variant["name"]), str(variant["technique"]), str(found.get("text") or ""), rows)


def table(one: Expectation) -> Content:
    """As the details of a variant show it."""
    numbered = any(row.expected for row in one.rows)
    lines = []
    if one.text and not numbered:
        lines.append(Content.assemble(("  expected       ", "$muted"), clean(one.text, 200)))
    head = f"  {'':<15}{'expected' if numbered else '':<12}{'measured':<12}"
    lines.append(Content.styled(head.rstrip(), "$muted"))
    for row in one.rows:
        words, style = WORDS.get((row.key, row.verdict or ""), (row.verdict or "", "$muted"))
        lines.append(
            Content.assemble(
                (f"  {LABELS[row.key]:<15}", "$muted"),
                fit(clean(row.expected, 20), 12) if numbered else " " * 12,
                fit(row.measured or "not yet", 12),
                (clean(words, 40), style),
            )
        )
    lines.append(Content.styled("  Size and speed against its parent, accuracy against the baseline.", "$muted"))
    return Content("\n").join(lines)


def phrase(one: Expectation) -> str:
    """What was measured, for the technique's form; "" if nothing was.

    "int8: size 26 %, 1.80× the speed, 0.21 pt drop"
    """
    values = {row.key: row.measured for row in one.rows}
    parts = [
        values["size"] and f"size {values['size']}",
        values["speedup"] and f"{values['speedup']} the speed",
        values["drop"] and _dropped(values["drop"]),
    ]
    shown = ", ".join(part for part in parts if part)
    return f"{clean(one.variant, 40)}: {shown}" if shown else ""


def _dropped(points: str) -> str:
    """A drop below nothing is a gain."""
    return f"{points[1:]} gain" if points.startswith("-") else f"{points} drop"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.3g} %"


def _range(ends: list[float] | None, factor: float, unit: str) -> str:
    """ "2–4×", "0.5–1 pt", "under 0.1 pt"."""
    if not ends:
        return ""
    low, high = (f"{end * factor:g}" for end in ends)
    return f"under {high}{unit}" if not ends[0] else f"{low}–{high}{unit}"
