"""Our Poisson open loop against MLPerf LoadGen's Server scenario, on the same model behind the same batcher.

    python tests/benchmarks/bench_loadgen_agreement.py [--quick] [--pairs 4] [--seconds 5]

Three models: one that does nothing, one that sleeps 2 ms whatever the batch, and the sample CNN's ONNX under ONNX
Runtime with one thread. The first is asked for 1,000 and 5,000 requests/s (its own limit is beyond what LoadGen sends
from Python), the others for 50 % and 80 % of the rate they reach as fast as possible. Every run is in a process of its
own. p99 of a queue at 80 % differs by a tenth from one draw of arrivals to the next, so ours replays the very arrivals
that LoadGen's run before it had, and what is left is a difference of the two; a third arm, our own Poisson arrivals,
tells throughput. Goals: throughput within 5 %, p99 within 10 %, with the whole 95 % interval over the rounds.

Both count latency from the scheduled arrival. LoadGen: `mlcommons-loadgen`, Python calls, one sample a query, figures
from its `mlperf_log_summary.txt`. On a busy machine our runs call themselves INVALID and p99 means nothing: with such
a run a goal that is not met is undecided.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "benchmarks")]

from goals import Goals, arguments  # noqa: E402
from intervals import ratio, shown, within  # noqa: E402
from peer_environments import OURS, PeerUnavailable, python_with, version_in  # noqa: E402
from sample_cnn import write_sample_cnn  # noqa: E402

PACKAGE = "mlcommons-loadgen"

MODELS = ("null", "sleeping", "cnn")

BATCH = 8

LOADS = (0.5, 0.8)
"""Of what the model reaches as fast as possible."""

NULL_RATES = (1_000, 5_000)
"""Requests a second for the model that does nothing."""

THROUGHPUT, P99 = 0.05, 0.10
"""How far the two may be apart."""

ARM = Path(__file__).with_name("loadgen_arms.py")


def main() -> int:
    """Every model at every load, in turns; one line each."""
    parser = arguments(__doc__, "7 minutes")
    parser.add_argument("--pairs", type=int, default=4, help="runs of each arm; an even number of at least 4")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run; the CNN gets twice as many")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help=" or ".join(MODELS))
    parser.add_argument("--quick", action="store_true", help="runs of a third of that: shows that it works")
    asked = parser.parse_args()
    goals = Goals()
    seconds = asked.seconds / 3 if asked.quick else asked.seconds
    try:
        python = python_with("loadgen", PACKAGE, shared=(*OURS, "onnxruntime"))
    except PeerUnavailable as reason:
        goals.undecided(f"agreement with {PACKAGE}", f"cannot be installed for this Python: {reason}"[:100])
        return goals.judged()
    busy = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{PACKAGE} {version_in(python, PACKAGE)}; {asked.pairs} runs of each arm; {busy}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for name in asked.models:
            if name != "cnn":
                model, length = {"sleep": 0.002 if name == "sleeping" else 0}, seconds
            else:
                graph, images = write_sample_cnn(Path(place))
                model, length = {"graph": str(graph), "images": str(images), "threads": 1}, 2 * seconds
            policy = {"max_batch_size": BATCH, "max_queue_size": 100_000}
            said = {"model": model, "policy": policy, "logs": place, "seed": 0}
            most = run(python, said | {"arm": "ours", "rate": None, "seconds": min(length, 4.0)})["throughput"]
            print(f"{name}: {most:,.0f} requests/s at most, batches of at most {BATCH}", flush=True)
            for rate in NULL_RATES if name == "null" else [load * most for load in LOADS]:
                compare(goals, name, python, said | {"rate": rate, "seconds": length}, asked.pairs)
    return goals.judged()


def compare(goals: Goals, name: str, python: Path, said: dict, pairs: int) -> None:
    """One model at one load."""
    load = f"{said['rate']:,.0f}/s"
    found: dict[str, list[dict]] = {"loadgen": [], "ours": [], "replayed": []}
    for seed in range(1, pairs + 1):
        found["loadgen"].append(run(python, said | {"arm": "loadgen", "seed": seed}))
        found["ours"].append(run(python, said | {"arm": "ours", "seed": seed}))
        found["replayed"].append(run(python, said | {"arm": "ours", "seed": seed, "replay": True}))
    invalid = sum(not result["valid"] for results in found.values() for result in results)
    for arm, results in found.items():
        said = {key: statistics.median(result[key] for result in results) for key in results[0]}
        print(
            f"   {load} {arm:8}: {said['throughput']:8.1f} requests/s, p50 {said['p50']:7.3f} ms,"
            f" p99 {said['p99']:7.3f} ms, mean batch {said['mean_batch']:.2f}, {said['requests']:,.0f} requests a run"
        )
    for figure, limit, arm in (("throughput", THROUGHPUT, "ours"), ("p50", P99, "replayed"), ("p99", P99, "replayed")):
        found_ratio = ratio(*([result[figure] for result in found[which]] for which in (arm, "loadgen")))
        goal = within(found_ratio, 1 - limit, 1 + limit)
        if figure != "p50":
            title = f"{name} at {load}: {figure} within {limit:.0%}"
            if invalid and goal != "YES":
                goals.undecided(title, f"{shown(found_ratio)}, {invalid} runs INVALID")
            else:
                goals.within(title, found_ratio, 1 - limit, 1 + limit)
        print(f"      {figure:10} ours / LoadGen {shown(found_ratio)}   within {limit:.0%}: {goal}")
    if invalid:
        print(f"      ({invalid} of the {3 * pairs} runs were INVALID by their own rules: the machine was busy)")
    sys.stdout.flush()


def run(python: Path, said: dict) -> dict:
    """One run in its own process."""
    command = [str(python), str(ARM), json.dumps(said)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
