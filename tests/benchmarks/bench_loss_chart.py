"""What watching a training costs it: steps per second with the dashboard's loss chart open, and with no client at all.

    python tests/benchmarks/bench_loss_chart.py [BLOCKS] [--quick]

One real training job in a real engine. The dashboard runs on a pseudo-terminal of 100 × 30 cells, on the job's own
screen with both charts, reading and drawing as for a user; it is stopped and continued in turns (A B B A and B A A B
by a seeded coin) by attaching and leaving, so both arms meet the same machine. Steps are counted from the metrics'
own times in the engine's history, not from what the client saw. The figure is the ratio of the speeds, watched over
alone, with a 95 % interval over the pairs of blocks; 1.00 within the interval means that watching is free. On a busy
machine that interval is wide, so the processor time that the dashboard took is printed, too: on a machine whose cores
all train, its share of them is the most that watching can cost. Goal: watching costs less than 2 %, with the whole
interval ("no measurable cost" cannot be shown by an interval that is merely wide).
"""

import asyncio
import contextlib
import fcntl
import math
import os
import pty
import random
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import threading
import time
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "engine"), str(REPOSITORY / "tests" / "benchmarks")]

from goals import Goals, arguments  # noqa: E402
from learning_models import CNN_FILE  # noqa: E402

from engine.client import EngineClient, connect  # noqa: E402
from engine.measurements.statistics import Interval  # noqa: E402
from engine.protocol import (  # noqa: E402
    ApplyTechnique,
    CancelJob,
    MetricHistory,
    OpenModel,
    ReadMetrics,
    Running,
    StopEngine,
)

KEPT_SPEED = 0.98
"""Goal: of the speed with no client."""

BLOCKS = 40
"""Watched and unwatched together."""

BLOCK_SECONDS = 6.0
"""What is counted of a block: between two points of the curve."""

SETTLE_SECONDS = 4.0
"""After the dashboard came or went: it starts, reads the history and paints."""

DASHBOARD = """
import sys
from tui.app import TrimtabApp
app = TrimtabApp(sys.argv[1])
async def look():
    while not any(job.kind == "distill" for job in app.connection.snapshot.jobs):
        import asyncio
        await asyncio.sleep(0.05)
    app.main.act("show_log")
app.call_later(lambda: app.run_worker(look()))
app.run()
"""
"""The dashboard on the job's own screen."""


async def measured(blocks: int) -> Interval:
    """Train, attach and leave in turns: watched over alone."""
    place = Path(tempfile.mkdtemp(prefix="trimtab-bench-"))
    os.environ["XDG_STATE_HOME"] = str(place / "state")
    (place / "net.py").write_text(textwrap.dedent(CNN_FILE))
    session = place / "net.trimtab"
    client = await connect(session, client="test")
    try:
        await _do(client, OpenModel(request=0, path=str(place / "net.py"), measure=False))
        await client.request(
            ApplyTechnique(
                request=0, technique="distill", source="baseline", parameters={"epochs": 9000.0}, measure=False
            )
        )
        job = await _running(client)
        await asyncio.sleep(SETTLE_SECONDS)
        spans = await _blocks(session, _order(blocks))
        reply = await client.request(ReadMetrics(request=0, job=job))
        assert isinstance(reply, MetricHistory)
        found = _report([(step, at) for name, _, step, at in reply.points if name == "loss"], spans)
        await client.request(CancelJob(request=0, job=job))
        return found
    finally:
        with contextlib.suppress(Exception):
            await client.request(StopEngine(request=0, cancel_jobs=True))
        await client.aclose()
        shutil.rmtree(place, ignore_errors=True)


def _order(blocks: int) -> list[bool]:
    """Watched or not, balanced in fours."""
    coin = random.Random(0)
    order: list[bool] = []
    while len(order) < blocks:
        order += [True, False, False, True] if coin.random() < 0.5 else [False, True, True, False]
    return order


class Block(NamedTuple):
    """Times in seconds since the epoch, and what the dashboard took meanwhile."""

    watched: bool
    start: float
    end: float
    cpu_seconds: float
    bytes_sent: int


