"""Hand-made snapshots and an engine that is not there: what the dashboard's tests and pictures draw.

Everything is fixed (the clock too), so a picture of it never changes by itself.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from textual.app import App

from engine.client import EngineError
from engine.client.folding import fold
from engine.protocol import (
    Accuracy,
    ApplyTechnique,
    CancelJob,
    Changed,
    CheckParameters,
    Conditions,
    DeleteVariant,
    Done,
    Exported,
    ExportVariants,
    Failed,
    Field,
    FileRecord,
    GetRecipe,
    GetResults,
    Gpu,
    GpuSample,
    Hardware,
    Job,
    Latency,
    LayerInfo,
    LayerSensitivity,
    Left,
    ListTechniques,
    MeasureVariant,
    MetricHistory,
    ModelInfo,
    ModelSource,
    OpenModel,
    ParametersChecked,
    Processor,
    Queued,
    Ratio,
    ReadLog,
    ReadMetrics,
    RecipeRun,
    RunAccepted,
    Running,
    Sensitivity,
    SessionOptions,
    SetOptions,
    Snapshot,
    Step,
    Succeeded,
    TechniqueInfo,
    Techniques,
    TelemetrySample,
    TensorSpec,
    Text,
    Variant,
)
from tui.app import TrimtabApp

NOW = 1_790_000_000.0
"""The moment of every scene."""

HOSTILE = "conv[/]x\x1b]52;c;AAAA\x07\u202e[red]"
"""A name that would be markup, write to the clipboard, and turn the writing direction."""

PROCESSOR = Processor(
    name="AMD EPYC 7763 64-Core Processor",
    features=("avx2", "avx512", "vnni"),
    physical_cores=4,
    logical_cores=8,
    memory_bytes=16 * 2**30,
)

OPTIONS = SessionOptions(target="cpu-vnni")

CONDITIONS = {
    runtime: Conditions(runtime=runtime, device="cpu", processor="avx2 avx512 vnni", threads=4)
    for runtime in ("pytorch", "onnxruntime")
}


def variant(
    id: str, name: str, parent: str | None, technique: str | None, size: int, age: float, **more: Any
) -> Variant:
    """A variant with one file."""
    onnx = technique is not None and technique != "prune-structured"
    return Variant(
        id=id,
        name=name,
        parent=parent,
        technique=technique,
        parameters=more.pop("parameters", {}),
        format="onnx" if onnx else "pytorch",
        files=(FileRecord(path="model.onnx" if onnx else "weights.safetensors", sha256="ab" * 32, size_bytes=size),),
        size_bytes=size,
        created=NOW - age,
        target="cpu-vnni",
        processor="avx2 avx512 vnni",
        parameter_count=more.pop("parameter_count", 2_797_610),
        macs=more.pop("macs", 139_000_000),
        **more,
    )


def latency(variant: str, batch: int, p50: float, ratio: float | None, spread: float = 0.02, **more: Any) -> Latency:
    """A latency; `ratio` None for the baseline itself, `parent` (name, ratio) where it was timed beside its parent."""
    parent = more.pop("parent", None)
    runtime = more.pop("runtime", "onnxruntime")
    verdict = "SAME" if ratio and abs(ratio - 1) <= spread else "FASTER" if ratio and ratio > 1 else "SLOWER"
    against = f"baseline · pytorch · cpu · batch {batch}"
    speedup = (
        Ratio(ratio=ratio, low=ratio * (1 - spread), high=ratio * (1 + spread), verdict=verdict, against=against)
        if ratio
        else None
    )
    over = speedup
    if parent is not None and speedup is not None:
        name, gain = parent
        words = f"{name} · {runtime} · cpu · batch {batch}"
        over = Ratio(ratio=gain, low=gain * 0.98, high=gain * 1.02, verdict="FASTER", against=words)
    return Latency(
        id=f"l-{variant}-{runtime}-{batch}",
        variant=variant,
        job="j1",
        created=NOW - 100,
        conditions=CONDITIONS[runtime],
        batch_size=batch,
        p50_ms=p50,
        p90_ms=p50 * 1.08,
        p99_ms=p50 * 1.31,
        throughput_per_s=batch / p50 * 1000 * 0.98,
        samples=400,
        speedup=speedup,
        speedup_over_parent=over,
        noise_floor=0.011,
    )


def accuracy(variant: str, value: float, drop: float, verdict: Any, spread: float = 0.003, **more: Any) -> Accuracy:
    """An accuracy on 10,000 labelled samples."""
    return Accuracy(
        id=f"a-{variant}",
        variant=variant,
        job="j1",
        created=NOW - 90,
        conditions=CONDITIONS[more.pop("runtime", "onnxruntime")],
        kind=more.pop("kind", "accuracy"),
        value=value,
        samples=10_000,
        drop=drop,
        low=drop - spread,
        high=drop + spread,
        limit=0.01,
        verdict=verdict,
        baseline_value=0.9241,
        flipped_to_wrong=61,
        flipped_to_right=40,
        cosine=0.9968,
        sentence="The drop is 0.21 points (95 % interval −0.09 to 0.51), within the limit of 1.00.",
    )


VARIANTS = (
    variant("v0", "baseline", None, None, 11_214_000, 900),
    variant(
        "v1",
        "onnx",
        "v0",
        "export-onnx",
        11_209_000,
        800,
        changed=Changed(
            summary="Exported with a dynamic batch axis; outputs equal PyTorch's at batch 1 and 8.", touched=("graph",)
        ),
    ),
    variant(
        "v2",
        "int8",
        "v1",
        "quantize-static",
        2_934_000,
        700,
        parameters={"calibration_samples": 256, "per_channel": True, "activations": "uint8"},
        changed=Changed(
            summary="56 of 64 nodes run in INT8.",
            touched=tuple(f"node_conv_{n}" for n in range(56)),
            left=(
                Left(name="node_add_3", reason="the most sensitive by SQNR: 8 of 64 stay in float"),
                Left(name="node_softmax", reason="no INT8 kernel in ONNX Runtime"),
            ),
            figures={"quantized_weight_share": 0.962, "calibration_samples": 256},
        ),
    ),
    variant("v3", "int8-dynamic", "v1", "quantize-dynamic", 10_950_000, 600),
    variant("v4", "prune 50 %", "v0", "prune-structured", 3_120_000, 500, parameter_count=702_000, macs=36_000_000),
)

MEASUREMENTS = (
    latency("v0", 8, 9.80, None, runtime="pytorch"),
    latency("v0", 1, 2.41, None, runtime="pytorch"),
    accuracy("v0", 0.9241, 0.0, "PASS", runtime="pytorch"),
    latency("v1", 8, 4.30, 2.28, 0.03),
    latency("v1", 1, 1.02, 2.36, 0.04),
    accuracy("v1", 0.9241, 0.0, "PASS", 0.0),
    latency("v2", 8, 2.38, 4.11, 0.09, parent=("onnx", 1.83)),
    latency("v2", 1, 0.61, 3.95, 0.05, parent=("onnx", 1.66)),
    accuracy("v2", 0.9220, 0.0021, "PASS"),
    latency("v3", 8, 12.9, 0.76, 0.05),
    latency("v3", 1, 3.3, 0.73, 0.02),
    accuracy("v3", 0.9236, 0.0005, "NOT ENOUGH DATA", 0.011),
    latency("v4", 8, 5.16, 1.90, 0.02, runtime="pytorch"),
    latency("v4", 1, 1.3, 1.85, 0.02, runtime="pytorch"),
    accuracy("v4", 0.9102, 0.0139, "FAIL", runtime="pytorch"),
)

JOBS = (
    Job(
        id="j0",
        kind="open-model",
        title="open residual_cnn.py",
        created=NOW - 910,
        state=Succeeded(
            started=NOW - 910, finished=NOW - 900, variants=("v0",), summary="labelled test data, 64 layers"
        ),
    ),
    Job(
        id="j1",
        kind="export-onnx",
        title="export-onnx on baseline",
        created=NOW - 810,
        variant="v0",
        state=Succeeded(started=NOW - 810, finished=NOW - 801.9, variants=("v1",), summary="onnx: outputs equal"),
    ),
    Job(
        id="j2",
        kind="quantize-static",
        title="quantize-static on onnx",
        created=NOW - 741,
        variant="v1",
        state=Succeeded(
            started=NOW - 741, finished=NOW - 700, variants=("v2",), summary="int8: 56 of 64 nodes in INT8"
        ),
    ),
    Job(
        id="j3",
        kind="quantize-dynamic",
        title="quantize-dynamic on int8",
        created=NOW - 400,
        variant="v2",
        state=Failed(
            started=NOW - 400,
            finished=NOW - 399,
            reason="int8 is quantized already: apply quantize-dynamic to its parent onnx.",
            cause="refused",
        ),
    ),
    Job(
        id="j4",
        kind="quantize-static",
        title="quantize-static on onnx",
        created=NOW - 60,
        variant="v1",
        state=Running(started=NOW - 57, pid=4242, done=27, total=64, message="calibrating batch 27 of 64"),
    ),
    Job(
        id="j5",
        kind="latency",
        title="latency of int8",
        created=NOW - 50,
        variant="v2",
        state=Queued(waiting_for="cpu"),
    ),
)


def telemetry(gpus: int = 0, seconds: float = 120.0) -> tuple[TelemetrySample, ...]:
    """Two minutes at 2 Hz: waves, a plateau, and a job in the second half."""
    samples = []
    count = int(seconds * 2)
    for step in range(count):
        t = NOW - seconds + (step + 1) / 2
        wave = 0.5 + 0.4 * math.sin(step / 14) * math.cos(step / 37)
        busy = 0.97 if 120 < step < 170 else wave
        cores = tuple(min(max(busy + 0.25 * math.sin(step / 5 + core), 0.02), 1.0) for core in range(8))
        samples.append(
            TelemetrySample(
                time=t,
                cpu=busy,
                cores=cores,
                memory_used_bytes=int((5.2 + 2.2 * step / count) * 2**30),
                memory_total_bytes=16 * 2**30,
                gpus=tuple(
                    GpuSample(
                        index=index,
                        utilisation=min(max(busy - 0.3 * index, 0.0), 1.0),
                        memory_used_bytes=int((12.4 + 20 * index) * 2**30),
                        memory_total_bytes=80 * 2**30,
                        power_w=312.0 - 90 * index,
                        temperature_c=62.0 + index,
                        sm_clock_mhz=1980,
                        memory_clock_mhz=2619,
                        throttle=("power cap",) if index == 1 else (),
                    )
                    for index in range(gpus)
                ),
                job="j4" if step > 125 else None,
            )
        )
    return tuple(samples)


def hardware(gpus: int = 0) -> Hardware:
    """This machine, with so many GPUs."""
    return Hardware(
        hostname="gpu-box",
        processor=PROCESSOR,
        gpus=tuple(
            Gpu(
                index=index,
                uuid=f"GPU-{index}",
                name="NVIDIA H100 80GB HBM3",
                memory_bytes=80 * 2**30,
                power_limit_w=700.0,
                compute_capability="9.0",
            )
            for index in range(gpus)
        ),
        driver="580.12" if gpus else None,
    )


def model(name: str = "residual_cnn") -> ModelInfo:
    """What the model file offers."""
    return ModelInfo(
        name=name,
        source=ModelSource(path=f"/models/{name}.py", kind="python", sha256="cd" * 32),
        inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 28, 28)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),),
        offers=("train_data", "test_data"),
        labelled=True,
        layers=(LayerInfo(name="stem.conv", type="Conv2d", parameter_count=320),),
        operators=("Conv", "Relu", "Gemm"),
    )


def work(gpus: int = 0) -> Snapshot:
    """The middle of an afternoon: five variants, a job at work, one waiting, one that failed."""
    return Snapshot(
        seq=41,
        session="/work/residual_cnn.trimtab",
        hardware=hardware(gpus),
        options=OPTIONS,
        model=model(),
        variants=VARIANTS,
        measurements=MEASUREMENTS,
        jobs=JOBS,
        telemetry=telemetry(gpus),
    )


def fresh() -> Snapshot:
    """A session in which nothing has happened."""
    return Snapshot(seq=1, session="/work/new.trimtab", hardware=hardware(), options=OPTIONS, telemetry=telemetry())


TRAINING_JOB = Job(
    id="j6",
    kind="prune-structured",
    title="Structured pruning of baseline",
    created=NOW - 200,
    variant="v0",
    state=Running(started=NOW - 190, pid=4243, done=520, total=1000, message="fine-tuning: step 520 of 1000"),
    metrics={
        "steps_per_epoch": 200.0,
        "total_steps": 1000.0,
        "accuracy_before": 0.9241,
        "loss": 0.312,
        "accuracy": 0.9121,
    },
)


def curve_points() -> tuple[tuple[str, float, int, float], ...]:
    """What `TRAINING_JOB` reported so far, with its facts, as the engine's history has it."""
    facts = [(name, TRAINING_JOB.metrics[name], 0, NOW - 190) for name in ("steps_per_epoch", "total_steps")]
    facts.append(("accuracy_before", 0.9241, 0, NOW - 190))
    points = [
        ("loss", 0.3 + 1.9 * math.exp(-step / 80) + 0.06 * math.sin(step * 1.7), step, NOW - 190 + step / 3)
        for step in range(5, 520, 5)
    ]
    points.append(("loss", 0.312, 520, NOW - 1))
    points += [
        ("accuracy", 0.9130 - 0.4 * math.exp(-step / 90), step, NOW - 190 + step / 3) for step in range(100, 500, 100)
    ]
    points.append(("accuracy", 0.9121, 500, NOW - 8))
    return (*facts, *points)


