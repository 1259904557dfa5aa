"""Every record and message that crosses a process boundary; nothing else does.

Three conversations use it, all as length-prefixed msgpack frames:
client → engine (`ClientMessage`), engine → client (`EngineMessage`) over the Unix socket,
and engine ↔ worker (`JobSpec` one way, `WorkerMessage` the other) over a socketpair.

What a reader may rely on:
- Structs are immutable facts. A newer engine may add fields with defaults; unknown fields are ignored,
  so protocol `OLDEST_PROTOCOL` … `PROTOCOL` can talk to each other.
- Times of day are seconds since the epoch, durations say their unit in their name, sizes are bytes,
  shares and drops are fractions (0.01 is one percentage point).
- `None` means unknown or not measured. It is never replaced by 0 on the way to the screen.
- Foreign text (names, logs, error messages) is raw here; whoever draws or exports it cleans it.
"""

import struct
from typing import Annotated, Any, Literal, dataclass_transform

import msgspec
from msgspec import Meta, Struct

PROTOCOL = 1
"""The version of these messages. Raise it when an old reader would misunderstand a new writer."""

OLDEST_PROTOCOL = 1
"""The oldest version an engine or client of today still accepts (the previous one, once there is one)."""

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""A longer frame is refused and its connection closed: no peer makes us allocate more than this."""

FRAME_HEADER = struct.Struct(">I")
"""A frame is this many bytes of big-endian length, then one msgpack message."""


@dataclass_transform(frozen_default=True, kw_only_default=True)  # tells type checkers what Struct does at run time
class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fact that is kept or sent."""


# --- the model -------------------------------------------------------------------------------------


class TensorSpec(Record):
    """One input or output of a model. `shape` holds a size, or a name for an open axis ("batch")."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class ModelSource(Record):
    """Where the user's model is and what they said about it when opening it."""

    path: str
    kind: Literal["python", "onnx", "pickle"]
    sha256: str
    data: str | None = None
    calibration_data: str | None = None
    shapes: dict[str, list[int | str]] = {}
    trusted: bool = False


class LayerInfo(Record):
    """One leaf module (PyTorch) or node (ONNX) of the baseline, for pickers and reports."""

    name: str
    type: str
    parameter_count: int = 0


class ModelInfo(Record):
    """What the model file turned out to offer, found by a worker when it was opened."""

    name: str
    source: ModelSource
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    offers: tuple[str, ...]
    """Names of the model file's functions that exist: "train_data", "test_data", "student_model", …"""
    labelled: bool
    """The test data carries labels, so accuracy is accuracy; else it is agreement with the baseline."""
    layers: tuple[LayerInfo, ...] = ()
    operators: tuple[str, ...] = ()
    """The kinds of operation in it ("Conv", "MatMul", "LSTM", …), ONNX names."""
    notes: tuple[str, ...] = ()
    """Sentences the user should know about it (it takes one batch size only, its test data is made up)."""


# --- variants --------------------------------------------------------------------------------------

Format = Literal["pytorch", "onnx", "tensorrt"]


class FileRecord(Record):
    """A file of a variant, relative to the variant's directory."""

    path: str
    sha256: str
    size_bytes: int


class Left(Record):
    """A layer or node that a technique did not touch, and why."""

    name: str
    reason: str


class Changed(Record):
    """What a technique really did. Never empty for a variant that has a technique."""

    summary: str
    touched: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()
    figures: dict[str, float | int | str | bool | None] = {}
    """Facts of the technique, SI units in the key ("sparsity", "quantized_weight_share", …)."""


