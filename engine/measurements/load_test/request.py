"""What a load test is asked to do, and how its parts are called. Light: no numpy."""

from typing import Literal

from msgspec import Struct

from ...protocol.load import too_many


class Load(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One load. Raises ValueError with a sentence when it makes no sense.

    Open loop (`poisson`, `constant`, `bursty`, `replay`): requests arrive at `rate` whatever becomes of them, and
    latency counts from the scheduled arrival. Closed loop (`closed`): `concurrency` callers, each sending when
    its last request was answered. `offline`: as fast as possible.
    """

    arrivals: Literal["poisson", "constant", "bursty", "replay", "closed", "offline"] = "poisson"
    seconds: float = 10.0
    """Of sending, warm-up included."""
    rate: float | None = None
    """Requests a second, for an open loop. A replay without it keeps the trace's own."""
    concurrency: int = 1
    """Callers of a closed loop."""
    samples_per_request: int = 1
    """Entries of the pool that make one request; MLPerf's MultiStream has eight."""
    warm_up_seconds: float = 0.0
    """Requests scheduled before are sent but count for nothing."""
    requests: int | None = None
    """End sooner, after so many were sent."""
    seed: int = 0
    burst_size: int = 8
    trace: tuple[float, ...] = ()
    """Recorded arrival times in seconds, for a replay."""
    trace_once: bool = False
    """End with the trace instead of repeating it until the time is over."""
    slo_p99_ms: float | None = None
    """The limit for p99; what the generator's own lag is judged by."""
    priority: int = 1
    priority_levels: int = 1
    """Above 1 every request has a priority from 1 to this, drawn evenly, instead of `priority`."""
    timeout_ms: float | None = None
    """How long a request may wait in the queue."""
    drain_seconds: float = 30.0
    """How long to wait for answers after the last request was sent; offline, after the last answer, and longer where
    answers take longer."""

    @property
    def open_loop(self) -> bool:
        return self.arrivals not in ("closed", "offline")

    @property
    def planned_rate(self) -> float:
        """Requests a second of an open loop; of a replay without a rate the trace's own."""
        if self.rate is not None or not self.trace:
            return self.rate or 0.0
        return (len(self.trace) - 1) / max(max(self.trace) - min(self.trace), 1e-9)

    @property
    def scenario(self) -> str:
        """MLPerf's name where it has one."""
        if self.arrivals == "poisson":
            return "Server"
        if self.arrivals == "offline":
            return "Offline"
        if self.arrivals == "closed" and self.concurrency == 1:
            return "SingleStream" if self.samples_per_request == 1 else "MultiStream"
        return {"closed": "closed loop", "constant": "constant rate"}.get(self.arrivals, self.arrivals)

    @property
    def relief(self) -> str:
        """What leaves fewer requests unanswered, as a sentence without its stop: an offline load has no less of it."""
        if self.arrivals == "offline":
            return "Lower max_batch_size or instances, so that less is under way at once"
        return "Lower the load"

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("rate", self.rate), ("timeout_ms", self.timeout_ms)):
            if value is not None and not 0 < value < 1e9:
                raise ValueError(f"{name} must be above 0, not {value}")
        counts = {
            "concurrency": self.concurrency,
            "burst_size": self.burst_size,
            "samples_per_request": self.samples_per_request,
            "priority_levels": self.priority_levels,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")
        if not 0 <= self.warm_up_seconds < self.seconds:
            raise ValueError("warm_up_seconds must be shorter than seconds")
        if self.requests is not None and self.requests < 1:
            raise ValueError(f"requests must be at least 1, not {self.requests}")
        if self.open_loop and self.rate is None and self.arrivals != "replay":
            raise ValueError(f"a load with {self.arrivals} arrivals needs a rate")
        if self.arrivals == "replay" and len(self.trace) < 2:
            raise ValueError("a replay needs a trace of at least two arrival times")
        if self.open_loop and (why := too_many(self.planned_rate, self.seconds)):
            raise ValueError(why)