def training() -> Snapshot:
    """A pruned network is being fine-tuned, a little over the middle."""
    snapshot = work()
    jobs = tuple(job for job in snapshot.jobs if job.is_done)
    return msgspec.structs.replace(snapshot, jobs=(*jobs, TRAINING_JOB))


def scan() -> Sensitivity:
    """A sensitivity scan of the baseline: deeper layers mind more."""
    ratios = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    names = ("stem.conv", "stages.0.0.conv1", "stages.0.1.conv1", "stages.1.0.conv1", "stages.1.1.conv1", "neck")
    layers = tuple(
        LayerSensitivity(
            name=name,
            kind="channels",
            width=32 * (1 + depth // 2),
            accuracy=tuple(0.92 - 0.0003 * (depth + 1) * math.exp(5 * ratio) for ratio in ratios),
            macs=tuple(round(139e6 * (1 - 0.2 * ratio)) for ratio in ratios),
        )
        for depth, name in enumerate(names)
    )
    return Sensitivity(
        id="s1",
        variant="v0",
        job="j9",
        created=NOW - 30,
        conditions=CONDITIONS["pytorch"],
        accuracy=0.92,
        samples=1000,
        ratios=ratios,
        layers=layers,
        macs=139_000_000,
    )


def scanned() -> Snapshot:
    """The afternoon's work, with the baseline's layers scanned."""
    snapshot = work()
    return msgspec.structs.replace(snapshot, measurements=(*snapshot.measurements, scan()))


def hostile() -> Snapshot:
    """Every foreign text there is, hostile."""
    snapshot = work(1)
    bad = HOSTILE
    return msgspec.structs.replace(
        snapshot,
        session=f"/tmp/{bad}",
        model=msgspec.structs.replace(model(), name=bad, outputs=(TensorSpec(name=bad, dtype=bad, shape=(bad,)),)),
        options=msgspec.structs.replace(snapshot.options, target=bad),
        variants=tuple(
            msgspec.structs.replace(
                one,
                name=bad + one.name,
                technique=one.technique and bad,
                target=bad,
                processor=bad,
                parameters={bad: bad},
                changed=Changed(summary=bad, touched=(bad,), left=(Left(name=bad, reason=bad),), figures={bad: bad}),
                files=(FileRecord(path=bad, sha256=bad, size_bytes=1),),
            )
            for one in snapshot.variants
        ),
        measurements=tuple(
            msgspec.structs.replace(
                one,
                conditions=msgspec.structs.replace(
                    one.conditions,
                    runtime=bad,
                    device=bad,
                    processor=bad,
                    providers=(bad,),
                    versions={bad: bad},
                    notes=(bad,),
                ),
                **({"sentence": bad} if isinstance(one, Accuracy) else {}),
            )
            for one in snapshot.measurements
        ),
        jobs=tuple(
            msgspec.structs.replace(
                job,
                title=bad,
                kind=bad,
                device=bad,
                state=msgspec.structs.replace(
                    job.state,
                    **{
                        field: bad
                        for field in ("message", "summary", "reason", "waiting_for")
                        if hasattr(job.state, field)
                    },
                ),
            )
            for job in snapshot.jobs
        ),
        runs=(
            RecipeRun(
                id="r",
                title=bad,
                created=NOW,
                error=bad,
                steps=(Step(name=bad, kind="technique", word=bad, status="refused", reason=bad),),
            ),
        ),
        hardware=msgspec.structs.replace(
            snapshot.hardware,
            hostname=bad,
            gpu_status=bad,
            processor=msgspec.structs.replace(PROCESSOR, name=bad, features=(bad,)),
            gpus=tuple(msgspec.structs.replace(gpu, name=bad) for gpu in snapshot.hardware.gpus),
        ),
        notices=(bad,),
    )


def techniques(unavailable: str | None = None) -> Techniques:
    """Three techniques of two groups; the last cannot be applied."""
    return Techniques(
        techniques=(
            TechniqueInfo(
                tag="quantize-static",
                title="Static INT8 quantization",
                group="quantization",
                summary="Weights and activations in INT8, ranges from calibration data.",
                expectation="size 25 %, 2–4× faster, 0.5–1 % loss",
                unavailable=unavailable,
                fields=(
                    Field(
                        name="calibration_samples",
                        kind="integer",
                        description="samples the ranges are taken from",
                        default=256,
                        minimum=8,
                        maximum=10_000,
                    ),
                    Field(name="per_channel", kind="boolean", description="a scale for each channel", default=True),
                    Field(
                        name="activations",
                        kind="choice",
                        description="number format of activations",
                        optional=True,
                        choices=("uint8", "int8"),
                    ),
                    Field(
                        name="smooth",
                        kind="number",
                        description="share of outliers moved into the weights",
                        default=0.5,
                        minimum=0,
                        maximum=1,
                        exclusive_minimum=True,
                    ),
                ),
            ),
            TechniqueInfo(
                tag="quantize-dynamic",
                title="Dynamic INT8 quantization",
                group="quantization",
                summary="Weights in INT8, activations measured on the fly.",
                fields=(),
            ),
            TechniqueInfo(
                tag="export-onnx",
                title="ONNX export",
                group="ONNX conversion",
                summary="The PyTorch module as an ONNX graph with a dynamic batch axis.",
                fields=(),
                unavailable="ONNX export works on a PyTorch module; onnx is ONNX.",
            ),
        )
    )


def hostile_techniques() -> Techniques:
    """One technique whose every text is hostile."""
    bad = HOSTILE
    field = Field(name="x", kind="text", description=bad, default=bad)
    choice = Field(name="y", kind="choice", choices=(bad, "b"), default=bad)
    return Techniques(
        techniques=(
            TechniqueInfo(tag=bad, title=bad, group=bad, summary=bad, expectation=bad, fields=(field, choice)),
            TechniqueInfo(tag="b", title=bad, group=bad, summary=bad, fields=(), unavailable=bad),
        )
    )


LOG = """quantize-static on onnx, target cpu-vnni
calibrating on 256 samples of train_data()
node_conv_12: 41.2 dB SQNR
node_add_3: 18.4 dB SQNR, left in float
warning: 2 samples hold values above 6 standard deviations
"""

RECIPE = """model = "residual_cnn.py"
accuracy_limit = 0.01

[[steps]]
technique = "export-onnx"
name = "onnx"

[[steps]]
technique = "quantize-static"
name = "int8"
calibration_samples = 256
"""


RESULTS = json.dumps(
    {
        "variants": [
            {
                "name": "int8",
                "technique": "quantize-static",
                "expectation": {
                    "text": "size 25 %, 2–4× faster, 0.5–1 % loss",
                    "expected": {"size": 0.25, "speedup": [2.0, 4.0], "drop": [0.005, 0.01]},
                    "measured": {"size": 0.262, "speedup": 1.8, "drop": 0.0021},
                    "verdict": {"size": "as expected", "speedup": "less", "drop": "less"},
                },
            }
        ]
    }
)
"""What the engine's results say of int8, as far as the dashboard reads them."""


def replies() -> dict[type, Any]:
    """What the scene's engine answers."""

    def log(command: ReadLog) -> Text:
        return Text(text=LOG[command.offset :], next_offset=len(LOG))

    return {
        ListTechniques: techniques(),
        CheckParameters: ParametersChecked(),
        ReadLog: log,
        ReadMetrics: lambda command: MetricHistory(points=curve_points()[command.offset :]),
        GetRecipe: Text(text=RECIPE),
        GetResults: Text(text=RESULTS),
        CancelJob: Done(),
        DeleteVariant: Done(),
        SetOptions: Done(),
        MeasureVariant: RunAccepted(run=RecipeRun(id="r1", title="measure", created=NOW, steps=())),
        ApplyTechnique: RunAccepted(run=RecipeRun(id="r2", title="apply", created=NOW, steps=())),
        OpenModel: RunAccepted(run=RecipeRun(id="r3", title="open", created=NOW, steps=())),
        ExportVariants: Exported(directory="/work/out", files=("report.md", "recipe.toml")),
    }


class SceneEngine:
    """Stands in for a connected engine client: a snapshot, events a test pushes, and replies a test sets."""

    def __init__(self, state: Snapshot, replies: dict[type, Any]) -> None:
        self.state = state
        self.replies = replies
        self.asked: list[Any] = []
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    async def request(self, command: Any) -> Any:
        self.asked.append(command)
        reply = self.replies.get(type(command))
        if callable(reply):
            reply = reply(command)
        if reply is None or isinstance(reply, str):
            raise EngineError(reply or f"This engine has no answer to {type(command).__name__}.")
        return reply

    async def events(self) -> AsyncIterator[Any]:
        while (event := await self._events.get()) is not None:
            self.state = fold(self.state, event)
            yield event

    def push(self, event: Any) -> None:
        """Something happened."""
        self._events.put_nowait(msgspec.structs.replace(event, seq=self.state.seq + 1))

    def vanish(self) -> None:
        """The connection ends."""
        self._events.put_nowait(None)

    async def aclose(self) -> None:
        """Nothing to close."""


def app_of(snapshot: Snapshot, answers: dict[type, Any] | None = None, **options: Any) -> TrimtabApp:
    """The dashboard on a scene, with a clock that stands still. Its engine is `app.engine`."""
    engine = SceneEngine(snapshot, replies() | (answers or {}))

    async def connect(session_directory: Path, start: bool) -> SceneEngine:
        return engine

    options.setdefault("theme", "trimtab-dark")
    app = TrimtabApp(Path("/work/residual_cnn.trimtab"), connect=connect, clock=lambda: NOW, **options)
    app.animation_level = "none"
    app.engine = engine  # type: ignore[attr-defined]
    return app


def text_of(app: App[Any]) -> str:
    """What the terminal shows, as plain text."""
    return "\n".join("".join(segment.text for segment in line) for line in app.screen._compositor.render_strips())
