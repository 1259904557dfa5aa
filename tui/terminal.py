"""The terminal itself: notice that it is gone, and whether it is at the end of a network line.

When a terminal disappears while SIGHUP is ignored (nohup, some wrappers), Textual's input thread reads nothing for
ever at 64–112 % of a core, and asking the app to exit hangs in its writer's queue. A client that spins would falsify
the very measurements it shows. So a thread waits for the hang-up and ends the process; the engine and its jobs are
other processes and go on.
"""

import os
import select
import sys
import threading

HUNG_UP = 129
"""Exit status of a client whose terminal went away: 128 + SIGHUP, as a shell would report it."""


def leave_when_terminal_goes() -> None:
    """Start the daemon thread that waits for the hang-up. Does nothing where standard input is no terminal."""
    try:
        descriptor = sys.__stdin__.fileno() if sys.__stdin__ is not None else -1
        if descriptor < 0 or not os.isatty(descriptor):
            return
    except (ValueError, OSError):
        return
    threading.Thread(target=_wait_for_hangup, args=(descriptor,), name="terminal-watch", daemon=True).start()


def over_network(environment: dict[str, str] | None = None) -> bool:
    """This terminal is reached through SSH or mosh: no animations then."""
    known = os.environ if environment is None else environment
    return any(name in known for name in ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT", "MOSH_CONNECTION"))


def _wait_for_hangup(descriptor: int) -> None:
    """Block until the terminal is gone, then end the process without any of Python's or Textual's clean-up."""
    poll = select.poll()
    poll.register(descriptor, 0)  # no events asked for: only hang-up, error and invalid are reported
    while True:
        for _, events in poll.poll():
            if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                os._exit(HUNG_UP)
