"""The results of a session for programs and for people: the JSON that outsiders rely on, CSV and Markdown.

    {"schema": "trimtab/compare/1", "steps": […], "variants": […], …}

SI units in the key's name, null for what was not measured, and names as they are (JSON escapes whatever a terminal
would obey). Exit statuses: 0 done and at least one variant passes the limit; 1 a step was refused or failed; 2 the
input could not be read; 3 every step ran but none made a variant within the limit; 130 cancelled.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from .. import __version__
from ..hardware import read_processor
from ..protocol import Accuracy, Changed, Failed, Latency, Measurement, Ratio, RecipeRun, Step, Variant
from ..protocol.paired import product, related_gain, steps_between, why_undecided
from ..recipes.steps import CANCELLED
from ..safety import clean_text
from ..session import Session, SessionError
from ..session.ranking import best_variant, figures_of
from . import load_tests, table
from .expectations import expectation_of
from .moving import warning_of


def render(
    session: Session,
    command: str,
    format: str,
    run: str | None = None,
    variants: Iterable[str] = (),
    runtime: str | None = None,
) -> tuple[str, int]:
    """The results as text ("json", "csv" or "markdown") with the exit status the command line should end with.

    `run` is the run whose steps count (None: all steps, status 0). `variants` are names or ids, none meaning all.
    With a `runtime` the figures of each variant are those under it.
    Raises SessionError for a run or variant that does not exist, or a runtime that nothing was measured under.
    """
    content = results(session, command, run, variants, runtime)
    status = exit_status(session, run)
    if format == "json":
        return json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n", status
    if format == "csv":
        return table.as_csv(content), status
    if format == "markdown":
        return table.as_markdown(content, steps=run is not None), status
    raise SessionError(f"There is no format {format!r}. Known: json, csv, markdown.")


def results(
    session: Session,
    command: str,
    run: str | None = None,
    variants: Iterable[str] = (),
    runtime: str | None = None,
) -> dict[str, Any]:
    """The results as plain data, ready for JSON: see the module's docstring. Raises SessionError."""
    chosen = [session.resolve(word) for word in variants] or list(session.variants.values())
    runs = [_run(session, run)] if run is not None else list(session.runs.values())
    best = best_variant(session.variants.values(), session.measurements.values(), session.options)
    model, processor = session.model, read_processor()
    content: dict[str, Any] = {
        "schema": f"trimtab/{command}/1",
        "trimtab": __version__,
        "model": None if model is None else {"name": model.name, "sha256": model.source.sha256},
        "accuracy_limit": session.options.accuracy_limit,
        "best": best.id if best is not None else None,
        "steps": [_step(step) for one in runs for step in one.steps],
        "variants": [
            _variant(session, variant, runtime) | {"warning": warning_of(session, variant, processor)}
            for variant in chosen
        ],
    }
    if run is not None and runs[0].error:
        content["error"] = runs[0].error
    return _finite(content)


def exit_status(session: Session, run: str | None) -> int:
    """What the command line should end with after this run; 0 when it only asked for the table."""
    if run is None:
        return 0
    record = _run(session, run)
    if record.error == CANCELLED:
        return 130
    if any(step.status in ("refused", "failed", "cancelled") for step in record.steps):
        return 1
    if record.error:
        failed = [job for job in session.jobs.values() if job.recipe_run == run and isinstance(job.state, Failed)]
        unreadable = all(
            job.kind == "open-model" and isinstance(job.state, Failed) and job.state.cause in ("error", "refused")
            for job in failed
        )
        return 2 if unreadable else 1
    made = [id for step in record.steps if step.kind == "technique" for id in step.variants]
    verdicts = {
        figures_of(session.variants[id], list(session.measurements.values()), session.options).verdict
        for id in made
        if id in session.variants
    }
    return 3 if verdicts - {None} and "PASS" not in verdicts else 0


def _run(session: Session, id: str) -> RecipeRun:
    if id not in session.runs:
        raise SessionError("There is no such run in this session.")
    return session.runs[id]


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        step.kind: step.word,
        "status": step.status,
        "reason": step.reason,
        "notice": step.notice,
        "variant": step.variants[0] if step.variants else None,
        "variants": list(step.variants),
        "reused": step.reused,
    }


