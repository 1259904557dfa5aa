"""How well the small networks do: the sample models distilled and cut with the techniques' defaults, on test data.

    python tests/benchmarks/bench_recovery.py                     # all rows, three seeds
    python tests/benchmarks/bench_recovery.py --keep results      # goes on where it was stopped
    python tests/benchmarks/bench_recovery.py taught alone        # some rows only

Rows: "student" is the default of `trimtab apply distill`, the CNN's own student_model(), which starts untrained;
"taught" is a student derived from the CNN, which starts from the teacher's weights; "… alone" are the same students
trained on the labels without the teacher (alpha = 0) and otherwise alike; "transformer" and "cnn" are cut by
`prune-structured`. Accuracy is top-1 on all 10,000 test images, which no training and no choice of parameters inside
the techniques looks at. A seed decides the order and the distortions of the training images, and an untrained
student's weights. Points are percentage points; a drop's interval has both in it, that the test images are a sample
(the same ones for all networks, so pairs are counted) and that seeds differ. The cut CNN takes turns with the whole
one under eager PyTorch and under ONNX Runtime, both exported with Trimtab's defaults.
"""

import contextlib
import hashlib
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "engine"), str(REPOSITORY / "sample_models")]

import fashion_mnist  # noqa: E402
from goals import Goals, arguments, product  # noqa: E402
from learning_models import adopted, baseline, make_job  # noqa: E402
from technique_jobs import apply  # noqa: E402

from engine.measurements.statistics import Interval  # noqa: E402
from engine.measurements.timing import Arm, log_ratio, time_rounds, warm_up  # noqa: E402
from engine.models import open_model  # noqa: E402
from engine.protocol import ModelSource, Progressed  # noqa: E402
from engine.runtimes import load  # noqa: E402
from engine.techniques import find_technique, parse_parameters  # noqa: E402

ROWS = {
    "student": ("residual_cnn.py", "distill", {}),
    "student alone": ("residual_cnn.py", "distill", {"alpha": 0.0}),
    "taught": ("residual_cnn.py", "distill", {"student": "derived", "epochs": 3.0}),
    "taught alone": ("residual_cnn.py", "distill", {"student": "derived", "epochs": 3.0, "alpha": 0.0}),
    "transformer": ("vision_transformer.py", "prune-structured", {"keep_macs": 0.65}),
    "cnn": ("residual_cnn.py", "prune-structured", {"keep_macs": 0.28, "round_to": 16}),
}
"""Row → (sample model, technique, what differs from its defaults)."""

STUDENTS = ("student", "taught")
"""Rows that have another one without the teacher beside them."""

TIMED = "cnn"
"""The row whose latency is measured."""

BATCH, TIMING_SECONDS = 8, 30.0

STUDENT_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Seeds → the 97.5 % quantile of Student's t for their mean."""

QUICK = {"epochs": 0.02, "fine_tune_epochs": 0.02}
"""What `--quick` trains for."""


def main() -> int:
    """Run what is not known yet, then print the table and judge it."""
    parser = arguments(__doc__, "two hours on two cores")
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", type=Path, help="a directory for results and checkpoints")
    parser.add_argument("--quick", action="store_true", help="hardly any training, one seed: shows that it works")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    seeds = 1 if asked.quick else asked.seeds
    with tempfile.TemporaryDirectory() if asked.keep is None else contextlib.nullcontext(asked.keep) as place:
        directory = Path(place).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        runs = [(row, seed) for seed in range(seeds) for row in asked.rows or ROWS]
        results = [result_of(row, seed, directory, asked.quick) for row, seed in runs]
    print_table(results)
    return judged(results, asked.threads)


