"""Trimtab's best INT8 variant against the best of other tools, model by model, side by side in one process.

    python tests/benchmarks/bench_quantization_peers.py [--models lstm residual_cnn] [--seconds 6] [--threads 2]

The models are the three trained sample models, and on request those in `foreign_models/`: torchvision's and Hugging
Face's, with random weights and a fitted last layer (`random_networks.py` says why), for texts, sounds and pictures.

Peers: ONNX Runtime's quantization tools, NNCF's ONNX backend, Intel Neural Compressor. Each is installed into an
environment of its own in the cache directory the first time (needs a package index, about 1.5 GB), gets the same
exported graph and the same calibration data (256 samples), and quantizes in every way its documentation gives as
default. Trimtab runs a recipe through its own engine: export, optimize-graph, quantize-dynamic, quantize-static.

All files are then timed in one process in turns, with the same session options, at batch 1 and 8; the ratio to the
float graph comes with a 95 % interval. Accuracy is that on the labelled test data (10,000 images; 4,000 samples of
a foreign model), paired with the float graph's; a file passes when the whole interval of its drop lies within one
percentage point. A tool's best is its fastest file that passes (ours may be the exported float graph); where no peer's
passes, ours is compared with the fastest of theirs all the same. The last table says how much faster Trimtab's best is
than each peer's best.

Goals: on each model at least as fast as the fastest peer (to 2 %, for equal files differ by that by chance), and at
least 1.2 times as fast on most.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SAMPLES, FOREIGN = REPOSITORY / "sample_models", HERE / "foreign_models"
sys.path[:0] = [str(REPOSITORY), str(SAMPLES), str(FOREIGN), str(HERE)]

from goals import MET, MISSED, Goals, arguments, product, verdict  # noqa: E402
from peer_environments import PeerUnavailable, python_with  # noqa: E402

from engine.measurements.statistics import Interval, mean_interval  # noqa: E402
from engine.measurements.timing import Arm, log_ratio, time_rounds, warm_up  # noqa: E402

LIMIT = 0.01
"""Largest accepted drop of accuracy."""

WELL_AHEAD, TIE = 1.2, 0.02
"""Goals: how much faster than the fastest peer on most models, and what is no difference."""

BATCH_SIZES = (1, 8)

CALIBRATION_SAMPLES = 256

DEFAULT = ("residual_cnn", "vision_transformer", "lstm")

MODELS = {name: SAMPLES / f"{name}.py" for name in DEFAULT} | {
    name: FOREIGN / f"{name}.py" for name in ("bert", "wav2vec2", "mobilenet_v3", "resnet18", "swin", "convnext")
}
"""Name → model file."""

ARCHITECTURES = {
    "vision_transformer": "vit",
    "bert": "bert",
    "wav2vec2": "conformer",
    "swin": "swin",
    "convnext": "vit",
}
"""Model → what ONNX Runtime's transformer optimiser knows it by, or the nearest it has."""

PEERS = {
    "ONNX Runtime": ("onnxruntime_tools.py", ("onnxruntime=={onnxruntime}", "onnx", "sympy")),
    "NNCF": ("nncf_onnx.py", ("nncf==3.4.0", "onnx", "onnxruntime=={onnxruntime}")),
    "Neural Compressor": (
        "neural_compressor_onnx.py",
        ("neural-compressor==2.6", "onnx==1.16.2", "onnxruntime==1.18.1", "numpy<2", "setuptools<80", "six"),
    ),
}
"""Peer → its script in `quantization_peers/`, and what is installed for it."""

RECIPE = """\
model = {model}
accuracy_limit = {limit}
batch_sizes = [1, 8]

[[steps]]
technique = "export-onnx"
name = "float"

[[steps]]
technique = "optimize-graph"
from = "float"
name = "optimized"

[[steps]]
technique = "quantize-dynamic"
from = "float"
name = "dynamic"

[[steps]]
technique = "quantize-static"
from = "float"
name = "static"

[[steps]]
technique = "quantize-dynamic"
from = "optimized"
name = "optimized, dynamic"

[[steps]]
technique = "quantize-static"
from = "optimized"
name = "optimized, static"
"""