def _variant(session: Session, variant: Variant, runtime: str | None) -> dict[str, Any]:
    figures = figures_of(variant, _measured(session, runtime), session.options)
    entry: dict[str, Any] = {
        "id": variant.id,
        "name": variant.name,
        "parent": variant.parent,
        "technique": variant.technique,
        "parameters": variant.parameters,
        "target": variant.target,
        "format": variant.format,
        "size_bytes": variant.size_bytes,
        "parameter_count": variant.parameter_count,
        "macs": variant.macs,
        "complexity": variant.complexity,
        "accuracy": _accuracy(figures.accuracy, figures.verdict),
        "changed": _changed(variant.changed),
        "expectation": expectation_of(session, variant),
        "measurements": [_latency(latency) for latency in figures.latencies],
        "load_tests": load_tests.documents(session, variant),
        "gains": _gains(session, figures.best),
    }
    flat = _latency(figures.best) if figures.best is not None else {}
    keys = ("runtime", "device", "batch_size", "latency_ms", "throughput_per_s", "speedup", "speedup_over_parent")
    undecided = _undecided(figures.best) if figures.best is not None else []
    return entry | {key: flat.get(key) for key in (*keys, "disturbed")} | {"undecided": undecided}


def _undecided(latency: Latency) -> list[str]:
    """Why ratios whose whole interval is on one side of 1 are UNDECIDED all the same, in sentences."""
    ratios = (("the speed-up is ", latency.speedup), ("over parent is ", latency.speedup_over_parent))
    return [
        what + why
        for what, ratio in ratios
        if ratio is not None and (why := why_undecided(ratio, latency.noise_floor)) is not None
    ]


def _gains(session: Session, best: Latency | None) -> dict[str, Any] | None:
    """What each of two or more steps from the baseline gained, and their product; None where a link is missing.

    A step whose two sides ran in turn is "measured"; else it is the quotient of two jobs.
    """
    if best is None:
        return None

    def latencies_of(id: str) -> tuple[Latency, ...]:
        return figures_of(session.variants[id], list(session.measurements.values()), session.options).latencies

    roots = [one for variant in session.variants.values() if variant.parent is None for one in latencies_of(variant.id)]
    for root in roots:
        # The baseline has its own runtime: the one under which the records' ratios over it were measured.
        direct = related_gain(root, best, session.variants, latencies_of)
        if direct is None or direct.how != "pair":
            continue
        steps = steps_between(root, best, session.variants, latencies_of)
        gains = [step.gain for step in steps if step.gain is not None]
        if len(steps) < 2 or len(gains) < len(steps):
            return None
        whole = product(gains)
        return {
            "steps": [
                {
                    "variant": step.variant.id,
                    "name": step.variant.name,
                    "ratio": gain.ratio,
                    "measured": gain.how == "pair",
                }
                for step, gain in zip(steps, gains)
            ],
            "product": {"ratio": whole.ratio, "low": whole.low, "high": whole.high, "measured": whole.how == "product"},
        }
    return None


def _accuracy(accuracy: Accuracy | None, verdict: str | None) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    return {
        "kind": accuracy.kind,
        "value": accuracy.value,
        "drop": accuracy.drop,
        "low": accuracy.low,
        "high": accuracy.high,
        "samples": accuracy.samples,
        "verdict": verdict,
        "baseline_value": accuracy.baseline_value,
        "runtime": accuracy.conditions.runtime,
        "flipped_to_wrong": accuracy.flipped_to_wrong,
        "flipped_to_right": accuracy.flipped_to_right,
        "cosine": accuracy.cosine,
        "sqnr_db": accuracy.sqnr_db,
        "sentence": accuracy.sentence or None,
    }


def _changed(changed: Changed | None) -> dict[str, Any] | None:
    if changed is None:
        return None
    return {
        "summary": changed.summary,
        "touched": list(changed.touched),
        "left": [{"name": left.name, "reason": left.reason} for left in changed.left],
        "figures": dict(changed.figures),
    }


def _latency(latency: Latency) -> dict[str, Any]:
    where = latency.conditions
    return {
        "runtime": where.runtime,
        "device": where.device,
        "processor": where.processor,
        "threads": where.threads,
        "batch_size": latency.batch_size,
        "latency_ms": {"p50": latency.p50_ms, "p90": latency.p90_ms, "p99": latency.p99_ms},
        "throughput_per_s": latency.throughput_per_s,
        "samples": latency.samples,
        "speedup": _ratio(latency.speedup),
        "speedup_over_parent": _ratio(latency.speedup_over_parent),
        "noise_floor": latency.noise_floor,
        "versions": where.versions,
        "notes": list(where.notes),
        "disturbed": where.disturbed,
    }


def _measured(session: Session, runtime: str | None) -> list[Measurement]:
    """Measurements under this runtime; None: all there are. Raises SessionError where there are none."""
    everything = list(session.measurements.values())
    if runtime is None:
        return everything
    timed = [one for one in everything if isinstance(one, Latency | Accuracy)]
    if not any(one.conditions.runtime == runtime for one in timed):
        known = sorted({one.conditions.runtime for one in timed})
        raise SessionError(
            f"Nothing was measured under {clean_text(runtime, 40)}. Measured: {', '.join(known) or 'nothing'}."
        )
    return [one for one in timed if one.conditions.runtime == runtime]


def _ratio(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {
        "ratio": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": ratio.verdict,
        "against": ratio.against,
    }


def _finite(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