def result_of(row: str, seed: int, directory: Path, quick: bool) -> dict:
    """One run's figures: from the directory if they are there, else after running it (it resumes if it was stopped)."""
    file, technique, changes = ROWS[row]
    name = f"{row.replace(' ', '-')}-{seed}"
    path = directory / f"{name}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if "gained" in kept:  # else it is of an older version of this file
            return kept
    if quick:
        name_of_length = "epochs" if technique == "distill" else "fine_tune_epochs"
        changes = {**changes, name_of_length: QUICK[name_of_length]}
    source = REPOSITORY / "sample_models" / file
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    model = open_model(ModelSource(path=str(source), kind="python", sha256=sha256))
    model.file.train_data = lambda: fashion_mnist.train_batches(model.file.SAMPLE_SHAPE, seed=seed)
    session = directory / name
    session.mkdir(exist_ok=True)
    before = baseline(model, session)
    job, _ = make_job(model, session, technique, changes)
    job.spec = msgspec.structs.replace(job.spec, seed=seed, threads=torch.get_num_threads())
    job.send = told(f"{row} {seed}")
    torch.manual_seed(seed)
    start = time.monotonic()
    (files,) = find_technique(technique).function(before, parse_parameters(technique, changes), job)
    seconds = time.monotonic() - start
    after = adopted(model, session, files)
    whole, smaller = answers_before(model, before, directory / f"{Path(file).stem}.npy"), right(model, after.module())
    result = {
        "row": row,
        "seed": seed,
        "before": float(whole.mean()),
        "after": float(smaller.mean()),
        "lost": int((whole & ~smaller).sum()),
        "gained": int((smaller & ~whole).sum()),
        "images": len(whole),
        "parameters": files.parameter_count / before.record.parameter_count,
        "macs": files.macs / before.record.macs,
        "seconds": seconds,
        "faster": speed_ups(before, after, session, 1.0 if quick else TIMING_SECONDS) if row == TIMED else {},
    }
    path.write_text(json.dumps(result))
    return result


def answers_before(model, before, path: Path) -> np.ndarray:
    """What the whole network has right, found out once for all rows."""
    if not path.exists():
        np.save(path, right(model, before.module()))
    return np.load(path)


@torch.no_grad()
def right(model, module) -> np.ndarray:
    """(images,) bool: whether the highest score is the right one, on the sample's test data."""
    return torch.cat([module(inputs).argmax(1) == labels for inputs, labels in model.file.test_data()]).numpy()


def speed_ups(before, after, directory: Path, seconds: float) -> dict[str, Interval]:
    """Runtime → whole network's time / cut network's, taking turns in this process, for batches of `BATCH`."""
    pairs = {"pytorch": (before, after), "onnxruntime": tuple(exported(one, directory) for one in (before, after))}
    found = {}
    for runtime, pair in pairs.items():
        runners = [load(variant, runtime, "cpu", torch.get_num_threads()) for variant in pair]
        inputs = before.model.example(BATCH)
        slow, fast = (Arm(n, r.bind(inputs), r.settle) for n, r in zip(("whole", "cut"), runners, strict=True))
        for arm in (slow, fast):
            warm_up(arm)
        time_rounds([slow, fast], (slow, fast), budget=seconds)
        found[runtime] = Interval(*(math.exp(end) for end in log_ratio(slow, fast)))
        for runner in runners:
            runner.close()
    return found


def exported(variant, directory: Path):
    """The variant as ONNX, made anew: a run that was stopped may have left half of it."""
    return apply(variant, "export-onnx", Path(tempfile.mkdtemp(dir=directory)))


def told(name: str):
    """A job's `send` that prints the progress every ten seconds."""
    last = time.monotonic()

    def send(message) -> None:
        nonlocal last
        if isinstance(message, Progressed) and time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{name}: {message.message}", file=sys.stderr, flush=True)

    return send


