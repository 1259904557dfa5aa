"""Why is this variant faster, or why is it not? The main cause in a sentence, operators before and after, and the error
layer by layer, from which the layer that breaks accuracy can be left in float with one key.

What is shown comes from the snapshot: an answer that is known is there at once. Without one the engine is asked to find
it out, and the answer appears when its job has ended.
"""

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from engine.protocol import ApplyTechnique, Explanation, Failed, Job, LayerError, MeasureVariant, Snapshot, Variant

from .. import figures
from ..comparison import measured, variant_named
from ..lines import Line
from ..table import LineTable, Row
from ..text import clean, content, fit
from ..view import View

if TYPE_CHECKING:
    from ..app import TrimtabApp

OPERATORS = 8
"""Kinds of operators that are listed, those that changed most."""

LAYER_NAME, VARIANT_NAME = 30, 50
"""Characters of a layer's name (its end) and of a variant's in the name of the variant without that layer."""

UNFUSED = 4
"""Nodes named one by one before the rest is only counted."""

NOTABLE_LOSS_DB = 3.0
"""A layer that loses more than this is marked: it doubles the noise."""


class ExplainScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,w", "dismiss", show=False),
        Binding("n", "next_against", show=False),
        Binding("r", "ask", show=False),
        Binding("x", "exclude", show=False),
    ]

    def __init__(self, variant: Variant, against: str) -> None:
        super().__init__()
        self._variant, self._against = variant, against
        self._asked: set[str] = set()

    def compose(self) -> ComposeResult:
        yield Static(id="explain-title")
        with VerticalScroll(id="explain-answer", can_focus=False):
            yield Static(id="explain-text")
        yield LineTable(id="layers")
        yield Static("x leaves the layer in float   n against another   r measure again   esc back", id="explain-keys")

    def on_mount(self) -> None:
        self.query_one(LineTable).focus()
        app = cast("TrimtabApp", self.app)
        self.call_after_refresh(lambda: self.show(app.connection.snapshot, app.view()))

    def show(self, snapshot: Snapshot, view: View) -> None:
        variant = variant_named(snapshot, self._variant.id) or self._variant
        against = variant_named(snapshot, self._against)
        name = clean(against.name if against else self._against, 40)
        self.query_one("#explain-title", Static).update(
            Content.assemble((" Why? ", "$secondary"), (clean(variant.name, 40), "bold"), (" against ", "$muted"), name)
        )
        found = explanation_of(snapshot, variant.id, self._against)
        if found is None and self._against not in self._asked and view.link == "connected":
            self.action_ask()
        text = explained(found, max(self.size.width - 4, 40)) if found else self._waiting(snapshot, variant)
        self.query_one("#explain-text", Static).update(text)
        table = self.query_one(LineTable)
        table.set_rows(layer_rows(found.layers) if found else [], [LAYER_HEADING] if found else [])

    def _waiting(self, snapshot: Snapshot, variant: Variant) -> Content:
        """What stands there while there is no answer."""
        job = _newest_job(snapshot, variant.id, self._against)
        if job is not None and job.is_done and isinstance(job.state, Failed):
            return Content.assemble(("Not found out: ", "$error"), clean(job.state.reason, 400), "  (r tries again)")
        message = clean(getattr(job.state, "message", ""), 80) if job is not None and not job.is_done else ""
        return Content.assemble("Both variants are timed and profiled side by side… ", (message, "$muted"))

    def action_ask(self) -> None:
        """Let the engine find it out (again)."""
        self._asked.add(self._against)
        command = MeasureVariant(request=0, variant=self._variant.id, kinds=("explain",), against=self._against)
        app = cast("TrimtabApp", self.app)
        self.run_worker(app.ask(command), group="explain")

    def action_next_against(self) -> None:
        """Compare with the next variant."""
        app = cast("TrimtabApp", self.app)
        others = [one.id for one in app.connection.snapshot.variants if one.id != self._variant.id]
        if others:
            here = others.index(self._against) if self._against in others else -1
            self._against = others[(here + 1) % len(others)]
            app.paint()

    def action_exclude(self) -> None:
        """Make the variant again with the layer under the cursor left in float."""
        app = cast("TrimtabApp", self.app)
        key = self.query_one(LineTable).key
        variant = self._variant
        found = explanation_of(app.connection.snapshot, variant.id, self._against)
        layer = (
            next((excluded_as(one, found.layers) for one in found.layers if one.node == key), None) if found else None
        )
        if key is None:
            app.say("There is no layer to leave in float.")
        elif variant.parent is None or "exclude" not in variant.parameters:
            app.say(f"{clean(variant.technique or 'The baseline', 60)} leaves no layers out on request.")
        elif layer is None:
            app.say(f"{clean(key, 60)} was not quantized by {clean(variant.name, 40)}: it is in float already.")
        else:
            excluded = [*variant.parameters["exclude"], layer]
            command = ApplyTechnique(
                request=0,
                technique=variant.technique or "",
                source=variant.parent,
                parameters=variant.parameters | {"exclude": excluded},
                name=name_without(variant, layer, app.connection.snapshot),
                target=variant.target or None,
            )
            self.run_worker(self._send(command, layer), group="exclude")

    async def _send(self, command: ApplyTechnique, layer: str) -> None:
        app = cast("TrimtabApp", self.app)
        if await app.ask(command):
            app.say(f"{clean(command.name or '', 80)} will be made with {clean(layer, 60)} in float.")


