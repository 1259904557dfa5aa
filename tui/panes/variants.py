"""The tree of variants with the comparison beside it; running jobs hang under the variant they work on.

      Variant               Speed-up                      p50 ms   Size      Drop  Verdict
    ● baseline              │              1.00×            9.80   11.2 MB      –  baseline
    ★ ├ int8                │━━━━━━━━━─┿─  4.11×  4.02–4.20 2.38    2.9 MB   0.21  ✓ PASS
      │ └ ⠹ quantize-static ━━━━━╸─────── 42 %  0:41 left  calibrating
      └ onnx                │━━━━┿         2.28×  2.21–2.35 4.30   11.2 MB   0.00  ✓ PASS

Columns come and go with the width (`COLUMNS`, by rank). All bars share one logarithmic scale, so they can be compared
by eye: like a forest plot. `★` marks the fastest variant within the accuracy limit.
"""

from typing import NamedTuple

from engine.protocol import Job, Running, Snapshot, Variant

from .. import charts, figures
from ..comparison import Branch, Figures, best_variant, figures_for, jobs_on, ordered, speed_of
from ..lines import Line, Span
from ..table import LineTable, Row
from ..text import clean, fit, width_of
from ..view import View, seconds_left, share_done
from . import training


class Column(NamedTuple):
    """A column of figures: its heading, width, and the rank by which it is kept when room is short."""

    name: str
    heading: str
    width: int
    rank: int
    align: str = "right"


COLUMNS = (
    Column("runtime", "Runtime", 9, 9, "left"),
    Column("bar", "Speed-up", 12, 5, "left"),
    Column("ratio", "", 6, 1),
    Column("interval", "95 % CI", 10, 8),
    Column("parent", "×parent", 7, 12),
    Column("p50", "p50 ms", 6, 2),
    Column("p99", "p99 ms", 6, 13),
    Column("rate", "per s", 6, 10),
    Column("size", "Size", 7, 6),
    Column("parameters", "Params", 6, 14),
    Column("macs", "MACs", 6, 15),
    Column("accuracy", "Acc %", 6, 7),
    Column("drop", "Drop", 6, 4),
    Column("drop_interval", "95 % CI", 12, 16),
    Column("verdict", "Verdict", 9, 3, "left"),
)
"""In the order they stand; rank 1 is kept longest."""

NAME_MINIMUM, NAME_COMFORTABLE, NAME_MAXIMUM = 20, 30, 44
"""Cells for the tree. From 100 columns on a name of up to 30 cells comes before the lesser columns."""

BAR_MAXIMUM = 32

MESSAGE = 33
"""Cells between the tree and what a running job has to say: its bar, its share and its time, in a narrow pane."""

MARK = 2
"""Cells before the tree: ● the baseline, ★ the best."""

VERDICTS = {
    "PASS": ("✓ PASS", "✓ PASS", "good"),
    "FAIL": ("✗ FAIL", "✗ FAIL", "bad"),
    "NOT ENOUGH DATA": ("? NOT ENOUGH DATA", "? TOO FEW", "warn"),
}
"""Verdict → long words, short words, role."""

RUNTIMES = {
    "pytorch": "PyTorch",
    "torch-compile": "compile",
    "pytorch-float16": "Py FP16",
    "pytorch-bfloat16": "Py BF16",
    "onnxruntime": "ORT",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}
"""Runtimes as the column names them."""


class Layout(NamedTuple):
    """The columns that fit, and the cells each gets."""

    name: int
    columns: tuple[Column, ...]


class VariantsPane(LineTable):
    """See the top of this file. Keys of its rows are the variants' ids."""

    def show(self, snapshot: Snapshot, view: View) -> None:
        branches = ordered(snapshot, view.batch_size, view.sort, view.filter)
        found = {branch.variant.id: figures_for(snapshot, branch.variant.id, view.batch_size) for branch in branches}
        names = [branch.prefix + clean(branch.variant.name, 80) for branch in branches]
        jobs = [
            branch.below + "└ ⠹ " + job.kind for branch in branches for job in jobs_on(snapshot.jobs, branch.variant.id)
        ]
        layout = choose_layout(self.room.width, [*names, *jobs])
        if not any(column.name == "runtime" for column in layout.columns):
            marks = [unusual_runtime(branch.variant, found[branch.variant.id]) for branch in branches]
            layout = choose_layout(self.room.width, [*(name + mark for name, mark in zip(names, marks)), *jobs])
        best = best_variant(snapshot, view.batch_size)
        scale = _scale(list(found.values()), layout)
        rows = []
        for branch in branches:
            star = best is not None and best.id == branch.variant.id
            rows.append(Row(branch.variant.id, _line(branch, found[branch.variant.id], layout, scale, star)))
            running = jobs_on(snapshot.jobs, branch.variant.id)
            for number, job in enumerate(running, 1):
                last = number == len(running) and not (branch.children and view.sort == "tree")
                below = branch.below + ("└ " if last else "├ ")
                words = training.summary(job, view.curves.get(job.id), self.room.width - layout.name - MESSAGE)
                rows.append(Row(None, _job_line(job, below, layout.name, self.room.width, view.now, words)))
        self.set_rows(rows, [_headings(layout)] if rows else [])
        if not rows:
            self.set_lines(_empty(snapshot, view))
        disturbed = any(is_disturbed(one) for one in found.values())
        self.set_caption("1 Variants", _details(snapshot, view, disturbed))


