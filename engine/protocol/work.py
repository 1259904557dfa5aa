"""What engine and worker say to each other: the job one way; progress, metrics, log and the outcome the other."""

from typing import Any, Literal

from .load import LoadKnobs, LoadSettings, LoadTest, LoadTick
from .measurements import Measurement, Sensitivity
from .records import Changed, Format, ModelInfo, ModelSource, Processor, Record, Variant
from .serving import ServeSettings

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


class ScanSensitivity(Record, tag="scan-sensitivity"):
    """Make every layer narrower by itself and see what it costs."""

    variant: str


class TestLoad(Record, tag="test-load"):
    """One load test, or a search of several."""

    __test__ = False  # pytest would take the name for a test

    variant: str
    runtime: str
    settings: LoadSettings
    search: str = ""
    """What ties a search's tests together; "" for a single test."""
    known: tuple[LoadTest, ...] = ()
    """Tests of the same search that an earlier job finished: they are not run again."""


class Serve(Record, tag="serve"):
    """Serve a variant to other programs until told to stop."""

    variant: str
    runtime: str
    settings: ServeSettings


Task = (
    InspectModel
    | RunTechnique
    | MeasureLatency
    | MeasureAccuracy
    | MeasureProfile
    | ExplainVariant
    | ScanSensitivity
    | TestLoad
    | Serve
)


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
    """Where it computes; the first of `devices`."""
    processor: Processor
    threads: int
    limit: float = 0.01
    batch_sizes: tuple[int, ...] = (1, 8)
    model: ModelInfo | None = None
    seed: int = 0
    scan: Sensitivity | None = None
    """The newest sensitivity scan of the variant that a technique starts from."""
    devices: tuple[str, ...] = ()
    """All that the job has leased, where it is several: training runs a process on each."""


class Steer(Record, tag="steer"):
    """Sent while a load test runs, any number of times; a server only hears `stop`."""

    knobs: LoadKnobs = LoadKnobs()
    stop: bool = False


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


class Ticked(Record, tag="ticked"):
    tick: LoadTick


class Listening(Record, tag="listening"):
    """A server takes requests now."""

    urls: tuple[str, ...]
    """HTTP first."""


class Took(Record, tag="took"):
    """A measurement that is finished while the job goes on: kept at once, whatever becomes of the job."""

    measurement: Measurement


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


WorkerMessage = Progressed | MetricReported | Ticked | Listening | Took | Logged | Finished | GaveUp
