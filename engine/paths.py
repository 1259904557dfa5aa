"""Where an engine can be found: its socket, its lock, its record, and the list of known sessions.

One session directory has at most one engine. What a reader may rely on:
- `engine.lock` in the session directory is locked (flock) for as long as an engine lives, and no longer.
- `engine.json` beside it tells who that engine is (`EngineRecord`). It may outlive a killed engine; `is_alive`
  compares process id, start time and boot, so a recycled process id is never mistaken for an engine.
- The socket lies in `$XDG_STATE_HOME/trimtab/run` (default `~/.local/state`), not under `$XDG_RUNTIME_DIR`:
  logind removes the latter on logout, and jobs outlive a logout. Where that path is too long for a socket or the
  file system has none, it lies in `/tmp/trimtab-<uid>`. Both directories are 0700, ours and no symlinks, or refused.

Light: imports nothing but the standard library and msgspec; client and engine both use it.
"""

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
from pathlib import Path

import msgspec
from msgspec import Struct

MAX_SOCKET_PATH_BYTES = 107
"""Linux keeps a socket's path in 108 bytes, one of them the closing zero."""

LOCK_NAME = "engine.lock"
"""The file in the session directory that a living engine holds locked."""

RECORD_NAME = "engine.json"
"""The file in the session directory that tells who the engine is."""

LOG_NAME = "engine.log"
"""The engine's own log in the session directory."""

SESSION_SUFFIX = ".trimtab"
"""Session directories are called `<model stem>.trimtab` unless the user says otherwise."""


class UnsafeDirectory(Exception):
    """A directory for sockets is not ours alone; the text is the user's sentence."""


class SessionLocked(Exception):
    """Another engine holds the session; the text is the user's sentence."""


class EngineRecord(Struct, frozen=True, kw_only=True):
    """Who an engine is. Written once it listens, removed when it ends in order."""

    pid: int
    start_ticks: int
    """When the process started, in clock ticks since boot (field 22 of /proc/PID/stat)."""
    machine_boot: str
    """The machine's boot (/proc/sys/kernel/random/boot_id): after a reboot process ids mean nothing."""
    boot_id: str
    """New for every start of an engine (`Welcome.boot_id`)."""
    protocol: int
    oldest_protocol: int
    version: str
    python: str
    """The interpreter it runs on: an upgrade may leave an old engine behind, this says whose it is."""
    socket: str
    started: float


class ListedSession(Struct, frozen=True, kw_only=True):
    """A session directory this user has opened, as the list remembers it."""

    directory: str
    model: str | None = None
    """The name of the model that was open in it, None if none was yet."""


