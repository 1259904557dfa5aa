"""For all tests of the engine: a state directory of their own, engines that end with the test, neighbours to import.

Tests import the makers of records (`session_makers.py`) and the drivers of engines (`engines.py`) that lie here.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import engines


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sockets and the list of sessions go to a temporary directory, never to the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(home))
        # systemd would put test engines into scopes of their own; test_client.py turns it on where it is the subject.
        patch.setenv("XDG_RUNTIME_DIR", str(home / "none"))
        yield home


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Path]:
    """A session directory; whatever engine serves it at the end of the test is killed, its jobs with it."""
    directory = tmp_path / "model.trimtab"
    yield directory
    engines.end(directory)


@pytest.fixture(scope="module")
def shared_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One session for the tests of a file: starting torch once is enough for those whose jobs fail or are cancelled."""
    directory = tmp_path_factory.mktemp("shared") / "model.trimtab"
    yield directory
    engines.end(directory, number=signal.SIGTERM)


@pytest.fixture
def as_root() -> None:
    """The test becomes another user for a moment, which only root can."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")


@pytest.fixture
def no_choice_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of graphs as small as these are chance: no node goes back to float for its speed unless a test says so."""
    monkeypatch.setattr("engine.graphs.sensitivity.SLOWER", float("inf"))
