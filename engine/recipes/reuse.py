"""What need not be done again: variants already made, and measurements already taken under the same conditions.

The same means: the same parent, technique, parameters (defaults filled in) and target, made on the same class of
processor; for a measurement the same variant, runtime, device and class of processor. A different machine of the same
class counts as the same for variants and accuracy, because the arithmetic is; times are taken as they were shown.
"""

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import msgspec

from ..protocol import (
    Accuracy,
    Conditions,
    Explanation,
    Hardware,
    Job,
    Latency,
    Measurement,
    Processor,
    Profile,
    Sensitivity,
    Succeeded,
    Variant,
)
from ..safety import clean_text
from ..session import Session, SessionError
from ..targets import INT8_TECHNIQUES, class_of, in_words, with_features
from ..techniques import Refusal, parse_parameters, with_defaults


def made_already(
    variants: Iterable[Variant],
    jobs: dict[str, Job],
    source: Variant,
    technique: str,
    parameters: dict[str, Any],
    target: str,
    processor: Processor,
) -> tuple[Variant, ...]:
    """The variants that this technique made from this source before, all of one job; () when there are none.

    A job that did not reach its end counts for nothing: its front of variants may lack some.
    """
    known = list(variants)
    for variant in reversed(_asked_so(known, technique, parameters)):
        at_home = target in (variant.target, variant.requested_target) and same_class(variant.processor, processor)
        if variant.parent == source.id and at_home:
            job = jobs.get(variant.job or "")
            if job is None:  # forgotten with the years; the variant itself says enough
                return (variant,)
            if isinstance(job.state, Succeeded):
                front = tuple(one for one in known if one.id in job.state.variants)
                if len(front) == len(job.state.variants):
                    return front
    return ()


def moved(
    variants: Iterable[Variant],
    source: Variant,
    technique: str,
    parameters: dict[str, Any],
    recorded: dict[str, Any],
    processor: Processor,
) -> str | None:
    """The notice when INT8 that this session or the recipe's record has from another class of processor is made here.

    None where nothing was made elsewhere, or where answers do not depend on the class.
    """
    if technique not in INT8_TECHNIQUES:
        return None
    here, known = in_words(processor), {one.id: one for one in variants}
    for variant in reversed(_asked_so(known.values(), technique, parameters)):
        parent = known.get(variant.parent or "")
        # the parent was made again too, so it is known by what it is, not by its id
        alike = parent is not None and (parent.technique, parent.parameters) == (source.technique, source.parameters)
        if alike and not same_class(variant.processor, processor):
            there = in_words(with_features(variant.processor, processor))
            return (
                f"{clean_text(variant.name, 80)} was made on {there}; this is {here}, so it was made again: speed and "
                "accuracy are others here."
            )
    features = str(recorded.get("processor") or "")
    if not same_class(features, processor):
        there = in_words(with_features(features, processor))
        return f"The recipe recorded its figures on {there}; this is {here}: speed and accuracy are others here."
    return None


def another_baseline(measured: Accuracy | None, recorded: dict[str, Any]) -> str | None:
    """The notice when the baseline is not as accurate as it was where the recipe was recorded; None when it may be it.

    Beyond what sampling explains: more than four standard errors of the difference between two independent samples.
    """
    if measured is None or {measured.kind, recorded.get("accuracy_kind")} != {"accuracy"}:
        return None
    try:
        there = float(recorded["accuracy"]) + float(recorded["accuracy_drop"])
        samples = max(int(recorded["accuracy_samples"]), 1)
    except (KeyError, TypeError, ValueError, OverflowError):  # written by hand
        return None
    # One more right and one more wrong answer each: without them a baseline that is always right had no error at all.
    right = measured.value * measured.samples + there * samples + 2
    share = right / (measured.samples + samples + 4)
    error = math.sqrt(share * max(1 - share, 0) * (1 / max(measured.samples, 1) + 1 / samples))
    if abs(measured.value - there) > 4 * error:
        return (
            f"The baseline's accuracy is {measured.value * 100:.2f} % on {measured.samples} samples here; where the "
            f"recipe was recorded it was {there * 100:.2f} % on {samples}: the model or its data is another one (are "
            "the files there that the model file reads?)."
        )
    return None


