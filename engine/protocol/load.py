"""Load tests: what one is asked to do, the knobs that turn while it runs, what it shows, and what it found.

Durations say their unit; rates are requests a second; "rows" are samples, of which a request has one or more.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta

from .records import Conditions, Record

Arrivals = Literal["poisson", "constant", "bursty", "replay", "closed", "offline"]
"""Open loops with a rate, then `concurrency` callers each waiting for its answer, then as fast as possible."""

Verdict = Literal["PASS", "FAIL", "UNCLEAR"]
"""On a limit for p99."""

DEFAULT_SECONDS = 10.0
"""Of sending, where nothing else is asked for."""

BYTES_A_REQUEST = 180
"""What a request takes while its test runs and is summed up: 57 bytes of times, 8 of their order, 16 of the schedule,
and what sorting them takes."""

MOST_REQUESTS = 25_000_000
"""Of one test: 4.5 GB."""

MOST_RATE = 10_000_000.0
"""Requests a second that can be asked for."""


def too_many(rate: float, seconds: float) -> str | None:
    """Why a load of so many requests is refused, as a sentence without its stop; None: it is not."""
    count = rate * seconds
    if count <= MOST_REQUESTS:
        return None
    return (
        f"{rate:g} requests/s for {seconds:g} s are {count:,.0f} requests; the times of each take"
        f" {BYTES_A_REQUEST} bytes here, together {count * BYTES_A_REQUEST / 1e9:,.1f} GB, and {MOST_REQUESTS:,} are"
        " the most. Lower the rate, or make it shorter"
    )


def no_batch_for(rows: int, max_batch_size: float) -> str | None:
    """Why a request of so many rows cannot be sent, as the end of a sentence; None: it can."""
    return None if rows <= max_batch_size else f"a request of {rows} rows fits no batch of {max_batch_size:g}"


NONE = {"empty": "none"}
"""Of a setting that may stay empty: there is none then, where another would be chosen."""


class LoadSettings(Record):
    """What a load test is asked to do: the recipe's keys, the command line's options and the dashboard's form."""

    rate: (
        Annotated[float, Meta(gt=0, le=MOST_RATE, description="requests a second, whatever becomes of them")] | None
    ) = None
    concurrency: (
        Annotated[int, Meta(ge=1, le=100_000, description="callers, each sending when it has its answer")] | None
    ) = None
    offline: Annotated[bool, Meta(description="as fast as possible: the highest throughput")] = False
    arrivals: Annotated[
        Literal["poisson", "constant", "bursty", "replay"],
        Meta(description="how requests of a given rate arrive; replay needs a trace"),
    ] = "poisson"
    seconds: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=86_400,
                description="of sending, for each test of a search too; empty: 10, a sweep's 4, a replay's whole trace",
            ),
        ]
        | None
    ) = None
    warm_up_seconds: Annotated[float, Meta(ge=0, le=3600, description="sent before, counted for nothing")] = 1.0
    slo_p99_ms: (
        Annotated[
            float, Meta(gt=0, description="limit for p99 latency; without a load: find the highest rate", extra=NONE)
        ]
        | None
    ) = None
    sweep: Annotated[bool, Meta(description="try maximum batch sizes, waits and instances; name the best")] = False
    max_batch_size: Annotated[int, Meta(ge=1, le=65_536, description="rows of the largest batch")] = 32
    max_wait_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="the oldest request waits no longer for company")
    ] = 10.0
    instances: Annotated[
        int, Meta(ge=1, le=64, description="copies of the model side by side, sharing out the cores")
    ] = 1
    wait: Annotated[
        Literal["when-it-pays", "always"], Meta(description="wait for company only when it pays, or always")
    ] = "when-it-pays"
    max_queue_size: Annotated[int, Meta(ge=1, le=10_000_000, description="one more waiting request is turned away")] = (
        4096
    )
    preferred_batch_sizes: Annotated[
        tuple[int, ...], Meta(description="rows at which a batch is sent at once, for models tuned to them")
    ] = ()
    priority_levels: Annotated[
        int, Meta(ge=1, le=64, description="spread the requests over so many priorities; 1 is served first")
    ] = 1
    timeout_ms: (
        Annotated[float, Meta(gt=0, description="how long a request may wait in the queue", extra=NONE)] | None
    ) = None
    rows_per_request: Annotated[int, Meta(ge=1, le=65_536, description="samples in one request")] = 1
    same_input: Annotated[bool, Meta(description="send one request again and again instead of the user's data")] = False
    seed: Annotated[int, Meta(ge=0, description="of arrivals and inputs")] = 0
    burst_size: Annotated[int, Meta(ge=1, le=100_000, description="requests that arrive together when bursty")] = 8
    trace: (
        Annotated[str, Meta(description="file with one arrival time in seconds a line, for a replay", extra=NONE)]
        | None
    ) = None
    url: (
        Annotated[
            str,
            Meta(description="a running KServe v2 server (http://… or grpc://…) instead of this process", extra=NONE),
        ]
        | None
    ) = None
    model_name: Annotated[str, Meta(description="what that server calls the model")] | None = None
    sweep_batch_sizes: Annotated[tuple[int, ...], Meta(description="maximum batch sizes a sweep tries")] = (
        1,
        2,
        4,
        8,
        16,
        32,
    )
    sweep_waits_ms: Annotated[tuple[float, ...], Meta(description="maximum waits a sweep tries")] = (0.0, 2.0)
    sweep_instances: Annotated[
        tuple[int, ...], Meta(description="numbers of instances a sweep tries; empty: 1, 2, 4, … and the cores")
    ] = ()

    @property
    def replays(self) -> bool:
        """The load is a recorded trace."""
        return self.arrivals == "replay" and self.concurrency is None and not self.offline

    @property
    def duration(self) -> float | None:
        """Seconds that each test sends; None: until a replay's trace has been sent once."""
        if self.seconds is not None:
            return self.seconds
        return None if self.replays else DEFAULT_SECONDS

    @property
    def kind(self) -> Literal["run", "rate", "sweep"]:
        """One test, the search for the highest rate within the limit, or the sweep over batching settings."""
        if self.sweep:
            return "sweep"
        loaded = self.rate is not None or self.concurrency is not None or self.offline or self.arrivals == "replay"
        return "rate" if self.slo_p99_ms is not None and not loaded else "run"


