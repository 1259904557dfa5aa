"""Runs every benchmark one after the other: `make bench`, on a machine that does nothing else. Nothing here asserts.

Each also runs alone, as `python tests/benchmarks/bench_job_start.py`. Those in `LONG` install other tools and take
many minutes: they run with `python tests/benchmarks/__main__.py --long`, or alone.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

BENCHMARKS = (*sorted(HERE.glob("bench_*.py")), *sorted(HERE.glob("test_*.py")))

LONG = {"bench_quantization_peers"}
"""Only with `--long`."""


def main() -> int:
    failed = []
    for path in BENCHMARKS:
        if path.stem in LONG and "--long" not in sys.argv[1:]:
            continue
        print(f"\n== {path.stem}", flush=True)
        if subprocess.run([sys.executable, path], cwd=HERE.parents[1], check=False).returncode:
            failed.append(path.stem)
    if failed:
        print(f"\nDid not run to the end: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
