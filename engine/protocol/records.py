"""What is kept and sent: the model, variants, jobs, hardware, and techniques as a client sees them."""

from typing import Any, Literal, dataclass_transform

from msgspec import Struct


@dataclass_transform(frozen_default=True, kw_only_default=True)  # tells type checkers what Struct does at run time
class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fact that is kept or sent."""


# --- the model -------------------------------------------------------------------------------------


class TensorSpec(Record):
    """One input or output of a model. `shape` holds a size, or a name for an open axis ("batch")."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


MODEL_MODULE = "_trimtab_model_"
"""What the name of an imported model file begins with."""


def model_module(sha256: str) -> str:
    """The private name under which a Python model file with these contents is imported, and found by pickles."""
    return f"{MODEL_MODULE}{sha256[:16]}"


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


MAX_MODEL_FILES = 256
"""No more of the files beside a model are told: what reads more has a data set there."""


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
    files: tuple[str, ...] = ()
    """What it needs beside it, as far as opening it showed: its own modules, weights, data. Relative to its folder; at
    most `MAX_MODEL_FILES`."""


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


# --- where something was measured ---------------------------------------------------------------------


DISTURBED = "Disturbed:"
"""How the note of a measurement begins during which other processes kept the machine busy."""


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

    @property
    def disturbed(self) -> bool:
        """Other processes worked meanwhile: times are too long, while ratios measured in turn hold."""
        return any(note.startswith(DISTURBED) for note in self.notes)


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
    against: str | None = None
    """The variant that this one is explained against, where that is what the job does."""
    recipe_run: str | None = None
    device: str = "cpu"
    metrics: dict[str, float] = {}
    """The newest value of every metric the job reported."""
    urls: tuple[str, ...] = ()
    """Where a server listens, HTTP first; empty until it does."""

    @property
    def is_done(self) -> bool:
        return isinstance(self.state, Succeeded | Failed | Cancelled)

    @property
    def goes_on(self) -> str:
        """Where the work goes on if a training that was stopped is run again, as a sentence; else nothing."""
        step = self.metrics.get("checkpoint")
        return "" if step is None else f"The same step run again goes on from the checkpoint at step {step:.0f}."


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
    notice: str | None = None
    """What should be known of a result all the same: it moved to another class of processor."""


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
    """None is a legal value."""
    empty: str = "automatic"
    """What None means."""
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