def name_without(variant: Variant, layer: str, snapshot: Snapshot) -> str:
    """ "int8-less-layer.0.ffn.lin1": tells which layer was left out, and no variant has it or was asked for by it."""
    part = (layer.rpartition("/")[0] or layer).strip("/")
    if len(part) > LAYER_NAME:
        part = part[-LAYER_NAME:].partition(".")[2] or part[-LAYER_NAME:]
    wanted = f"{variant.name[:VARIANT_NAME]}-less-{part}"
    waiting = (step.name for run in snapshot.runs for step in run.steps if step.status in ("queued", "running"))
    taken = {*(one.name for one in snapshot.variants), *waiting}
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def explanation_of(snapshot: Snapshot, variant: str, against: str) -> Explanation | None:
    """The newest answer for these two."""
    known = measured(snapshot.measurements).get(variant, ())
    return next((one for one in known if isinstance(one, Explanation) and one.against == against), None)


def explained(found: Explanation, width: int) -> Content:
    """The answer above the layers."""
    ratio = found.speedup
    style = {"FASTER": "$success", "SLOWER": "$error"}.get(ratio.verdict, "$warning")
    where = f"{found.against_conditions.runtime} → {found.conditions.runtime}"
    if found.against_conditions.runtime == found.conditions.runtime:
        where = found.conditions.runtime
    parts = [
        Content.assemble(
            (f"{figures.ratio(ratio.ratio)} {ratio.verdict}", f"bold {style}"),
            (f"  ({figures.interval(ratio.low, ratio.high)}), timed in turns", "$muted"),
            (f"  {clean(where, 60)}, batch {found.batch_size}", "$muted"),
        ),
        content(found.cause, limit=2000),
        Content(""),
        Content.styled(
            f"{fit('operator in the profile', 30)}{fit('computes in', 22)}{'before':>12}{'after':>12}", "$primary"
        ),
    ]
    for row in found.changes[:OPERATORS]:
        kind = f"{row.precision or ''} {row.operands or ''}".strip()
        before, after = (
            f"{calls}× {figures.milliseconds(spent)}" if spent is not None else figures.UNKNOWN
            for spent, calls in ((row.before_ms, row.before_calls), (row.after_ms, row.after_calls))
        )
        parts.append(Content(f"{fit(clean(row.type, 60), 30)}{fit(clean(kind, 40), 22)}{before:>12}{after:>12}"))
    around = (figures.milliseconds(found.against_remainder_ms), figures.milliseconds(found.remainder_ms))
    parts.append(Content.styled(f"{fit('(around them)', 52)}{around[0]:>12}{around[1]:>12}", "$muted"))
    for one in found.unfused[:UNFUSED]:
        parts.append(Content.assemble(("in float: ", "$warning"), f"{clean(one.node, 60)}: {clean(one.reason, 160)}"))
    if len(found.unfused) > UNFUSED:
        parts.append(Content.styled(f"and {len(found.unfused) - UNFUSED} more quantized nodes in float", "$warning"))
    if found.missing_features:
        parts.append(Content.assemble(("missing here: ", "$warning"), clean(", ".join(found.missing_features), 200)))
    parts += [content(note, "$muted") for note in found.notes]
    return Content("\n").join(parts)


LAYER_HEADING: Line = (
    (f"   {'cosine':>8}{'SQNR dB':>9}{'lost dB':>9}  {'error of this layer, worst first':<40}", "heading"),
)


def excluded_as(layer: LayerError, layers: tuple[LayerError, ...]) -> str | None:
    """What leaves the layer in float; None: it is. Answers of before this was recorded have it for no layer at all."""
    return layer.exclude if any(one.exclude for one in layers) else layer.node


def layer_rows(layers: tuple[LayerError, ...]) -> list[Row]:
    """Layers, the one that loses most first; one that doubles the noise is marked."""
    if not layers:
        return [Row(None, (("   no values to compare layer by layer", "muted"),))]
    rows = []
    for one in sorted(layers, key=lambda one: -(one.drop_db or 0.0)):
        role = "bad" if (one.drop_db or 0.0) > NOTABLE_LOSS_DB else ""
        kind = clean(one.type, 30) + ("" if excluded_as(one, layers) else ", float")
        decibels = [figures.UNKNOWN if value is None else f"{value:.1f}" for value in (one.sqnr_db, one.drop_db)]
        text = f"   {one.cosine:>8.4f}{decibels[0]:>9}{decibels[1]:>9}  "
        rows.append(Row(one.node, ((text, role), (clean(one.node, 60), "strong"), (f"  {kind}", "muted"))))
    return rows


def _newest_job(snapshot: Snapshot, variant: str, against: str) -> Job | None:
    """The newest job that tells these two apart."""
    jobs = (job for job in reversed(snapshot.jobs) if job.kind == "explain")
    return next((job for job in jobs if (job.variant, job.against) == (variant, against)), None)
