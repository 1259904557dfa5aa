"""The machine, live: CPU, memory and every NVIDIA GPU as two minutes of history, the present, and the figure.

    CPU    ⣀⣤⣶⣿⣿⣶⣤⣀⣀⣤⣶⣿▅  38 %
    cores  ▂▇▁▅                 of 4
    memory ⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤⣤▄  7.1/15.6 GiB
    GPU 0  ⣀⣤⣶⣿⣿⣿⣶⣤⣀⣀⣤⣶▇  61 %  62 °C
           -120 s      -60   now

Two widgets side by side: the past (labels and history) is repainted only when its next column is complete, the present
(one live column and the figures) at every tick. A value that the machine would not tell is "–".
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from textual.app import ComposeResult
from textual.containers import ScrollableContainer
from textual.content import Content

from engine.protocol import GpuSample, Hardware, Snapshot, TelemetrySample

from .. import charts, figures
from ..lines import Line, LineView, Span
from ..text import clean, fit
from ..view import STALE_SECONDS, View

WINDOW_SECONDS = 120.0
"""What the history spans; the engine's snapshot holds as much."""

LABEL, FIGURE = 7, 21
"""Cells left and right of a chart; figures get fewer in a narrow pane."""

ROWS_MAXIMUM = 6
"""Rows of one chart when there is room."""


class Gauge(NamedTuple):
    """One chart: where its value comes from, and what stands beside it (first row first)."""

    label: str
    value: Callable[[TelemetrySample], float | None]
    role: str
    texts: tuple[tuple[str, str], ...]


