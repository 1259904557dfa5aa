"""Why a worker died, in words that claim no more than is known."""

import signal

import pytest

from engine.jobs.causes import MemoryWitness, explain_death
from engine.jobs.workers import Exit


class Witness(MemoryWitness):
    """Memory as a test wants it to have been."""

    def __init__(self, called: bool = False, limit: int | None = 2**33) -> None:
        self.called, self.memory = called, limit

    def was_called(self) -> bool:
        return self.called

    def limit(self) -> int | None:
        return self.memory


def test_a_death_with_a_checkpoint_says_where_the_work_goes_on():
    reason = explain_death(Exit(signal=9, peak_bytes=1), Witness(), "boom", "It goes on.").reason
    assert reason == ("Killed by signal 9 (SIGKILL), sender unknown. It goes on. Last line of its log: boom")


@pytest.mark.parametrize(
    ("ended", "witness", "words", "cause"),
    [
        (Exit(signal=9, peak_bytes=2**20), Witness(), "signal 9 (SIGKILL), sender unknown", "signal"),
        (Exit(signal=9, peak_bytes=2**20), Witness(called=True), "Probably out of memory", "out-of-memory"),
        (Exit(signal=9, peak_bytes=2**33), Witness(), "held 8.0 GiB", "out-of-memory"),
        (Exit(signal=9, peak_bytes=2**33), Witness(limit=None), "sender unknown", "signal"),
        (Exit(signal=11), Witness(), "signal 11 (SIGSEGV), a crash in native code", "signal"),
        (Exit(signal=15), Witness(called=True), "signal 15 (SIGTERM), sender unknown", "signal"),
        (Exit(signal=64), Witness(), "signal 64", "signal"),
        (Exit(code=3), Witness(), "exited with status 3 without a result", "error"),
        (Exit(lost=True), Witness(), "process that starts workers died", "lost"),
    ],
)
def test_a_death_in_words(ended, witness, words, cause):
    death = explain_death(ended, witness, "")
    assert words in death.reason
    assert death.cause == cause


def test_the_last_line_of_the_log_is_quoted_and_cannot_draw_on_the_screen():
    death = explain_death(Exit(code=1), Witness(), "Traceback \x1b[2J boom")
    assert "boom" in death.reason
    assert "\x1b" not in death.reason


def test_the_kernels_counters_are_readable_here():
    witness = MemoryWitness()
    assert witness.was_called() is False
    assert (witness.limit() or 0) > 2**20
    assert explain_death(Exit(signal=signal.SIGKILL, peak_bytes=1), witness, "").cause == "signal"