def choose_layout(width: int, names: list[str]) -> Layout:
    """Columns by rank while they fit; then the verdict in full, the names, and the bar take what is left."""
    needed = max((width_of(name) + MARK for name in names), default=0)
    name = min(max(needed, NAME_MINIMUM), NAME_MAXIMUM)
    least = min(max(needed, NAME_MINIMUM), NAME_COMFORTABLE if width >= 100 else NAME_MINIMUM)
    room = width - least - 1
    kept: set[str] = set()
    for column in sorted(COLUMNS, key=lambda one: one.rank):
        if room - column.width - 1 < 0:
            break
        room -= column.width + 1
        kept.add(column.name)
    widths = {}
    for grown, maximum in (("name", name), ("verdict", 17), ("bar", BAR_MAXIMUM)):
        start = least if grown == "name" else next(one.width for one in COLUMNS if one.name == grown)
        more = min(max(maximum - start, 0), room) if grown in kept or grown == "name" else 0
        if grown == "verdict" and more < maximum - start:
            more = 0
        room -= more
        widths[grown] = start + more
    columns = tuple(one._replace(width=widths.get(one.name, one.width)) for one in COLUMNS if one.name in kept)
    return Layout(widths["name"], columns)


def unusual_runtime(variant: Variant, found: Figures) -> str:
    """ " · OpenVINO" where the figures are not of the runtime that a variant of its format has by itself; else ""."""
    if found.latency is None:
        return ""
    runtime = found.latency.conditions.runtime
    usual = "onnxruntime" if variant.format == "onnx" else "pytorch"
    return "" if runtime == usual else f" · {clean(RUNTIMES.get(runtime, runtime), 9)}"


def _headings(layout: Layout) -> Line:
    spans: list[Span] = [("  ", ""), (fit("Variant", layout.name - MARK), "heading")]
    for column in layout.columns:
        spans += [(" ", ""), (fit(column.heading, column.width, column.align), "heading")]
    return tuple(spans)


def _line(branch: Branch, found: Figures, layout: Layout, scale: charts.LogScale, best: bool) -> Line:
    """One variant: its place in the tree, its name, its figures."""
    variant = branch.variant
    mark = "● " if variant.parent is None else "★ " if best else "  "
    shown = any(column.name == "runtime" for column in layout.columns)
    runtime = "" if shown else unusual_runtime(variant, found)
    name = fit(clean(variant.name, 80), max(layout.name - width_of(branch.prefix + runtime) - MARK, 1))
    if runtime:
        name = name.rstrip()
    role = "good-strong" if best else "strong" if variant.parent is None else ""
    spans: list[Span] = [(mark, "good" if best else "accent"), (branch.prefix, "faint"), (name, role)]
    if runtime:
        room = max(layout.name - width_of(branch.prefix + name) - MARK, 0)
        spans.append((fit(runtime, room), "muted"))
    for column in layout.columns:
        if column.name == "p50" and is_disturbed(found):
            ((time, role),) = _cell(column, branch, found, scale)
            spans.append((fit(figures.DISTURBED + time.strip(), column.width + 1, column.align), role))
            continue
        spans.append((" ", ""))
        spans += _cell(column, branch, found, scale)
    return tuple(spans)


def is_disturbed(found: Figures) -> bool:
    """Other processes worked while it was timed: its times say less than its speed-up."""
    return found.latency is not None and found.latency.conditions.disturbed


