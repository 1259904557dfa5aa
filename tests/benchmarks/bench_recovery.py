"""How well the small networks do: the sample models distilled and cut with the techniques' defaults, on test data.

    python tests/benchmarks/bench_recovery.py                     # all rows, three seeds: an hour on two cores
    python tests/benchmarks/bench_recovery.py --keep results      # goes on where it was stopped
    python tests/benchmarks/bench_recovery.py taught alone        # some rows only

Rows: "taught" is a student derived from the CNN and distilled, "alone" the same student trained on the labels without
the teacher (alpha = 0) and otherwise alike, "transformer" and "cnn" are cut by `prune-structured`. Accuracy is top-1 on
all 10,000 test images, which no training and no choice of parameters inside the techniques looks at. A seed decides the
order and the distortions of the training images. Points are percentage points.
"""

import argparse
import contextlib
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "engine"), str(REPOSITORY / "sample_models")]

import fashion_mnist  # noqa: E402
from learning_models import adopted, baseline, make_job  # noqa: E402

from engine.models import open_model  # noqa: E402
from engine.protocol import ModelSource, Progressed  # noqa: E402
from engine.techniques import find_technique, parse_parameters  # noqa: E402

ROWS = {
    "taught": ("residual_cnn.py", "distill", {"student": "derived", "epochs": 3.0}),
    "alone": ("residual_cnn.py", "distill", {"student": "derived", "epochs": 3.0, "alpha": 0.0}),
    "transformer": ("vision_transformer.py", "prune-structured", {"keep_macs": 0.65}),
    "cnn": ("residual_cnn.py", "prune-structured", {"keep_macs": 0.4}),
}
"""Row → (sample model, technique, what differs from its defaults)."""


def main() -> None:
    """Run what is not known yet, then print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows (default: all)")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--keep", type=Path, help="a directory for results and checkpoints")
    asked = arguments.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() if asked.keep is None else contextlib.nullcontext(asked.keep) as place:
        directory = Path(place).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        results = [result_of(row, seed, directory) for seed in range(asked.seeds) for row in asked.rows or ROWS]
    print_table(results)


def result_of(row: str, seed: int, directory: Path) -> dict:
    """One run's figures: from the directory if they are there, else after running it (it resumes if it was stopped)."""
    file, technique, changes = ROWS[row]
    path = directory / f"{row}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    source = REPOSITORY / "sample_models" / file
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    model = open_model(ModelSource(path=str(source), kind="python", sha256=sha256))
    model.file.train_data = lambda: fashion_mnist.train_batches(model.file.SAMPLE_SHAPE, seed=seed)
    session = directory / f"{row}-{seed}"
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
    result = {
        "row": row,
        "seed": seed,
        "before": accuracy_before(model, before, directory / f"{Path(file).stem}.json"),
        "after": test_accuracy(model, after.module()),
        "parameters": files.parameter_count / before.record.parameter_count,
        "macs": files.macs / before.record.macs,
        "seconds": seconds,
    }
    path.write_text(json.dumps(result))
    return result


def accuracy_before(model, before, path: Path) -> float:
    """Of the whole network, measured once for all rows."""
    if not path.exists():
        path.write_text(json.dumps(test_accuracy(model, before.module())))
    return json.loads(path.read_text())


@torch.no_grad()
def test_accuracy(model, module) -> float:
    """Top-1 on the sample's test data, fraction."""
    right = total = 0
    for inputs, labels in model.file.test_data():
        right += int((module(inputs).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


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
    """One line a row: the seeds' accuracies, the mean drop against the network it was made from, and its size."""
    print(f"{'row':12} {'before':>8} {'after, by seed':>26} {'mean drop':>11} {'smaller':>11} {'MACs':>7} {'time':>8}")
    for row in ROWS:
        found = [result for result in results if result["row"] == row]
        if not found:
            continue
        after = " ".join(f"{result['after']:.2%}" for result in found)
        drop = statistics.mean(result["before"] - result["after"] for result in found) * 100
        print(
            f"{row:12} {found[0]['before']:8.2%} {after:>26} {drop:+7.2f} pts {1 / found[0]['parameters']:9.1f}× "
            f"{found[0]['macs'] - 1:+7.0%} {statistics.median(result['seconds'] for result in found):6.0f} s"
        )
    taught, alone = ({r["seed"]: r["after"] for r in results if r["row"] == row} for row in ("taught", "alone"))
    gains = [taught[seed] - alone[seed] for seed in sorted(taught.keys() & alone.keys())]
    if gains:
        each = ", ".join(f"{gain * 100:+.2f}" for gain in gains)
        print(f"The teacher is worth {statistics.mean(gains) * 100:+.2f} points to the student (by seed: {each}).")


if __name__ == "__main__":
    main()
