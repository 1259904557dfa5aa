"""Jobs' logs: everything a worker printed, in one file a job, followed while it runs and read in pieces.

The worker writes the file itself (it is its standard output and error), so no line is lost when it dies. The engine
reads: new lines for the dashboard, pieces for whoever asks, the last line for the reason of a death. Text is raw;
whoever shows it cleans it. A job that prints without end is held at `LARGEST_LOG`: the head and the newest part stay.
"""

import contextlib
import os
from pathlib import Path

from ..protocol import Text

LARGEST_LOG = 32 * 1024 * 1024
"""Bytes; a longer log is cut back to `KEPT_HEAD` and goes on from there."""

KEPT_HEAD = 16 * 1024 * 1024
"""Bytes of the beginning that stay when a log is cut."""

PIECE_BYTES = 64 * 1024
"""The most that is read at once."""

LONGEST_LINE = 2000
"""Characters of a line that are shown live; the file has all of it."""


class LogFollower:
    """Reads a log from its beginning, each time what was added since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def new_lines(self, ended: bool = False) -> tuple[str, ...]:
        """Complete lines since the last call, at most 64 KiB of them; with `ended` also an unfinished last one."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # After more than one piece only the newest is worth showing live.
                self._offset = max(min(self._offset, size), size - PIECE_BYTES)
                file.seek(self._offset)
                piece = file.read(PIECE_BYTES)
        except OSError:
            return ()
        self._offset += len(piece)
        if self._offset > LARGEST_LOG:
            self._cut()
        *complete, self._rest = (self._rest + piece).split(b"\n")
        if ended or len(self._rest) > PIECE_BYTES:
            complete, self._rest = [*complete, self._rest], b""
        return tuple(_shown(line) for line in complete if line.strip())

    def _cut(self) -> None:
        """The worker appends, so after the cut it goes on writing where the head ends."""
        with contextlib.suppress(OSError):
            os.truncate(self._path, KEPT_HEAD)
            append(self._path, f"\n[log cut here: {(self._offset - KEPT_HEAD) >> 20} MiB left out]\n")
            self._offset = self._path.stat().st_size


def _shown(line: bytes) -> str:
    """A line as a terminal would leave it: of a progress bar that was redrawn with carriage returns, the last state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")[:LONGEST_LINE]


def append(path: Path, text: str) -> None:
    """Add text to a log. A log that cannot be written is no reason for anything else to fail."""
    with contextlib.suppress(OSError), path.open("ab") as file:
        file.write(text.encode(errors="backslashreplace"))


def read_piece(path: Path, offset: int) -> Text:
    """At most 64 KiB from `offset`, cut between characters; `next_offset` is where to go on. A missing log is empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, offset))
            piece = file.read(PIECE_BYTES)
    except OSError:
        return Text(text="", next_offset=offset)
    if len(piece) == PIECE_BYTES:
        # Leave a character that the cut went through (at most 3 bytes of it are here) for the next piece.
        for kept in range(1, 4):
            if piece[-kept] >= 0xC0:
                piece = piece[:-kept]
                break
            if piece[-kept] < 0x80:
                break
    return Text(text=piece.decode(errors="replace"), next_offset=max(0, offset) + len(piece))


def last_line(path: Path) -> str:
    """The last line that says something, "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = [line for line in file.read().split(b"\n") if line.strip()]
    except OSError:
        return ""
    return _shown(lines[-1]).strip() if lines else ""