@dataclasses.dataclass
class Candidate:
    """One file of one tool, and what was found out about it."""

    tool: str
    way: str
    path: Path | None
    failure: str | None = None
    drop: Interval | None = None
    """Loss of accuracy against the float graph, as a share."""
    ratios: dict[int, Interval] = dataclasses.field(default_factory=dict)
    """Batch size → time of the float graph over its own."""
    rounds: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    """Batch size → mean log seconds of each round."""

    @property
    def passes(self) -> bool:
        return self.drop is not None and self.drop.high <= LIMIT

    @property
    def speed(self) -> float:
        """Geometric mean of the ratios over the batch sizes."""
        return float(np.exp(np.mean([np.log(ratio.value) for ratio in self.ratios.values()])))


class Samples:
    """The data of a model file as arrays, by the names of the graph's inputs."""

    def __init__(self, model: Path, graph: Path) -> None:
        self._file = importlib.import_module(model.stem)
        self._names = [value.name for value in _session(graph, 1).get_inputs()]

    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        return self._arrays(self._file.example_input(batch_size))

    def calibration(self) -> dict[str, np.ndarray]:
        """The first of the calibration data."""
        batches = [self._arrays(inputs) for inputs, _ in self._file.calibration_data()]
        return {name: np.concatenate([batch[name] for batch in batches])[:CALIBRATION_SAMPLES] for name in self._names}

    def test(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Batches of inputs and labels."""
        return ((self._arrays(inputs), labels.numpy()) for inputs, labels in self._file.test_data())

    def _arrays(self, inputs: Any) -> dict[str, np.ndarray]:
        given = inputs if isinstance(inputs, dict) else {self._names[0]: inputs}
        return {name: given[name].numpy() for name in self._names}


def main() -> int:
    """Quantize with every tool, time everything, print the tables."""
    parser = arguments(__doc__, "10 to 15 minutes, and some to install the peers the first time,")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(DEFAULT))
    parser.add_argument("--seconds", type=float, default=6.0, help="to time one file at one batch size, about")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    began = time.monotonic()
    environments = {peer: _environment(peer) for peer in PEERS}
    summary: list[str] = []
    goals, leads = Goals(), dict[str, Interval]()
    for name in options.models:
        print(f"\n== {name}", flush=True)
        with tempfile.TemporaryDirectory() as place:
            source, ours = _trimtab(name, Path(place))
            samples = Samples(MODELS[name], source)
            reference = Candidate("float", "ONNX Runtime FP32", source)
            found = [reference, *ours, *_peers(name, source, samples, Path(place), environments)]
            _measure_accuracy(found, samples, options.threads)
            usable = [candidate for candidate in found if candidate.path is not None]
            for batch_size in BATCH_SIZES:
                _time(usable, samples.example(batch_size), batch_size, options.threads, options.seconds)
            print(_table(found))
            judged = [candidate for candidate in usable if candidate is not reference]
            summary += _against(name, judged)
            _judge(goals, leads, name, usable)
    print("\n== Trimtab's best that passes against each peer's best that passes (above 1: Trimtab is faster)")
    print("\n".join(summary))
    print(f"\n{time.monotonic() - began:.0f} s; {options.threads} threads; onnxruntime {onnxruntime.__version__}")
    verdicts = [verdict(lead, WELL_AHEAD, float("inf")) for lead in leads.values()]
    title = f"at least {WELL_AHEAD:g} × as fast as the fastest peer on most models"
    told = ", ".join(f"{name} {lead.value:.2f}" for name, lead in leads.items())
    needed = len(options.models) // 2 + 1
    if verdicts.count(MET) >= needed or verdicts.count(MISSED) > len(options.models) - needed:
        goals.counted(title, verdicts.count(MET) >= needed, told)
    else:
        goals.undecided(title, told or "nothing to compare")
    return goals.judged()


def _environment(peer: str) -> Path | str:
    """The Python of the peer's environment, made when it is not there; or why it cannot be made."""
    wanted = [package.format(onnxruntime=onnxruntime.__version__) for package in PEERS[peer][1]]
    try:
        return python_with(peer.lower().replace(" ", "-"), *wanted, shared=())
    except PeerUnavailable as reason:
        return f"cannot be installed on Python {sys.version_info.major}.{sys.version_info.minor}: {str(reason)[:300]}"


def _trimtab(name: str, place: Path) -> tuple[Path, list[Candidate]]:
    """(the float graph, every variant that quantizes), made by a recipe in an engine of its own."""
    recipe, session = place / "recipe.toml", place / f"{name}.trimtab"
    recipe.write_text(RECIPE.format(model=json.dumps(str(MODELS[name])), limit=LIMIT))
    assert tomllib.loads(recipe.read_text())
    trimtab = [str(Path(sys.executable).with_name("trimtab"))]
    environment = os.environ | {"XDG_STATE_HOME": str(place / "state")}
    began = time.monotonic()
    try:
        run = subprocess.run(
            [*trimtab, "run", str(recipe), "--session", str(session), "--json", "--quiet"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    finally:
        subprocess.run([*trimtab, "stop", "--session", str(session)], capture_output=True, check=False, env=environment)
    report = json.loads(run.stdout)
    print(f"Trimtab's recipe: {time.monotonic() - began:.0f} s", flush=True)
    files = {
        variant["id"]: next((session / "variants" / variant["id"]).glob("*.onnx"))
        for variant in report["variants"]
        if variant["format"] == "onnx"
    }
    names = {variant["id"]: variant["name"] for variant in report["variants"]}
    candidates: list[Candidate] = []
    for step in report["steps"]:
        if step["status"] != "succeeded":
            candidates.append(Candidate("Trimtab", step["name"], None, step["reason"] or step["status"]))
        elif step["name"] != "float":
            candidates += [Candidate("Trimtab", names[id], files[id]) for id in step["variants"]]
    return files[next(step["variant"] for step in report["steps"] if step["name"] == "float")], candidates


def _peers(
    name: str, source: Path, samples: Samples, place: Path, environments: dict[str, Path | str]
) -> Iterator[Candidate]:
    """What each peer makes of the float graph."""
    calibration = place / "calibration.npz"
    np.savez(calibration, **samples.calibration())  # type: ignore[arg-type]
    for peer, (script, _) in PEERS.items():
        python = environments[peer]
        if isinstance(python, str):
            yield Candidate(peer, "–", None, python)
            continue
        directory = place / script.removesuffix(".py")
        directory.mkdir()
        ran = subprocess.run(
            [python, HERE / "quantization_peers" / script, source, calibration, directory, ARCHITECTURES.get(name, "")],
            capture_output=True,
            text=True,
            check=False,
            cwd=directory,
        )
        told = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"way"')]
        if not told:
            last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
            yield Candidate(peer, "–", None, f"failed: {last[:200]}")
        for entry in told:
            yield Candidate(peer, entry["way"], Path(entry["file"]) if entry["file"] else None, entry["failure"])


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """The same options for every file; threads stop spinning when a run ends, or they would rob the next file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _measure_accuracy(candidates: list[Candidate], samples: Samples, threads: int) -> None:
    """Drop on the labelled test data, paired with the first candidate. A file that cannot run is dropped."""
    right: np.ndarray | None = None
    for candidate in candidates:
        if candidate.path is None:
            continue
        try:
            session = _session(candidate.path, threads)
            hits = np.concatenate(
                [session.run(None, inputs)[0].argmax(1) == labels for inputs, labels in samples.test()]
            ).astype(float)
        except Exception as error:  # a graph ONNX Runtime cannot run raises classes of its own
            candidate.path, candidate.failure = None, f"cannot run: {str(error).strip().splitlines()[0][:160]}"
            continue
        right = hits if right is None else right
        candidate.drop = mean_interval(right - hits)


def _time(
    candidates: list[Candidate], feed: dict[str, np.ndarray], batch_size: int, threads: int, seconds: float
) -> None:
    """Time all files in turns; ratios are to the first."""
    arms = []
    for candidate in candidates:
        session = _session(candidate.path, threads)  # type: ignore[arg-type]
        arms.append(Arm(candidate.way, lambda session=session: session.run(None, feed)))  # type: ignore[misc]
    for position, arm in enumerate(arms):
        arm.name = str(position)
        warm_up(arm)
    time_rounds(arms, (arms[0], arms[1]), budget=seconds * len(arms))
    for candidate, arm in zip(candidates, arms, strict=True):
        candidate.rounds[batch_size] = arm.rounds
        logs = log_ratio(arms[0], arm)
        candidate.ratios[batch_size] = Interval(*np.exp(logs).tolist())
    print(f"batch {batch_size}: {len(arms[0].rounds)} rounds of {len(arms)} files", flush=True)


def _table(candidates: list[Candidate]) -> str:
    rows = [
        f"{'tool':18} {'way':32} {'MB':>5} {'drop':>7}  limit  " + "  ".join(f"{f'batch {b}':24}" for b in BATCH_SIZES)
    ]
    for candidate in candidates:
        start = f"{candidate.tool:18} {candidate.way[:32]:32}"
        if candidate.path is None or candidate.drop is None:
            rows.append(f"{start} {candidate.failure}")
            continue
        size = candidate.path.stat().st_size / 1e6
        cells = []
        for batch_size in BATCH_SIZES:
            ratio, ms = candidate.ratios[batch_size], 1e3 * np.exp(np.mean(candidate.rounds[batch_size]))
            cells.append(f"{ms:7.3f} ms {ratio.value:5.2f}× [{ratio.low:.2f}–{ratio.high:.2f}]")
        verdict = "pass" if candidate.passes else "FAIL"
        rows.append(f"{start} {size:5.2f} {100 * candidate.drop.value:+6.2f}%  {verdict}   " + "  ".join(cells))
    return "\n".join(rows)


def _against(name: str, candidates: list[Candidate]) -> Iterator[str]:
    """One line for each peer."""
    passing = [candidate for candidate in candidates if candidate.passes]
    ours = max((c for c in passing if c.tool == "Trimtab"), key=lambda c: c.speed, default=None)
    if ours is None:
        yield f"{name:20} Trimtab has no variant within the limit but the exported float graph"
        return
    for peer in PEERS:
        best = max((c for c in passing if c.tool == peer), key=lambda c: c.speed, default=None)
        if best is None:
            yield f"{name:20} {ours.way:24} {ours.speed:5.2f}×   {peer}: nothing passes the limit"
            continue
        cells, logs = [], []
        for batch_size in BATCH_SIZES:
            first, second = Arm("", lambda: None), Arm("", lambda: None)
            first.rounds, second.rounds = best.rounds[batch_size], ours.rounds[batch_size]
            ratio = log_ratio(first, second)
            logs.append(ratio.value)
            cells.append(
                f"batch {batch_size}: {np.exp(ratio.value):.2f} [{np.exp(ratio.low):.2f}–{np.exp(ratio.high):.2f}]"
            )
        peers = f"{peer}: {best.way} {best.speed:.2f}×"
        yield (
            f"{name:20} {ours.way:24} {ours.speed:5.2f}×   {peers:52} {'  '.join(cells)}   "
            f"together {np.exp(np.mean(logs)):.2f}"
        )


def _judge(goals: Goals, leads: dict[str, Interval], name: str, candidates: list[Candidate]) -> None:
    """Trimtab's best against the fastest of all peers, over the batch sizes together."""
    title = f"{name}: at least as fast as the fastest peer within the limit"
    passing = sorted((c for c in candidates if c.passes), key=lambda c: c.speed)
    # Of ours the exported float graph is one: where INT8 costs too much it is what is kept.
    ours = next((c for c in reversed(passing) if c.tool in ("Trimtab", "float")), None)
    best = next((c for c in reversed(passing) if c.tool in PEERS), None)
    if best is None:  # then what they are fastest with, though it answers worse than is allowed
        title = f"{name}: at least as fast as the fastest peer, none of which is within the limit"
        best = max((c for c in candidates if c.ratios and c.tool in PEERS), key=lambda c: c.speed, default=None)
    if ours is None:
        goals.counted(title, False, "Trimtab has no variant within the limit")
    elif best is None:
        goals.undecided(title, "no peer has a file that runs, or none could be installed")
    else:
        ratios = []
        for batch_size in BATCH_SIZES:
            first, second = Arm("", lambda: None), Arm("", lambda: None)
            first.rounds, second.rounds = best.rounds[batch_size], ours.rounds[batch_size]
            ratios.append(Interval(*np.exp(log_ratio(first, second)).tolist()))
        leads[name] = product(ratios)
        goals.at_least(f"{title} ({best.tool})", leads[name], 1 - TIE)


if __name__ == "__main__":
    sys.exit(main())
