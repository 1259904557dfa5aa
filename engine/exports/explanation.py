"""Why a variant is (not) faster, and where time goes: the records as the JSON that outsiders rely on, and as text.

    {"schema": "trimtab/explain/1", "variant": …, "against": …, "cause": "…", "operators": […], "unfused": […], …}
    {"schema": "trimtab/profile/1", "latency_ms": …, "operators": […], "remainder_ms": …, …}

Milliseconds are for one call, null is for what is not known. `operators` of an explanation are those of both variants,
by kind and precision; `profiles` has every single one.
"""

import json
import math
from typing import Any

from ..protocol import Conditions, Explanation, OperatorTime, Profile
from ..safety import clean_text, markdown_cell
from ..session import Session
from . import figures
from .expectations import expectation_of, sentence

ROWS = 20
"""Rows of a table for people; the JSON has them all."""


def render(session: Session, found: Explanation, format: str) -> str:
    """An explanation as "json" or "markdown"."""
    content = as_data(session, found)
    return _json(content) if format == "json" else _markdown(content)


def render_profile(session: Session, found: Profile, format: str) -> str:
    """A profile as "json" or "markdown"."""
    content = profile_data(session, found)
    return _json(content) if format == "json" else _profile_markdown(content)


def as_data(session: Session, found: Explanation) -> dict[str, Any]:
    """The explanation as plain data."""
    ratio = found.speedup
    known = session.variants.get(found.variant)
    return {
        "schema": "trimtab/explain/1",
        "variant": _variant(session, found.variant),
        "against": _variant(session, found.against),
        "cause": found.cause,
        "cause_kind": found.cause_kind,
        "speedup": {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "verdict": ratio.verdict}
        | {"against": ratio.against},
        "batch_size": found.batch_size,
        "latency_ms": {"before": found.against_latency_ms, "after": found.latency_ms},
        "remainder_ms": {"before": found.against_remainder_ms, "after": found.remainder_ms},
        "operators": [
            {
                "type": row.type,
                "precision": row.precision,
                "operands": row.operands,
                "before_ms": row.before_ms,
                "after_ms": row.after_ms,
                "before_calls": row.before_calls,
                "after_calls": row.after_calls,
            }
            for row in found.changes
        ],
        "expectation": None if known is None else expectation_of(session, known, found),
        "unfused": [
            {
                "node": one.node,
                "type": one.type,
                "reason": one.reason,
                "time_ms": one.time_ms,
                "pairs": list(one.pairs),
            }
            for one in found.unfused
        ],
        "missing_features": list(found.missing_features),
        "notes": list(found.notes),
        "layers": [
            {
                "node": one.node,
                "type": one.type,
                "cosine": one.cosine,
                "sqnr_db": one.sqnr_db,
                "drop_db": one.drop_db,
                "exclude": one.exclude,
            }
            for one in found.layers
        ],
        "profiles": {
            "before": [_operator(one) for one in found.against_operators],
            "after": [_operator(one) for one in found.operators],
        },
        "machine": {"before": _machine(found.against_conditions), "after": _machine(found.conditions)},
    }


def profile_data(session: Session, found: Profile) -> dict[str, Any]:
    """The profile as plain data."""
    return {
        "schema": "trimtab/profile/1",
        "variant": _variant(session, found.variant),
        "batch_size": found.batch_size,
        "latency_ms": found.latency_ms,
        "operators": [_operator(one) for one in found.operators],
        "remainder_ms": found.remainder_ms,
        "verdict": {"bound": None, "sentence": found.sentence},
        "machine": _machine(found.conditions),
    }


def _variant(session: Session, id: str) -> dict[str, Any]:
    known = session.variants.get(id)
    return {"id": id, "name": known.name if known is not None else None}


def _operator(one: OperatorTime) -> dict[str, Any]:
    return {
        "name": one.name,
        "type": one.type,
        "module": one.module,
        "nodes": list(one.nodes),
        "precision": one.precision,
        "operands": one.operands,
        "calls": one.calls,
        "time_ms": one.time_ms,
        "share": one.share,
        "flops": one.flops,
        "bytes": one.bytes,
        "bound": one.bound,
    }


