"""Runs every benchmark one after the other: `make bench`, on a machine that does nothing else. Each judges itself.

    python tests/benchmarks/__main__.py [--long] [--only bench_theory …] [--quick] [--write tests/benchmarks/RESULTS.md]

Each also runs alone, as `python tests/benchmarks/bench_job_start.py`; `--help` says how long it takes. Those in `LONG`
install other tools or train, and take many minutes: they run with `--long`, or when they are named. At the end stands
one table of all goals; `--write` keeps it as Markdown with the machine it was measured on.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from goals import FAILED, KEPT, MISSED, OPEN, UNDECIDED, Goal, arguments

from engine.hardware import read_processor

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

BENCHMARKS = {path.stem: path for path in (*sorted(HERE.glob("bench_*.py")), *sorted(HERE.glob("test_*.py")))}

LONG = {"bench_quantization_peers", "bench_quantization_aware_training", "bench_recovery"}
"""Only with `--long`, or named."""

VERSIONS = ("torch", "onnxruntime", "openvino", "onnx", "numpy", "textual")
"""Packages that the figures depend on."""


class Ran(NamedTuple):
    """One benchmark that was run."""

    name: str
    status: int
    seconds: float
    goals: list[Goal]


def main() -> int:
    """Run them, print all goals. Exit status: 1 a goal is missed or a benchmark failed, 3 a goal is undecided."""
    parser = arguments(__doc__, "45 minutes, with --long two and a half hours")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--long", action="store_true", help=f"also {', '.join(sorted(LONG))}")
    parser.add_argument("--quick", action="store_true", help="short runs where there are: shows that they work")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the table as Markdown")
    asked = parser.parse_args()
    chosen = asked.only or [name for name in BENCHMARKS if asked.long or name not in LONG]
    load = os.getloadavg()[0]
    ran = [run(name, asked.quick) for name in chosen]
    print(f"\n== all goals\n\n{summary(ran)}")
    if asked.write is not None:
        asked.write.write_text(page(ran, load, asked.quick))
        print(f"\nwritten to {asked.write}")
    verdicts = {goal.verdict for one in ran for goal in one.goals}
    if MISSED in verdicts or any(one.status not in (0, FAILED, OPEN) or broke(one) for one in ran):
        return FAILED
    return OPEN if UNDECIDED in verdicts else 0


def run(name: str, quick: bool) -> Ran:
    """One benchmark in a process of its own; what it prints is seen as it comes."""
    print(f"\n== {name}", flush=True)
    path = BENCHMARKS[name]
    command = [sys.executable, str(path), *(["--quick"] if quick and '"--quick"' in path.read_text() else [])]
    with tempfile.TemporaryDirectory() as place:
        kept, began = Path(place) / "goals", time.monotonic()
        status = subprocess.run(command, cwd=REPOSITORY, env=os.environ | {KEPT: str(kept)}, check=False).returncode
        lines = kept.read_text().splitlines() if kept.exists() else []
        return Ran(name, status, time.monotonic() - began, [Goal(*json.loads(line)) for line in lines])


def broke(one: Ran) -> bool:
    """It ended with an error before it could judge."""
    return one.status != 0 and not one.goals


def summary(ran: list[Ran]) -> str:
    """One table over all benchmarks, as Markdown."""
    lines = ["| benchmark | goal | measured | verdict |", "|---|---|---|---|"]
    for one in ran:
        for goal in one.goals:
            cells = (one.name, goal.text, goal.measured, goal.verdict)
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        if broke(one):
            lines.append(f"| {one.name} | | did not run to the end (exit status {one.status}) | {MISSED} |")
        elif not one.goals:
            lines.append(f"| {one.name} | none: figures only | | |")
    return "\n".join(lines)


def page(ran: list[Ran], load: float, quick: bool) -> str:
    """The results with the machine they hold for."""
    processor = read_processor()
    installed = ", ".join(f"{name} {version}" for name in VERSIONS if (version := _version(name)))
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    times = ", ".join(f"{one.name} {one.seconds / 60:.1f} min" for one in ran)
    shortened = "Shortened runs (`--quick`): they show that the benchmarks work and nothing else.\n\n" if quick else ""
    return (
        "# What the benchmarks measured\n\n"
        "`python tests/benchmarks/__main__.py --long --write tests/benchmarks/RESULTS.md` makes this page. met: the "
        "whole 95 % interval\nlies within the goal; MISSED: wholly beyond; UNDECIDED: neither.\n\n"
        f"{shortened}"
        f"- Processor: {processor.name}, {processor.physical_cores} cores ({processor.logical_cores} threads), "
        f"{len(os.sched_getaffinity(0))} usable\n"
        f"- Features: {', '.join(processor.features)}\n"
        f"- Versions: Python {platform.python_version()}, {installed}; {platform.system()} {platform.release()}\n"
        f"- Commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}; load average {load:.1f} before the start\n\n"
        f"{summary(ran)}\n\n"
        f"Times: {times}.\n"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
