"""Virtual environments for what we are compared with: made once, kept in the user's cache, never in our own.

A peer brings dozens of packages that nobody who uses Trimtab needs. Its environment also gets the few that our own
code needs for the comparison, in the versions of the environment that asks.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

OURS = ("numpy", "msgspec")
"""What `engine.batching` needs."""


class PeerUnavailable(Exception):
    """It could not be installed for this Python; the message is pip's own last word."""


def python_with(name: str, *packages: str, shared: tuple[str, ...] = OURS) -> Path:
    """The interpreter of an environment with these packages.

    `shared` are installed in the versions this process has. Takes minutes the first time. Raises `PeerUnavailable`.
    """
    wanted = [*packages, *(f"{package}=={importlib.metadata.version(package)}" for package in shared)]
    asked = f"{sys.version_info[:3]} {sys.prefix} {' '.join(wanted)}"
    place = cache() / f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    python, ready = place / "bin" / "python", place / "ready"
    if ready.exists():
        return python
    print(f"   (making an environment with {', '.join(packages)} in {place})", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        shutil.rmtree(place, ignore_errors=True)
        raise PeerUnavailable(pip.stderr.strip().splitlines()[-1] if pip.stderr.strip() else "pip failed")
    ready.touch()
    return python


def version_in(python: Path, package: str) -> str:
    """The version of a package in such an environment."""
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def cache() -> Path:
    """`$XDG_CACHE_HOME/trimtab-benchmarks`, or under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab-benchmarks"
