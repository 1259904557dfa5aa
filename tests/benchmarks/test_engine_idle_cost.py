"""What an idle engine costs: less than 1 % of a core while a client watches the hardware at 2 Hz.

CPU time and not wall time, so that a busy machine does not falsify it; the engine process alone, without its fork
server, which sleeps. `python tests/benchmarks/test_engine_idle_cost.py [SECONDS]` prints the figure alone.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.client import connect
from engine.protocol import StopEngine

SETTLE_SECONDS = 3.0
"""Start-up is not idleness."""

CPU_SHARE_LIMIT = 0.01


@pytest.mark.slow
def test_an_idle_engine_takes_less_than_one_percent_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "")  # put back afterwards
    share = measure_share(20.0)
    print(f"\n{share:.2%} of a core")
    assert share < CPU_SHARE_LIMIT


def measure_share(seconds: float) -> float:
    """CPU seconds an engine with one watching client takes, per second."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_STATE_HOME"] = place
        return asyncio.run(_watch(Path(place) / "idle.trimtab", seconds))


async def _watch(session: Path, seconds: float) -> float:
    client = await connect(session, client="test", telemetry_hz=2)
    await asyncio.sleep(SETTLE_SECONDS)
    before = _cpu_seconds(client.welcome.pid)
    await asyncio.sleep(seconds)
    used = _cpu_seconds(client.welcome.pid) - before
    await client.request(StopEngine(request=0))
    await client.wait_closed()
    return used / seconds


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """The figure, judged."""
    from goals import Goals, arguments
    from intervals import mean

    parser = arguments(__doc__, "80 seconds")
    parser.add_argument("seconds", nargs="?", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    shares = mean([measure_share(seconds) for _ in range(3)])
    goals = Goals()
    title = f"an idle engine takes less than {CPU_SHARE_LIMIT:.0%} of a core"
    goals.at_most(title, shares, CPU_SHARE_LIMIT, 4)
    return goals.judged()


if __name__ == "__main__":
    sys.exit(main())
