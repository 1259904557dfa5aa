"""What a load test found, with the bounds that hold and the reasons why it may not count.

A summary is of the requests scheduled after the warm-up; only throughput is of whatever was completed after it and
before sending ended, for a request that takes a third of the test would else be missing at both of its ends. Latency
counts from the scheduled arrival to the answer, over completed requests; those rejected, failed or never answered are
late whatever the limit. Never answered are also those that the target handed back unrun when the run ended (CLOSED);
dropped those that never left this machine.
"""

import numpy as np

from ...batching.queue import CLOSED, COMPLETED, REJECTED
from ...protocol import LoadSummary, Percentile
from ...protocol.load import Verdict
from .percentiles import CONFIDENCE, late_allowed, quantile, requests_needed
from .record import DROPPED, Floats, Record
from .request import Load

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
"""Those reported."""

LATE_SHARE = 0.01
"""A run with more arrivals than this sent late is INVALID."""

LAG_OF_LIMIT = 0.05
"""An arrival is sent late when the generator was behind by more than this share of the limit (or of p99) …"""

LAG_SECONDS = 0.001
"""… and by more than this: below it lies the operating system's own timer noise."""


def summarise(record: Record, load: Load, ended: float) -> LoadSummary:
    """`ended`: when sending ended, seconds since the start. A run without a measured request is INVALID."""
    start = load.warm_up_seconds
    chosen = np.flatnonzero(record.scheduled[: record.count] >= start)
    seconds = max(ended, start + 1e-9) - start
    status = record.status[chosen]
    done = chosen[status == COMPLETED]
    scheduled, sent, finished = record.scheduled, record.sent, record.finished
    latency = np.sort(finished[done] - scheduled[done])
    within = record.completed_between(start, ended)
    lag = np.sort(sent[chosen] - scheduled[chosen])
    rejected = int((status == REJECTED).sum())
    unanswered = int(((status < COMPLETED) | (status == CLOSED)).sum())
    dropped = int((status == DROPPED).sum())
    reasons = _reasons(load, latency, lag, unanswered, dropped, len(done))
    return LoadSummary(
        scenario=load.scenario,
        requests_for_p99=requests_needed(0.99),
        valid=not reasons,
        reasons=tuple(reasons),
        seconds=seconds,
        offered_per_s=len(chosen) / seconds,
        achieved_per_s=len(within) / seconds,
        rows_per_s=float(record.rows[within].sum()) / seconds,
        completed=len(done),
        rejected=rejected,
        failed=len(chosen) - len(done) - rejected - unanswered - dropped,
        unanswered=unanswered,
        dropped=dropped,
        latency_ms={name: _percentile(latency, share) for name, share in QUANTILES.items()} if len(done) else {},
        queue_ms=_spread(record.taken[done] - sent[done]),
        forming_ms=_spread(record.started[done] - record.taken[done]),
        compute_ms=_spread(record.computed[done] - record.started[done]),
        batch_sizes=_batch_sizes(record, done),
        lag_ms=_lag(lag) if load.open_loop else {},
        slo_ms=load.slo_p99_ms,
        verdict=_verdict(load, latency, len(chosen)),
    )


def _reasons(load: Load, latency: Floats, lag: Floats, unanswered: int, dropped: int, completed: int) -> list[str]:
    """Why the run does not count; empty if it does."""
    reasons = []
    if unanswered:
        reasons.append(
            f"{unanswered} requests were never answered: they were given up {load.drain_seconds:g} s after the last one"
            f" was sent. {load.relief}"
        )
    if dropped:
        reasons.append(
            f"{dropped} requests were dropped here and never sent: every connection was busy, and max_queue_size"
            " requests waited for one. Lower the load, or raise max_queue_size"
        )
    if not completed:
        return ["no request was completed", *reasons]
    if load.open_loop:
        basis = load.slo_p99_ms * 1e-3 if load.slo_p99_ms else float(np.quantile(latency, 0.99))
        limit = max(LAG_OF_LIMIT * basis, LAG_SECONDS)
        late = float((lag > limit).mean())
        if late > LATE_SHARE:
            reasons.append(
                f"the load generator fell behind: {late:.1%} of the requests were sent more than"
                f" {limit * 1e3:.1f} ms late. Lower the rate, or give the generator a core of its own"
            )
    return reasons


def _verdict(load: Load, latency: Floats, sent: int) -> Verdict | None:
    """LoadGen's rule one way, its mirror image the other."""
    if load.slo_p99_ms is None or not sent:
        return None
    in_time = int(np.searchsorted(latency, load.slo_p99_ms * 1e-3, side="right"))
    allowed = late_allowed(sent, 0.99, CONFIDENCE)
    if allowed is not None and sent - in_time <= allowed:
        return "PASS"
    # FAIL: were the true share of late requests 1 %, so few in time would have a chance below 1 %.
    needed = late_allowed(sent, 0.01, CONFIDENCE)
    return "FAIL" if needed is not None and in_time <= needed else "UNCLEAR"


def _percentile(ordered: Floats, share: float) -> Percentile:
    found = quantile(ordered, share)
    return Percentile(
        value=found.estimate * 1e3,
        low=found.low * 1e3 if found.low is not None else None,
        high=found.high * 1e3 if found.high is not None else None,
        at_most=found.at_most * 1e3 if found.at_most is not None else None,
    )


def _spread(seconds: Floats) -> dict[str, float]:
    if not len(seconds):
        return {}
    return {"mean": float(seconds.mean()) * 1e3, "p50": _ms(seconds, 0.5), "p99": _ms(seconds, 0.99)}


def _lag(seconds: Floats) -> dict[str, float]:
    if not len(seconds):
        return {}
    return {"p50": _ms(seconds, 0.5), "p99": _ms(seconds, 0.99), "max": _ms(seconds, 1.0)}


def _ms(seconds: Floats, share: float) -> float:
    return float(np.quantile(seconds, share)) * 1e3


def _batch_sizes(record: Record, done: np.ndarray) -> dict[str, int]:
    """Each run once: its requests share the moment it started."""
    _, first = np.unique(record.started[done], return_index=True)
    sizes, counts = np.unique(record.batch_rows[done][first], return_counts=True)
    return {str(size): int(count) for size, count in zip(sizes.tolist(), counts.tolist())}