def print_table(results: list[dict]) -> None:
    """One line a row: the seeds' accuracies, the mean drop against the network it was made from, its size and speed."""
    print(
        f"{'row':14} {'before':>8} {'after, by seed':>26} {'mean drop':>11} {'smaller':>11} {'MACs':>7} {'time':>8}"
        "  faster than its parent"
    )
    for row in ROWS:
        found = of(results, row)
        if not found:
            continue
        after = " ".join(f"{result['after']:.2%}" for result in found)
        drop = statistics.mean(result["before"] - result["after"] for result in found) * 100
        faster = ", ".join(f"{mean_ratio(found, runtime).value:.2f}× {runtime}" for runtime in found[0]["faster"])
        print(
            f"{row:14} {found[0]['before']:8.2%} {after:>26} {drop:+7.2f} pts {1 / found[0]['parameters']:9.1f}× "
            f"{found[0]['macs'] - 1:+7.0%} {statistics.median(result['seconds'] for result in found):6.0f} s  {faster}"
        )


def judged(results: list[dict], threads: int) -> int:
    """The issue's goals, as far as their rows were run."""
    goals = Goals()
    cnn, transformer = of(results, "cnn"), of(results, "transformer")
    if cnn:
        counted_share(goals, "CNN: at least 60 % fewer multiply-adds", cnn, "macs", 0.4)
        for runtime in cnn[0]["faster"]:
            goals.at_least(f"CNN: at least 2× as fast as its parent, {runtime}", mean_ratio(cnn, runtime), 2.0, 2, "×")
        goals.at_most("CNN: within 1 point", drop_of(cnn), 1.0, 2, " points")
        slowest = max(result["seconds"] for result in cnn)
        if threads == 2:
            goals.counted("CNN: in under 10 minutes on two cores", slowest < 600, f"{slowest:.0f} s at most")
        else:
            goals.undecided("CNN: in under 10 minutes on two cores", f"{slowest:.0f} s at most, on {threads} threads")
    if transformer:
        counted_share(goals, "transformer: at least 35 % fewer multiply-adds", transformer, "macs", 0.65)
        goals.at_most("transformer: within 1.5 points", drop_of(transformer), 1.5, 2, " points")
    for row in STUDENTS:
        found, alone = of(results, row), {result["seed"]: result["after"] for result in of(results, f"{row} alone")}
        if found:
            counted_share(goals, f"{row}: at least 4× fewer parameters", found, "parameters", 0.25)
            goals.at_most(f"{row}: within 2 points", drop_of(found), 2.0, 2, " points")
        gains = [100 * (result["after"] - alone[result["seed"]]) for result in found if result["seed"] in alone]
        if gains:
            goals.at_least(f"{row}: better than without the teacher", spread(gains, 0.0), 0.0, 2, " points")
    return goals.judged()


def of(results: list[dict], row: str) -> list[dict]:
    return [result for result in results if result["row"] == row]


def counted_share(goals: Goals, text: str, found: list[dict], name: str, most: float) -> None:
    """A share of the parent's that is exact, the same for every seed or nearly so."""
    worst = max(result[name] for result in found)
    goals.counted(text, worst <= most, f"{1 - worst:.1%} fewer")


def mean_ratio(found: list[dict], runtime: str) -> Interval:
    """The seeds' speed-ups put together."""
    return product([Interval(*result["faster"][runtime]) for result in found])


def drop_of(found: list[dict]) -> Interval:
    """The mean drop in points. Its images are the same for each seed, so seeds do not make that part smaller."""
    drops, errors = [], []
    for result in found:
        lost, gained, images = result["lost"], result["gained"], result["images"]
        drops.append(100 * (lost - gained) / images)
        errors.append(100 * math.sqrt(lost + gained - (lost - gained) ** 2 / images) / images)
    return spread(drops, statistics.mean(errors))


def spread(values: list[float], error: float) -> Interval:
    """The mean of one value a seed; 95 %, from the seeds' spread and a standard error that they have in common.

    One seed says nothing of others: its interval has no end.
    """
    middle, count = statistics.mean(values), len(values)
    if count < 2:
        return Interval(middle, -math.inf, math.inf)
    seeds = STUDENT_T.get(count, 2.6) * statistics.stdev(values) / math.sqrt(count)
    half = math.hypot(seeds, 1.96 * error)
    return Interval(middle, middle - half, middle + half)


if __name__ == "__main__":
    sys.exit(main())
