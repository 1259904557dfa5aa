"""How long a job takes from the engine's request to its worker's first message, once the fork server is warm.

    python tests/benchmarks/bench_job_start.py

Goal: the median is surely under 50 ms (milliseconds; 30 starts).
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "benchmarks")]

from goals import Goals, arguments  # noqa: E402

from engine.hardware import read_processor  # noqa: E402
from engine.jobs.workers import ForkServer  # noqa: E402
from engine.measurements.statistics import resampled_interval  # noqa: E402
from engine.protocol import InspectModel, JobSpec, ModelSource  # noqa: E402

STARTS = 30


LIMIT_MS = 50.0


async def measured() -> list[float]:
    """Start and kill workers one after the other, print the times: milliseconds."""
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model.py"
        model.write_text("import time\ntime.sleep(60)\n")
        spec = JobSpec(
            job="j",
            task=InspectModel(),
            source=ModelSource(path=str(model), kind="python", sha256="0"),
            variants={},
            baseline=None,
            session_directory=place,
            work_directory=place,
            device="cpu",
            processor=read_processor(),
            threads=1,
        )
        log = os.open(Path(place) / "log", os.O_WRONLY | os.O_CREAT)
        server = ForkServer(log)
        ready = await server.ready()
        times = []
        for _ in range(STARTS):
            begun = time.perf_counter()
            worker = await server.start_worker(spec, Path(place) / "log.txt")
            await worker.receive()
            times.append(1000 * (time.perf_counter() - begun))
            worker.signal(signal.SIGKILL)
            await worker.wait()
            worker.close()
        server.stop()
        await server.stopped()
    times.sort()
    print(f"fork server warm after {ready.seconds:.1f} s, {ready.threads} thread")
    print(f"job start: median {statistics.median(times):.1f} ms, worst of {STARTS} {times[-1]:.1f} ms")
    return times


def main() -> int:
    """The median, judged."""
    arguments(__doc__, "15 seconds").parse_args()
    goals = Goals()
    times = np.array(asyncio.run(measured()))
    found = resampled_interval(lambda indices: float(np.median(times[indices])), len(times), 2000)
    goals.at_most(f"a job starts in under {LIMIT_MS:g} ms", found, LIMIT_MS, 1, " ms")
    return goals.judged()


if __name__ == "__main__":
    sys.exit(main())
