"""What each layer costs when it alone is made narrower: look, choose how much goes from which, and prune by it.

A scan that is known is there at once. Without one the engine is asked to make it, and it appears when its job has
ended. Enter opens structured pruning with the chosen widths filled in; nothing is applied before the user says so.
"""

from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from engine.protocol import (
    CancelJob,
    Failed,
    Job,
    ListTechniques,
    MeasureVariant,
    Sensitivity,
    Snapshot,
    Techniques,
    Variant,
)

from .. import figures, heat
from ..comparison import variant_named
from ..panes.heatmap import HeatMap
from ..table import LineTable
from ..text import clean
from ..view import View, share_done

if TYPE_CHECKING:
    from ..app import TrimtabApp

TECHNIQUE = "prune-structured"
"""What the chosen widths are for."""

KEYS = "space choose   a all within limit   n none   ⏎ prune   r scan again   esc back"

WAITING_KEYS = "r scan again   x cancel the scan   esc back"


class SensitivityScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", show=False),
        Binding("space", "choose", show=False),
        Binding("a", "choose_within", show=False),
        Binding("n", "choose_none", show=False),
        Binding("r", "ask", show=False),
        Binding("x", "cancel", show=False),
    ]

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self._variant = variant
        self._choice: dict[str, int] = {}
        self._asked = False

    def compose(self) -> ComposeResult:
        yield Static(id="heat-title")
        yield Static(id="heat-waiting")
        yield HeatMap(id="heat")
        yield Static(id="heat-cell")
        yield Static(KEYS, id="heat-keys")

    def on_mount(self) -> None:
        self.query_one(HeatMap).focus()
        self.call_after_refresh(self._trimtab.paint)

    def on_resize(self) -> None:
        self.call_after_refresh(self._trimtab.paint)

    def show(self, snapshot: Snapshot, view: View) -> None:
        variant = variant_named(snapshot, self._variant.id) or self._variant
        scan = heat.scan_of(snapshot, variant)
        limit = snapshot.options.accuracy_limit
        title: list[tuple[str, str]] = [(" Layers ", "$secondary"), (clean(variant.name, 40), "bold")]
        if scan is not None:
            samples = f", {scan.samples:,} samples" if scan.samples else ""
            title.append((f"  points of accuracy lost, no fine-tuning{samples}", "$muted"))
        self.query_one("#heat-title", Static).update(Content.assemble(*title))
        waiting = self.query_one("#heat-waiting", Static)
        waiting.display = scan is None
        self.query_one(HeatMap).display = scan is not None
        self.query_one("#heat-keys", Static).update(WAITING_KEYS if scan is None else KEYS)
        if scan is None:
            if not self._asked and view.link == "connected" and not _newest_job(snapshot, variant.id):
                self.action_ask()
            waiting.update(self._waiting(snapshot, variant))
            return
        heat_map = self.query_one(HeatMap)
        if self.focused is None:
            heat_map.focus()  # it could not have the focus while it was hidden
        heat_map.show(scan, self._choice, limit)
        self.query_one("#heat-cell", Static).update(self._reading(scan, limit))

    def _waiting(self, snapshot: Snapshot, variant: Variant) -> Content:
        """What stands there while there is no scan."""
        job = _newest_job(snapshot, variant.id)
        if job is not None and isinstance(job.state, Failed):
            return Content.assemble(("Not scanned: ", "$error"), clean(job.state.reason, 400), "  (r tries again)")
        if job is not None and job.is_done:
            return Content("The scan was cancelled. r starts it again.")
        steps = [step for run in snapshot.runs for step in run.steps if step.word == "sensitivity" and step.reason]
        if job is None and steps:
            return Content.assemble(("Not scanned: ", "$error"), clean(steps[-1].reason or "", 400))
        message, share = "", None
        if job is not None:
            message, share = clean(getattr(job.state, "message", "") or "waiting", 80), share_done(job)
        done = "" if share is None else f"{figures.percent(share)}  "
        return Content.assemble(
            "Each layer is made narrower by itself and judged on held-out training data.\n\n",
            (done, "bold"),
            (message, "$accent"),
            ("\n\nesc goes back and leaves it running; the result is kept with the session.", "$muted"),
        )

    def _reading(self, scan: Sensitivity, limit: float) -> Content:
        """The cell under the cursor in words, and what the choice comes to."""
        heat_map = self.query_one(HeatMap)
        layer = next((one for one in scan.layers if one.name == heat_map.key), scan.layers[0])
        at = heat_map.column
        lost, stay, saved = heat.drop(scan, layer, at), heat.kept(scan, layer, at), heat.saving(scan, layer, at)
        stays = f"{stay} of {layer.width} {clean(layer.kind, 20)} left"
        rounding = ""
        if abs(stay - (1 - scan.ratios[at]) * layer.width) >= 1:
            rounding = " (rounded)" if stay % heat.MULTIPLE else f" (multiple of {heat.MULTIPLE})"
        cell: list[str | tuple[str, str]] = [
            (clean(layer.name, 60), "bold"),
            f" −{scan.ratios[at] * 100:g} %: {stays}{rounding}, ",
            (
                f"{'−' if lost >= 0 else '+'}{figures.points(abs(lost))} points",
                "$success" if lost <= limit else "$error",
            ),
            f", −{saved * 100:.1f} % MACs" if saved is not None else "",
        ]
        entries = heat.widths(scan, self._choice)
        savings = [heat.saving(scan, one, self._choice[one.name]) for one in scan.layers if one.name in self._choice]
        known = [one for one in savings if one is not None]
        total = f", together up to {min(sum(known), 1) * 100:.0f} % fewer MACs" if known else ""
        chosen = f"◆ {len(entries)} of {len(scan.layers)} layers chosen{total}" if entries else "Nothing chosen yet."
        shades = f"Shades, by the limit of {figures.points(limit)}: " + "  ".join(
            f"{shade} {words}" for shade, words in zip(heat.SHADES, ("harmless", "within", "up to 3×", "10×", "more"))
        )
        lines = [Content.assemble(*cell), Content.styled(chosen, "bold" if entries else "$muted"), Content(shades)]
        coarse = heat.too_coarse(scan, limit)
        if coarse is not None:
            lines.append(Content.styled(coarse, "$warning"))
        return Content("\n").join(lines)

    @on(HeatMap.Moved)
    @on(LineTable.Highlighted)
    def _moved(self) -> None:
        self._trimtab.paint()

    @property
    def _scan(self) -> Sensitivity | None:
        return heat.scan_of(self._trimtab.connection.snapshot, self._variant)

    def action_choose(self) -> None:
        """This ratio for this layer; again: none."""
        heat_map = self.query_one(HeatMap)
        if self._scan is None or heat_map.key is None:
            return
        if self._choice.get(heat_map.key) == heat_map.column:
            del self._choice[heat_map.key]
        else:
            self._choice[heat_map.key] = heat_map.column
        self._trimtab.paint()

    def action_choose_within(self) -> None:
        """For every layer as much as costs no more than the limit by itself."""
        scan = self._scan
        if scan is not None:
            limit = self._trimtab.connection.snapshot.options.accuracy_limit
            self._choice = heat.within(scan, limit)
            coarse = heat.too_coarse(scan, limit)
            if coarse is not None:
                self._trimtab.say(f"{coarse} What is chosen may be chance.", "warning")
            self._trimtab.paint()

    def action_choose_none(self) -> None:
        self._choice = {}
        self._trimtab.paint()

    def action_ask(self) -> None:
        """Let the engine scan (again)."""
        self._asked = True
        command = MeasureVariant(request=0, variant=self._variant.id, kinds=("sensitivity",))
        self.run_worker(self._trimtab.ask(command), group="scan")

    def action_cancel(self) -> None:
        """Stop a scan that runs or waits."""
        job = _newest_job(self._trimtab.connection.snapshot, self._variant.id)
        if job is not None and not job.is_done:
            self.run_worker(self._trimtab.ask(CancelJob(request=0, job=job.id)), group="cancel")

    @on(LineTable.Chosen)
    def _prune(self) -> None:
        """The technique's form with the chosen widths; with nothing chosen, with the cell under the cursor."""
        scan, heat_map = self._scan, self.query_one(HeatMap)
        if scan is None or heat_map.key is None:
            return
        entries = heat.widths(scan, self._choice or {heat_map.key: heat_map.column})
        if not entries:
            self._trimtab.say(heat.nothing_goes(scan, self._choice or {heat_map.key: heat_map.column}))
            return
        self.run_worker(self._open_form(entries), group="form", exclusive=True)

    async def _open_form(self, entries: list[str]) -> None:
        from .techniques import TechniqueScreen

        reply = await self._trimtab.ask(ListTechniques(request=0, source=self._variant.id))
        if isinstance(reply, Techniques):
            screen = TechniqueScreen(reply.techniques, self._variant, TECHNIQUE, {"widths": entries})
            if await self._trimtab.push_screen_wait(screen):
                self.dismiss()

    @property
    def _trimtab(self) -> "TrimtabApp":
        return cast("TrimtabApp", self.app)


def _newest_job(snapshot: Snapshot, variant: str) -> Job | None:
    return next((job for job in reversed(snapshot.jobs) if job.kind == "sensitivity" and job.variant == variant), None)