class Variant(Record):
    """One immutable version of the model. Variants form a tree; the root is the baseline."""

    id: str
    name: str
    parent: str | None
    technique: str | None
    parameters: dict[str, Any]
    """As given, complete with defaults; where the technique searched, what it found (so no search on replay)."""
    format: Format
    files: tuple[FileRecord, ...]
    size_bytes: int
    """Of what is deployed: weights or graph with external data, not of logs or copies of source."""
    created: float
    target: str
    """The target the variant was made for ("cpu-vnni", "cpu-portable", …)."""
    processor: str
    """The features of the processor it was made on (see `Processor.features`)."""
    changed: Changed | None = None
    parameter_count: int | None = None
    macs: int | None = None
    """Multiply-adds for one sample."""
    complexity: Literal["low", "medium", "high"] = "low"
    """What it asks of those who deploy it: the most demanding technique on the way from the baseline."""
    portable: bool = True
    """False: the graph has nodes only ONNX Runtime knows; OpenVINO and TensorRT branch from an ancestor."""
    seconds: float | None = None
    job: str | None = None
    requested: dict[str, Any] | None = None
    """The parameters as asked for, where a search replaced them: by these a second run finds what is done."""
    requested_target: str | None = None
    """The target as asked for, where the variant turned out to be for another."""


# --- measurements ----------------------------------------------------------------------------------


class Ratio(Record):
    """A speed-up: how many times faster than `against`, with its 95 % confidence interval."""

    ratio: float
    low: float
    high: float
    verdict: Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]
    against: str
    """In words: "baseline · pytorch · cpu · batch 8"."""
    against_variant: str = ""


class Conditions(Record):
    """Where and how a measurement ran. Figures with different conditions are not ranked together."""

    runtime: str
    device: str
    processor: str
    """Features of the processor or name of the GPU (see `Processor`)."""
    threads: int | None = None
    providers: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class Latency(Record, tag="latency"):
    """Time of one call, milliseconds, at one batch size, paired with the baseline in the same worker."""

    id: str
    variant: str
    job: str
    created: float
    conditions: Conditions
    batch_size: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_per_s: float
    """Samples per second: batch size over the mean time of a call."""
    samples: int
    speedup: Ratio | None = None
    speedup_over_parent: Ratio | None = None
    noise_floor: float | None = None
    """How far from 1 the A/A interval (baseline against a second load of itself) reaches, as a fraction."""


class Accuracy(Record, tag="accuracy"):
    """Paired accuracy on the same samples as the baseline, judged against the accuracy limit."""

    id: str
    variant: str
    job: str
    created: float
    conditions: Conditions
    kind: Literal["accuracy", "metric", "agreement"]
    value: float
    samples: int
    drop: float
    """Baseline minus variant; for agreement, the share of samples whose answer changed."""
    low: float
    high: float
    """95 % confidence interval of the drop."""
    limit: float
    verdict: Literal["PASS", "FAIL", "NOT ENOUGH DATA"]
    baseline_value: float | None = None
    flipped_to_wrong: int | None = None
    flipped_to_right: int | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    sentence: str = ""


class OperatorTime(Record):
    """One operator as the runtime executed it, milliseconds for one call of the model."""

    name: str
    """As the runtime calls it; for PyTorch the module's path, or `path/operation` for what a module does itself."""
    type: str
    """As the runtime calls it after its fusions ("QLinearConv"), or the module's class."""
    time_ms: float
    calls: int = 1
    nodes: tuple[str, ...] = ()
    """The variant's own nodes that it stands for; empty: the runtime put it in (a layout change)."""
    module: str | None = None
    precision: str | None = None
    """What it computes in: "float32", "float16", "bfloat16", "int8", "int4"; "conversion" between two of them."""
    operands: str | None = None
    """For integers: activations × weights, "uint8×int8"."""
    full_range: bool | None = None
    """Integer weights go beyond 7 bits."""
    share: float | None = None
    flops: int | None = None
    bytes: int | None = None
    bound: Literal["compute", "memory", "launch"] | None = None


class Profile(Record, tag="profile"):
    """Where the time of one call goes, by operator, the slowest first."""

    id: str
    variant: str
    job: str
    created: float
    conditions: Conditions
    batch_size: int
    latency_ms: float
    """Median of a call without the profiler."""
    operators: tuple[OperatorTime, ...]
    remainder_ms: float
    """What is left of the call beside its operators: launching them, the runtime and the host."""
    sentence: str = ""


class Unfused(Record):
    """A node meant to be computed in integers (it reads through a Dequantize) that the runtime computes in float."""

    node: str
    type: str
    reason: str
    time_ms: float | None = None
    pairs: tuple[str, ...] = ()
    """The Quantize and Dequantize nodes around it that are executed for nothing."""


