"""Whether load tests measure what queueing theory says they must, and whether the batcher wastes a model's time.

    python tests/benchmarks/bench_theory.py [--quick] [--parts 1 2 3] [--rounds 20]

1. M/D/1: a model that sleeps 2 ms, and the sample CNN on all cores but one (the generator's), no batching, Poisson
   arrivals at loads of 0.3, 0.6 and 0.8. The mean wait in the
   queue against Pollaczek–Khinchine, W = λ·E[S²] / (2·(1 − ρ)), with the service times that were measured; and against
   W + (2·E[U] + λ·E[U²]) / (2·(1 + λ·E[U])), U being what it takes to wake an instance that was idle (Levy & Kleinrock,
   "A queue with starter and a queue with vacations", 1986). Several seeds: theory holds on average. "Lindley" is
   W' = max(0, W + S − gap) for the very arrivals there were: what is left there is an error of ours. Goals: within
   10 % of theory with set-up, within 5 % of Lindley. A seed whose measured load is over 0.95 has no steady state and
   is left out.
2. Little's law, L = λ·W: the batcher's own count of requests inside, over time, against the latencies the generator
   recorded; on a model that does nothing, one that sleeps and the sample CNN. Goal: within 2 %. (Sent is some µs before
   queued and answered some µs after done, so the model that does nothing is asked at saturation, where requests wait.)
3. Saturation: the sample CNN under ONNX Runtime, PyTorch and OpenVINO behind the batcher, as fast as possible and with
   1.5 times what it can do, against the best plain loop over full batches of the same model, in turns. Goal: at least
   95 %.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "benchmarks"), str(REPOSITORY / "tests" / "engine")]

from goals import Goals, arguments  # noqa: E402
from intervals import mean, ratio, shown, within  # noqa: E402
from loadgen_arms import open_model  # noqa: E402
from sample_cnn import write_sample_cnn  # noqa: E402

from engine.batching.arrays import Arrays, Run  # noqa: E402
from engine.batching.policy import BatchPolicy  # noqa: E402
from engine.measurements.load_test.generator import LoadGenerator  # noqa: E402
from engine.measurements.load_test.record import Record  # noqa: E402
from engine.measurements.load_test.request import Load  # noqa: E402
from engine.measurements.load_test.summary import summarise  # noqa: E402
from engine.measurements.load_test.target import BatcherTarget  # noqa: E402
from engine.protocol import LoadSummary  # noqa: E402

ROW: list[Arrays] = [{"input": np.zeros((1, 16), np.float32)}]

SLEEP = 0.002

SETTLING = 1.05
"""What such a sleep takes in truth, over what it was asked for; the load that is printed is the measured one."""

LOADS = (0.3, 0.6, 0.8)

Speed = tuple[float, float]
"""Images a second, seconds of CPU an image."""

LAW, SHARE, WAIT, RECURSION = 0.02, 0.95, 0.10, 0.05
"""Goals: of Little's law, of saturation, of the mean wait over theory and over Lindley."""

RUNTIMES = ("onnxruntime", "pytorch", "openvino")


def main() -> int:
    """All three parts."""
    parser = arguments(__doc__, "12 minutes")
    parser.add_argument("--parts", nargs="+", type=int, choices=(1, 2, 3), default=(1, 2, 3))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES, help="of part 3")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time: shows that it works")
    parser.add_argument("--rounds", type=int, help="of part 3, in turns with the plain loop; more narrow the intervals")
    asked = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in our workers; PyTorch is imported later
    goals = Goals()
    seconds, seeds = (2.0, 3) if asked.quick else (6.0, 6)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    sleeping, _ = open_model({"sleep": SLEEP})
    with tempfile.TemporaryDirectory() as place:
        graph, images = write_sample_cnn(Path(place))
        said = {"graph": str(graph), "images": str(images)}
        if 1 in asked.parts:
            print(f"1. mean wait without batching, {seeds} seeds of {seconds:g} s; 95 % intervals")
            beside, pictures = open_model(said | {"threads": max(1, cores() - 1)})
            service = 1 / plain_loop(beside, pictures, 1, seconds / 3)[0]
            for name, model, pool, each in (
                ("sleeping 2 ms", sleeping, ROW, SLEEP * SETTLING),
                ("CNN", beside, pictures, service),
            ):
                for load in LOADS:
                    waiting(goals, name, model, pool, load, each, seconds, range(seeds))
        cnn, pictures = open_model(said | {"threads": cores()})
        if 2 in asked.parts:
            print("2. Little's law, L / (λ·W)")
            policy = BatchPolicy(max_batch_size=8, max_queue_size=100_000)
            for name, model, pool, load in (
                ("null, 256 callers", null, ROW, Load(arrivals="closed", concurrency=256, seconds=seconds)),
                ("sleeping, 1,000/s", sleeping, ROW, Load(rate=1000, seconds=seconds)),
                ("CNN, 16 callers", cnn, pictures, Load(arrivals="closed", concurrency=16, seconds=seconds)),
            ):
                law(goals, name, model, pool, policy, load, seeds)
        if 3 in asked.parts:
            for runtime in asked.runtimes:
                print(f"3. the sample CNN at saturation under {runtime}")
                if importlib.util.find_spec("torch" if runtime == "pytorch" else runtime) is None:
                    goals.undecided(saturation_goal(runtime, "as fast as possible"), f"{runtime} is not installed")
                    continue
                with under(runtime, graph) as model:
                    saturation(goals, runtime, model, pictures, seconds / 2, asked.rounds or seeds)
    return goals.judged()


