"""One variant whole: where it comes from, what changed and what was left, every figure, recipe, log.

Drawn again from each snapshot, so a measurement that ends while one reads appears by itself.
"""

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from engine.protocol import (
    GetRecipe,
    GetResults,
    Latency,
    LoadSearch,
    LoadTest,
    ReadLog,
    Snapshot,
    Text,
    Variant,
)
from engine.protocol.paired import why_undecided

from .. import expectations, figures, moves
from ..comparison import accuracies, latencies, lineage, variant_named, verdict_at
from ..loads import decisive, finished_in_words, load_jobs, newest_tests
from ..panes.variants import VERDICTS
from ..text import clean, content, content_lines, fit, wrap
from ..view import View

if TYPE_CHECKING:
    from ..app import TrimtabApp

LABEL = 15
"""Cells for the labels on the left."""

ROOMY = 107
"""From this width on the table of latencies has every column."""

FIGURE = 28
"""Cells for the name of a technique's own figure."""

LISTED = 40
"""Layers named one by one before the rest is only counted."""


LOADS_LISTED = 6
"""Load tests that are listed, the newest."""


class DetailsScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", show=False),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
        Binding("l,v", "show_load", show=False),
    ]

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self._variant = variant
        self._drawn: object = None
        self._expected_at: object = None

    def compose(self) -> ComposeResult:
        yield Static(id="details-title")
        with VerticalScroll(id="details"):
            yield Static(id="expectation")
            yield Static(id="facts")
            yield Static(id="recipe")
            yield Static(id="log-text")
        yield Static("esc back   ↑ ↓ scroll   l its load test   drag selects, ctrl+c copies", id="details-keys")

    def on_mount(self) -> None:
        self.query_one("#details").focus()
        app = cast("TrimtabApp", self.app)
        self.show(app.connection.snapshot, app.view())
        self.run_worker(self._fetch(), group="details")

    def show(self, snapshot: Snapshot, view: View) -> None:
        variant = variant_named(snapshot, self._variant.id) or self._variant
        key = (variant.id, id(snapshot.measurements), snapshot.options, self.size.width)
        if key == self._drawn:
            return
        self._drawn = key
        path = " → ".join(clean(one.name, 40) for one in lineage(snapshot, variant))
        self.query_one("#details-title", Static).update(Content.assemble((" Variant ", "$secondary"), (path, "bold")))
        if self._expected_at is not snapshot.measurements and view.link == "connected" and variant.parent is not None:
            self._expected_at = snapshot.measurements
            self.run_worker(self._compare(), group="expectation", exclusive=True)
        self.query_one("#facts", Static).update(facts(snapshot, variant, max(self.size.width - 8, 40)))

    def action_scroll(self, by: int) -> None:
        self.query_one("#details").scroll_relative(y=by * 2, animate=False)

    async def _compare(self) -> None:
        """What the field expects beside what was measured, which is the engine's to say."""
        command = GetResults(request=0, format="json", variants=(self._variant.id,))
        reply = await cast("TrimtabApp", self.app).ask(command, quiet=True)
        if not isinstance(reply, Text):
            return
        parts = []
        if warning := moves.read(reply.text).get(self._variant.id):
            lines = wrap(clean(warning, 400), max(self.size.width - 10, 40))
            parts.append(_section("Moved", Content.styled("\n".join(f"  {line}" for line in lines), "$warning")))
        if found := expectations.read(reply.text):
            title = f"Expected of {clean(found[0].technique, 40)}, and measured"
            parts.append(_section(title, expectations.table(found[0])))
        if parts:
            self.query_one("#expectation", Static).update(Content("\n").join(parts))

    def action_show_load(self) -> None:
        """The newest load test of this variant, with its charts."""
        app = cast("TrimtabApp", self.app)
        jobs = load_jobs(app.connection.snapshot, self._variant.id)
        if not jobs:
            app.say("No load test of this variant has run yet: l on the main screen starts one.", severity="warning")
            return
        from .load_test import LoadTestScreen

        app.push_screen(LoadTestScreen(jobs[0].id))

    async def _fetch(self) -> None:
        """The recipe and the log, which are not in the snapshot."""
        app = cast("TrimtabApp", self.app)
        if self._variant.parent is not None:
            reply = await app.ask(GetRecipe(request=0, variant=self._variant.id), quiet=True)
            if isinstance(reply, Text):
                self.query_one("#recipe", Static).update(_section("Recipe", content_lines(reply.text)))
        if self._variant.job is not None:
            reply = await app.ask(ReadLog(request=0, job=self._variant.job), quiet=True)
            if isinstance(reply, Text) and reply.text:
                log = _section("Log of its job", content_lines(reply.text, "$muted"))
                self.query_one("#log-text", Static).update(log)