class LayerError(Record):
    """How far one value is from the same value of the other variant, in the graphs' own arithmetic."""

    node: str
    type: str
    cosine: float
    sqnr_db: float | None
    """Signal to quantization noise; None: no difference at all."""
    drop_db: float | None = None
    """How much SQNR the node lost against the worst of what it reads; large where accuracy breaks."""


class OperatorChange(Record):
    """One kind of operator in one precision: times in both variants, None where it does not occur."""

    type: str
    precision: str | None
    before_ms: float | None
    after_ms: float | None
    before_calls: int = 0
    after_calls: int = 0
    operands: str | None = None


class Explanation(Record, tag="explanation"):
    """Why one variant is, or is not, faster than another."""

    id: str
    variant: str
    against: str
    job: str
    created: float
    conditions: Conditions
    against_conditions: Conditions
    batch_size: int
    speedup: Ratio
    cause: str
    """One sentence with numbers: the main cause of the gain, or of its lack."""
    cause_kind: str
    """"integer-kernels", "unfused", "float-operators", "too-small", … (see `measurements/causes.py`)."""
    latency_ms: float
    """Median of calls right before the profile: what the operators' times add up to. `speedup` was timed in turns."""
    against_latency_ms: float
    operators: tuple[OperatorTime, ...]
    against_operators: tuple[OperatorTime, ...]
    changes: tuple[OperatorChange, ...]
    remainder_ms: float
    against_remainder_ms: float
    unfused: tuple[Unfused, ...] = ()
    missing_features: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Further sentences: what the missing features mean, what was left in float, saturation."""
    layers: tuple[LayerError, ...] = ()
    """In the order of execution; empty where the two cannot be matched, and a note says why."""


Measurement = Latency | Accuracy | Profile | Explanation


# --- jobs ------------------------------------------------------------------------------------------


class Queued(Record, tag="queued"):
    """Waits for its device. Next: running or cancelled."""

    waiting_for: str = ""


class Running(Record, tag="running"):
    """A worker is on it. Next: any of the finished states."""

    started: float
    pid: int | None = None
    done: float = 0
    total: float | None = None
    message: str = ""
    cancelling: bool = False


class Succeeded(Record, tag="succeeded"):
    """Everything it made is stored."""

    started: float
    finished: float
    variants: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    summary: str = ""


class Failed(Record, tag="failed"):
    """Ended without a result. `reason` is a sentence for the user; the log has the rest."""

    started: float | None
    finished: float
    reason: str
    cause: Literal["error", "refused", "signal", "out-of-memory", "engine-stopped", "lost"] = "error"


class Cancelled(Record, tag="cancelled"):
    """Stopped because the user asked."""

    started: float | None
    finished: float


JobState = Queued | Running | Succeeded | Failed | Cancelled


class Job(Record):
    """One run of a technique or a measurement."""

    id: str
    kind: str
    """"open-model", a technique's tag, or a measurement's name."""
    title: str
    created: float
    state: JobState
    variant: str | None = None
    """What it works on."""
    recipe_run: str | None = None
    device: str = "cpu"
    metrics: dict[str, float] = {}
    """The newest value of every metric the job reported."""

    @property
    def is_done(self) -> bool:
        return isinstance(self.state, Succeeded | Failed | Cancelled)


StepStatus = Literal["queued", "running", "succeeded", "refused", "failed", "skipped", "cancelled"]


class Step(Record):
    """One step of a recipe run, as far as it has come."""

    name: str
    kind: Literal["technique", "measurement"]
    word: str
    """The technique's tag or the measurement's name."""
    status: StepStatus = "queued"
    reason: str | None = None
    variants: tuple[str, ...] = ()
    job: str | None = None
    reused: bool = False
    """The result was already in the session; nothing was run."""


class RecipeRun(Record):
    """A recipe (or a single `apply`) on its way through the queue."""

    id: str
    title: str
    created: float
    steps: tuple[Step, ...]
    finished: float | None = None
    error: str | None = None
    """Why the whole run could not go on (unreadable recipe, the model did not open); None otherwise."""


# --- hardware and telemetry ------------------------------------------------------------------------


class Processor(Record):
    """The CPU as quantization sees it."""

    name: str
    features: tuple[str, ...]
    """Of "avx2", "avx512", "vnni", "amx-int8", "amx-bf16", "neon", "dotprod"; sorted."""
    physical_cores: int
    logical_cores: int
    memory_bytes: int


class Gpu(Record):
    """One NVIDIA GPU; what NVML would not say is None."""

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    compute_capability: str | None = None


class Hardware(Record):
    """The machine; known once, at the engine's start."""

    hostname: str
    processor: Processor
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    gpu_status: str = "no NVIDIA GPU"
    """One calm phrase: "no NVIDIA GPU", "driver and library versions differ: reboot the machine", …"""