async def _blocks(session: Path, order: list[bool]) -> list[Block]:
    """Every block, one after the other."""
    spans = []
    screen: Screen | None = None
    try:
        for watched in order:
            if watched and screen is None:
                screen = Screen(session)
            elif not watched and screen is not None:
                screen.close()
                screen = None
            await asyncio.sleep(SETTLE_SECONDS)
            if screen is not None:
                assert screen.bytes_sent > 2000, "the dashboard drew nothing: the benchmark is broken"
            start, before = time.time(), screen.taken() if screen else (0.0, 0)
            await asyncio.sleep(BLOCK_SECONDS)
            after = screen.taken() if screen else (0.0, 0)
            spans.append(Block(watched, start, time.time(), after[0] - before[0], after[1] - before[1]))
    finally:
        if screen is not None:
            screen.close()
    return spans


def _report(points: list[tuple[int, float]], spans: list[Block]) -> Interval:
    """Speeds of the blocks in pairs of neighbours, and the ratio over all pairs."""
    speeds = []
    for block in spans:
        inside = [(step, at) for step, at in points if block.start <= at <= block.end]
        (first, began), (last, ended) = inside[0], inside[-1]
        speeds.append((block.watched, (last - first) / (ended - began)))
    logs = []
    for (left, one), (_, other) in zip(speeds[::2], speeds[1::2]):
        logs.append(math.log(one / other if left else other / one))
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    t = (
        3.19 if len(logs) < 10 else 2.09 if len(logs) < 25 else 2.02
    )  # Student's two-sided 95 %: at least 4, 20, 40 pairs
    low, high = (math.exp(mean + sign * t * error) for sign in (-1, 1))
    alone = statistics.median(speed for watched, speed in speeds if not watched)
    print(f"{alone:.1f} steps/s with no client")
    watching = [block for block in spans if block.watched]
    seconds = sum(block.end - block.start for block in watching)
    cpu = sum(block.cpu_seconds for block in watching) / seconds
    sent = sum(block.bytes_sent for block in watching) / seconds
    print(f"the dashboard: {cpu:.2%} of a core ({cpu / (os.cpu_count() or 1):.2%} of all), {sent:.0f} bytes/s")
    print(f"watched / alone: {math.exp(mean):.4f} (95 % interval {low:.4f}–{high:.4f}, {len(logs)} pairs)")
    return Interval(math.exp(mean), low, high)


class Screen:
    """A dashboard on a pseudo-terminal, whose output is read and thrown away."""

    def __init__(self, session: Path) -> None:
        self.bytes_sent = 0
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(REPOSITORY)}
        self._child = subprocess.Popen(
            [sys.executable, "-c", DASHBOARD, str(session)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
        )
        os.close(terminal)
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while select.select([self._controller], [], [], 30)[0]:
                if not (piece := os.read(self._controller, 65536)):
                    return
                self.bytes_sent += len(piece)

    def taken(self) -> tuple[float, int]:
        """Processor time of all threads, in seconds, and bytes drawn so far."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), self.bytes_sent

    def close(self) -> None:
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()
        self._thread.join(timeout=5)
        os.close(self._controller)


async def _do(client: EngineClient, command: OpenModel) -> None:
    accepted = await client.request(command)
    events = client.events()
    while not any(run.id == accepted.run.id and run.finished for run in client.state.runs):  # type: ignore[union-attr]
        await anext(events)


async def _running(client: EngineClient) -> str:
    """The training job, once it has taken its first steps."""
    events = client.events()
    while True:
        for job in client.state.jobs:
            if job.kind == "distill" and isinstance(job.state, Running) and "loss" in job.metrics:
                return job.id
            assert not (job.kind == "distill" and job.is_done), job.state
        await anext(events)


def main() -> int:
    """The ratio, judged."""
    parser = arguments(__doc__, "8 minutes")
    parser.add_argument("blocks", nargs="?", type=int, default=BLOCKS, help="watched and unwatched together")
    parser.add_argument("--quick", action="store_true", help="8 blocks: shows that it works")
    asked = parser.parse_args()
    goals = Goals()
    found = asyncio.run(measured(8 if asked.quick else asked.blocks))
    goals.at_least(f"training with the loss chart open keeps {KEPT_SPEED:.0%} of its speed", found, KEPT_SPEED, 4)
    return goals.judged()


if __name__ == "__main__":
    sys.exit(main())
