"""How long a job takes from the engine's request to its worker's first message, once the fork server is warm.

The promise is under 50 ms (milliseconds, medians of 30 starts). Run: python tests/benchmarks/bench_job_start.py
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.hardware import read_processor
from engine.jobs.workers import ForkServer
from engine.protocol import InspectModel, JobSpec, ModelSource

STARTS = 30


async def main() -> None:
    """Start and kill workers one after the other, print the times."""
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


asyncio.run(main())
