"""What the machine is and does: CPU, memory, every NVIDIA GPU."""

from .telemetry import Telemetry, find_memory_group, read_hardware

__all__ = ["Telemetry", "find_memory_group", "read_hardware"]
