"""Load tests in words and as JSON: `trimtab load-test` prints this, and a report holds it.

The JSON's schema is `trimtab/load-test/1`: rates are requests a second, durations milliseconds, null is unknown.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from ..protocol import LoadPoint, LoadSearch, LoadSettings, LoadTest, Percentile, Variant
from ..protocol.load import newest_of_each
from ..safety import markdown_cell
from ..session import Session

MOST_SHOWN = 8
"""Of one variant, in tables and reports: the newest."""


def render(session: Session, variant: Variant | None, job: str | None, format: Literal["json", "markdown"]) -> str:
    """What the load tests of a job, or the newest of a variant, found; "" when there are none."""
    found = newest(session, variant, job)
    if found is None:
        return ""
    search, tests = _parts(session, found)
    if format == "json":
        return json.dumps(_document(session, search, tests), indent=2, ensure_ascii=False)
    return _markdown(session, search, tests)


def newest(session: Session, variant: Variant | None, job: str | None) -> LoadTest | LoadSearch | None:
    """The job's (or the variant's newest) search, else its test."""
    found = [
        one
        for one in session.measurements.values()
        if isinstance(one, LoadTest | LoadSearch)
        and (job is None or one.job == job)
        and (variant is None or one.variant == variant.id)
    ]
    searches = [one for one in found if isinstance(one, LoadSearch)]
    chosen = searches if job is not None and searches else found
    return max(chosen, key=lambda one: one.created, default=None)


def tests_of(session: Session, search: LoadSearch) -> list[LoadTest]:
    """The tests a search consists of, oldest first."""
    every = (one for one in session.measurements.values() if isinstance(one, LoadTest))
    return newest_of_each(one for one in every if one.search == search.search)


def of_variant(session: Session, variant: Variant) -> list[LoadTest | LoadSearch]:
    """What stands for a variant in tables and reports: its newest searches and single tests, oldest first."""
    found = [
        one
        for one in session.measurements.values()
        if isinstance(one, LoadTest | LoadSearch)
        and one.variant == variant.id
        and getattr(one, "purpose", "run") == "run"
    ]
    return sorted(found, key=lambda one: one.created)[-MOST_SHOWN:]


def documents(session: Session, variant: Variant) -> list[dict[str, Any]]:
    """`of_variant` as JSON has them."""
    return [_document(session, *_parts(session, one)) for one in of_variant(session, variant)]


def in_words(session: Session, variants: Iterable[Variant]) -> str:
    """The load tests of these variants for a report, "" when there are none."""
    return "\n\n".join(
        _markdown(session, *_parts(session, one)) for variant in variants for one in of_variant(session, variant)
    )


def _parts(session: Session, found: LoadTest | LoadSearch) -> tuple[LoadSearch | None, list[LoadTest]]:
    return (None, [found]) if isinstance(found, LoadTest) else (found, tests_of(session, found))


# --- JSON ------------------------------------------------------------------------------------------


def _document(session: Session, search: LoadSearch | None, tests: list[LoadTest]) -> dict[str, Any]:
    shown = _decisive(search, tests)
    document: dict[str, Any] = {"schema": "trimtab/load-test/1"}
    if shown is not None:
        document |= test_document(session, shown)
    if search is not None:
        document["search"] = {
            "kind": search.settings.kind,
            "sentence": search.sentence,
            "slo_p99_ms": search.settings.slo_p99_ms,
            "capacity_per_s": search.capacity_per_s,
            "best_rate_per_s": search.best_rate_per_s,
            "bracket_high_per_s": search.bracket_high_per_s,
            "bracket_verdict": search.bracket_verdict,
            "p99_at_most_ms": search.p99_at_most_ms,
            "seeds_passed": search.confirmed[0] if search.confirmed else None,
            "seeds_tried": search.confirmed[1] if search.confirmed else None,
            "points": [_point(point) for point in search.points],
            "front": list(search.front),
            "knee": search.knee,
            "recommended": search.recommended,
        }
    return document


def _decisive(search: LoadSearch | None, tests: list[LoadTest]) -> LoadTest | None:
    """The test whose figures stand for the whole: of a search the one at what it found."""
    if search is None:
        return tests[-1] if tests else None
    if search.best_rate_per_s is not None:
        same = [one for one in tests if one.settings.rate == search.best_rate_per_s]
        return same[-1] if same else None
    if search.recommended is not None:
        wanted = batching(search.points[search.recommended].settings)
        return next((one for one in tests if batching(one.settings) == wanted), None)
    return tests[-1] if tests else None


def test_document(session: Session, test: LoadTest) -> dict[str, Any]:
    """One test as the JSON has it."""
    summary, variant = test.summary, session.variants.get(test.variant)
    return {
        "variant": {"id": test.variant, "name": variant.name if variant else None},
        "runtime": test.conditions.runtime,
        "device": test.conditions.device,
        "processor": test.conditions.processor,
        "threads": test.conditions.threads,
        "scenario": summary.scenario,
        "settings": settings_document(test.settings),
        "valid": summary.valid,
        "reason": "; ".join(summary.reasons) or None,
        "notes": [*test.notes, *test.conditions.notes],
        "seconds": summary.seconds,
        "offered_per_s": summary.offered_per_s,
        "achieved_per_s": summary.achieved_per_s,
        "rows_per_s": summary.rows_per_s,
        "saturated": test.saturated,
        "latency_ms": {name: one.value for name, one in summary.latency_ms.items()},
        "latency_bounds_ms": {name: _bounds(one) for name, one in summary.latency_ms.items()},
        "requests_for_p99": summary.requests_for_p99,
        "slo_p99_ms": summary.slo_ms,
        "verdict": test.verdict,
        "queue_ms": summary.queue_ms,
        "forming_ms": summary.forming_ms,
        "compute_ms": summary.compute_ms,
        "batch_sizes": summary.batch_sizes,
        "completed": summary.completed,
        "rejected": summary.rejected,
        "failed": summary.failed,
        "unanswered": summary.unanswered,
        "dropped": summary.dropped,
        "lag_ms": summary.lag_ms,
        "utilization": {
            "cpu": test.use.cpu,
            "memory_bytes": test.use.memory_bytes,
            "gpu": test.use.gpu,
            "gpu_memory_bytes": test.use.gpu_memory_bytes,
            "power_w": test.use.power_w,
            "energy_j": test.use.energy_j,
            "energy_per_1000_requests_j": test.use.energy_per_1000_requests_j,
        },
        "marks": [{"seconds": mark.seconds, "text": mark.text} for mark in test.marks],
    }


def settings_document(settings: LoadSettings) -> dict[str, Any]:
    """The settings that say anything: those that differ from their defaults, and the batching."""
    changed: dict[str, Any] = msgspec.to_builtins(settings)
    changed.pop("type", None)
    return {**batching(settings), **changed}


def batching(settings: LoadSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("max_batch_size", "max_wait_ms", "instances")}


def _bounds(one: Percentile) -> dict[str, float | None]:
    return {"low": one.low, "high": one.high, "at_most": one.at_most}


def _point(point: LoadPoint) -> dict[str, Any]:
    return {
        **batching(point.settings),
        "rate": point.settings.rate,
        "concurrency": point.settings.concurrency,
        "offered_per_s": point.offered_per_s,
        "achieved_per_s": point.achieved_per_s,
        "rows_per_s": point.rows_per_s,
        "p50_ms": point.p50_ms,
        "p99_ms": point.p99_ms,
        "verdict": point.verdict,
    }


# --- words -----------------------------------------------------------------------------------------


def _markdown(session: Session, search: LoadSearch | None, tests: list[LoadTest]) -> str:
    lines: list[str] = []
    shown = _decisive(search, tests)
    if search is not None:
        lines += [f"**{markdown_cell(search.sentence)}**", "", *_points_table(search), ""]
    if shown is not None:
        lines += _test_in_words(session, shown)
    return "\n".join(lines)


def _points_table(search: LoadSearch) -> list[str]:
    rows = ["| max batch | max wait ms | instances | offered /s | achieved /s | p50 ms | p99 ms | |"]
    rows.append("|--:|--:|--:|--:|--:|--:|--:|---|")
    for number, point in enumerate(search.points):
        words: list[str] = [point.verdict or ""]
        if number == search.recommended:
            words.append("take this")
        elif number == search.knee:
            words.append("knee")
        elif number in search.front:
            words.append("front")
        settings = point.settings
        offered = f"{point.offered_per_s:.0f}" if settings.rate is not None else "–"
        rows.append(
            f"| {settings.max_batch_size} | {settings.max_wait_ms:g} | {settings.instances} | {offered} "
            f"| {point.achieved_per_s:.0f} | {_ms(point.p50_ms)} | {_ms(point.p99_ms)} "
            f"| {', '.join(word for word in words if word)} |"
        )
    return rows


def _test_in_words(session: Session, test: LoadTest) -> list[str]:
    summary, variant, settings = test.summary, session.variants.get(test.variant), test.settings
    name = markdown_cell(variant.name if variant else test.variant)
    batching = ""
    if settings.url is None:  # how a server batches, nobody told
        batching = (
            f"; batches up to {settings.max_batch_size}, wait up to {settings.max_wait_ms:g} ms, "
            f"{settings.instances} instance{'s' if settings.instances > 1 else ''}"
        )
    lines = [
        f"{name} under {test.conditions.runtime} on {test.conditions.device}: {summary.scenario}, "
        f"{summary.seconds:.1f} s measured{batching}.",
        "",
    ]
    if not summary.valid:
        lines += [f"**INVALID**: {markdown_cell('; '.join(summary.reasons))}.", ""]
    offered = (
        f" of {summary.offered_per_s:.1f} offered" if settings.concurrency is None and not settings.offline else ""
    )
    lines.append(f"- achieved {summary.achieved_per_s:.1f} requests/s{offered} ({summary.rows_per_s:.1f} samples/s)")
    parts = [f"{word} {_ms(one.value)}" for word, one in summary.latency_ms.items()]
    lines.append(f"- latency ms: {', '.join(parts) or 'no request was completed'}")
    p99 = summary.latency_ms.get("p99")
    if p99 is not None:
        bound = (
            f"p99 is at most {_ms(p99.at_most)} ms (99 % confidence)"
            if p99.at_most is not None
            else f"no claim about p99: it needs {summary.requests_for_p99} requests"
        )
        lines.append(f"- {bound}" + (f"; limit {summary.slo_ms:g} ms: {test.verdict}" if summary.slo_ms else ""))
    for word, spread in (("queue", summary.queue_ms), ("compute", summary.compute_ms)):
        if spread:
            # A server tells the mean only.
            parts = [f"{part} {_ms(spread[part])}" for part in ("mean", "p50", "p99") if part in spread]
            lines.append(f"- {word} ms: {', '.join(parts)}")
    if summary.batch_sizes:
        runs = sum(summary.batch_sizes.values())
        rows = sum(int(size) * count for size, count in summary.batch_sizes.items())
        lines.append(
            f"- batches: {runs}, {rows / runs:.1f} rows on average, largest {max(map(int, summary.batch_sizes))}"
        )
    lines.append(f"- completed {summary.completed}, rejected {summary.rejected}, failed {summary.failed}")
    use = []
    if test.use.cpu is not None:
        use.append(f"CPU {100 * test.use.cpu:.0f} %")
    if test.use.gpu is not None:
        use.append(f"GPU {100 * test.use.gpu:.0f} %")
    if test.use.energy_per_1000_requests_j is not None:
        use.append(f"{test.use.energy_per_1000_requests_j:.1f} J per 1,000 requests")
    if use:
        lines.append(f"- {', '.join(use)}")
    if test.marks:
        turns = ", ".join(f"{mark.text} at {mark.seconds:.1f} s" for mark in test.marks)
        lines.append(f"- changed while it ran, so the figures mix settings: {markdown_cell(turns)}")
    if summary.not_completed and test.verdict is not None:
        lines.append(f"- {summary.not_completed:,} requests were rejected or failed: for the limit they count as late")
    if test.saturated:
        lines.append("- saturated: the backlog grew as long as it was measured")
    return lines + [f"- {markdown_cell(note)}" for note in (*test.notes, *test.conditions.notes)]


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
