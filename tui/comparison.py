"""The comparison as data: which figures stand for a variant, in which order the variants are listed, which is best.

Pure functions of the engine's records; no widget, no colour. Times are milliseconds, drops fractions, None means not
measured.
"""

from typing import Literal, NamedTuple

from engine.protocol import Accuracy, Job, Latency, Measurement, Snapshot, Variant
from engine.protocol.paired import Candidate, best_candidate

from .text import clean

Verdict = Literal["PASS", "FAIL", "NOT ENOUGH DATA"]


class Figures(NamedTuple):
    """What is shown for one variant at one batch size."""

    latency: Latency | None = None
    """Under the runtime with the greatest speed-up, as the engine's results have it; of several runs the newest."""
    accuracy: Accuracy | None = None
    """The newest, under the same runtime where there is one."""
    verdict: Verdict | None = None
    """Of the accuracy, against the limit that the session has now."""


class Branch(NamedTuple):
    """A variant at its place in the list."""

    variant: Variant
    prefix: str
    """The lines of the tree before its name: "│ └ "; empty in a flat list."""
    below: str
    """The lines of the tree before what hangs under it (its running job)."""
    children: int


_grouped: tuple[tuple[Measurement, ...], dict[str, list[Measurement]]] = ((), {})
"""The last measurements that were grouped: a snapshot keeps its tuple until something is measured."""


def measured(measurements: tuple[Measurement, ...]) -> dict[str, list[Measurement]]:
    """Measurements by variant, newest first."""
    global _grouped
    if _grouped[0] is not measurements:
        found: dict[str, list[Measurement]] = {}
        for one in reversed(measurements):
            found.setdefault(one.variant, []).append(one)
        _grouped = (measurements, found)
    return _grouped[1]


def latencies(snapshot: Snapshot, variant: str) -> list[Latency]:
    """The newest latency for each runtime, device and batch size of a variant, by runtime, then batch size."""
    newest: dict[tuple[str, str, int], Latency] = {}
    for one in measured(snapshot.measurements).get(variant, ()):
        if isinstance(one, Latency):
            newest.setdefault((one.conditions.runtime, one.conditions.device, one.batch_size), one)
    return [newest[key] for key in sorted(newest)]


def accuracies(snapshot: Snapshot, variant: str) -> list[Accuracy]:
    """The newest accuracy for each runtime of a variant."""
    newest: dict[str, Accuracy] = {}
    for one in measured(snapshot.measurements).get(variant, ()):
        if isinstance(one, Accuracy):
            newest.setdefault(one.conditions.runtime, one)
    return [newest[key] for key in sorted(newest)]


def figures_for(snapshot: Snapshot, variant: str, batch_size: int | None) -> Figures:
    """The figures that stand for a variant in the comparison."""
    timed = [one for one in latencies(snapshot, variant) if one.batch_size == batch_size]
    device = snapshot.options.device.partition(",")[0]

    def rank(one: Latency) -> tuple[bool, float, float]:
        speed = one.speedup.ratio if one.speedup else 0.0
        return (one.conditions.device.startswith(device), speed, one.throughput_per_s)

    latency = max(timed, key=rank, default=None)
    judged = accuracies(snapshot, variant)
    if latency is not None:
        same = [one for one in judged if one.conditions.runtime == latency.conditions.runtime]
        judged = same or judged
    accuracy = max(judged, key=lambda one: one.created, default=None)
    return Figures(latency, accuracy, verdict_at(accuracy, snapshot.options.accuracy_limit) if accuracy else None)


def verdict_at(accuracy: Accuracy, limit: float) -> Verdict:
    """The verdict of a measured drop against a limit, which may have changed since it was measured.

    PASS when the whole 95 % interval is within the limit, FAIL when the whole of it is beyond. A measurement whose
    own verdict did not come from its interval (no honest calibration data) keeps it at any limit.
    """
    if accuracy.verdict != _judge(accuracy.low, accuracy.high, accuracy.limit):
        return accuracy.verdict
    return _judge(accuracy.low, accuracy.high, limit)


def speed_of(figures: Figures) -> float | None:
    """The speed-up against the baseline; None when it was not measured."""
    if figures.latency is None or figures.latency.speedup is None:
        return None
    return figures.latency.speedup.ratio


