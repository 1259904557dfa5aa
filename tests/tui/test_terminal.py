"""A dashboard whose terminal is gone ends at once, also where SIGHUP is ignored, and spins no core."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tui.terminal import HUNG_UP, over_network

CHILD = """
import signal, sys
if sys.argv[1] == "ignore":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.path.insert(0, sys.argv[2])
import scenes
app = scenes.app_of(scenes.work())
app.run()
"""


@pytest.mark.parametrize("sighup", ["default", "ignore"])
def test_the_client_ends_when_its_terminal_goes(sighup: str) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, sighup, str(Path(__file__).parent)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    try:
        assert _wait_for(controller, b"Variants"), "the dashboard never appeared"
        os.close(controller)
        status = child.wait(timeout=20)
        assert status == (HUNG_UP if sighup == "ignore" else status)
        assert status in (HUNG_UP, -1), status
    finally:
        child.kill()
        child.wait()


def test_a_terminal_behind_ssh_is_known_by_its_environment() -> None:
    assert over_network({"SSH_CONNECTION": "10.0.0.1 22"})
    assert not over_network({})


def _take_terminal() -> None:
    """Make the pseudo-terminal the child's controlling one, as a login does."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _wait_for(controller: int, wanted: bytes) -> bool:
    """Read what is drawn until it holds this."""
    seen = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([controller], [], [], 1)[0]:
            seen += os.read(controller, 65536)
            if wanted in seen:
                return True
    return False
