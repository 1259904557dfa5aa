"""All variants under all conditions, and the one under the cursor beside another: A (marked with space) against B.

Above: every runtime and batch size measured, one line each. Below: the two variants side by side with what changed
from A to B. A ratio of speeds is one that was measured in turn, or the product of such along the tree; a quotient of
two jobs is marked "≈" and muted. Figures measured under different conditions are not put into a ratio; the reason is
written instead.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast

import msgspec
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from engine.protocol import Accuracy, GetResults, Latency, LoadTest, Snapshot, Text, Variant
from engine.protocol.paired import Gain, gain_between, product, steps_between, why_undecided

from .. import figures, moves
from ..actions import Action
from ..comparison import accuracies, baseline_of, by_id, latencies, tree, variant_named, verdict_at
from ..lines import Line
from ..loads import decisive, newest_tests
from ..panes.variants import RUNTIMES, VERDICTS
from ..table import LineTable, Row
from ..text import clean, fit
from ..view import View
from .help import HelpScreen

if TYPE_CHECKING:
    from ..app import TrimtabApp

WIDE = 130
"""From this width on the screen has room for every column."""

NARROW = 98
"""Below this width the interval makes room for the verdict."""

ACTIONS = (
    Action("mark", "space", "mark A", "Make the variant under the cursor A; the cursor then chooses B.", "Comparison"),
    Action("dismiss", "escape,q,c", "back", "Leave the comparison.", "Comparison"),
)
"""For the help."""

KEYS = "space marks A   ↑ ↓ chooses B   ? help   esc back"

BUSY = f"   {figures.DISTURBED} timed on a busy machine"
"""Beside the keys where a time has the mark."""

INDIRECT = "≈ not measured in turn: from the ratios to the baseline in two jobs"
"""What the mark means, below the figures that have it."""


class CompareScreen(Screen[None]):
    """See the top of this file."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,c", "dismiss", show=False),
        Binding("space", "mark", show=False),
        Binding("question_mark", "help", show=False),
    ]

    def __init__(self, against: str | None = None, chosen: str | None = None) -> None:
        """`against` is A (else the baseline), `chosen` the variant that the cursor begins on."""
        super().__init__()
        self._against, self._begin = against, chosen
        self._warnings: dict[str, str] = {}
        self._warned_at: object = None

    def compose(self) -> ComposeResult:
        yield Static(Content.assemble((" Comparison ", "bold"), ("all runtimes and batch sizes", "$muted")), id="title")
        yield LineTable(id="comparison")
        yield Static(id="pair")
        yield Static(KEYS, id="compare-keys")

    def on_mount(self) -> None:
        self.query_one(LineTable).focus()
        app = cast("TrimtabApp", self.app)
        self.call_after_refresh(lambda: self.show(app.connection.snapshot, app.view()))

    def show(self, snapshot: Snapshot, view: View) -> None:
        if self._against is None or variant_named(snapshot, self._against) is None:
            baseline = baseline_of(snapshot)
            self._against = baseline.id if baseline else None
        table = self.query_one(LineTable)
        table.set_rows(rows(snapshot, self._against, self.size.width), [headings(self.size.width)])
        timed = [one for variant in snapshot.variants for one in latencies(snapshot, variant.id)]
        busy = any(one.conditions.disturbed for one in timed)
        self.query_one("#compare-keys", Static).update(KEYS + (BUSY if busy else ""))
        if self._begin is not None:
            table.select(f"{self._begin} 0")
            self._begin = None
        if self._warned_at is not snapshot.measurements and view.link == "connected":
            self._warned_at = snapshot.measurements
            self.run_worker(self._warn(), group="warnings", exclusive=True)
        one = variant_named(snapshot, self._against)
        other = variant_named(snapshot, (table.key or "").partition(" ")[0])
        if one is not None and other is not None:
            self.query_one("#pair", Static).update(side_by_side(snapshot, one, other, self._warnings))

    async def _warn(self) -> None:
        """Which variants are at home on another class of processor, which is the engine's to say."""
        app = cast("TrimtabApp", self.app)
        reply = await app.ask(GetResults(request=0, format="json"), quiet=True)
        if isinstance(reply, Text) and (found := moves.read(reply.text)) != self._warnings:
            self._warnings = found
            app.paint()

    def action_help(self) -> None:
        app = cast("TrimtabApp", self.app)
        app.push_screen(HelpScreen(app.main.situation(), ACTIONS))

    def action_mark(self) -> None:
        key = self.query_one(LineTable).key
        if key is not None:
            self._against = key.partition(" ")[0]
            cast("TrimtabApp", self.app).paint()

    @on(LineTable.Highlighted)
    def _moved(self) -> None:
        cast("TrimtabApp", self.app).paint()