def _asked_so(variants: Iterable[Variant], technique: str, parameters: dict[str, Any]) -> list[Variant]:
    """Variants that were asked for with these words, of whatever, wherever and for whichever target."""
    wanted = _canonical(technique, parameters)
    return [
        variant
        for variant in variants
        if variant.technique == technique
        and _canonical(technique, variant.parameters if variant.requested is None else variant.requested) == wanted
    ]


def has_accuracy(measurements: Iterable[Measurement], variant: Variant, runtime: str, hardware: Hardware) -> bool:
    """Its accuracy is known under this runtime. (Another limit needs no new run: the interval is judged again.)"""
    return any(
        isinstance(one, Accuracy)
        and one.variant == variant.id
        and one.conditions.runtime == runtime
        and same_machine(one.conditions, hardware)
        for one in measurements
    )


def missing_batch_sizes(
    measurements: Iterable[Measurement],
    variant: Variant,
    runtime: str,
    device: str,
    sizes: tuple[int, ...],
    hardware: Hardware,
) -> tuple[int, ...]:
    """Those batch sizes at which its latency is not known under this runtime on this device."""
    known = {
        one.batch_size
        for one in measurements
        if isinstance(one, Latency)
        and one.variant == variant.id
        and (one.conditions.runtime, one.conditions.device) == (runtime, device)
        and same_machine(one.conditions, hardware)
    }
    return tuple(size for size in sizes if size not in known)


def known_profile(session: Session, variant: Variant, runtime: str | None, device: str, size: int) -> Profile | None:
    """The newest profile of a variant; None as a runtime: under any, `size` 0: at any batch size."""
    found = [
        one
        for one in session.measurements.values()
        if isinstance(one, Profile)
        and one.variant == variant.id
        and runtime in (None, one.conditions.runtime)
        and one.conditions.device == device
        and size in (0, one.batch_size)
    ]
    return max(found, key=lambda one: one.created, default=None)


def explained_against(session: Session, variant: Variant, against: str | None) -> Variant:
    """What a variant is explained against: the one named, else its parent. Raises SessionError."""
    if against is None and variant.parent is None:
        raise SessionError(
            f"{clean_text(variant.name, 80)} was made from nothing, so there is nothing to explain: name another "
            "variant with --against."
        )
    other = session.resolve(against or variant.parent or "")
    if other.id == variant.id:
        raise SessionError("A variant cannot be explained against itself: name another with --against.")
    return other


def known_explanation(
    session: Session, variant: Variant, against: Variant, runtime: str | None = None
) -> Explanation | None:
    """The newest answer to why the one is (not) faster than the other; None as a runtime: under any."""
    found = [
        one
        for one in session.measurements.values()
        if isinstance(one, Explanation)
        and (one.variant, one.against) == (variant.id, against.id)
        and runtime in (None, one.conditions.runtime)
    ]
    return max(found, key=lambda one: one.created, default=None)


def known_sensitivity(session: Session, variant: Variant) -> Sensitivity | None:
    """The newest sensitivity scan of a variant. It holds on any machine: accuracy is all that it measures."""
    found = [one for one in session.measurements.values() if isinstance(one, Sensitivity) and one.variant == variant.id]
    return max(found, key=lambda one: one.created, default=None)


def same_machine(conditions: Conditions, hardware: Hardware) -> bool:
    """It was taken on a processor of this machine's class, or on a GPU of a name that this machine has."""
    if conditions.device.startswith("cuda"):
        return any(gpu.name == conditions.processor for gpu in hardware.gpus)
    return same_class(conditions.processor, hardware.processor)


def same_class(features: str, processor: Processor) -> bool:
    """A record's processor features ("avx2,vnni") belong to this processor's class. An empty record fits any."""
    return class_of(with_features(features, processor)) == class_of(processor)


def _canonical(technique: str, parameters: dict[str, Any]) -> bytes:
    """Parameters in one form: today's defaults filled in, so that a new parameter does not undo old results."""
    # Refused: an old parameter no longer exists. Then the record only equals itself.
    with contextlib.suppress(Refusal):
        parameters = with_defaults(parse_parameters(technique, parameters))
    return msgspec.json.encode(parameters, order="sorted")
