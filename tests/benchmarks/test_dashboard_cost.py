"""What the dashboard costs while a job runs: CPU time and bytes to the terminal, through a real pseudo-terminal.

100×30 cells, 2 Hz, live charts (CPU, memory, GPU, GPU memory), a changing table, progress and a growing log: less than
3 % of a core and 6 KB/s. CPU time and not wall time, so that a busy machine does not falsify it.
`python tests/benchmarks/test_dashboard_cost.py [SECONDS]` prints the figures alone.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

import pytest

CHILD = Path(__file__).with_name("dashboard_under_load.py")

WARM_UP_SECONDS = 4.0
"""Start-up and first paint are measured elsewhere."""

TIMES = 3
"""Dashboards that are measured for a verdict."""

CPU_SHARE_LIMIT, BYTES_PER_SECOND_LIMIT = 0.03, 6000


class Cost(NamedTuple):
    """What a dashboard took between two moments."""

    cpu_share: float
    bytes_per_second: float
    seconds: float


@pytest.mark.slow
def test_a_dashboard_with_a_running_job_costs_less_than_three_percent_and_six_kilobytes_a_second() -> None:
    cost = measure_cost(20.0)
    print(f"\n{cost.cpu_share:.2%} of a core, {cost.bytes_per_second:.0f} bytes/s")
    assert cost.bytes_per_second > 100, "nothing was drawn: the benchmark is broken"
    assert cost.cpu_share < CPU_SHARE_LIMIT
    assert cost.bytes_per_second < BYTES_PER_SECOND_LIMIT


def measure_cost(seconds: float, columns: int = 100, lines: int = 30) -> Cost:
    """Run the dashboard on a pseudo-terminal of that size and watch it for so long."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR", None)
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(WARM_UP_SECONDS + seconds + 30)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        _drain(controller, WARM_UP_SECONDS)
        cpu, start = _cpu_seconds(child.pid), time.monotonic()
        sent = _drain(controller, seconds)
        took = time.monotonic() - start
        return Cost((_cpu_seconds(child.pid) - cpu) / took, sent / took, took)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        os.close(controller)


def _drain(controller: int, seconds: float) -> int:
    """Read what the terminal is sent for so long; the number of bytes."""
    end = time.monotonic() + seconds
    sent = 0
    while (left := end - time.monotonic()) > 0:
        if select.select([controller], [], [], left)[0]:
            sent += len(os.read(controller, 65536))
    return sent


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """The figures, judged."""
    from goals import Goals, arguments
    from intervals import mean

    parser = arguments(__doc__, "75 seconds")
    parser.add_argument("seconds", nargs="?", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    costs = [measure_cost(seconds) for _ in range(TIMES)]
    shares, rates = mean([cost.cpu_share for cost in costs]), mean([cost.bytes_per_second for cost in costs])
    goals = Goals()
    title = "the dashboard while a job runs"
    goals.at_most(f"{title}: less than {CPU_SHARE_LIMIT:.0%} of a core", shares, CPU_SHARE_LIMIT, 4)
    goals.at_most(f"{title}: less than {BYTES_PER_SECOND_LIMIT} bytes/s", rates, BYTES_PER_SECOND_LIMIT, 0)
    return goals.judged()


if __name__ == "__main__":
    sys.exit(main())