def headings(width: int) -> Line:
    """The column names; a narrow screen leaves out what `_cells` leaves out."""
    name = name_width(width)
    text = "   " + fit("Variant", name) + f"{'Runtime':<14}{'Batch':>5}{'p50 ms':>8}"
    text += f"{'p99 ms':>8}{'per s':>8}" if width >= WIDE else ""
    text += f"{'Speed-up':>9}"
    text += f"  {'95 % CI':<12}" if width >= NARROW else ""
    text += f"{'× parent':>8}{'Size':>9}" if width >= WIDE else ""
    return ((text + f"{'Acc %':>7}{'Drop':>7}  Verdict", "heading"),)


def name_width(width: int) -> int:
    """Cells for the tree: what the figures leave, within reason."""
    return min(max(width - (115 if width >= WIDE else 78), 16), 34)


def rows(snapshot: Snapshot, against: str | None, width: int) -> list[Row]:
    """A line for each measured condition; a variant that was not measured has one line too."""
    found, limit = [], snapshot.options.accuracy_limit
    for branch in tree(snapshot.variants):
        variant = branch.variant
        judged = {one.conditions.runtime: one for one in accuracies(snapshot, variant.id)}
        timed: list[Latency | None] = [*latencies(snapshot, variant.id)]
        for number, one in enumerate(timed or [None]):
            accuracy = judged.get(one.conditions.runtime) if one else next(iter(judged.values()), None)
            mark = "A " if variant.id == against and number == 0 else "  "
            name = branch.prefix + clean(variant.name, 60) if number == 0 else branch.below
            found.append(
                Row(f"{variant.id} {number}", _row(variant, mark, name, one, accuracy, number == 0, width, limit))
            )
    return found


def _row(
    variant: Variant,
    mark: str,
    name: str,
    one: Latency | None,
    accuracy: Accuracy | None,
    first: bool,
    width: int,
    limit: float,
) -> Line:
    """One measured condition of a variant."""
    speed = one.speedup if one and variant.parent is not None else None
    parent = one.speedup_over_parent if one and variant.parent is not None else None
    role = {"FASTER": "good", "SLOWER": "bad"}.get(speed.verdict, "") if speed else "muted"
    verdict, verdict_role = "", "muted"
    if accuracy is not None and variant.parent is not None:
        long, short, verdict_role = VERDICTS[verdict_at(accuracy, limit)]
        verdict = long if width >= NARROW else short
    runtime = f"{RUNTIMES.get(one.conditions.runtime, one.conditions.runtime)} {one.conditions.device}" if one else ""
    spans = [
        (" " + mark, "key"),
        (fit(name, name_width(width) - 1) + " ", "strong" if first else "faint"),
        (fit(clean(runtime, 40) if one else "not measured", 14), "muted"),
        (f"{one.batch_size if one else figures.UNKNOWN:>5}", ""),
        (f"{_p50(one):>8}", ""),
    ]
    if width >= WIDE:
        spans.append((f"{figures.milliseconds(one.p99_ms if one else None):>8}", "muted"))
        spans.append((f"{figures.per_second(one.throughput_per_s if one else None):>8}", ""))
    spans.append((f"{figures.ratio(speed.ratio if speed else None):>9}", role))
    if width >= NARROW:
        spans.append((fit("  " + (figures.interval(speed.low, speed.high) if speed else ""), 14), "muted"))
    if width >= WIDE:
        spans.append((f"{figures.ratio(parent.ratio if parent else None):>8}", "muted"))
        spans.append((f"{figures.size(variant.size_bytes):>9}", "" if first else "faint"))
    drop = accuracy.drop if accuracy and variant.parent else None
    spans.append((f"{figures.accuracy(accuracy.value if accuracy else None):>7}", ""))
    spans.append((f"{figures.points(drop):>7}", verdict_role))
    spans.append(("  " + verdict, verdict_role))
    return tuple(spans)