def _cell(column: Column, branch: Branch, found: Figures, scale: charts.LogScale) -> list[Span]:
    """The spans of one figure, `column.width` cells together."""
    latency, accuracy, variant = found.latency, found.accuracy, branch.variant
    speed = latency.speedup if latency else None
    is_baseline = variant.parent is None
    if column.name == "bar":
        if speed is None or is_baseline:
            one = scale.cell(1.0) if latency else -1
            return [("".join("│" if x == one else " " for x in range(column.width)), "track")]
        roles = {"bar": "bar", "point": "bar", "interval": "muted", "track": "track"}
        if speed.verdict != "FASTER":
            plain = "bar-slow" if speed.verdict == "SLOWER" else "muted"
            roles |= {"bar": plain, "point": plain}
        parts = charts.interval_bar(speed.ratio, speed.low, speed.high, scale, column.width)
        return [(text, roles[kind]) for text, kind in parts]
    text, role = figures.UNKNOWN, "faint"
    if column.name == "runtime" and latency:
        device = "" if latency.conditions.device == "cpu" else f" {latency.conditions.device}"
        text = clean(RUNTIMES.get(latency.conditions.runtime, latency.conditions.runtime) + device, 24)
        role = "muted"
    elif column.name == "runtime":
        text, role = variant.format, "faint"
    elif column.name == "ratio" and latency:
        if is_baseline:
            text, role = "1.00×", "muted"
        elif speed:
            text = figures.ratio(speed.ratio)
            role = {"FASTER": "good-strong", "SLOWER": "bad-strong"}.get(speed.verdict, "")
    elif column.name == "interval" and speed and not is_baseline:
        text, role = figures.interval(speed.low, speed.high), "muted"
    elif column.name == "parent" and latency and latency.speedup_over_parent and not is_baseline:
        text, role = figures.ratio(latency.speedup_over_parent.ratio), "muted"
    elif column.name == "p50" and latency:
        text, role = figures.milliseconds(latency.p50_ms), ""
    elif column.name == "p99" and latency:
        text, role = figures.milliseconds(latency.p99_ms), "muted"
    elif column.name == "rate" and latency:
        text, role = figures.per_second(latency.throughput_per_s), ""
    elif column.name == "size":
        text, role = figures.size(variant.size_bytes), ""
    elif column.name == "parameters":
        text, role = figures.count(variant.parameter_count), "muted"
    elif column.name == "macs":
        text, role = figures.count(variant.macs), "muted"
    elif column.name == "accuracy" and accuracy:
        text, role = figures.accuracy(accuracy.value), ""
    elif column.name == "drop" and accuracy and not is_baseline:
        text, role = figures.points(accuracy.drop), VERDICTS[found.verdict or accuracy.verdict][2]
    elif column.name == "drop_interval" and accuracy and not is_baseline:
        text, role = f"{figures.points(accuracy.low)}…{figures.points(accuracy.high)}", "muted"
    elif column.name == "verdict":
        if is_baseline:
            text, role = "baseline", "muted"
        elif accuracy:
            long, short, role = VERDICTS[found.verdict or accuracy.verdict]
            text = long if len(long) <= column.width else short
    return [(fit(text, column.width, column.align), role)]


def _job_line(job: Job, below: str, name_width: int, width: int, now: float, words: Line = ()) -> Line:
    """A running or waiting job under its variant: what, how far, how long still; `words` stand for its message."""
    title = clean(job.kind, 60)
    below = " " * MARK + below
    room = max(name_width - width_of(below) - 2, 4)
    if not isinstance(job.state, Running):
        return ((below, "faint"), ("◌ ", "muted"), (fit(title, room), "muted"), (" waiting", "muted"))
    share, left = share_done(job), seconds_left(job, now)
    frame = charts.SPINNER[int(now * 2) % len(charts.SPINNER)]
    bar = 12 if width < 100 else 20
    done, rest = charts.progress(share, bar)
    time = f"{figures.duration(left)} left" if left is not None else figures.duration(now - job.state.started)
    message = "cancelling" if job.state.cancelling else clean(job.state.message, 80)
    return (
        (below, "faint"),
        (frame + " ", "accent"),
        (fit(title, room), "accent"),
        (" " + done, "accent"),
        (rest, "track"),
        (fit(figures.percent(share) if share is not None else "", 6, "right"), ""),
        (fit(time, 11, "right"), "muted"),
        *((("  ", ""), *words) if words and not job.state.cancelling else (("  " + message, ""),)),
    )


def _scale(all_figures: list[Figures], layout: Layout) -> charts.LogScale:
    """One scale for all bars, from the slowest to the fastest variant in the list."""
    width = next((column.width for column in layout.columns if column.name == "bar"), 12)
    ends = [
        end
        for one in all_figures
        if speed_of(one) and one.latency and one.latency.speedup
        for end in (one.latency.speedup.low, one.latency.speedup.high)
    ]
    return charts.LogScale(min(ends, default=1.0), max(ends, default=1.0), width)


def _details(snapshot: Snapshot, view: View, disturbed: bool) -> str:
    """What the figures hold for, beside the title."""
    parts = [f"{figures.DISTURBED} timed on a busy machine"] if disturbed else []
    if view.batch_size is not None:
        parts.append(f"batch {view.batch_size}")
    if view.sort != "tree":
        parts.append(f"by {view.sort}")
    if view.filter:
        parts.append("filtered")
    count = len(snapshot.variants)
    parts.append(f"{count} variant{'' if count == 1 else 's'}")
    return " · ".join(parts)


def _empty(snapshot: Snapshot, view: View) -> list[Line]:
    """What stands in the pane while there is no variant to show."""
    if view.link == "connecting":
        return [(("Connecting to the engine …", "muted"),)]
    if snapshot.variants:
        return [(("No variant matches the filter. ", "muted"), ("/", "key"), (" changes it.", "muted"))]
    opening = next((job for job in snapshot.jobs if job.kind == "open-model" and not job.is_done), None)
    if opening is not None:
        return [_job_line(opening, "", 24, 100, view.now)]
    return [
        (("No model is open in this session.", "strong"),),
        (),
        (("Press ", "muted"), ("o", "key"), (" to open a PyTorch model file (.py), an .onnx or a .pt.", "muted")),
    ]