def facts(snapshot: Snapshot, variant: Variant, width: int) -> Content:
    """Everything the snapshot knows of a variant, in lines of at most `width` cells where it lists names."""
    parts = [_section("What it is", _identity(variant, width))]
    if variant.changed is not None:
        parts.append(_section("What changed", _changed(variant, width)))
    parts.append(_section("Latency and throughput", _latencies(snapshot, variant, width)))
    tests = newest_tests(snapshot, variant.id)
    if tests:
        parts.append(_section("Under load", _loads(snapshot, tests, width)))
    parts.append(_section("Accuracy", _accuracies(snapshot, variant, width)))
    if variant.parent is None and snapshot.model is not None:
        parts.append(_section("Model", _model(snapshot, width)))
    parts.append(_section("Files", _files(variant)))
    return Content("\n").join(parts)


def _section(title: str, body: Content) -> Content:
    return Content.assemble((f"{title}\n", "bold $primary"), body, "\n")


def _pairs(pairs: list[tuple[str, str]], width: int) -> Content:
    """Label and text, line by line, long texts broken under their own beginning; the texts are clean."""
    lines = []
    for label, text in pairs:
        first, *rest = wrap(text, max(width - LABEL - 2, 20)) or [figures.UNKNOWN]
        lines.append(Content.assemble((f"  {fit(label, LABEL)}", "$muted"), first))
        lines += [Content(" " * (LABEL + 2) + line) for line in rest]
    return Content("\n").join(lines)


def _muted(text: str, width: int, indent: int) -> list[Content]:
    """A remark of any length, indented."""
    return [Content.styled(" " * indent + line, "$muted") for line in wrap(text, max(width - indent, 20))]


def _identity(variant: Variant, width: int) -> Content:
    parameters = ", ".join(f"{name} = {_plain(value)}" for name, value in variant.parameters.items())
    pairs = [
        ("technique", clean(variant.technique or "none: the model as it was opened", 80)),
        ("parameters", clean(parameters or "none", 400)),
        ("format", variant.format + ("" if variant.portable else ", ONNX Runtime only (nodes of com.microsoft)")),
        ("made for", clean(f"{variant.target} on a processor with {variant.processor or 'no known features'}", 160)),
        ("size", figures.size(variant.size_bytes)),
        ("weights", figures.count(variant.parameter_count)),
        ("MACs / sample", figures.count(variant.macs)),
        ("to deploy", f"{variant.complexity} complexity"),
        ("took", figures.duration(variant.seconds)),
        ("id", clean(variant.id, 40)),
    ]
    return _pairs(pairs, width)


def _plain(value: object) -> str:
    """A parameter's value as the recipe writes it."""
    return figures.UNKNOWN if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float) -> str:
    """A technique's figure; millions of multiply-adds or weights as everywhere else: 1.60M."""
    return figures.count(value) if value == int(value) and abs(value) >= 1e6 else figures.number(value)