def side_by_side(snapshot: Snapshot, one: Variant, other: Variant, warnings: Mapping[str, str] = {}) -> Content:
    """A, B, and what changed from A to B. `warnings`: variant's id → why its figures may not hold here."""
    lines = [_line("", clean(one.name, 40), clean(other.name, 40), "A → B", "bold $secondary")]
    lines.append(_line("technique", clean(one.technique or "–", 40), clean(other.technique or "–", 40), ""))
    lines.append(
        _line(
            "size",
            figures.size(one.size_bytes),
            figures.size(other.size_bytes),
            _times(one.size_bytes, other.size_bytes, "smaller", "larger"),
        )
    )
    lines.append(
        _line("MACs", figures.count(one.macs), figures.count(other.macs), _times(one.macs, other.macs, "fewer", "more"))
    )
    indirect = False
    theirs, mine = latencies(snapshot, one.id), latencies(snapshot, other.id)
    for batch in sorted({timed.batch_size for timed in (*theirs, *mine)}):
        left, right = (
            min((timed for timed in both if timed.batch_size == batch), key=lambda timed: timed.p50_ms, default=None)
            for both in (theirs, mine)
        )
        change, style, why = _faster(snapshot, left, right)
        lines.append(_line(f"p50 batch {batch}", _timed(left), _timed(right), change, change_style=style))
        if why:
            lines.append(_remark("", why))
        gains = _gains(snapshot, left, right)
        if gains:
            lines.append(_remark("  gains", gains))
        indirect = indirect or "≈" in change + gains
    if indirect:
        lines.append(_remark("", INDIRECT))
    lines += _under_load(snapshot, one, other)
    a, b = (next(iter(accuracies(snapshot, id)), None) for id in (one.id, other.id))
    change = ""
    if a is not None and b is not None:
        lower, points = a.value - b.value, figures.points(abs(a.value - b.value))
        change = "the same" if lower == 0 else f"{points} pt {'lower' if lower > 0 else 'higher'}"
    lines.append(
        _line("accuracy", figures.accuracy(a.value if a else None), figures.accuracy(b.value if b else None), change)
    )
    lines.append(_line("verdict", _verdict(snapshot, a), _verdict(snapshot, b), ""))
    if other.changed is not None:
        lines.append(Content.assemble((" B: ", "$muted"), clean(other.changed.summary, 300)))
    for label, variant in (("A", one), ("B", other)):
        if warning := warnings.get(variant.id):
            lines.append(Content.assemble((f" {label}: ", "$muted"), (clean(warning, 300), "$warning")))
    return Content("\n").join(lines)


def _under_load(snapshot: Snapshot, one: Variant, other: Variant) -> list[Content]:
    """The newest load test of either; a ratio only where both had the same load and batching."""
    tests = []
    for variant in (one, other):
        shown = (decisive(snapshot, found) for found in newest_tests(snapshot, variant.id))
        tests.append(next((test for test in shown if test is not None), None))
    left, right = tests
    if left is None and right is None:
        return []
    change = ""
    if left is not None and right is not None:
        change = "different loads or batching: no ratio"
        if msgspec.structs.replace(left.settings, seed=0) == msgspec.structs.replace(right.settings, seed=0):
            change = _rates(left, right)
    return [_line("under load", _load(left), _load(right), change)]


def _load(test: LoadTest | None) -> str:
    if test is None:
        return "not tested"
    p99 = test.summary.latency_ms.get("p99")
    return f"{figures.per_second(test.summary.achieved_per_s)}/s p99 {figures.milliseconds(p99.value if p99 else None)}"


