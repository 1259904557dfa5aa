"""Targets: where a variant is to run, and therefore which flavour of quantization it gets.

The processor decides both the speed and the answers of an INT8 graph. Without VNNI, x86 adds products of
unsigned and signed bytes in 16 bits (`vpmaddubsw`) and saturates, so weights must keep to 7 bits there; with VNNI
the full range is exact and more accurate. TensorRT and CUDA want signed symmetric numbers on both sides. So
speed *and accuracy* are only claimed for the target a variant was made for, and `moves_class` says so in one
sentence when it is used elsewhere.

Light: read by the engine process, by techniques and by whoever compares or exports.
"""

import re
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from .protocol import Processor

INT8_TECHNIQUES = ("quantize-dynamic", "quantize-static", "quantize-aware-training")
"""After one of these a variant's answers depend on the class of processor (4-bit products never saturate)."""

TARGETS = ("this-machine", "cpu-vnni", "cpu-avx2", "cpu-portable", "cuda", "tensorrt")
"""The names a user may give."""

DeviceClass = Literal["vnni", "avx2", "arm", "portable", "cuda"]


class Target(Struct, frozen=True, kw_only=True):
    """A runtime on a class of devices, and the number formats that are right and fast there."""

    name: str
    """What a variant records. Never "this-machine": that is resolved to what this machine is."""
    description: str
    device_class: DeviceClass
    runtime: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    features: tuple[str, ...] = ()
    """Processor features that are relied upon (see `Processor.features`); empty for GPUs."""
    activation_type: Literal["uint8", "int8"] = "uint8"
    weight_type: Literal["int8"] = "int8"
    symmetric_activations: bool = False
    """True: zero point 0, so ReLU is not absorbed into the range but fused by the runtime."""
    weights_7_bit: bool = False
    """Keep weights within -64…63, so that sums of two products fit 16 bits."""
    float_type: Literal["float32", "float16"] = "float32"
    """What the nodes that are not quantized compute in."""


_KNOWN = {
    target.name: target
    for target in (
        Target(
            name="cpu-vnni",
            description="x86-64 with VNNI: INT8 dot products are exact, weights use all 8 bits",
            device_class="vnni",
            features=("avx2", "vnni"),
        ),
        Target(
            name="cpu-avx2",
            description="x86-64 without VNNI: weights use 7 bits, because sums saturate at 16",
            device_class="avx2",
            features=("avx2",),
            weights_7_bit=True,
        ),
        Target(
            name="cpu-arm",
            description="64-bit ARM: INT8 dot products are exact, weights use all 8 bits",
            device_class="arm",
            features=("neon",),
        ),
        Target(
            name="cpu-portable",
            description="any processor: weights use 7 bits, so that the answers hold everywhere",
            device_class="portable",
            weights_7_bit=True,
        ),
        Target(
            name="cuda",
            description="ONNX Runtime on an NVIDIA GPU: signed symmetric INT8 on both sides",
            device_class="cuda",
            activation_type="int8",
            symmetric_activations=True,
        ),
        Target(
            name="tensorrt",
            description="TensorRT: signed symmetric Q/DQ inside an FP16 graph",
            device_class="cuda",
            runtime="tensorrt",
            activation_type="int8",
            symmetric_activations=True,
            float_type="float16",
        ),
    )
}

_CLASS_WORDS = {
    "vnni": "x86-64 with VNNI",
    "avx2": "x86-64 without VNNI",
    "arm": "64-bit ARM",
}


def resolve_target(name: str, processor: Processor) -> Target:
    """The target with this name; "this-machine" becomes the class this processor belongs to.

    Raises ValueError with a sentence that lists the names.
    """
    if name == "this-machine":
        return _KNOWN[f"cpu-{class_of(processor)}"]
    if name not in _KNOWN:
        raise ValueError(f"There is no target {name!r}. Known: {', '.join(TARGETS)}.")
    return _KNOWN[name]


def class_of(processor: Processor) -> DeviceClass:
    """Which class of processors this one belongs to: those that give the same INT8 answers at like speed."""
    features = set(processor.features)
    if "vnni" in features:
        return "vnni"
    if features & {"neon", "dotprod"}:
        return "arm"
    if "avx2" in features:
        return "avx2"
    return "portable"


def in_words(processor: Processor) -> str:
    """The class of a processor as sentences call it."""
    return _CLASS_WORDS.get(class_of(processor), "a processor without AVX2")


def with_features(features: str, processor: Processor) -> Processor:
    """The processor that a record's features ("avx2,vnni") belong to; an empty record: this one."""
    words = tuple(word for word in re.split(r"[\s,]+", features) if word)
    return replace(processor, features=words) if words else processor


def measured_elsewhere(records: Iterable[str], processor: Processor) -> str | None:
    """The warning when figures of an INT8 variant come from another class of processor than this machine's.

    `records`: the features of each processor that something was measured on. None when all are of this class.
    """
    others = [with_features(features, processor) for features in records]
    words = dict.fromkeys(in_words(other) for other in others if class_of(other) != class_of(processor))
    if not words:
        return None
    return (
        f"Measured on {' and '.join(words)}; this is {in_words(processor)}: speed and accuracy of INT8 do not carry "
        "over. Measure again here."
    )


def moves_class(made_for: str, processor: Processor, quantized: bool = True) -> str | None:
    """The warning when a variant made for one target is compared, exported or replayed on this processor.

    None when the answers hold: the same class, a portable variant, or one without INT8 (`quantized` False), whose
    arithmetic does not depend on the class.
    """
    target = _KNOWN.get(made_for)
    if target is None or not quantized or target.device_class == "portable":
        return None
    here = class_of(processor)
    if target.device_class == here:
        return None
    where = in_words(processor)
    if target.device_class == "cuda":
        return (
            f"Made for {target.name} (signed symmetric INT8), which a CPU runs slower than FP32: "
            f"quantize again for {where}."
        )
    if target.weights_7_bit:
        return (
            f"Made for {target.name}; this is {where}: the answers hold, but weights of 7 bits give away a little "
            "accuracy, and the speed is another."
        )
    if here in ("avx2", "portable"):
        return (
            f"Made for {target.name} with weights of 8 bits; this is {where}, where their sums saturate: speed and "
            "accuracy do not carry over. Quantize for cpu-portable, or again here."
        )
    return f"Made for {target.name}; this is {where}: measure speed and accuracy again here."
