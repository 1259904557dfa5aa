"""What was measured of a variant: latency, accuracy, where time goes, why it is faster or not, load tests."""

from typing import Literal

from .load import LoadSearch, LoadTest
from .records import Conditions, Left, Record

LEAST_DELTA = 0.01
"""Differences in speed below 1 % are never called FASTER or SLOWER, however surely they are known."""


class Ratio(Record):
    """A speed-up: how many times faster than `against`, with its 95 % confidence interval."""

    ratio: float
    low: float
    high: float
    verdict: Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]
    against: str
    """In words: "baseline · pytorch · cpu · batch 8"."""
    against_variant: str = ""


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
    exclude: str | None = None
    """What the technique that made the variant has to `exclude` to leave the node in float; None: it is in float."""


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
    """One sentence with the profiles' numbers: the main cause of the gain, or of its lack. A second one tells which to
    trust where the profiles and `speedup` disagree."""
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


class LayerSensitivity(Record):
    """What one layer costs when it alone is made narrower."""

    name: str
    kind: str
    """What its units are: "channels", "neurons", "heads", "hidden units"."""
    width: int
    """How many units it has."""
    accuracy: tuple[float, ...]
    """After removing each of the scan's ratios, fractions, without fine-tuning."""
    macs: tuple[int | None, ...] = ()
    """Multiply-adds of the whole network for one sample then."""
    kept: tuple[int, ...] = ()
    """Units that were left then, rounded as pruning rounds them. Empty in scans of before this was recorded."""


class Sensitivity(Record, tag="sensitivity"):
    """Accuracy against the share of units removed, layer by layer: what the heat map is drawn from."""

    id: str
    variant: str
    job: str
    created: float
    conditions: Conditions
    accuracy: float
    """Of the whole network, on the same held-out training data as the layers' accuracies."""
    samples: int
    ratios: tuple[float, ...]
    """Shares of units removed, rising."""
    layers: tuple[LayerSensitivity, ...]
    macs: int | None = None
    left: tuple[Left, ...] = ()
    """Layers that cannot be made narrower, and why."""
    sentence: str = ""


Measurement = Latency | Accuracy | Profile | Explanation | Sensitivity | LoadTest | LoadSearch
