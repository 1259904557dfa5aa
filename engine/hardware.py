"""What the processor can do, in the words quantization needs: is there VNNI, AMX, a dot product?

Cheap (one small file and a few psutil calls, no subprocess) and light: the engine process reads it once at its
start. The features decide both the speed and the *answers* of an INT8 graph, so every variant and every
measurement carries them. A feature the operating system hides is reported as absent.
"""

import functools
import platform
import sys
from pathlib import Path

import psutil

from .protocol import Processor

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux says what the processor is."""

FEATURE_FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx-int8": ("amx_int8",),
    "amx-bf16": ("amx_bf16",),
    "neon": ("neon", "asimd"),
    "dotprod": ("asimddp",),
}
"""Our feature → the kernel's flags, any of which means it is there. `asimd*` are the names on 64-bit ARM."""


@functools.cache
def read_processor(cpuinfo: Path = CPUINFO) -> Processor:
    """This machine's processor, read once. Never raises: what cannot be read is an empty set of features."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name, flags = parse_cpuinfo(text)
    features = {feature for feature, words in FEATURE_FLAGS.items() if flags.intersection(words)}
    if sys.platform == "darwin" and platform.machine() == "arm64":
        features |= {"neon", "dotprod"}  # every Apple processor with this architecture has both
    logical = psutil.cpu_count(logical=True) or 1
    return Processor(
        name=name or platform.processor() or platform.machine() or "unknown processor",
        features=tuple(sorted(features)),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        memory_bytes=psutil.virtual_memory().total,
    )


def parse_cpuinfo(text: str) -> tuple[str, set[str]]:
    """The processor's name ("" if it is not given, as on ARM) and its flags, from `/proc/cpuinfo`.

    A flag counts only when every core has it: a thread may be moved to any of them.
    """
    name = ""
    common: set[str] | None = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if key == "model name" and not name:
            name = value
        elif key in ("flags", "features"):
            flags = set(value.split())
            common = flags if common is None else common & flags
    return name, common or set()
