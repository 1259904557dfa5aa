"""Waiting until the threads of a native pool sleep, for runtimes that have no call to stop them from spinning."""

import time

SETTLE_SECONDS = 0.03
"""Longest wait between two arms of a comparison."""

LOOK_SECONDS = 0.005
"""The kernel books a running thread's time at its ticks, 4 ms apart: a shorter look may miss one that spins."""


def wait_until_quiet() -> None:
    """Return when this process burns hardly any CPU time, or after `SETTLE_SECONDS`."""
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(LOOK_SECONDS)
        if time.process_time() - before < 0.1 * LOOK_SECONDS:
            return