def _changed(variant: Variant, width: int) -> Content:
    """What the technique really did, and what it left with the reason."""
    changed = variant.changed
    assert changed is not None
    lines = [content(f"  {changed.summary}")]
    for name, value in changed.figures.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = _number(value) if is_number else _plain(value)  # type: ignore[arg-type]
        if name == "sensitivity":
            shown = "scanned: h on the variant it was made from shows the heat map"
        label, words = (
            fit(clean(name.replace("_", " "), 40), FIGURE),
            wrap(clean(shown, 1000), max(width - FIGURE - 3, 20)),
        )
        for part in words or [figures.UNKNOWN]:
            lines.append(Content.assemble((f"  {label} ", "$muted"), part))
            label = " " * FIGURE
    if changed.touched:
        names = ", ".join(clean(name, 60) for name in changed.touched[:LISTED])
        more = f" and {len(changed.touched) - LISTED} more" if len(changed.touched) > LISTED else ""
        lines.append(Content.styled(f"  touched {len(changed.touched)}:", "$success"))
        lines += _muted(names + more, width, 4)
    reasons: dict[str, list[str]] = {}
    for left in changed.left:
        reasons.setdefault(left.reason, []).append(clean(left.name, 60))
    for reason, names_left in reasons.items():
        shown = ", ".join(names_left[:LISTED]) + (" …" if len(names_left) > LISTED else "")
        lines.append(Content.assemble((f"  left {len(names_left)}: ", "$warning"), clean(reason, 300)))
        lines += _muted(shown, width, 4)
    return Content("\n").join(lines)


def _latencies(snapshot: Snapshot, variant: Variant, width: int) -> Content:
    """One line for each runtime and batch size, then the conditions."""
    rows = latencies(snapshot, variant.id)
    if not rows:
        return Content.styled("  Not measured yet (m measures).", "$muted")
    roomy = width >= ROOMY
    head = f"  {'runtime':<16}{'batch':>6}{'p50 ms':>9}" + (f"{'p90':>8}" if roomy else "") + f"{'p99':>8}{'per s':>9}"
    head += f"{'speed-up':>10}  {'95 % CI':<13}{'verdict':<10}"
    head += f"{'× parent':>9}{'calls':>7}{'A/A ±':>8}" if roomy else ""
    lines = [Content.styled(head, "$muted")]
    for one in rows:
        where = clean(f"{one.conditions.runtime} {one.conditions.device}", 60)
        text = f"  {fit(where, 16)}{one.batch_size:>6}{figures.milliseconds(one.p50_ms):>9}"
        text += f"{figures.milliseconds(one.p90_ms):>8}" if roomy else ""
        text += f"{figures.milliseconds(one.p99_ms):>8}{figures.per_second(one.throughput_per_s):>9}"
        speed = one.speedup
        interval = figures.interval(speed.low, speed.high) if speed else ""
        text += f"{figures.ratio(speed.ratio if speed else None):>10}  {interval:<13}"
        verdict = speed.verdict if speed else ""
        style = {"FASTER": "$success", "SLOWER": "$error"}.get(verdict, "$muted")
        parent = one.speedup_over_parent.ratio if one.speedup_over_parent else None
        tail = f"{figures.ratio(parent):>9}{one.samples:>7}{figures.percent(one.noise_floor):>8}" if roomy else ""
        lines.append(Content.assemble(text, (f"{verdict:<10}", style), tail))
        for ratio, against in ((speed, ""), (one.speedup_over_parent, "× parent: ")):
            if ratio is not None and (why := why_undecided(ratio, one.noise_floor)):
                lines += _muted(against + why, width, 4)
    for text in _conditions(rows):
        lines += _muted(text, width, 2)
    return Content("\n").join(lines)


def _conditions(rows: list[Latency]) -> list[str]:
    """Under what the figures hold; each set of conditions once."""
    seen: dict[str, None] = {}
    for one in rows:
        held = one.conditions
        versions = " ".join(f"{name} {version}" for name, version in held.versions.items())
        against = f", against {one.speedup.against.partition(' · batch ')[0]}" if one.speedup else ""
        threads = f", {held.threads} threads" if held.threads else ""
        notes = "".join(f"; {note}" for note in held.notes)
        text = f"{held.runtime} on {held.device} ({held.processor}){threads}{against} {versions}{notes}"
        seen[clean(text, 300)] = None
    return list(seen)