class LoadKnobs(Record):
    """What can be turned while a load test runs. In a command None leaves a thing as it is."""

    rate: float | None = None
    concurrency: int | None = None
    max_batch_size: int | None = None
    max_wait_ms: float | None = None
    instances: int | None = None
    paused: bool | None = None


class LoadMark(Record):
    """Something that was changed in the middle of a test."""

    seconds: float
    """Since the start of the test."""
    text: str


class LoadTick(Record):
    """What happened in a load test since the tick before (about a quarter of a second), and its knobs now."""

    time: float
    seconds: float
    """Since the start of the test."""
    span_seconds: float
    """Since the tick before."""
    phase: str
    """"warm-up", "measuring", "draining"; in a search which test this is ("probe 3: 412/s")."""
    knobs: LoadKnobs
    offered_per_s: float
    achieved_per_s: float
    completed: int
    rejected: int
    failed: int
    outstanding: int
    """Sent and not answered."""
    queue_depth: int | None
    """Of those, waiting for an instance."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    batch_sizes: dict[str, int] = {}
    """Rows of a run → runs."""
    cpu: float | None = None
    """Busy share of all cores of the machine."""
    memory_bytes: int | None = None
    """In use on the whole machine."""
    gpu: float | None = None
    gpu_memory_bytes: int | None = None
    power_w: float | None = None
    """Of the GPU."""
    marks: tuple[LoadMark, ...] = ()
    """New ones."""


class Percentile(Record):
    """Milliseconds. `low` and `high` are a 95 % interval, `at_most` holds with 99 % confidence; None: too few."""

    value: float
    low: float | None = None
    high: float | None = None
    at_most: float | None = None


class Use(Record):
    """What the machine gave for it: means over the measured part; None where it was not measured. Of a server on
    another machine nothing is: this one's figures would pass for its."""

    cpu: float | None = None
    memory_bytes: int | None = None
    """The most in use on the whole machine."""
    gpu: float | None = None
    gpu_memory_bytes: int | None = None
    """The most."""
    power_w: float | None = None
    energy_j: float | None = None
    energy_per_1000_requests_j: float | None = None


class LoadSummary(Record, kw_only=True):
    """One load test in figures, over the requests scheduled after the warm-up."""

    scenario: str
    """MLPerf's name where it has one."""
    valid: bool
    reasons: tuple[str, ...] = ()
    """Why it is not valid."""
    seconds: float
    """Of the measured part."""
    offered_per_s: float
    """Requests scheduled a second."""
    achieved_per_s: float
    """Requests completed a second in the measured part, whenever they were scheduled."""
    rows_per_s: float
    """As `achieved_per_s`."""
    completed: int
    rejected: int
    failed: int
    """Failed or expired."""
    unanswered: int
    """Given up when the run ended: with any the run is not valid."""
    dropped: int = 0
    """Never sent, for the sender itself had no room: with any the run is not valid."""
    latency_ms: dict[str, Percentile] = {}
    """"p50", "p90", "p95", "p99", "p999", from the scheduled arrival to the answer; without enough requests for a
    claim there is no `at_most`."""
    requests_for_p99: int = 0
    """How many requests a claim about p99 needs at the least."""
    queue_ms: dict[str, float] = {}
    """"mean", "p50", "p99": until an instance was free."""
    forming_ms: dict[str, float] = {}
    """Joining the inputs of a batch."""
    compute_ms: dict[str, float] = {}
    batch_sizes: dict[str, int] = {}
    """Rows of a run → runs."""
    lag_ms: dict[str, float] = {}
    """The generator's own: "p50", "p99", "max"."""
    slo_ms: float | None = None
    verdict: Verdict | None = None
    """Whether p99 is below the limit: PASS and FAIL hold with 99 % confidence. Requests that were not completed are
    late, whatever the limit."""

    @property
    def not_completed(self) -> int:
        """Requests that were rejected, failed, unanswered or dropped."""
        return self.rejected + self.failed + self.unanswered + self.dropped

    @property
    def unserved(self) -> float:
        """Their share."""
        return self.not_completed / max(self.completed + self.not_completed, 1)


