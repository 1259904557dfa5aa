"""A benchmark's verdict claims no more than its interval does, and its exit status says it to scripts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from goals import KEPT, Goals, product, table, verdict  # noqa: E402

from engine.measurements.statistics import Interval  # noqa: E402


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.96, 0.99, "met"), (0.95, 0.95, "met"), (0.94, 0.99, "UNDECIDED"), (0.90, 0.94, "MISSED")],
)
def test_a_goal_is_met_or_missed_only_with_the_whole_interval(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high), 0.95, float("inf")) == expected


def test_the_exit_status_is_1_for_a_missed_goal_and_3_for_an_undecided_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(KEPT, str(tmp_path / "kept"))
    goals = Goals()
    assert goals.judged() == 3, "nothing was judged"
    goals.at_least("fast", Interval(2.0, 1.5, 2.5), 1.0)
    assert goals.judged() == 0
    goals.at_most("close | tight", Interval(2.0, 1.5, 2.5), 2.0, unit=" %")
    assert goals.judged() == 3
    goals.counted("no hang", False, "1 call hung")
    assert goals.judged() == 1
    last = capsys.readouterr().out.rpartition("| goal")[2].splitlines()
    assert [cell.strip() for cell in last[3].split("|")[1:4]] == [
        "close / tight",
        "2.000 (1.500 … 2.500) %",
        "UNDECIDED",
    ]
    assert json.loads((tmp_path / "kept").read_text().splitlines()[-1]) == ["no hang", "1 call hung", "MISSED"]


def test_ratios_are_put_together_in_logarithms():
    found = product([Interval(2.0, 1.0, 4.0), Interval(0.5, 0.5, 0.5)])
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == (pytest.approx(2**-0.5), pytest.approx(2**0.5))
    assert table([]).count("\n") == 1


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("bench_*.py")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_benchmark_says_how_long_it_takes(path: Path):
    said = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert "Takes " in said.stdout
