"""Names of devices: what a job may ask for, what that is on this machine, and who gets in whose way.

"cpu"              the processor
"cuda:1"           one GPU
"cuda:0,cuda:2"    several: training runs one process on each, everything else uses the first
"cuda"             all GPUs of the machine
"cpu,cpu"          two training processes on the processor, which share its threads (machines with two sockets)
"""

import re

DEVICES = re.compile(r"cuda|cuda:\d{1,3}(,cuda:\d{1,3})*|cpu(,cpu){0,31}")
"""Everything that names devices."""


def devices_of(device: str, gpus: int) -> tuple[str, ...]:
    """The single devices that a name means on a machine with so many GPUs, each GPU once."""
    if device == "cuda":
        return tuple(f"cuda:{index}" for index in range(gpus))
    names = device.split(",")
    return tuple(names if names[0] == "cpu" else dict.fromkeys(names))


def first_device(device: str) -> str:
    """The one that is used for what needs one, such as a measurement."""
    return "cuda:0" if device == "cuda" else device.partition(",")[0]


def missing_device(device: str, gpus: int) -> str | None:
    """The first device that the machine does not have; None if it has them all."""
    wanted = devices_of(device, gpus) or (device,)
    return next((name for name in wanted if name.startswith("cuda") and not 0 <= _number(name) < gpus), None)


def overlap(one: str, other: str) -> bool:
    """The two names have a device in common."""
    names, others = one.split(","), other.split(",")
    if "cuda" in names or "cuda" in others:
        return names[0][:4] == others[0][:4] == "cuda"
    return bool(set(names) & set(others))


def _number(name: str) -> int:
    return int(name.partition(":")[2] or -1)