def best_variant(snapshot: Snapshot, batch_size: int | None) -> Variant | None:
    """The fastest variant that passes the accuracy limit and is surely faster than the baseline, if there is one.

    By the engine's rule: between a variant and its ancestor their paired ratio decides (`best_candidate`).
    """
    candidates = []
    for variant in snapshot.variants:
        latency, accuracy, verdict = figures_for(snapshot, variant.id, batch_size)
        if variant.parent is None or verdict != "PASS" or latency is None or latency.speedup is None:
            continue
        if latency.speedup.verdict == "FASTER":
            candidates.append(Candidate(variant, latency, accuracy))
    return best_candidate(candidates, by_id(snapshot), lambda id: latencies(snapshot, id))


def by_id(snapshot: Snapshot) -> dict[str, Variant]:
    """Every variant under its id."""
    return {variant.id: variant for variant in snapshot.variants}


def baseline_of(snapshot: Snapshot) -> Variant | None:
    """The root of the tree."""
    return next((variant for variant in snapshot.variants if variant.parent is None), None)


def variant_named(snapshot: Snapshot, id: str | None) -> Variant | None:
    """The variant with this id."""
    return next((variant for variant in snapshot.variants if variant.id == id), None)


def lineage(snapshot: Snapshot, variant: Variant) -> list[Variant]:
    """From the baseline to the variant."""
    known = by_id(snapshot)
    path = [variant]
    while path[0].parent in known and len(path) <= len(known):
        path.insert(0, known[path[0].parent or ""])
    return path


def tree(variants: tuple[Variant, ...]) -> list[Branch]:
    """Every variant under its parent, siblings by age. One whose parent is gone stands at the root."""
    ids = {variant.id for variant in variants}
    children: dict[str | None, list[Variant]] = {}
    for variant in sorted(variants, key=lambda one: one.created):
        parent = variant.parent if variant.parent in ids else None
        children.setdefault(parent, []).append(variant)
    found: list[Branch] = []

    def walk(variant: Variant, prefix: str, below: str) -> None:
        under = children.get(variant.id, [])
        found.append(Branch(variant, prefix, below, len(under)))
        for position, child in enumerate(under):
            last = position == len(under) - 1
            walk(child, below + ("└ " if last else "├ "), below + ("  " if last else "│ "))

    for root in children.get(None, []):
        walk(root, "", "")
    return found


def ordered(snapshot: Snapshot, batch_size: int | None, sort: str = "tree", wanted: str = "") -> list[Branch]:
    """The list as the user wants it: by descent or flat by one figure, and only what matches the filter.

    In the tree the ancestors of a match stay, so that its descent can be read. Not measured comes last.
    """
    branches = tree(snapshot.variants)
    if wanted:
        matching = {branch.variant.id for branch in branches if _matches(branch.variant, wanted)}
        if sort == "tree":
            kept = {
                ancestor.id
                for branch in branches
                if branch.variant.id in matching
                for ancestor in lineage(snapshot, branch.variant)
            }
            branches = tree(tuple(one for one in snapshot.variants if one.id in kept))
        else:
            branches = [branch for branch in branches if branch.variant.id in matching]
    if sort == "tree":
        return branches

    def rank(branch: Branch) -> tuple[bool, float]:
        figures = figures_for(snapshot, branch.variant.id, batch_size)
        speed = speed_of(figures)
        value: float | None = branch.variant.size_bytes
        if sort == "speed":
            value = None if speed is None else -speed
        elif sort == "drop":
            value = figures.accuracy.drop if figures.accuracy else None
        return (value is None, value or 0.0)

    return [Branch(branch.variant, "", "  ", branch.children) for branch in sorted(branches, key=rank)]


def jobs_on(jobs: tuple[Job, ...], variant: str) -> list[Job]:
    """Unfinished jobs that work on a variant, in the order they were asked for."""
    return sorted((job for job in jobs if job.variant == variant and not job.is_done), key=lambda job: job.created)


def _judge(low: float, high: float, limit: float) -> Verdict:
    if high <= limit:
        return "PASS"
    return "FAIL" if low > limit else "NOT ENOUGH DATA"


def _matches(variant: Variant, wanted: str) -> bool:
    """The filter's words all occur in the variant's name, technique or format."""
    haystack = clean(f"{variant.name} {variant.technique or 'baseline'} {variant.format}").lower()
    return all(word in haystack for word in wanted.lower().split())
