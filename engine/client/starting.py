"""Start a session's engine so that it outlives whoever started it.

An SSH logout must not end it: it gets its own session (setsid) and ignores SIGHUP, and where systemd kills a user's
processes at logout (`KillUserProcesses=yes`) it is started through `systemd-run --user --scope`, which puts it
outside the login's control group. The engine answers on a pipe (its standard output at first): "ready", or one
sentence that says why not.
"""

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

START_READY = "ready"
"""The engine's word once it listens."""

START_LOCKED = "locked: "
"""Begins the sentence of an engine that ends because another one holds the session."""

MAIN = Path(__file__).resolve().parent.parent / "__main__.py"
"""The engine is run by path, so that no `engine` on the user's import path can stand in for it."""


class EngineDidNotStart(Exception):
    """The text is the user's sentence; `locked` means that another engine holds the session."""

    def __init__(self, sentence: str, locked: bool = False) -> None:
        super().__init__(sentence)
        self.locked = locked


def start_engine(session_directory: Path, seconds: float) -> None:
    """Start the engine of a session and return once it listens. Blocks: call it in a thread.

    Raises EngineDidNotStart with the engine's own sentence, or after `seconds`.
    """
    command = [sys.executable, "-P", os.fspath(MAIN), "server", os.fspath(session_directory), "--detach"]
    scope = _scope_command()
    if scope:
        # What goes wrong with systemd is nobody's concern: the plain start follows and has the last word.
        with contextlib.suppress(EngineDidNotStart):
            _run(scope + command, session_directory, seconds)
            return
    _run(command, session_directory, seconds)


def _scope_command() -> list[str]:
    """How to leave the login's control group; empty where the user has no systemd of their own."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    program = shutil.which("systemd-run")
    if program is None or not runtime or not os.path.exists(os.path.join(runtime, "systemd", "private")):
        return []
    return [program, "--user", "--scope", "--quiet", "--collect", "--"]


def _run(command: list[str], session_directory: Path, seconds: float) -> None:
    """Run the starter and wait for the engine's word. Raises EngineDidNotStart."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # Into the same pipe: on the terminal it would land in the middle of the dashboard.
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise EngineDidNotStart(f"The engine cannot be started: {error}.") from None
    assert process.stdout is not None
    with contextlib.closing(process.stdout):
        said = _listen(process.stdout.fileno(), time.monotonic() + seconds)
    if said is None:
        process.kill()
        process.wait()
        raise EngineDidNotStart(f"The engine of {session_directory} did not start within {seconds:.0f} s.")
    # The starter forks and ends at once (--detach), so this does not block; it leaves no zombie.
    process.wait()
    if START_READY in said:
        return
    for line in said:
        if line.startswith(START_LOCKED):
            raise EngineDidNotStart(line.removeprefix(START_LOCKED), locked=True)
    reason = said[-1] if said else "it said nothing; see engine.log there"
    raise EngineDidNotStart(reason if " " in reason else f"The engine of {session_directory} did not start: {reason}")


def _listen(descriptor: int, deadline: float) -> list[str] | None:
    """The lines that arrive until the engine is ready or the pipe closes; None at the deadline."""
    text = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(descriptor, 65536)
        text += piece
        lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
        if not piece or START_READY in lines:
            return lines