class GpuSample(Record):
    """One GPU at one moment. None: not supported, no permission or lost."""

    index: int
    utilisation: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle: tuple[str, ...] = ()
    processes: tuple[tuple[int, int | None], ...] = ()
    """(process id, bytes) of every process the driver shows, the largest first; bytes None: it would not say."""
    energy_j: float | None = None
    """A counter since the driver was loaded; the difference of two samples is what was used between them."""
    sm_occupancy: float | None = None
    """Warps resident on the multiprocessors against the most there could be (Hopper and later)."""
    tensor_activity: float | None = None
    """Share of the time the tensor cores worked (Hopper and later)."""
    memory_bandwidth: float | None = None
    """Memory traffic against the most there could be (Hopper and later)."""
    status: str = ""
    """Why there are no figures, when there are none ("GPU is lost", …)."""


class TelemetrySample(Record):
    """The machine at one moment. Utilisations are fractions of 1."""

    time: float
    cpu: float | None
    cores: tuple[float, ...] = ()
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    gpus: tuple[GpuSample, ...] = ()
    job: str | None = None
    """The job that ran at that moment, if one did."""


# --- what can be done: techniques, as the client sees them ----------------------------------------


class Field(Record):
    """One parameter of a technique; enough to draw, check and explain an input for it."""

    name: str
    kind: Literal["integer", "number", "boolean", "choice", "text", "list"]
    description: str = ""
    default: Any = None
    optional: bool = False
    """None is a legal value ("automatic")."""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False


class TechniqueInfo(Record):
    """A technique for one source variant: its form, and why it can not be applied (if it can not)."""

    tag: str
    title: str
    group: str
    summary: str
    fields: tuple[Field, ...]
    unavailable: str | None = None
    expectation: str = ""
    """What the field expects of it, before it is measured ("size 25 %, 2–4× faster, 0.5–1 % loss")."""


# --- client → engine -------------------------------------------------------------------------------


class Hello(Record, tag="hello"):
    """The first frame of a connection, within `HANDSHAKE_SECONDS`."""

    protocol: int
    oldest_protocol: int
    version: str
    client: Literal["dashboard", "command-line", "test"]
    telemetry_hz: float = 0.0
    """How often this client wants samples; 0: never."""
    subscribe: bool = True
    """False: only replies to its own commands, no snapshot and no events."""


HANDSHAKE_SECONDS = 5.0
"""A connection that has not said hello by then is closed."""


class Command(Record):
    """Asks the engine for something. Answered by exactly one `Reply` with the same `request`."""

    request: int


class OpenModel(Command, tag="open-model"):
    """Make this model the session's baseline. Reply: `RunAccepted`; at once "done" if it is open already."""

    path: str
    data: str | None = None
    calibration_data: str | None = None
    shapes: dict[str, list[int | str]] = {}
    trusted: bool = False
    measure: bool = True


class RunRecipe(Command, tag="run-recipe"):
    """Run a recipe file. Reply: `RunAccepted`."""

    path: str
    trusted: bool = False
    model: str | None = None
    """Use this model file instead of the one the recipe names."""


class ApplyTechnique(Command, tag="apply-technique"):
    """Make variants from a variant, then measure them. Reply: `RunAccepted`."""

    technique: str
    source: str
    parameters: dict[str, Any] = {}
    name: str | None = None
    target: str | None = None
    measure: bool = True
    runtimes: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()