class LoadTest(Record, tag="load-test"):
    """One load on one variant behind the dynamic batcher (or a server), measured."""

    id: str
    variant: str
    job: str
    created: float
    conditions: Conditions
    settings: LoadSettings
    """As they were at the start; those of a search's test carry its own rate, batch size and so on."""
    summary: LoadSummary
    use: Use = Use()
    marks: tuple[LoadMark, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences (settings were changed while it ran, so the figures mix them)."""
    saturated: bool = False
    """The backlog grew steadily: the load was more than it can bear."""
    search: str | None = None
    """Which search it is part of: tests with the same word belong together."""
    purpose: Literal["run", "capacity", "probe", "confirmation", "point"] = "run"

    @property
    def verdict(self) -> Verdict | None:
        """Whether its load keeps p99 under the limit; None without a limit.

        A saturated load fails whatever its requests so far say; a test that does not count says nothing.
        """
        if self.settings.slo_p99_ms is None:
            return None
        if self.saturated:
            return "FAIL"
        return (self.summary.verdict or "UNCLEAR") if self.summary.valid else "UNCLEAR"

    @property
    def word(self) -> Literal["PASS", "FAIL", "UNCLEAR", "INVALID", ""]:
        """What is shown of it: INVALID where it does not count, unless it fails all the same."""
        if not self.summary.valid and self.verdict != "FAIL":
            return "INVALID"
        return self.verdict or ""

    def as_point(self) -> "LoadPoint":
        """As a search has it in its list."""
        summary = self.summary
        p50, p99 = summary.latency_ms.get("p50"), summary.latency_ms.get("p99")
        return LoadPoint(
            settings=self.settings,
            offered_per_s=summary.offered_per_s,
            achieved_per_s=summary.achieved_per_s,
            rows_per_s=summary.rows_per_s,
            p50_ms=p50.value if p50 else None,
            p99_ms=p99.value if p99 else None,
            verdict=self.verdict,
            unserved=summary.unserved,
        )


def newest_of_each(tests: Iterable[LoadTest]) -> list[LoadTest]:
    """Of tests that asked the same the newest, oldest first: a search may have been made again."""
    newest = {(test.purpose, test.settings): test for test in sorted(tests, key=lambda test: test.created)}
    return sorted(newest.values(), key=lambda test: test.created)


class LoadPoint(Record):
    """One setting that a sweep tried, or one rate that a search tried."""

    settings: LoadSettings
    offered_per_s: float
    achieved_per_s: float
    rows_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    verdict: Verdict | None = None
    unserved: float = 0.0
    """Share of the requests that were not completed."""


class LoadSearch(Record, tag="load-search"):
    """What a search over load tests found."""

    id: str
    variant: str
    job: str
    created: float
    conditions: Conditions
    settings: LoadSettings
    search: str
    sentence: str
    """The finding in words, with its bounds."""
    points: tuple[LoadPoint, ...]
    capacity_per_s: float | None = None
    """Throughput of callers in turn, enough to keep every instance busy; of a server as many as this side sends."""
    best_rate_per_s: float | None = None
    """The highest rate that kept p99 under the limit and was confirmed; None: none did."""
    bracket_high_per_s: float | None = None
    """The lowest rate that did not, or that stayed unclear."""
    bracket_verdict: Verdict | None = None
    """Of that rate: FAIL or UNCLEAR."""
    p99_at_most_ms: float | None = None
    """Bound on p99 at the best rate, from the confirmations."""
    confirmed: tuple[int, int] | None = None
    """(seeds that passed, seeds tried) at the best rate."""
    front: tuple[int, ...] = ()
    """Points (by position) that no other beats in both throughput and p99, by rising throughput."""
    knee: int | None = None
    """The front's point with the most throughput for its latency."""
    recommended: int | None = None
    """The one to take: within the limit if there is one, else the knee."""
