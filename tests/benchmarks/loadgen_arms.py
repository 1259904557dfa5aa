"""One run of one arm of `bench_loadgen_agreement`, in a process and an environment of its own (LoadGen is one test a
process). Started with a JSON object, prints one.

Both arms send to the same thing: a `BatchExecutor` with the same model and policy, warmed up the same way, and the same
`sys.setswitchinterval`. They differ in who makes the schedule, sends, and takes the time.

    {"arm": "ours" | "loadgen", "rate": 1/s or null for as fast as possible (ours), "seconds": 8, "seed": 1,
     "replay": false, or true for the arrivals of the LoadGen run with this seed before instead of Poisson ones (ours),
     "model": {"sleep": seconds} | {"graph": path, "images": path, "threads": 1}, "policy": {...}, "logs": directory}
    {"throughput": 1/s, "p50": ms, "p99": ms, "requests": n, "valid": true, "mean_batch": rows}
"""

import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from engine.batching.arrays import Arrays, Run, describe
from engine.batching.executor import BatchExecutor
from engine.batching.policy import BatchPolicy
from engine.batching.queue import Request
from engine.measurements.load_test.generator import SWITCH_SECONDS, LoadGenerator
from engine.measurements.load_test.request import Load
from engine.measurements.load_test.summary import summarise
from engine.measurements.load_test.target import BatcherTarget

NEVER = 3_600_000_000_000
"""Nanoseconds; LoadGen's latency limit, which is not what is compared."""


def main() -> None:
    """Run what the command line says."""
    asked = json.loads(sys.argv[1])
    run, pool = open_model(asked["model"])
    policy = BatchPolicy(**asked["policy"])
    for size in (1, policy.max_batch_size):
        for _ in range(3):
            run({name: np.repeat(array, size, axis=0) for name, array in pool[0].items()})
    arm = with_loadgen if asked["arm"] == "loadgen" else with_ours
    print(json.dumps(arm(run, pool, policy, asked)))


def open_model(said: dict) -> tuple[Run, list[Arrays]]:
    """The model, and inputs of one row each."""
    if "sleep" in said:
        seconds = said["sleep"]

        def sleeping(inputs: Arrays) -> Arrays:
            if seconds:
                time.sleep(seconds)
            return {"output": inputs["input"]}

        return sleeping, [{"input": np.zeros((1, 16), np.float32)}]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = said["threads"]
    session = onnxruntime.InferenceSession(said["graph"], options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    images = dict(np.load(said["images"]))
    rows = len(next(iter(images.values())))
    pool = [{name: array[row : row + 1] for name, array in images.items()} for row in range(rows)]
    return lambda inputs: dict(zip(names, session.run(names, inputs))), pool


def with_ours(run: Run, pool: list[Arrays], policy: BatchPolicy, asked: dict) -> dict:
    """Our generator: Poisson at a rate, or offline."""
    if asked.get("replay"):
        times = np.load(_arrivals(asked))
        length = float(times[-1] - times[0]) * (1 + 1e-9) + 1e-6
        load = Load(arrivals="replay", trace=tuple(times.tolist()), trace_once=True, seconds=length)
    else:
        arrivals = "poisson" if asked["rate"] else "offline"
        load = Load(arrivals=arrivals, rate=asked["rate"], seconds=asked["seconds"], seed=asked["seed"])
    target = BatcherTarget(run, policy)
    generator = LoadGenerator(target, pool, load)
    summary = summarise(generator.run(), load, generator.sending_ended)
    totals = target.executor.statistics.totals()
    return {
        "throughput": summary.achieved_per_s,
        "p50": summary.latency_ms["p50"].value,
        "p99": summary.latency_ms["p99"].value,
        "requests": summary.completed,
        "valid": summary.valid,
        "mean_batch": totals.rows / totals.runs,
    }


def with_loadgen(run: Run, pool: list[Arrays], policy: BatchPolicy, asked: dict) -> dict:
    """MLPerf LoadGen's Server scenario; figures from the summary it writes."""
    import mlperf_loadgen as loadgen

    drawable = [(inputs, *describe(inputs)) for inputs in pool]

    issued: list[float] = []

    def issue(samples: list) -> None:
        for sample in samples:
            issued.append(time.monotonic())
            inputs, rows, key = drawable[sample.index]
            executor.submit(Request(inputs, rows, key, tag=sample.id))

    def deliver(requests: list[Request]) -> None:
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(request.tag, 0, 0) for request in requests])

    sys.setswitchinterval(SWITCH_SECONDS)
    executor = BatchExecutor(run, policy, deliver)
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = asked["rate"]
    settings.server_target_latency_ns = NEVER
    settings.min_duration_ms = int(asked["seconds"] * 1000)
    settings.min_query_count = 1
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = asked["seed"] + 1000
    logs = loadgen.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = asked["logs"]
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(len(pool), len(pool), lambda indices: None, lambda indices: None)
    loadgen.StartTestWithLogSettings(system, library, settings, logs, "")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    totals = executor.statistics.totals()
    executor.close(drain=True)
    executor.join()
    np.save(_arrivals(asked), issued)
    said = (Path(asked["logs"]) / "mlperf_log_summary.txt").read_text()
    return {
        "throughput": _figure(said, "Completed samples per second"),
        "p50": _figure(said, "50.00 percentile latency (ns)") / 1e6,
        "p99": _figure(said, "99.00 percentile latency (ns)") / 1e6,
        "requests": totals.by_status["completed"],
        "valid": "Min duration satisfied : Yes" in said,
        "mean_batch": totals.rows / totals.runs,
    }


def _arrivals(asked: dict) -> Path:
    """Where a run with this seed keeps when LoadGen sent."""
    return Path(asked["logs"]) / f"arrivals-{asked['seed']}.npy"


def _figure(summary: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)}\s*: ([0-9.e+]+)$", summary, re.MULTILINE)
    if found is None:
        raise ValueError(f"LoadGen's summary has no line {name!r}:\n{summary}")
    return float(found[1])


if __name__ == "__main__":
    main()