def _loads(snapshot: Snapshot, tests: list[LoadTest | LoadSearch], width: int) -> Content:
    """Load tests and searches, the newest first; l shows the first of them."""
    lines = []
    for one in tests[:LOADS_LISTED]:
        shown = decisive(snapshot, one)
        if isinstance(one, LoadSearch):
            lines += [Content(line) for line in ("  " + text for text in wrap(clean(one.sentence, 400), width - 2))]
        if shown is None:
            continue
        summary, settings = shown.summary, shown.settings
        p99 = summary.latency_ms.get("p99")
        text = f"{finished_in_words(shown)}: {figures.per_second(summary.achieved_per_s)}/s, "
        text += f"p99 {figures.milliseconds(p99.value if p99 else None)} ms"
        if p99 is not None and p99.at_most is not None:
            text += f" (at most {figures.milliseconds(p99.at_most)})"
        where = f"{shown.conditions.runtime} {shown.conditions.device}"
        text += f", batch {settings.max_batch_size}, wait {settings.max_wait_ms:g} ms, ×{settings.instances}, {where}"
        word = shown.word
        style = {"PASS": "$success", "FAIL": "$error", "INVALID": "$error"}.get(word, "$warning")
        lines += [Content("  " + line) for line in wrap(clean(text, 300), width - 12)]
        lines[-1] = Content.assemble(lines[-1], (f"  {word}", style))
    if len(tests) > LOADS_LISTED:
        lines.append(Content.styled(f"  and {len(tests) - LOADS_LISTED} more", "$muted"))
    return Content("\n").join(lines)


def _accuracies(snapshot: Snapshot, variant: Variant, width: int) -> Content:
    rows = accuracies(snapshot, variant.id)
    if not rows:
        return Content.styled("  Not measured yet (m measures).", "$muted")
    lines = []
    for one in rows:
        long, _, role = VERDICTS[verdict_at(one, snapshot.options.accuracy_limit)]
        style = {"good": "$success", "bad": "$error"}.get(role, "$warning")
        what = {"accuracy": "accuracy", "metric": "metric", "agreement": "agreement with the baseline"}[one.kind]
        word = "changed" if one.kind == "agreement" else "drop"
        text = f"  {fit(clean(one.conditions.runtime, 40), 16)}{what} {figures.accuracy(one.value)}, {word} "
        text += f"{figures.points(one.drop)} ({figures.points(one.low)} to {figures.points(one.high)}), limit "
        text += f"{figures.points(snapshot.options.accuracy_limit)} pt, {one.samples:,} samples  "
        lines.append(Content.assemble(text, (long, style)))
        extra = []
        if one.flipped_to_wrong is not None:
            extra.append(f"{one.flipped_to_wrong} answers became wrong, {one.flipped_to_right} became right")
        if one.cosine is not None:
            extra.append(f"cosine {one.cosine:.4f}")
        if one.sqnr_db is not None:
            extra.append(f"SQNR {one.sqnr_db:.1f} dB")
        if one.sentence:
            extra.append(clean(one.sentence, 300))
        lines += _muted("; ".join(extra), width, 4)
    return Content("\n").join(lines)


def _model(snapshot: Snapshot, width: int) -> Content:
    model = snapshot.model
    assert model is not None
    tensors = [(kind, one) for kind, group in (("input", model.inputs), ("output", model.outputs)) for one in group]
    pairs = [("file", clean(model.source.path, 200)), ("SHA-256", model.source.sha256[:16] + "…")]
    for kind, one in tensors:
        shape = "×".join("?" if size is None else str(size) for size in one.shape)
        pairs.append((kind, clean(f"{one.name}: {one.dtype} {shape}", 160)))
    pairs.append(("offers", clean(", ".join(model.offers) or "nothing beside the model", 200)))
    pairs.append(("test data", "labelled" if model.labelled else "unlabelled: agreement instead of accuracy"))
    return _pairs(pairs, width)


def _files(variant: Variant) -> Content:
    lines = [
        Content.assemble(
            f"  {fit(clean(one.path, 60), 40)}{figures.size(one.size_bytes):>10}  ",
            (f"sha256 {clean(one.sha256, 64)[:16]}…", "$muted"),
        )
        for one in variant.files
    ]
    return Content("\n").join(lines)