class MeasureVariant(Command, tag="measure-variant"):
    """Measure a variant (again). Reply: `RunAccepted`."""

    variant: str
    kinds: tuple[str, ...] = ("accuracy", "latency")
    runtimes: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    device: str | None = None
    against: str | None = None
    """For the kind "explain": the variant to compare with; None: the parent."""


class GetExplanation(Command, tag="get-explanation"):
    """Reply: `Text`: why a variant is (not) faster than another (None: its parent); "" when not found out yet.

    `MeasureVariant` with the kind "explain" finds it out.
    """

    variant: str
    against: str | None = None
    runtime: str | None = None
    """None: under whichever it was asked last."""
    format: Literal["json", "markdown"] = "json"


class GetProfile(Command, tag="get-profile"):
    """Reply: `Text`: where a variant's time goes; "" when it was not profiled yet (kind "profile")."""

    variant: str
    runtime: str | None = None
    format: Literal["json", "markdown"] = "json"


class ListTechniques(Command, tag="list-techniques"):
    """Reply: `Techniques`, each with the reason why it can not be applied to this variant now."""

    source: str | None = None


class CheckParameters(Command, tag="check-parameters"):
    """Reply: `ParametersChecked`. What a form shows while the user types."""

    technique: str
    parameters: dict[str, Any]


class CancelJob(Command, tag="cancel-job"):
    """Stop a queued or running job. Reply: `Done`, when the request is noted, not when the job has ended."""

    job: str


class CancelRun(Command, tag="cancel-run"):
    """Stop a recipe run: its current job, and the steps that have not started."""

    run: str


class DeleteVariant(Command, tag="delete-variant"):
    """Remove a variant that has no children, with its files and measurements."""

    variant: str


class SetOptions(Command, tag="set-options"):
    """Change what the session measures and accepts; None leaves a thing as it is."""

    accuracy_limit: float | None = None
    batch_sizes: tuple[int, ...] | None = None
    runtimes: tuple[str, ...] | None = None
    target: str | None = None
    device: str | None = None


class GetResults(Command, tag="get-results"):
    """Reply: `Text`: what `compare` prints; `run` limits the steps shown to that recipe run."""

    format: Literal["json", "csv", "markdown"]
    command: str = "compare"
    run: str | None = None
    variants: tuple[str, ...] = ()


class GetRecipe(Command, tag="get-recipe"):
    """Reply: `Text`: the recipe (TOML) that makes this variant again from the baseline."""

    variant: str


class ExportVariants(Command, tag="export-variants"):
    """Write variants and reports to a directory. Reply: `Exported`."""

    to: str
    variants: tuple[str, ...] = ()
    overwrite: bool = False


class ReadLog(Command, tag="read-log"):
    """Reply: `Text`: a piece of a job's log (or the engine's own, job None), from `offset` bytes; at most 64 KiB."""

    job: str | None = None
    offset: int = 0


class ReadMetrics(Command, tag="read-metrics"):
    """Reply: `MetricHistory`: every metric a job reported, in order."""

    job: str


class ReadTelemetry(Command, tag="read-telemetry"):
    """Reply: `TelemetryHistory`: samples since a time, thinned to at most `limit`."""

    since: float
    limit: int = 600


class StopEngine(Command, tag="stop-engine"):
    """End the engine. With jobs running it refuses unless `cancel_jobs`."""

    cancel_jobs: bool = False


class SetTelemetryRate(Command, tag="set-telemetry-rate"):
    """How often this client wants samples from now on; 0: never."""

    hz: float


ClientMessage = (
    Hello
    | OpenModel
    | RunRecipe
    | ApplyTechnique
    | MeasureVariant
    | ListTechniques
    | CheckParameters
    | CancelJob
    | CancelRun
    | DeleteVariant
    | SetOptions
    | GetResults
    | GetExplanation
    | GetProfile
    | GetRecipe
    | ExportVariants
    | ReadLog
    | ReadMetrics
    | ReadTelemetry
    | StopEngine
    | SetTelemetryRate
)


