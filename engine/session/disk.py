"""Whether the disk has room for another job.

A job that fills the disk fails late and takes the session's own writes down with it; better not to start. The reserve
is 1 GiB, or 2 % of a small disk.
"""

import os
from pathlib import Path

RESERVE_BYTES = 1024**3
"""Free space that a job must leave on a large disk."""

RESERVE_SHARE = 0.02
"""The same for a small disk: this share of it."""

LEAST_BYTES = 16 * 1024**2
"""Free space without which no job starts, however small the disk: logs and databases grow too."""

COPIES = 4
"""A job may write this many times the size of what it works on: exports, intermediate graphs, the result, its copy."""

RESERVE_FILES = 1000
"""Free inodes that must be left, where the file system counts them."""


def disk_is_short(directory: Path, working_set: int) -> str | None:
    """The sentence that says why no job can start in `directory`, or None. `working_set`: bytes it works on."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    reserve = max(LEAST_BYTES, min(RESERVE_BYTES, RESERVE_SHARE * disk.f_blocks * disk.f_frsize))
    needed = int(reserve) + COPIES * working_set
    if free < needed:
        return (
            f"Only {free / 2**20:,.0f} MiB are free on the disk of {directory}, and this job may need "
            f"{needed / 2**20:,.0f}: make room and run it again."
        )
    if disk.f_files and disk.f_favail < RESERVE_FILES:
        return f"The disk of {directory} can hold only {disk.f_favail} more files: remove some and run it again."
    return None
