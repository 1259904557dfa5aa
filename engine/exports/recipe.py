"""The recipe that makes variants again: every step from the baseline, with what a search found pinned.

The text is valid for `engine/recipe_files.py` (a test reads every one back). `[steps.recorded]` holds the figures,
versions and machine that a replay compares with; it is read by nothing else. Names and paths are written as TOML
strings, so nothing foreign can break out of one; comments hold cleaned text only.
"""

import datetime
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..protocol import Variant
from ..safety import clean_text, toml_string
from ..session import Session, SessionError
from ..session.ranking import Figures, figures_of


def recipe_text(session: Session, variant: Variant) -> str:
    """The recipe (TOML) that makes this variant again. Raises SessionError when no model is open."""
    return recipe_for(session, [variant])


def recipe_for(
    session: Session, variants: Sequence[Variant], *, model: str | None = None, data: dict[str, str] | None = None
) -> str:
    """One recipe that makes all these variants again.

    `model` and `data` ("data" and "calibration_data") are paths to write instead of those the session knows, for a
    recipe that stands beside copies. Raises SessionError.
    """
    if session.model is None:
        raise SessionError("There is no recipe yet: no model is open in this session.")
    line = lineage(session, variants)
    names = step_names(line)
    source, options = session.model.source, session.options
    target = next((_target(v) for v in reversed(line)), options.target)
    made = clean_text(", ".join(v.name for v in variants if v.parent) or "the baseline", 200)
    header = [
        f"# Makes {made} again: trimtab run <this file>",
        f"# Written by Trimtab {__version__} on {datetime.date.today().isoformat()}.",
    ]
    paths = {"data": source.data, "calibration_data": source.calibration_data} | (data or {})
    top: dict[str, Any] = {
        "model": model or source.path,
        "model_sha256": source.sha256,
        "original_model": source.path if model else None,
        **paths,
        "accuracy_limit": options.accuracy_limit,
        "shapes": source.shapes or None,
        "target": target,
        "batch_sizes": list(options.batch_sizes),
        "runtimes": list(options.runtimes) or None,
        "device": options.device,
    }
    parts = ["\n".join([*header, *_pairs(top)])]
    for number, variant in enumerate(line):
        parent = session.variants[variant.parent] if variant.parent else None
        previous = line[number - 1] if number else session.baseline
        figures = figures_of(variant, list(session.measurements.values()), options)
        built_on = any(other.parent == variant.id for other in line)
        step: dict[str, Any] = {
            "technique": variant.technique,
            "name": names[variant.id],
            "from": names.get(parent.id, "baseline") if parent and parent is not previous else None,
            "target": _target(variant) if _target(variant) != target else None,
            "beyond_limit": True if built_on and figures.verdict == "FAIL" else None,
            **variant.parameters,
        }
        parts.append("\n".join(["[[steps]]", *_pairs(step)]))
        parts.append("\n".join(["[steps.recorded]", *_pairs(_recorded(variant, figures))]))
    return "\n\n".join(parts) + "\n"


def lineage(session: Session, variants: Sequence[Variant]) -> list[Variant]:
    """These variants and all they were made from, without the baseline, each after its parent."""
    wanted: set[str] = set()
    for variant in variants:
        step: Variant | None = variant
        while step is not None and step.parent is not None:
            wanted.add(step.id)
            step = session.variants.get(step.parent)
    return [variant for id, variant in sorted(session.variants.items()) if id in wanted]


def step_names(line: Sequence[Variant]) -> dict[str, str]:
    """A step's name for each variant, by id: its own name, without the slash that marks members of a front."""
    names: dict[str, str] = {}
    for variant in line:
        wanted = clean_text(variant.name, 100).replace("/", "-").strip() or variant.id
        taken = {*names.values(), "best", "baseline"}
        names[variant.id] = wanted if wanted not in taken else f"{wanted}-{variant.id}"
    return names


def _target(variant: Variant) -> str:
    return variant.requested_target or variant.target


def _recorded(variant: Variant, figures: Figures) -> dict[str, Any]:
    """What was measured, under which conditions: for a replay to compare with."""
    facts: dict[str, Any] = {
        "size_bytes": variant.size_bytes,
        "parameter_count": variant.parameter_count,
        "macs": variant.macs,
        "processor": variant.processor,
        "sha256": variant.files[0].sha256,
        "trimtab": __version__,
    }
    if accuracy := figures.accuracy:
        facts |= {
            "accuracy_kind": accuracy.kind,
            "accuracy": accuracy.value,
            "accuracy_drop": accuracy.drop,
            "accuracy_drop_low": accuracy.low,
            "accuracy_drop_high": accuracy.high,
            "accuracy_samples": accuracy.samples,
            "accuracy_verdict": figures.verdict,
        }
    if best := figures.best:
        facts |= {
            "runtime": best.conditions.runtime,
            "device": best.conditions.device,
            "threads": best.conditions.threads,
            "batch_size": best.batch_size,
            "p50_ms": best.p50_ms,
            "p90_ms": best.p90_ms,
            "p99_ms": best.p99_ms,
            "throughput_per_s": best.throughput_per_s,
            "versions": best.conditions.versions or None,
        }
        if best.speedup:
            facts |= {
                "speedup": best.speedup.ratio,
                "speedup_low": best.speedup.low,
                "speedup_high": best.speedup.high,
                "speedup_verdict": best.speedup.verdict,
            }
    return facts


def _pairs(content: dict[str, Any]) -> list[str]:
    """`key = value` lines; None is left out, because TOML has no such thing (it is every default that may be None)."""
    return [f"{_key(key)} = {_value(value)}" for key, value in content.items() if value is not None]


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if plain else toml_string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # repr gives all digits; "1e-05" and "nan" are TOML as they are.
        return repr(value)
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(str(key))} = {_value(item)}" for key, item in value.items() if item is not None)
        return "{ " + inner + " }" if inner else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value if item is not None) + "]"
    return toml_string(str(value))
