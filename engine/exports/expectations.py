"""What the field expects of a technique beside what was measured: size, speed, accuracy, in numbers and a sentence.

Size and speed are against the parent under the same runtime (against the baseline where the parent does not run there),
the loss is the drop of accuracy against the baseline.
"""

from typing import Any, NamedTuple

from ..protocol import Accuracy, Explanation, Latency, Variant
from ..session import Session
from ..session.ranking import figures_of
from ..techniques import Refusal, find_technique
from . import figures


class Expected(NamedTuple):
    """Shares and factors, from … to."""

    size: float
    speedup: tuple[float, float]
    drop: tuple[float, float]


HALF = Expected(0.5, (1.5, 2.0), (0.0, 0.001))
BYTES = Expected(0.25, (2.0, 4.0), (0.005, 0.01))
NIBBLES = Expected(0.125, (3.0, 6.0), (0.01, 0.03))

EXPECTED = {
    "quantize-fp16": HALF,
    "quantize-bf16": HALF,
    "quantize-dynamic": BYTES,
    "quantize-static": BYTES,
    "quantize-aware-training": BYTES,
    "quantize-fp8": BYTES,
    "quantize-int4": NIBBLES,
}
"""Techniques that are usually promised by number."""

SIZE_TOLERANCE = 0.15
"""A size is as expected within this share of it: scales, biases and what stays in float take room too."""


def expectation_of(session: Session, variant: Variant, answer: Explanation | None = None) -> dict[str, Any] | None:
    """Expected and measured, None for the baseline. What was not measured is None.

    Beside an `answer` to why it is (not) faster, the figures are those of its runtime, and the speed-up is its own.
    """
    try:
        text = find_technique(variant.technique or "").expectation
    except Refusal:
        return None
    measured = _measured(session, variant, answer)
    numbers = EXPECTED.get(variant.technique or "")
    content: dict[str, Any] = {"text": text or None, "expected": None, "measured": measured, "verdict": None}
    if numbers is not None:
        content["expected"] = {"size": numbers.size, "speedup": list(numbers.speedup), "drop": list(numbers.drop)}
        content["verdict"] = {
            "size": _size_verdict(measured["size"], numbers.size),
            "speedup": _range_verdict(measured["speedup"], numbers.speedup),
            "drop": _range_verdict(measured["drop"], numbers.drop),
        }
    return content


def sentence(content: dict[str, Any] | None, where: str = "") -> str:
    """ "Expected: size 25 %, … Measured: size 26 %, 6.88× (more), drop 0.18 points (less)."; "" where there is none.

    `where` goes behind "Measured": " under openvino, against its parent".
    """
    if content is None:
        return ""
    measured, verdict = content["measured"], content["verdict"] or {}
    shown = {
        "size": measured["size"] is not None and f"size {figures.percent(measured['size'], 0)}",
        "speedup": measured["speedup"] is not None and figures.times(measured["speedup"]),
        "drop": measured["drop"] is not None and f"drop {figures.points(measured['drop'])} points",
    }
    parts = [f"{text} ({verdict[key]})" if verdict.get(key) else str(text) for key, text in shown.items() if text]
    expected = f"Expected: {content['text']}. " if content["text"] else ""
    return f"{expected}Measured{where}: {', '.join(parts) or 'nothing yet'}."


def _measured(session: Session, variant: Variant, answer: Explanation | None) -> dict[str, float | None]:
    parent = session.variants.get(variant.parent or "")
    measurements = list(session.measurements.values())
    if answer is not None:
        measurements = [
            one
            for one in measurements
            if isinstance(one, Latency | Accuracy) and one.conditions.runtime == answer.conditions.runtime
        ]
    known = figures_of(variant, measurements, session.options)
    ratio = None if known.best is None else known.best.speedup_over_parent or known.best.speedup
    if answer is not None and answer.against == variant.parent:
        ratio = answer.speedup
    return {
        "size": variant.size_bytes / parent.size_bytes if parent is not None and parent.size_bytes else None,
        "speedup": None if ratio is None else ratio.ratio,
        "drop": None if known.accuracy is None else known.accuracy.drop,
    }


def _size_verdict(value: float | None, expected: float) -> str | None:
    if value is None:
        return None
    if abs(value - expected) <= SIZE_TOLERANCE * expected:
        return "as expected"
    return "less" if value < expected else "more"


def _range_verdict(value: float | None, expected: tuple[float, float]) -> str | None:
    if value is None:
        return None
    return "less" if value < expected[0] else "more" if value > expected[1] else "as expected"
