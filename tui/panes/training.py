"""Loss and accuracy of a training job, live or from its history, and the same in a few words for one line.

    loss        0.312 ↓  lowest 0.298, epoch 3/5
    2.0 ⢣
        ⠘⢄⡀
    0.0   ⠈⠑⠒⠤⠤⣀⣀
    accuracy  91.20 % ↑  limit 91.41 % ✗  before 92.41 %, data it likely knows
     93 %         ⢀⡠⠤⠒⠒
     91 % ╌╌╌⡠⠒⠊⠁╌╌╌╌╌╌╌╌╌╌╌
    epochs 0    1    2    3    4    5

Below each other, or side by side where that is wider than high.
"""

from engine.protocol import Job, Snapshot

from .. import figures, plots
from ..curves import Course, Curve, Curves, course_of
from ..lines import Line, LineView, Span
from ..text import clean, fit, width_of
from ..view import View

SIDE_BY_SIDE = 118
"""From this width on two charts stand beside each other."""

ROWS_MAXIMUM = 28
"""Rows of one chart; more show nothing more."""

ARROWS = {-1: "↓", 0: "→", 1: "↑"}

TITLE = 56
"""Cells of an accuracy chart's title in front of what it was judged on."""

NAMES = {"held_out_loss": "held-out loss"}
"""Metrics whose name is not what one says."""

SHARES = ("accuracy",)
"""Metrics that are shares and shown in percent."""


class TrainingPane(LineView):
    """The charts of one job, in as many lines as the pane is high."""

    def show(self, job: Job, snapshot: Snapshot, view: View) -> None:
        limit = snapshot.options.accuracy_limit
        validated = snapshot.model is not None and "validation_data" in snapshot.model.offers
        room = self.room
        self.set_lines(charts(job, view.curves.get(job.id), room.width, room.height, limit, validated))


def charts(
    job: Job, curves: Curves | None, width: int, height: int, accuracy_limit: float, validated: bool = False
) -> list[Line]:
    """At most two charts with their titles and one axis. `validated`: the accuracy is that on validation_data()."""
    names = [name for name in (curves.names if curves else []) if name in job.metrics][:2]
    if curves is None or not names:
        return [(("No curve yet: the first point comes with the first steps.", "muted"),)]
    course = course_of(job, curves)
    beside = width >= SIDE_BY_SIDE and len(names) == 2
    rows = (height - 2) if beside else (height - 1 - len(names)) // len(names)
    rows = min(max(rows, 2), ROWS_MAXIMUM)
    across = (width - 2) // 2 if beside else width
    judge = _judge(across, validated)
    blocks = [_block(name, curves.by_name[name], job, course, across, rows, accuracy_limit, judge) for name in names]
    if not beside:
        return [*(line for block in blocks for line in block), plots.axis(course, across)]
    blocks = [[*block, plots.axis(course, across)] for block in blocks]
    return [(*_filled(left, across + 2), *right) for left, right in zip(*blocks)]


def _block(
    name: str, curve: Curve, job: Job, course: Course, width: int, rows: int, accuracy_limit: float, judge: str
) -> list[Line]:
    """One chart under its title."""
    share = name in SHARES
    limit = course.before - accuracy_limit if share and course.before is not None else None
    role = "chart-accuracy" if share else "chart"
    title = _title(name, curve, job, course, limit, judge)
    return [title, *plots.chart(curve.buckets, course, width, rows, role, limit, share)]


def _judge(width: int, validated: bool) -> str:
    """What the accuracy before was judged on, short enough for a title of this width.

    Training data that is held out now was in the training that made the network, unless the user kept it apart.
    """
    if validated:
        return "on validation_data()"
    known = "held-out training data that it has probably seen"
    return known if width >= len(known) + TITLE else "data it likely knows"


def _title(name: str, curve: Curve, job: Job, course: Course, limit: float | None, judge: str) -> Line:
    """The name, the newest value and where it goes, and what it is to be compared with."""
    share = name in SHARES
    value = curve.last
    spans: list[Span] = [(fit(clean(NAMES.get(name, name), 30), 9), "strong"), (" " + _value(value, share), "strong")]
    if not job.is_done:
        trend = curve.trend
        spans.append((f" {ARROWS[trend]}", _trend_role(trend, share)))
    if limit is not None and course.before is not None:
        above = value is not None and value >= limit
        spans.append((f"  limit {_value(limit, True)}", "limit"))
        spans.append((" ✓" if above else " ✗", "good" if above else "warn"))
        spans.append((f"  before {_value(course.before, True)}, {judge}", "muted"))
    elif share:
        spans.append(("  on held-out training data", "muted"))
    else:
        lowest = min((one.low for one in curve.buckets), default=None)
        words = f"  lowest {figures.loss(lowest)}"
        words += f"  epoch {course.epoch}" if course.epoch and not job.is_done else ""
        spans.append((words, "muted"))
    return tuple(spans)


def summary(job: Job, curves: Curves | None, width: int = 80) -> Line:
    """ "epoch 3/5  loss 0.312 ↓  91.2 %", or what fits of it; empty for a job that has no curve."""
    if curves is None or not curves.names:
        loss, accuracy, trend = job.metrics.get("loss"), job.metrics.get("accuracy"), None
    else:
        held = curves.by_name
        loss = held["loss"].last if "loss" in held else None
        accuracy = held["accuracy"].last if "accuracy" in held else None
        trend = held["loss"].trend if "loss" in held and not job.is_done else None
    if loss is None:
        return ()
    epoch = course_of(job, curves).epoch if not job.is_done else ""
    spans: list[Span] = []
    for word, name, gap in (("epoch ", "loss ", "  "), ("", "loss ", "  "), ("", "loss ", " "), ("", "", " ")):
        spans = [(f"{word}{epoch}{gap}", "")] if epoch else []
        spans.append((f"{name}{figures.loss(loss)}", ""))
        if trend is not None:
            spans.append((f" {ARROWS[trend]}", _trend_role(trend, False)))
        if accuracy is not None:
            spans.append((f"{gap}{accuracy * 100:.1f} %", "chart-accuracy"))
        if sum(width_of(text) for text, _ in spans) <= width:
            break
    return tuple(spans)


def _trend_role(trend: int, more_is_better: bool) -> str:
    """Good, bad or neither."""
    if not trend:
        return "muted"
    return "good" if (trend > 0) == more_is_better else "warn"


def _value(value: float | None, share: bool) -> str:
    if value is None:
        return figures.UNKNOWN
    return f"{value * 100:.2f} %" if share else figures.loss(value)


def _filled(line: Line, width: int) -> Line:
    """The line cut or padded to a width, so that another can stand beside it."""
    spans: list[Span] = []
    for text, role in line:
        room = width - sum(width_of(one) for one, _ in spans)
        spans.append((text if width_of(text) <= room else fit(text, room), role))
    spans.append((" " * (width - sum(width_of(one) for one, _ in spans)), ""))
    return tuple(spans)
