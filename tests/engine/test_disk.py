"""No job starts on a disk that it would fill."""

import os
from pathlib import Path

import pytest

from engine.session.disk import disk_is_short


def disk(free_mib: int, total_mib: int, files: int = 1_000_000, free_files: int = 500_000) -> os.statvfs_result:
    block = 2**20
    return os.statvfs_result((block, block, total_mib, free_mib, free_mib, files, free_files, free_files, 0, 255))


@pytest.mark.parametrize(
    ("free_mib", "total_mib", "working_set", "short"),
    [
        (2048, 1_000_000, 0, False),
        (1000, 1_000_000, 0, True),
        (500, 20_000, 0, False),
        (300, 20_000, 0, True),
        (2048, 1_000_000, 500 * 2**20, True),
        (10, 40, 0, True),
    ],
)
def test_the_reserve_is_a_gibibyte_or_two_percent_and_room_for_the_work(
    monkeypatch, free_mib, total_mib, working_set, short
):
    monkeypatch.setattr(os, "statvfs", lambda _: disk(free_mib, total_mib))
    sentence = disk_is_short(Path("/somewhere"), working_set)
    assert (sentence is not None) is short
    if sentence:
        assert "make room" in sentence


def test_a_disk_without_inodes_is_short_too(monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: disk(90_000, 100_000, free_files=10))
    assert "only 10 more files" in (disk_is_short(Path("/somewhere"), 0) or "")


def test_a_file_system_that_counts_no_inodes_is_not_short_of_them(monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: disk(90_000, 100_000, files=0, free_files=0))
    assert disk_is_short(Path("/somewhere"), 0) is None