def _rates(left: LoadTest, right: LoadTest) -> str:
    """What the same load came to: the rate where it could not keep up, and the tail."""
    one, other = left.summary, right.summary
    words = [f"{figures.ratio(other.achieved_per_s / one.achieved_per_s)} /s"] if one.achieved_per_s else []
    a, b = one.latency_ms.get("p99"), other.latency_ms.get("p99")
    if a is not None and b is not None and a.value:
        words.append(f"{figures.ratio(b.value / a.value)} p99")
    return ", ".join(words)


def _line(label: str, left: str, right: str, change: str, style: str = "", change_style: str = "bold") -> Content:
    return Content.assemble(
        (f" {fit(label, 14)}", "$muted"), (f"{fit(left, 22)} {fit(right, 22)} ", style), (change, style or change_style)
    )


def _remark(label: str, text: str) -> Content:
    return Content.assemble((f" {fit(label, 14)}", "$muted"), (text, "$muted"))


def _verdict(snapshot: Snapshot, one: Accuracy | None) -> str:
    return VERDICTS[verdict_at(one, snapshot.options.accuracy_limit)][0] if one else figures.UNKNOWN


def _p50(one: Latency | None) -> str:
    """Marked where other processes worked meanwhile."""
    if one is None:
        return figures.UNKNOWN
    return (figures.DISTURBED if one.conditions.disturbed else "") + figures.milliseconds(one.p50_ms)


def _timed(one: Latency | None) -> str:
    if one is None:
        return "not measured"
    return clean(f"{_p50(one)} ms  {RUNTIMES.get(one.conditions.runtime, '?')}", 40)


def _faster(snapshot: Snapshot, left: Latency | None, right: Latency | None) -> tuple[str, str, str]:
    """From A to B in words, their style, and why it is undecided where one would not see it."""
    if left is None or right is None or left is right:
        return "", "", ""
    if left.conditions.device != right.conditions.device or left.conditions.processor != right.conditions.processor:
        return "measured on different devices: no ratio", "$muted", ""
    gain = gain_between(left, right, by_id(snapshot), lambda id: latencies(snapshot, id))
    if gain is None:
        return "not measured against each other", "$muted", ""
    words = in_words(gain)
    if gain.how == "indirect":
        return f"≈ {words}", "$muted", ""
    if gain.how == "product":
        words += " (product)"
    why = why_undecided(gain, gain.noise_floor) if gain.how == "pair" else None
    return words, "$warning" if gain.verdict == "UNDECIDED" else "bold", why or ""


def in_words(gain: Gain) -> str:
    """ "1.80× faster"; never faster or slower where that is not sure."""
    if gain.verdict == "SAME":
        return f"as fast ({figures.ratio(gain.ratio)})"
    if gain.verdict == "UNDECIDED":
        return f"? {figures.ratio(gain.ratio)} undecided"
    if gain.verdict == "FASTER":
        return f"{figures.ratio(gain.ratio)} faster"
    return f"{figures.ratio(1 / gain.ratio)} slower"


def _gains(snapshot: Snapshot, left: Latency | None, right: Latency | None) -> str:
    """What each of two or more steps from A to B gained, and their product; "" where there is no such way."""
    if left is None or right is None:
        return ""
    steps = steps_between(left, right, by_id(snapshot), lambda id: latencies(snapshot, id))
    gains = [step.gain for step in steps if step.gain is not None]
    if len(steps) < 2 or len(gains) < len(steps):
        return ""
    parts = [
        f"{clean(step.variant.name, 20)} {'≈' if gain.how == 'indirect' else ''}{figures.ratio(gain.ratio)}"
        for step, gain in zip(steps, gains)
    ]
    whole = product(gains)
    return f"{' · '.join(parts)} {'≈' if whole.how == 'indirect' else '='} {figures.ratio(whole.ratio)}"


def _times(left: float | None, right: float | None, less: str, more: str) -> str:
    if not left or not right or abs(left - right) / left < 0.005:
        return ""
    return f"{figures.ratio(left / right)} {less}" if right < left else f"{figures.ratio(right / left)} {more}"
