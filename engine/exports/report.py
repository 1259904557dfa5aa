"""`report.md`: what was done, in what order, on what hardware, what it brought, and how to do it again.

For the engineer who has to defend the result: every figure with its interval and conditions, what each technique
changed and what it left alone with the reason, and what was expected beside what was measured. Foreign text (names,
reasons) is escaped; lists of layers are cut where nobody would read on, and say by how much.
"""

import datetime
from collections.abc import Sequence

from .. import __version__
from ..protocol import Changed, Latency, Variant
from ..safety import clean_text, markdown_cell, markdown_code
from ..session import Session
from ..session.ranking import figures_of
from ..techniques import Refusal, find_technique
from . import figures, load_tests
from .recipe import lineage
from .results import results
from .table import below, heading, markdown_table

NAMES_SHOWN = 30
"""Layers listed per technique; the others are counted."""


def report(
    session: Session,
    variants: Sequence[Variant],
    machine: str,
    notices: Sequence[str] = (),
    loaders: Sequence[str] = (),
) -> str:
    """The report on these variants. `machine` is where it is written; measurements name their own processors.

    `loaders` are the exported files that load a PyTorch module, relative to the report.
    """
    line = lineage(session, variants)
    shown = [v for v in session.variants.values() if v.parent is None or v in line]
    content = results(session, "export", variants=[variant.id for variant in shown])
    parts = [
        _head(session, machine),
        "## Result\n",
        heading(content) + "\n",
        markdown_table(content["variants"]),
        *below(content["variants"]),
        _how_to_read(content["accuracy_limit"]),
    ]
    if notices:
        parts.append("## To know before deploying\n")
        parts.append("".join(f"- {markdown_cell(notice)}\n" for notice in notices))
    parts.append("## What was done, in order\n")
    parts += [_step(session, variant, number) for number, variant in enumerate(line, 1)]
    if not line:
        parts.append("Nothing yet: this is the baseline.\n")
    if loads := load_tests.in_words(session, shown):
        parts += ["## Load tests\n", loads + "\n"]
    parts.append("## Conditions of the measurements\n")
    parts.append(_conditions(session, shown))
    if loaders:
        parts.append("## How to load a PyTorch module\n")
        parts += [_how_to_load(path) for path in loaders]
    parts.append("## How to do it again\n")
    parts.append(_again(session))
    return "\n".join(parts)


def _head(session: Session, machine: str) -> str:
    model = session.model
    rows = [f"# {markdown_cell(model.name if model else 'Model', 80)}: optimisation report\n"]
    if model is not None:
        kind = "labelled test data" if model.labelled else "no labels: agreement with the baseline is measured instead"
        rows.append(f"- Model file: {markdown_code(model.source.path)}, SHA-256 `{model.source.sha256}`")
        rows.append(f"- Data: {kind}")
        rows += [f"- {markdown_cell(note)}" for note in model.notes]
    rows.append(
        f"- Written by Trimtab {__version__} on {datetime.date.today().isoformat()}, on {markdown_cell(machine)}"
    )
    return "\n".join(rows) + "\n"


def _how_to_read(limit: float) -> str:
    return (
        "Speed-ups are measured in turn with the baseline in one process; the interval is that of the ratio. "
        f"PASS means that the whole 95 % interval of the drop is within {figures.points(limit)} points. "
        f"{figures.UNKNOWN} means not measured; over parent, that the parent was not measured under the same runtime.\n"
    )


def _how_to_load(path: str) -> str:
    return (
        f"`load_model()` of {markdown_code(path)} gives the module, without Trimtab; "
        f"{markdown_code(f'trimtab open {path}')} opens it as a model.\n"
    )


def _step(session: Session, variant: Variant, number: int) -> str:
    """One technique: what it was given, what it changed and left, what it was expected to bring and what it brought."""
    parent = session.variants.get(variant.parent or "")
    technique = variant.technique or ""
    rows = [f"### {number}. {markdown_cell(variant.name, 80)}\n"]
    rows.append(f"- {markdown_code(technique)} applied to {markdown_cell(parent.name if parent else '?', 80)}")
    if variant.parameters:
        given = ", ".join(f"{markdown_code(key)} = {markdown_code(value)}" for key, value in variant.parameters.items())
        rows.append(f"- Parameters: {given}")
    rows.append(f"- For {markdown_cell(variant.target)}, made on a processor with {markdown_cell(variant.processor)}")
    if variant.seconds is not None:
        rows.append(f"- Took {figures.seconds(variant.seconds)}")
    rows += _expectation(session, variant, parent)
    if variant.changed is not None:
        rows += _changes(variant.changed)
    for file in variant.files:
        rows.append(f"- File {markdown_code(file.path)}, {figures.size(file.size_bytes)}, SHA-256 `{file.sha256}`")
    return "\n".join(rows) + "\n"


