"""What client and engine say to each other: commands one way; replies, a snapshot and events the other."""

from typing import Any, Literal

from .load import LoadKnobs, LoadSettings, LoadTick
from .measurements import Measurement
from .records import Hardware, Job, ModelInfo, RecipeRun, Record, TechniqueInfo, TelemetrySample, Variant
from .serving import ServeSettings

PROTOCOL = 1
"""The version of these messages. Raise it when an old reader would misunderstand a new writer."""

OLDEST_PROTOCOL = 1
"""The oldest version an engine or client of today still accepts (the previous one, once there is one)."""

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


class RunLoadTest(Command, tag="run-load-test"):
    """Load-test a variant, or search with load tests (see `LoadSettings.kind`). Reply: `RunAccepted`."""

    variant: str
    settings: LoadSettings
    runtime: str | None = None
    """None: that of its best measurement, else its natural one."""
    device: str | None = None
    again: bool = False
    """Of a search: do every test anew, also those that an earlier one made."""


class ServeVariant(Command, tag="serve-variant"):
    """Serve a variant to other programs. Reply: `JobAccepted`; the job's `urls` say where, once it listens."""

    variant: str
    settings: ServeSettings = ServeSettings()
    runtime: str | None = None
    """None: that of its best measurement, else its natural one."""
    device: str | None = None


class StopServing(Command, tag="stop-serving"):
    """Have a server answer what it has accepted and end as succeeded. Reply: `Done`, when the request is noted."""

    job: str


class SteerLoad(Command, tag="steer-load"):
    """Turn the knobs of the load test that runs as this job. Takes effect within one batch. Reply: `Done`."""

    job: str
    knobs: LoadKnobs = LoadKnobs()
    stop: bool = False
    """End it now and keep what was measured."""


class DescribeLoadTest(Command, tag="describe-load-test"):
    """Reply: `Techniques` with one entry, "load-test": the form of `LoadSettings`."""

    variant: str | None = None


class ReadLoad(Command, tag="read-load"):
    """Reply: `LoadHistory`: every tick of the load test that runs, or ran, as this job, thinned to at most `limit`."""

    job: str
    limit: int = 2000


class GetLoadTest(Command, tag="get-load-test"):
    """Reply: `Text`: what the load tests of this job (or the newest of this variant) found; "" when there are none."""

    variant: str | None = None
    job: str | None = None
    format: Literal["json", "markdown"] = "json"


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
    runtime: str | None = None
    """Figures under this runtime; None: under the one with the greatest speed-up of each variant."""


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


METRIC_POINTS = 50_000
"""Points in one reply: 2 MB, far below the limit of a frame. Whoever gets fewer has them all."""


class ReadMetrics(Command, tag="read-metrics"):
    """Reply: `MetricHistory`: what a job reported, in order: at most `METRIC_POINTS` from the `offset`-th on."""

    job: str
    offset: int = 0


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
    | RunLoadTest
    | ServeVariant
    | StopServing
    | SteerLoad
    | DescribeLoadTest
    | ReadLoad
    | GetLoadTest
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


class LoadTicked(Event, tag="load-ticked"):
    """A running load test, four times a second. May be dropped for a slow client; `ReadLoad` has them all."""

    job: str
    tick: LoadTick


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


class JobAccepted(Record, tag="job-accepted"):
    job: Job


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


class LoadHistory(Record, tag="load-history"):
    ticks: tuple[LoadTick, ...]
    settings: LoadSettings | None = None
    """What the test or search was asked to do; None when nothing of it is left."""


class TelemetryHistory(Record, tag="telemetry-history"):
    samples: tuple[TelemetrySample, ...]


Result = (
    Done
    | RunAccepted
    | JobAccepted
    | Techniques
    | ParametersChecked
    | Text
    | Exported
    | MetricHistory
    | LoadHistory
    | TelemetryHistory
)

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
    | LoadTicked
    | TelemetrySampled
    | NoticeGiven
    | EngineStopping
)

EngineMessage = Welcome | Refused | Snapshot | Reply | EngineEvent