def state_directory() -> Path:
    """Trimtab's own directory under the user's state directory. Not created here."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification: a relative path there is invalid and to be ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return root / "trimtab"


def session_key(session_directory: Path) -> str:
    """A short name for a session directory, the same for every spelling of its path."""
    return hashlib.sha256(os.fsencode(os.path.realpath(session_directory))).hexdigest()[:16]


def private_directory(path: Path) -> Path:
    """`path`, made if it is not there, and checked: a real directory, ours, closed to all others.

    Raises UnsafeDirectory if it is a symlink, another user's or open to others; OSError if it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectory(f"{path} is not a directory (a link or a file stands in its place): remove it.")
    if status.st_uid != os.getuid():
        raise UnsafeDirectory(f"{path} belongs to user {status.st_uid}, not to you: it cannot hold your sockets.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise UnsafeDirectory(f"{path} is open to other users: run chmod 700 {path}")
    return path


def socket_candidates(session_directory: Path) -> tuple[Path, Path]:
    """The two places a session's socket may be: under the state directory, and the short one under /tmp."""
    name = f"{session_key(session_directory)}.sock"
    return state_directory() / "run" / name, Path(f"/tmp/trimtab-{os.getuid()}") / name


def fits(socket_path: Path) -> bool:
    """The path is short enough for a socket."""
    return len(os.fsencode(socket_path)) <= MAX_SOCKET_PATH_BYTES


def listening_socket(session_directory: Path) -> tuple[socket.socket, Path]:
    """A bound, listening socket for this session, mode 0600, and its path.

    Only the engine that holds the session's lock may call this: a socket file already there is a dead engine's and
    is replaced. Raises UnsafeDirectory or OSError when neither place can hold it.
    """
    preferred, fallback = socket_candidates(session_directory)
    problem: Exception | None = None
    for path in (preferred, fallback):
        if not fits(path):
            continue
        try:
            private_directory(path.parent)
            return _bind(path), path
        except (OSError, UnsafeDirectory) as error:
            problem = error
    raise problem or OSError(f"{fallback} is too long for a socket")


def _bind(path: Path) -> socket.socket:
    """Bind with a mask that leaves the file 0600 from its first moment, not from a later chmod."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def connectable_sockets(session_directory: Path) -> list[Path]:
    """Where a client should try to reach the session's engine, best first; only paths in directories that are ours.

    The engine's own record comes first: it may have been started under another `XDG_STATE_HOME`.
    """
    record = read_record(session_directory)
    candidates = [Path(record.socket)] if record is not None else []
    candidates += [path for path in socket_candidates(session_directory) if path not in candidates]
    return [path for path in candidates if fits(path) and _is_private(path.parent)]


def _is_private(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def lock_session(session_directory: Path) -> int:
    """Lock the session for this process's life; returns the open file descriptor that holds the lock.

    Raises SessionLocked when an engine holds it. Where the file system knows no locks (some network mounts) the lock
    lies in /tmp/trimtab-<uid>, which keeps out a second engine on this machine.
    """
    try:
        return _lock(session_directory / LOCK_NAME, session_directory)
    except OSError:
        fallback = private_directory(Path(f"/tmp/trimtab-{os.getuid()}"))
        return _lock(fallback / f"{session_key(session_directory)}.lock", session_directory)


def _lock(path: Path, session_directory: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        record = read_record(session_directory)
        who = f" (process {record.pid})" if record is not None and is_alive(record) else ""
        raise SessionLocked(f"{session_directory} is already open in another engine{who}.") from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


# --- the engine's record ---------------------------------------------------------------------------


def machine_boot() -> str:
    """The machine's boot id; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name in parentheses may hold spaces and parentheses: count fields from the last one.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def write_record(session_directory: Path, record: EngineRecord) -> None:
    """Write `engine.json` whole or not at all."""
    beside = session_directory / f".{RECORD_NAME}.{os.getpid()}"
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    beside.replace(session_directory / RECORD_NAME)


def read_record(session_directory: Path) -> EngineRecord | None:
    """What `engine.json` says, None if there is none or it cannot be read."""
    try:
        return msgspec.json.decode((session_directory / RECORD_NAME).read_bytes(), type=EngineRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def remove_record(session_directory: Path) -> None:
    """Remove `engine.json`; it is no error if it is gone."""
    with contextlib.suppress(OSError):
        (session_directory / RECORD_NAME).unlink()


def is_alive(record: EngineRecord) -> bool:
    """The very process that wrote the record still runs on this machine."""
    return record.machine_boot == machine_boot() and start_ticks(record.pid) == record.start_ticks


# --- the user's list of sessions -------------------------------------------------------------------


def remember_session(session_directory: Path, model: str | None = None) -> None:
    """Put the session on the user's list. One small file each, so that two engines never write the same one."""
    listed = state_directory() / "sessions"
    listed.mkdir(parents=True, exist_ok=True)
    entry = listed / f"{session_key(session_directory)}.json"
    beside = listed / f".{entry.name}.{os.getpid()}"
    beside.write_bytes(msgspec.json.encode(ListedSession(directory=os.path.realpath(session_directory), model=model)))
    beside.replace(entry)


def listed_sessions() -> list[ListedSession]:
    """Every session on the list whose directory still exists, the most recently opened first."""
    entries = [(entry.stat().st_mtime, entry) for entry in (state_directory() / "sessions").glob("*.json")]
    sessions = []
    for _, entry in sorted(entries, reverse=True):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            session = msgspec.json.decode(entry.read_bytes(), type=ListedSession)
            if os.path.isdir(session.directory):
                sessions.append(session)
    return sessions


def forget_session(session_directory: Path) -> None:
    """Take a session off the list; its directory stays as it is."""
    with contextlib.suppress(OSError):
        (state_directory() / "sessions" / f"{session_key(session_directory)}.json").unlink()


def sessions_in(directory: Path) -> list[Path]:
    """The `*.trimtab` directories directly in `directory`, by name."""
    return sorted(path for path in directory.glob(f"*{SESSION_SUFFIX}") if path.is_dir())