class HardwarePane(ScrollableContainer, can_focus=True):
    """See the top of this file."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._histories: dict[tuple[object, ...], list[str]] = {}
        self._caption = ""
        self._past, self._present = LineView(id="past"), LineView(id="present")

    def compose(self) -> ComposeResult:
        yield self._past
        yield self._present

    def show(self, snapshot: Snapshot, view: View) -> None:
        samples = snapshot.telemetry
        newest = samples[-1] if samples else None
        age = view.now - newest.time if newest else 0.0
        stale = newest is not None and age > STALE_SECONDS
        self._title(f"last sample {figures.duration(age)} ago" if stale else clean(snapshot.hardware.hostname, 24))
        if newest is None:
            self._set([((("No samples yet.", "muted"),), ())], self.size.width)
            return
        width, height = self.size.width, self.container_size.height - self.gutter.height
        self._draw(snapshot.hardware, samples, newest, stale, max(width, 20), max(height, 4))

    def _draw(
        self,
        hardware: Hardware,
        samples: tuple[TelemetrySample, ...],
        newest: TelemetrySample,
        stale: bool,
        width: int,
        height: int,
    ) -> None:
        gauges = _gauges(hardware, newest)
        cells = max(width - LABEL - (FIGURE if width >= 50 else 15) - 1, 8)
        step = charts.bucket_seconds(WINDOW_SECONDS, cells)
        cells = math.ceil(WINDOW_SECONDS / step / 2)
        end = math.floor(newest.time / step) * step
        spare = height - 1 - (not hardware.gpus) - (len(newest.cores) > 1)
        rows = min(max(spare // max(len(gauges), 1), 1), ROWS_MAXIMUM)
        lines: list[tuple[Line, Line]] = []
        fresh: dict[tuple[object, ...], list[str]] = {}
        for gauge in gauges:
            key = (gauge.label, end, step, cells, rows, samples[0].time > end - WINDOW_SECONDS)
            past = self._histories.get(key)
            if past is None:
                past = charts.history(charts.bucketed(samples, _time, gauge.value, end, step, cells * 2), rows)
            fresh[key] = past
            present = charts.column(None if stale else gauge.value(newest), rows)
            for row in range(rows):
                text, role = gauge.texts[row] if row < len(gauge.texts) else ("", "")
                label = fit(gauge.label if row == 0 else "", LABEL)
                figure: Span = (" " + text, "muted" if stale else role)
                lines.append((((label, "muted"), (past[row], gauge.role)), ((present[row], "now"), figure)))
            if gauge.label == "CPU" and len(newest.cores) > 1:
                lines.append(_cores(newest, width - LABEL - cells))
        if not hardware.gpus:
            status = clean(hardware.gpu_status, 200)
            lines.append((((fit("GPU", LABEL), "muted"), (status[:cells], "muted")), ((status[cells:], "muted"),)))
        lines.append(_axis(cells, step))
        if height - len(lines) >= 1:
            lines.append(_processor(hardware, cells))
        self._histories = fresh
        self._set(lines, LABEL + cells)

    def _set(self, lines: list[tuple[Line, Line]], past_width: int) -> None:
        """Both halves, exactly as high as they are long; the container scrolls."""
        past, present = self._past, self._present
        if past.styles.width is None or past.styles.width.value != past_width:
            past.styles.width = past_width
        for half, number in ((past, 0), (present, 1)):
            if half.styles.height is None or half.styles.height.value != len(lines):
                half.styles.height = len(lines)
            half.set_lines([line[number] for line in lines])

    def _title(self, details: str) -> None:
        """Like `LineView.set_caption`: only if it changed, because it repaints the pane."""
        if details != self._caption:
            self._caption = details
            self.border_title = Content.assemble((" 3 Hardware ", "bold"), (f"· {details} ", "$muted"))


def _gauges(hardware: Hardware, newest: TelemetrySample) -> list[Gauge]:
    """What there is to draw on this machine. With more than two GPUs each gets one chart."""
    busy = max(newest.cores, default=None)
    cpu_texts = [(figures.percent(newest.cpu), "strong")]
    if busy is not None and len(newest.cores) > 1:
        cpu_texts.append((f"busiest {figures.percent(busy)}", "muted"))
    used, total = newest.memory_used_bytes, newest.memory_total_bytes
    share = used / total if used is not None and total else None
    memory_texts = [(figures.memory(used, total), "strong"), (figures.percent(share), "muted")]
    gauges = [
        Gauge("CPU", lambda sample: sample.cpu, "chart", tuple(cpu_texts)),
        Gauge("memory", _memory_share, "chart-memory", tuple(memory_texts)),
    ]
    for gpu in hardware.gpus:
        now = _gpu(newest, gpu.index)
        name = f"GPU {gpu.index}"
        utilisation = _of_gpu(gpu.index, lambda one: one.utilisation)
        if now is None or now.status:
            reason = clean(now.status if now else "no sample", 60)
            gauges.append(Gauge(name, utilisation, "chart-gpu", ((reason, "warn"),)))
            continue
        heat = "–" if now.temperature_c is None else f"{now.temperature_c:.0f} °C"
        clock = "" if now.sm_clock_mhz is None else f" {now.sm_clock_mhz} MHz"
        power = (
            ""
            if now.power_w is None
            else f"{now.power_w:.0f}" + (f"/{gpu.power_limit_w:.0f} W" if gpu.power_limit_w else " W")
        )
        throttle = clean(", ".join(now.throttle), 60)
        memory = figures.memory(now.memory_used_bytes, now.memory_total_bytes or gpu.memory_bytes)
        first = (f"{figures.percent(now.utilisation)} {heat}", "strong")
        second = (f"! {throttle}", "warn") if throttle else (power + clock, "muted")
        if len(hardware.gpus) > 2:
            one_line = (f"{figures.percent(now.utilisation)} {memory}", "strong")
            gauges.append(Gauge(name, utilisation, "chart-gpu", (one_line, second, (heat, "muted"))))
            continue
        rest = ((power + clock, "muted"),) if throttle else ((clean(gpu.name, 40), "muted"),)
        gauges.append(Gauge(name, utilisation, "chart-gpu", (first, second, *rest)))
        gauges.append(
            Gauge(
                " memory",
                _of_gpu(gpu.index, lambda one: _share(one.memory_used_bytes, one.memory_total_bytes)),
                "chart-memory",
                ((memory, "strong"),),
            )
        )
    return gauges


def _cores(newest: TelemetrySample, room: int) -> tuple[Line, Line]:
    """All cores of this moment, one cell each, as many as fit beside the figures."""
    shown = newest.cores[: max(room - 1, 4)]
    more = f" of {len(newest.cores)}" if len(shown) < len(newest.cores) else ""
    label = fit(" cores", LABEL)
    return ((label, "muted"),), ((charts.sparkbar(shown), "chart"), (more, "muted"))


def _axis(cells: int, step: float) -> tuple[Line, Line]:
    """When it was, under the charts."""
    span = cells * 2 * step
    left, middle = f"-{span:.0f} s", f"-{span / 2:.0f}"
    text = fit(left, cells // 2 - len(middle) // 2) + middle
    return ((" " * LABEL, ""), (text, "faint")), (("now", "faint"),)


def _processor(hardware: Hardware, cells: int) -> tuple[Line, Line]:
    """The features that decide how fast INT8 runs, then the processor's name."""
    features = " ".join(hardware.processor.features) or "no SIMD extensions"
    text = clean(f"{features} · {hardware.processor.name}", 120)
    return ((" " * LABEL, ""), (text[:cells], "faint")), ((text[cells:], "faint"),)


def _time(sample: TelemetrySample) -> float:
    return sample.time


def _memory_share(sample: TelemetrySample) -> float | None:
    return _share(sample.memory_used_bytes, sample.memory_total_bytes)


def _share(used: float | None, total: float | None) -> float | None:
    return used / total if used is not None and total else None


def _gpu(sample: TelemetrySample, index: int) -> GpuSample | None:
    return next((gpu for gpu in sample.gpus if gpu.index == index), None)


def _of_gpu(index: int, value: Callable[[GpuSample], float | None]) -> Callable[[TelemetrySample], float | None]:
    """A gauge's value: of one GPU of a sample, None where the sample does not have it."""

    def read(sample: TelemetrySample) -> float | None:
        gpu = _gpu(sample, index)
        return value(gpu) if gpu is not None else None

    return read