@contextlib.contextmanager
def under(runtime: str, graph: Path) -> Iterator[Run]:
    """The sample CNN as a load test would run it: the graph, or for PyTorch the model file itself."""
    from opened_models import baseline_of, opened

    from engine.runtimes.copies import ModelCopies

    model = opened(REPOSITORY / "sample_models" / "residual_cnn.py" if runtime == "pytorch" else graph)
    copies = ModelCopies(model, baseline_of(model, graph.parent / runtime), runtime, "cpu", cores())
    try:
        yield copies.runs(1)[0]
    finally:
        copies.close()


def waiting(
    goals: Goals,
    name: str,
    model: Run,
    pool: list[Arrays],
    load: float,
    each: float,
    seconds: float,
    seeds: Sequence[int],
) -> None:
    """One load, `each` seconds a request: measured mean wait over what theory says, for every seed."""
    title = f"mean wait without batching, {name}, load {load}"
    waits, loads, plain, with_setup, lindley = [], [], [], [], []
    alone = BatchPolicy(max_batch_size=1, max_wait_ms=0, max_queue_size=100_000)
    for seed in seeds:
        _, record, _ = run(model, pool, alone, Load(rate=load / each, seconds=seconds, seed=seed))
        count = record.count
        sent, taken = record.sent[:count], record.taken[:count]
        # The instance is free for the next a little after the model returned; how much shows where one waited already.
        free = record.computed[:count]
        queued = np.flatnonzero(sent[1:] < free[:-1])
        free = free + np.median(taken[1:][queued] - free[:-1][queued])
        service = free - taken
        idle = np.flatnonzero(sent[1:] > free[:-1]) + 1
        rate = count / seconds
        busy = rate * service.mean()
        if busy > 0.95 or not len(idle):
            print(
                f"   load {load}: seed {seed} left out: at {busy:.2f} the queue has no steady state; machine too busy"
            )
            continue
        setup = taken[idle] - sent[idle]
        waited = float((taken - sent).mean())
        expected = rate * (service**2).mean() / (2 * (1 - busy))
        started = (2 * setup.mean() + rate * (setup**2).mean()) / (2 * (1 + rate * setup.mean()))
        waits.append(waited * 1e3)
        loads.append(busy)
        plain.append(waited / expected)
        with_setup.append(waited / (expected + started))
        lindley.append(waited / float(_lindley(sent, service, setup.mean()).mean()))
    if len(waits) < 3:
        goals.undecided(f"{title}: within {WAIT:.0%} of theory", f"steady in {len(waits)} of {len(seeds)} seeds only")
        return
    goals.within(f"{title}: within {WAIT:.0%} of theory", mean(with_setup), 1 - WAIT, 1 + WAIT)
    goals.within(f"{title}: within {RECURSION:.0%} of Lindley", mean(lindley), 1 - RECURSION, 1 + RECURSION)
    print(
        f"   {name}, load {np.mean(loads):.2f}: wait {shown(mean(waits), 2)} ms; over Pollaczek–Khinchine"
        f" {shown(mean(plain), 2)}, with set-up {shown(mean(with_setup), 2)}; over Lindley {shown(mean(lindley))}",
        flush=True,
    )