def _expectation(session: Session, variant: Variant, parent: Variant | None) -> list[str]:
    try:
        expected = find_technique(variant.technique or "").expectation
    except Refusal:
        expected = ""
    known = figures_of(variant, list(session.measurements.values()), session.options)
    measured = []
    if parent is not None and parent.size_bytes:
        measured.append(
            f"size {variant.size_bytes / parent.size_bytes * 100:.0f} % of {markdown_cell(parent.name, 60)}"
        )
    if known.best is not None and known.best.speedup is not None:
        ratio = known.best.speedup
        measured.append(
            f"{figures.times(ratio.ratio)} ({ratio.low:.2f}–{ratio.high:.2f}) against {markdown_cell(ratio.against)}"
        )
    if known.best is not None and known.best.speedup_over_parent is not None:
        measured.append(f"{figures.times(known.best.speedup_over_parent.ratio)} over its parent")
    if known.accuracy is not None:
        word = "changed answers" if known.accuracy.kind == "agreement" else "drop"
        measured.append(f"{word} {figures.points(known.accuracy.drop)} points on {known.accuracy.samples} samples")
    rows = [f"- Expected: {markdown_cell(expected)}"] if expected else []
    rows.append(f"- Measured: {'; '.join(measured) or 'nothing yet'}")
    if known.accuracy is not None and known.accuracy.sentence:
        rows.append(f"- Accuracy: {markdown_cell(known.accuracy.sentence)}")
    return rows


def _changes(changed: Changed) -> list[str]:
    rows = [f"- Changed: {markdown_cell(changed.summary)}"]
    if changed.figures:
        facts = ", ".join(f"{markdown_code(key)} = {markdown_code(value)}" for key, value in changed.figures.items())
        rows.append(f"- Figures: {facts}")
    if changed.touched:
        rows.append(f"- Touched ({len(changed.touched)}): {_names(changed.touched)}")
    if changed.left:
        rows.append(f"- Left as they were ({len(changed.left)}):")
        rows += [
            f"  - {markdown_code(one.name, 120)}: {markdown_cell(one.reason)}" for one in changed.left[:NAMES_SHOWN]
        ]
        if len(changed.left) > NAMES_SHOWN:
            rows.append(f"  - and {len(changed.left) - NAMES_SHOWN} more (all are in results.json)")
    return rows


def _names(names: Sequence[str]) -> str:
    text = ", ".join(markdown_code(name, 120) for name in names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{text} and {more} more (all are in results.json)" if more > 0 else text


def _conditions(session: Session, variants: Sequence[Variant]) -> str:
    """Each distinct set of conditions once, with the variants measured under it and what disturbed them."""
    groups: dict[str, list[str]] = {}
    disturbed: list[str] = []
    for variant in variants:
        for one in figures_of(variant, list(session.measurements.values()), session.options).latencies:
            names = groups.setdefault(_condition(one), [])
            if variant.name not in names:
                names.append(variant.name)
            if one.conditions.notes:
                what = f"{clean_text(variant.name, 60)}, {one.conditions.runtime}, batch {one.batch_size}"
                disturbed.append(f"- {markdown_cell(what)}: {markdown_cell(' '.join(one.conditions.notes))}\n")
    if not groups:
        return "No latency was measured.\n"
    lines = [f"- {text}: {', '.join(markdown_cell(name, 60) for name in names)}\n" for text, names in groups.items()]
    return "".join([*lines, *(["\nWhat went on beside them:\n\n", *disturbed] if disturbed else [])])


def _condition(latency: Latency) -> str:
    where = latency.conditions
    facts = [f"{where.runtime} on {where.device}", f"processor {where.processor or 'unknown'}"]
    if where.threads is not None:
        facts.append(f"{where.threads} threads")
    facts += [f"{name} {version}" for name, version in sorted(where.versions.items())]
    return markdown_cell(clean_text(", ".join(facts), 1000), 1000)


def _again(session: Session) -> str:
    return (
        "`recipe.toml` beside this report holds every step with its parameters; what a search found is pinned.\n\n"
        "    trimtab run recipe.toml\n\n"
        "It remakes the variants from the model file and measures them on the machine it runs on. The figures above "
        "hold for the conditions above: compare only what was measured on one machine.\n"
    )
