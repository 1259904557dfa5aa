"""The room that requests take while they are read and served: one account for both doors of a server.

What is counted is what was really received, in bytes, from its first piece until its answer is written. A queue of
4,096 requests of 64 MiB would be 256 GiB; so beyond `BODIES` times the limit of one body a request is turned away.
"""

import contextlib
from collections.abc import Iterator

from .tensors import Problem

BODIES = 8
"""All bodies that are held at one time may have this many times the limit of one."""

BODY_SECONDS = 60.0
"""For a body to come in: who sends it byte by byte must not hold its memory for ever."""


class NoRoom(Problem):
    """As much is held as there is memory for: HTTP 503, RESOURCE_EXHAUSTED over gRPC."""

    def __init__(self) -> None:
        super().__init__(503, "The server is busy: it holds as many requests as it has memory for. Try again later.")


class HeldBytes:
    """Bytes of requests that are being read or served. Lives in one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Bytes of the longest body."""
        self.bytes = 0

    def hold(self, size: int) -> None:
        """Take room for a body or a piece of one. Raises NoRoom."""
        if self.bytes + size > BODIES * self.limit:
            raise NoRoom
        self.bytes += size

    def let_go(self, size: int) -> None:
        self.bytes -= size

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Room for a whole body while it is served. Raises NoRoom."""
        self.hold(size)
        try:
            yield
        finally:
            self.let_go(size)