# --- engine → client -------------------------------------------------------------------------------


class Welcome(Record, tag="welcome"):
    """The engine's answer to hello."""

    protocol: int
    version: str
    boot_id: str
    """New for every start of an engine: two clients with the same one talk to the same process."""
    pid: int
    session: str
    python: str


class Refused(Record, tag="refused"):
    """The engine will not talk to this client; the sentence says why and what to do."""

    reason: str


class SessionOptions(Record):
    """What the session measures and accepts."""

    accuracy_limit: float = 0.01
    batch_sizes: tuple[int, ...] = (1, 8)
    runtimes: tuple[str, ...] = ()
    """Empty: the natural one for each variant's format (pytorch, onnxruntime)."""
    target: str = "this-machine"
    device: str = "cpu"


class Snapshot(Record, tag="snapshot"):
    """Everything a client needs to draw, as of event `seq`. Events that follow have a higher `seq`."""

    seq: int
    session: str
    hardware: Hardware
    options: SessionOptions
    model: ModelInfo | None = None
    variants: tuple[Variant, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    jobs: tuple[Job, ...] = ()
    runs: tuple[RecipeRun, ...] = ()
    telemetry: tuple[TelemetrySample, ...] = ()
    """The last two minutes, so that charts are full from the first paint."""
    notices: tuple[str, ...] = ()
    """Sentences the user should see (a variant's file is missing, disk nearly full)."""


class Event(Record):
    """Something that happened, in order."""

    seq: int


class ModelOpened(Event, tag="model-opened"):
    model: ModelInfo


class OptionsChanged(Event, tag="options-changed"):
    options: SessionOptions


class VariantAdded(Event, tag="variant-added"):
    variant: Variant


class VariantRemoved(Event, tag="variant-removed"):
    variant: str


class MeasurementAdded(Event, tag="measurement-added"):
    measurement: Measurement


class JobChanged(Event, tag="job-changed"):
    """A job was queued, started, progressed or ended. Of two for a running job, only the newer matters."""

    job: Job


class RunChanged(Event, tag="run-changed"):
    run: RecipeRun


class JobLogged(Event, tag="job-logged"):
    """New lines in a job's log. May be dropped for a slow client; `ReadLog` has them all."""

    job: str
    lines: tuple[str, ...]


class MetricRecorded(Event, tag="metric-recorded"):
    """A point of a curve (loss, accuracy). May be dropped for a slow client; `ReadMetrics` has them all."""

    job: str
    name: str
    value: float
    step: int
    time: float


class TelemetrySampled(Event, tag="telemetry-sampled"):
    """May be dropped for a slow client."""

    sample: TelemetrySample


class NoticeGiven(Event, tag="notice-given"):
    text: str


class EngineStopping(Event, tag="engine-stopping"):
    reason: str


class Reply(Record, tag="reply"):
    """Answers the command with the same `request`: either a result or a sentence that says why not."""

    request: int
    result: "Result | None" = None
    error: str | None = None


class Done(Record, tag="done"):
    """It is done."""


class RunAccepted(Record, tag="run-accepted"):
    run: RecipeRun


class Techniques(Record, tag="techniques"):
    techniques: tuple[TechniqueInfo, ...]


class ParametersChecked(Record, tag="parameters-checked"):
    """`errors`: field name → sentence; "" holds what concerns no single field. Empty: valid."""

    errors: dict[str, str] = {}


class Text(Record, tag="text"):
    text: str
    next_offset: int = 0
    status: int = 0
    """For results: the exit status the command line should end with."""


class Exported(Record, tag="exported"):
    directory: str
    files: tuple[str, ...]
    notices: tuple[str, ...] = ()
    """Sentences the user should see (made for another class of processor, the model file was too big to copy)."""


class MetricHistory(Record, tag="metric-history"):
    points: tuple[tuple[str, float, int, float], ...]
    """(name, value, step, time)."""


class TelemetryHistory(Record, tag="telemetry-history"):
    samples: tuple[TelemetrySample, ...]


Result = Done | RunAccepted | Techniques | ParametersChecked | Text | Exported | MetricHistory | TelemetryHistory

EngineEvent = (
    ModelOpened
    | OptionsChanged
    | VariantAdded
    | VariantRemoved
    | MeasurementAdded
    | JobChanged
    | RunChanged
    | JobLogged
    | MetricRecorded
    | TelemetrySampled
    | NoticeGiven
    | EngineStopping
)

EngineMessage = Welcome | Refused | Snapshot | Reply | EngineEvent


# --- engine → worker -------------------------------------------------------------------------------


class InspectModel(Record, tag="inspect-model"):
    """Open the model file, check its contract, write the baseline variant."""


class RunTechnique(Record, tag="run-technique"):
    technique: str
    parameters: dict[str, Any]
    source: str
    target: str


class MeasureLatency(Record, tag="measure-latency"):
    variant: str
    runtime: str
    batch_sizes: tuple[int, ...]


class MeasureAccuracy(Record, tag="measure-accuracy"):
    variant: str
    runtime: str
    limit: float


class MeasureProfile(Record, tag="measure-profile"):
    variant: str
    runtime: str
    batch_size: int


class ExplainVariant(Record, tag="explain-variant"):
    """Profile both variants side by side and say what makes the difference."""

    variant: str
    against: str
    runtime: str
    against_runtime: str
    batch_size: int


Task = InspectModel | RunTechnique | MeasureLatency | MeasureAccuracy | MeasureProfile | ExplainVariant


class JobSpec(Record):
    """All a worker is told. It finds everything else in the files this names."""

    job: str
    task: Task
    source: ModelSource
    variants: dict[str, Variant]
    """The ones the task names, their parents and the baseline, by id."""
    baseline: str | None
    session_directory: str
    work_directory: str
    """The worker writes here and nowhere else."""
    device: str
    processor: Processor
    threads: int
    limit: float = 0.01
    batch_sizes: tuple[int, ...] = (1, 8)
    model: ModelInfo | None = None
    seed: int = 0


# --- worker → engine -------------------------------------------------------------------------------


class VariantDraft(Record):
    """A variant as its worker wrote it, before the engine hashes and adopts the files."""

    label: str | None
    """None for the step's own name; else it is called "<step>/<label>"."""
    format: Format
    files: tuple[str, ...]
    """Relative to the work directory; the first is the one a runtime loads."""
    deployed_files: tuple[str, ...]
    """Those that count as its size."""
    changed: Changed | None = None
    parameters: dict[str, Any] | None = None
    """When a search replaced parameters: what it found."""
    parameter_count: int | None = None
    macs: int | None = None
    portable: bool = True
    target: str | None = None


class Progressed(Record, tag="progressed"):
    done: float
    total: float | None = None
    message: str = ""


class MetricReported(Record, tag="metric-reported"):
    name: str
    value: float
    step: int


class Logged(Record, tag="logged"):
    text: str


class Finished(Record, tag="finished"):
    """The last message of a worker whose task went well."""

    variants: tuple[VariantDraft, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    model: ModelInfo | None = None
    summary: str = ""


class GaveUp(Record, tag="gave-up"):
    """The last message of a worker whose task did not. `reason` is a sentence; `detail` goes to the log."""

    reason: str
    detail: str = ""
    cause: Literal["error", "refused", "out-of-memory"] = "error"


WorkerMessage = Progressed | MetricReported | Logged | Finished | GaveUp


# --- frames ----------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: Struct) -> bytes:
    """One message as a frame: header and body.

    Raises ValueError if it would be longer than `MAX_FRAME_BYTES`.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"message of {len(body)} bytes is over the frame limit of {MAX_FRAME_BYTES}")
    return FRAME_HEADER.pack(len(body)) + body


decode_client_message = msgspec.msgpack.Decoder(ClientMessage).decode
decode_engine_message = msgspec.msgpack.Decoder(EngineMessage).decode
decode_worker_message = msgspec.msgpack.Decoder(WorkerMessage).decode
decode_job_spec = msgspec.msgpack.Decoder(JobSpec).decode

Fraction = Annotated[float, Meta(ge=0, le=1)]
"""For parameters that are a share."""