def _machine(held: Conditions) -> dict[str, Any]:
    return {
        "runtime": held.runtime,
        "device": held.device,
        "processor": held.processor,
        "threads": held.threads,
        "versions": held.versions,
        "notes": list(held.notes),
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(_finite(content), indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


# --- for people ------------------------------------------------------------------------------------


def _markdown(content: dict[str, Any]) -> str:
    ratio = content["speedup"]
    name, against = (_name(content[key]) for key in ("variant", "against"))
    parts = [
        f"{name} against {against}: {figures.times(ratio['ratio'])} ({ratio['low']:.2f}–{ratio['high']:.2f}) "
        f"{ratio['verdict']}, timed in turns · {_where(content)} · batch {content['batch_size']}",
        clean_text(content["cause"], 2000),
    ]
    where = f" under {content['machine']['after']['runtime']}, speed and size against its parent"
    if expected := sentence(content["expectation"], where):
        parts.append(clean_text(expected, 1000))
    rows = [
        [
            markdown_cell(row["type"], 40),
            _kind(row),
            str(row["before_calls"] or figures.UNKNOWN),
            figures.milliseconds(row["before_ms"]),
            str(row["after_calls"] or figures.UNKNOWN),
            figures.milliseconds(row["after_ms"]),
        ]
        for row in content["operators"][:ROWS]
    ]
    before, after = (content["remainder_ms"][key] for key in ("before", "after"))
    rows.append(["(around them)", "", "", figures.milliseconds(before), "", figures.milliseconds(after)])
    parts.append("Operators in the profiles, which were taken one after the other:")
    parts.append(_table(["operator", "computes in", "before", "ms", "after", "ms"], rows, numbers_from=2))
    if content["unfused"]:
        unfused = [
            [
                markdown_cell(one["node"], 60),
                one["type"],
                figures.milliseconds(one["time_ms"]),
                markdown_cell(one["reason"], 200),
            ]
            for one in content["unfused"][:ROWS]
        ]
        parts.append("Quantized, but computed in float:")
        parts.append(_table(["node", "type", "ms", "because"], unfused))
    if content["layers"]:
        worst = sorted(content["layers"], key=lambda one: one["drop_db"] or 0.0, reverse=True)[:ROWS]
        layers = [
            [
                markdown_cell(one["node"], 60),
                one["type"],
                f"{one['cosine']:.4f}",
                figures.UNKNOWN if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f}",
                figures.UNKNOWN if one["drop_db"] is None else f"{one['drop_db']:.1f}",
            ]
            for one in worst
        ]
        parts.append("Error by layer, those that lose most first:")
        parts.append(_table(["node", "type", "cosine", "SQNR dB", "lost dB"], layers, numbers_from=2))
    if content["missing_features"]:
        parts.append(f"Missing here: {', '.join(content['missing_features'])}.")
    parts += [clean_text(note, 600) for note in content["notes"]]
    return "\n\n".join(parts) + "\n"


def _profile_markdown(content: dict[str, Any]) -> str:
    rows = [
        [
            markdown_cell(one["name"], 60),
            markdown_cell(one["type"], 40),
            _kind(one),
            figures.milliseconds(one["time_ms"]),
            figures.percent(one["share"], 1),
        ]
        for one in content["operators"][:ROWS]
    ]
    if content["remainder_ms"]:
        rows.append(["(around them)", "", "", figures.milliseconds(content["remainder_ms"]), ""])
    machine = content["machine"]
    head = f"{_name(content['variant'])} · {machine['runtime']} {machine['device']} · batch {content['batch_size']}"
    table = _table(["operator", "type", "computes in", "ms", "share"], rows, numbers_from=3)
    sentence = clean_text(content["verdict"]["sentence"], 1000)
    return "\n\n".join([head, sentence, table, *(clean_text(note, 600) for note in machine["notes"])]) + "\n"


def _name(variant: dict[str, Any]) -> str:
    return markdown_cell(variant["name"] or variant["id"], 60)


def _where(content: dict[str, Any]) -> str:
    before, after = (content["machine"][key]["runtime"] for key in ("before", "after"))
    return str(after) if before == after else f"{before} → {after}"


def _kind(row: dict[str, Any]) -> str:
    """ "int8 (uint8×int8)"."""
    kind = row["precision"] or figures.UNKNOWN
    return f"{kind} ({row['operands']})" if row["operands"] else kind


def _table(header: list[str], rows: list[list[str]], numbers_from: int = 99) -> str:
    """Aligned, so that it reads well on a terminal too."""
    widths = [max(3, *(len(row[at]) for row in [header, *rows])) for at in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [c.rjust(w) if at >= numbers_from else c.ljust(w) for at, (c, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if at >= numbers_from else "-") for at, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])
