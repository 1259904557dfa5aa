"""Our Poisson open loop against MLPerf LoadGen's Server scenario, on the same model behind the same batcher.

    python tests/benchmarks/bench_loadgen_agreement.py [--quick] [--pairs 4] [--seconds 5]

Two models: one that sleeps 2 ms whatever the batch, and the sample CNN's ONNX under ONNX Runtime with one thread; each
at 50 % and at 80 % of the rate it reaches as fast as possible. The arms take turns (A B B A), every run in a process of
its own with its own seed: the two draw their own Poisson arrivals, so a part of every difference is chance, and the
interval over the pairs says how much. Goals: throughput within 5 %, p99 within 10 %; YES: the whole 95 % interval is.

Both count latency from the scheduled arrival. LoadGen: `mlcommons-loadgen`, Python calls, one sample a query, figures
from its `mlperf_log_summary.txt`. On a busy machine our runs call themselves INVALID and p99 means nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "benchmarks")]

from intervals import ratio, shown, within  # noqa: E402
from peer_environments import OURS, PeerUnavailable, python_with, version_in  # noqa: E402
from sample_cnn import write_sample_cnn  # noqa: E402

PACKAGE = "mlcommons-loadgen"

MODELS = ("sleeping", "cnn")

BATCH = 8

LOADS = (0.5, 0.8)
"""Of what the model reaches as fast as possible."""

THROUGHPUT, P99 = 0.05, 0.10
"""How far the two may be apart."""

ARM = Path(__file__).with_name("loadgen_arms.py")


def main() -> None:
    """Every model at every load, in turns; one line each."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--pairs", type=int, default=4, help="runs of each arm; an even number of at least 4")
    arguments.add_argument("--seconds", type=float, default=5.0, help="of each run; the CNN gets twice as many")
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help=" or ".join(MODELS))
    arguments.add_argument("--quick", action="store_true", help="runs of a third of that: shows that it works")
    asked = arguments.parse_args()
    seconds = asked.seconds / 3 if asked.quick else asked.seconds
    try:
        python = python_with("loadgen", PACKAGE, shared=(*OURS, "onnxruntime"))
    except PeerUnavailable as reason:
        print(f"{PACKAGE} can not be installed for this Python, so nothing is compared: {reason}")
        return
    busy = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{PACKAGE} {version_in(python, PACKAGE)}; {asked.pairs} runs of each arm; {busy}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for name in asked.models:
            if name == "sleeping":
                model, length = {"sleep": 0.002}, seconds
            else:
                graph, images = write_sample_cnn(Path(place))
                model, length = {"graph": str(graph), "images": str(images), "threads": 1}, 2 * seconds
            policy = {"max_batch_size": BATCH, "max_queue_size": 100_000}
            said = {"model": model, "policy": policy, "logs": place, "seed": 0}
            most = run(python, said | {"arm": "ours", "rate": None, "seconds": min(length, 4.0)})["throughput"]
            print(f"{name}: {most:,.0f} requests/s at most, batches of at most {BATCH}", flush=True)
            for load in LOADS:
                compare(python, said | {"rate": load * most, "seconds": length}, load, asked.pairs)


def compare(python: Path, said: dict, load: float, pairs: int) -> None:
    """One model at one load."""
    found: dict[str, list[dict]] = {"ours": [], "loadgen": []}
    order = [arm for turn in range(pairs) for arm in (("ours", "loadgen") if turn % 2 == 0 else ("loadgen", "ours"))]
    for number, arm in enumerate(order):
        found[arm].append(run(python, said | {"arm": arm, "seed": number + 1}))
    invalid = sum(not result["valid"] for results in found.values() for result in results)
    for arm, results in found.items():
        said = {key: statistics.median(result[key] for result in results) for key in results[0]}
        print(
            f"   {load:.0%} {arm:8}: {said['throughput']:8.1f} requests/s, p50 {said['p50']:7.3f} ms,"
            f" p99 {said['p99']:7.3f} ms, mean batch {said['mean_batch']:.2f}, {said['requests']:,.0f} requests a run"
        )
    for figure, limit in (("throughput", THROUGHPUT), ("p50", P99), ("p99", P99)):
        found_ratio = ratio(*([result[figure] for result in found[arm]] for arm in ("ours", "loadgen")))
        goal = within(found_ratio, 1 - limit, 1 + limit)
        print(f"      {figure:10} ours / LoadGen {shown(found_ratio)}   within {limit:.0%}: {goal}")
    if invalid:
        print(f"      ({invalid} of the {len(order)} runs were INVALID by their own rules: the machine was busy)")
    sys.stdout.flush()


def run(python: Path, said: dict) -> dict:
    """One run in its own process."""
    command = [str(python), str(ARM), json.dumps(said)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
