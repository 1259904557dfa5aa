"""What watching costs: CPU time of one telemetry sample, and its share of a core at 2 Hz.

    python tests/benchmarks/bench_telemetry.py

Without a GPU the NVML part runs against the fake driver of tests/engine/fake_nvml.c with eight GPUs: that
measures the binding and our code, not a real driver (which adds some milliseconds, mostly waiting). There is no goal.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from goals import arguments

SAMPLES = 400
HZ = 2.0
FAKE = Path(__file__).parents[1] / "engine" / "fake_nvml.c"
FIGURES = {
    "capability": 90, "utilisation": 61, "memory_total": 8e10, "memory_used": 1e10, "power": 312000, "energy": 5e6,
    "temperature": 54, "sm_clock": 1980, "memory_clock": 2619, "throttle": 4, "processes": 1, "process.4711": 1e9,
    "gpm": 1, "gpm.3": 42, "gpm.5": 30, "gpm.10": 77,
}  # fmt: skip


def measure() -> None:
    """Samples with a clock that makes each 0.5 s later, so that caches expire as they do in the engine."""
    from engine.telemetry import Telemetry

    now = [0.0]
    telemetry = Telemetry(clock=lambda: now[0])
    for _ in range(20):
        now[0] += 1 / HZ
        sample = telemetry.sample()
    start_cpu, start = time.process_time(), time.perf_counter()
    for _ in range(SAMPLES):
        now[0] += 1 / HZ
        sample = telemetry.sample()
    cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
    telemetry.close()
    print(
        f"{len(sample.gpus)} GPUs, {len(sample.cores)} cores: {cpu / SAMPLES * 1e6:6.0f} µs of CPU a sample"
        f" ({wall / SAMPLES * 1e6:.0f} µs elapsed) = {cpu / SAMPLES * HZ * 100:.3f} % of a core at {HZ:g} Hz"
    )


def main() -> None:
    measure()
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "libnvidia-ml.so.1"
        options = ["-shared", "-fPIC", "-O2", "-Wl,-soname,libnvidia-ml.so.1"]
        subprocess.run(["cc", *options, "-o", library, FAKE], check=True)
        state = Path(directory) / "state"
        lines = ["gpus 8"] + [f"gpu{i}.{key} {value}" for i in range(8) for key, value in FIGURES.items()]
        state.write_text("\n".join(lines) + "\n")
        environment = os.environ | {"LD_LIBRARY_PATH": directory, "FAKE_NVML_STATE": str(state)}
        subprocess.run([sys.executable, __file__, "inside"], env=environment, check=True)


if __name__ == "__main__":
    if "inside" in sys.argv:
        measure()
    else:
        arguments(__doc__, "10 seconds").parse_args()
        main()