def _lindley(sent: np.ndarray, service: np.ndarray, setup: float) -> np.ndarray:
    """Each request's wait, from arrivals and service times alone; an idle instance takes `setup` to wake."""
    waits = np.zeros(len(sent))
    free = -np.inf
    for number, (arrived, needs) in enumerate(zip(sent.tolist(), service.tolist())):
        start = free if free > arrived else arrived + setup
        waits[number] = start - arrived
        free = start + needs
    return waits


def law(goals: Goals, name: str, model: Run, pool: list[Arrays], policy: BatchPolicy, load: Load, seeds: int) -> None:
    """One model: L over λW, a value a run."""
    ratios = []
    for _ in range(max(3, seeds // 2)):
        _, record, target = run(model, pool, policy, load)
        count = record.count
        inside = target.executor.statistics.totals().request_seconds
        ratios.append(inside / float((record.finished[:count] - record.sent[:count]).sum()))
    found = mean(ratios)
    goals.within(f"Little's law, {name}: within {LAW:.0%}", found, 1 - LAW, 1 + LAW, 4)
    print(f"   {name:18} {shown(found, 4)}   within {LAW:.0%}: {within(found, 1 - LAW, 1 + LAW)}", flush=True)


def saturation_goal(runtime: str, how: str) -> str:
    return f"{runtime} at saturation, {how}: at least {SHARE:.0%} of the best plain loop"


def saturation(goals: Goals, runtime: str, model: Run, pool: list[Arrays], seconds: float, rounds: int) -> None:
    """The batcher against the best plain loop, by rate and by CPU time (which a busy machine leaves alone)."""
    sizes = {size: plain_loop(model, pool, size, seconds / 3)[0] for size in (1, 2, 4, 8, 16, 32)}
    best = max(sizes, key=sizes.__getitem__)
    print("   plain loop, images/s: " + ", ".join(f"{size}: {rate:.0f}" for size, rate in sizes.items()))
    policy = BatchPolicy(max_batch_size=best, max_queue_size=100_000)
    loops: list[Speed] = []
    behind: dict[str, list[Speed]] = {"as fast as possible": [], "1.5 × too much": []}
    loads = (
        Load(arrivals="offline", seconds=seconds),
        Load(rate=1.5 * sizes[best], seconds=seconds, drain_seconds=0.01),
    )

    def batchers() -> None:
        for speeds, load in zip(behind.values(), loads):
            cpu = time.process_time()
            summary, _, target = run(model, pool, policy, load)
            images = target.executor.statistics.totals().rows
            speeds.append((summary.achieved_per_s, (time.process_time() - cpu) / images))

    for turn in range(rounds):
        if turn % 2:
            batchers()
        loops.append(plain_loop(model, pool, best, seconds))
        if not turn % 2:
            batchers()
    print(f"   in turns: plain loop with batches of {best}: {shown(mean([rate for rate, _ in loops]), 1)} images/s")
    for name, speeds in behind.items():
        share, cpu = (ratio(*([speed[clock] for speed in arm] for arm in (speeds, loops))) for clock in (0, 1))
        goals.at_least(saturation_goal(runtime, name), share, SHARE)
        goal = within(share, SHARE, np.inf)
        print(f"   {name:20}: {shown(share)} of it; CPU an image × {shown(cpu)}   at least {SHARE:.0%}: {goal}")


def plain_loop(model: Run, pool: list[Arrays], size: int, seconds: float) -> Speed:
    """The model called again and again with full batches, made beforehand of the inputs the batcher gets as well."""
    batches = [
        {name: np.concatenate([pool[(first + n) % len(pool)][name] for n in range(size)]) for name in pool[0]}
        for first in range(0, len(pool), size)
    ]
    model(batches[0])
    runs, cpu, start = 0, time.process_time(), time.monotonic()
    while time.monotonic() - start < seconds:
        model(batches[runs % len(batches)])
        runs += 1
    speed = runs * size / (time.monotonic() - start), (time.process_time() - cpu) / (runs * size)
    if "torch" in sys.modules:  # its helpers would slow those of the batcher's thread down
        from engine.runtimes.pytorch import end_openmp_threads

        end_openmp_threads()
    return speed


def run(model: Run, pool: list[Arrays], policy: BatchPolicy, load: Load) -> tuple[LoadSummary, Record, BatcherTarget]:
    """One load test."""
    target = BatcherTarget(model, policy)
    generator = LoadGenerator(target, pool, load)
    record = generator.run()
    return summarise(record, load, generator.sending_ended), record, target


def null(inputs: Arrays) -> Arrays:
    return {"output": inputs["input"]}


def cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main())
