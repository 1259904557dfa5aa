"""The session's database, `session.db`: records as blobs under (kind, id), so that old sessions open for ever.

A row holds one msgpack record of `engine/protocol/`; the columns beside it are only what is searched for. A field
that is added to a record needs no migration, and a row that can no longer be read costs that row and nothing else.

What a caller may rely on: when `put` returns, the record survives a power cut (WAL, synchronous FULL). Several
records of one `put` are stored together or not at all. Every failure is a StoreError with a sentence. A full disk
is met with a reserve: the file `reserve` is given back to the disk so that the bad news itself can be written.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

SCHEMA_VERSION = 1
"""Raised when an older Trimtab would misread the tables. A newer one always reads the older ones."""

RESERVE_BYTES = 1024 * 1024
"""Kept on disk for the moment when the disk is full."""

PRAGMAS = (
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    # A WAL file never shrinks by itself; ones of 100 GB have been reported.
    "PRAGMA journal_size_limit = 16777216",
)

TABLES = (
    "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS records (
        kind TEXT NOT NULL, id TEXT NOT NULL, owner TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, id)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS records_owner ON records (owner) WHERE owner IS NOT NULL",
)

T = TypeVar("T")


class StoreError(Exception):
    """The database could not do what was asked; the text is a sentence for the user."""


class StoreCorrupt(StoreError):
    """The file is no sound database of ours."""


class Row(msgspec.Struct, frozen=True):
    """What `put` stores: a record, and for a measurement the variant it belongs to."""

    kind: str
    id: str
    record: Any
    owner: str | None = None


class Store:
    """One open `session.db`. Calls from any thread are taken one at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create the database, and check it whole.

        Raises StoreCorrupt when it is damaged, StoreError when a newer Trimtab wrote it or it cannot be opened.
        """
        self.path = path
        self._reserve = path.with_name("reserve")
        self._lock = threading.RLock()
        self._encoder = msgspec.msgpack.Encoder()
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._prepare(self._connection)
        except sqlite3.DatabaseError as error:
            self.close()
            raise _translate(error, path) from error
        except StoreError:
            self.close()
            raise
        self._keep_reserve()

    def put(self, *rows: Row) -> None:
        """Store these records for good, replacing those with the same kind and id. All of them or none."""
        values = [(row.kind, row.id, row.owner, self._encoder.encode(row.record)) for row in rows]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO records (kind, id, owner, body) VALUES (?, ?, ?, ?)", values)

        self._write(write)

    def remove(self, kind: str, id: str, *, owned: bool = False) -> None:
        """Forget a record, and with `owned` those that belong to it."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM records WHERE kind = ? AND id = ?", (kind, id))
            if owned:
                connection.execute("DELETE FROM records WHERE owner = ?", (id,))

        self._write(write)

    def read(self, kind: str, type: Any) -> Iterator[tuple[str, Any]]:
        """Every record of a kind in the order of ids, as (id, record); record is None where the row is unreadable."""
        decode = msgspec.msgpack.Decoder(type).decode
        with self._lock:
            rows = self._open.execute("SELECT id, body FROM records WHERE kind = ? ORDER BY id", (kind,)).fetchall()
        for id, body in rows:
            try:
                yield id, decode(body)
            except (msgspec.MsgspecError, ValueError, TypeError):
                yield id, None

    def newest_id(self) -> str:
        """The greatest id of any record; "" in an empty session."""
        with self._lock:
            return self._open.execute("SELECT max(id) FROM records WHERE kind != 'fact'").fetchone()[0] or ""

    def close(self) -> None:
        """Write the log into the database and let go of it."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._connection.close()
            self._connection = None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError("The session is closed.")
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for pragma in PRAGMAS:
            connection.execute(pragma).fetchall()
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StoreCorrupt(f"{self.path.name} is damaged ({verdict}).")
        with _transaction(connection):
            for table in TABLES:
                connection.execute(table)
            row = connection.execute("SELECT version FROM schema_version").fetchone()
            if row is None:
                connection.execute("INSERT INTO schema_version VALUES (?)", (SCHEMA_VERSION,))
            elif row[0] > SCHEMA_VERSION:
                raise StoreError(
                    f"The session in {self.path.parent} was written by a newer Trimtab (format {row[0]}, this one "
                    f"knows {SCHEMA_VERSION}). Upgrade Trimtab to open it."
                )

    def _write(self, change: Callable[[sqlite3.Connection], None]) -> None:
        """Run a change as one transaction; when the disk is full, once more after the reserve has been freed."""
        with self._lock:
            for last in (False, True):
                try:
                    with _transaction(self._open):
                        change(self._open)
                    return
                except sqlite3.DatabaseError as error:
                    if last or not is_disk_full(error) or not self._reserve.exists():
                        raise _translate(error, self.path) from error
                    self._reserve.unlink(missing_ok=True)

    def _keep_reserve(self) -> None:
        """Lay the reserve by. On a disk that is full already there is none, which is no reason not to open."""
        with contextlib.suppress(OSError):
            if not self._reserve.exists() or self._reserve.stat().st_size < RESERVE_BYTES:
                with self._reserve.open("wb") as file:
                    # Real zeros: a sparse file would reserve nothing.
                    file.write(b"\0" * RESERVE_BYTES)
                    file.flush()
                    os.fsync(file.fileno())


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite rolls back by itself on some errors; then there is nothing left to roll back.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def is_disk_full(error: sqlite3.Error) -> bool:
    """The disk had no room for it. (SQLite reports a full disk under its WAL as an I/O error.)"""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHM"))


def _translate(error: sqlite3.Error, path: Path) -> StoreError:
    """SQLite's error as a sentence with what to do."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorrupt(f"{path.name} is damaged ({error}).")
    if is_disk_full(error):
        return StoreError(f"There is no room left on the disk that holds {path.parent}: free some space and try again.")
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return StoreError(f"The session in {path.parent} cannot be written ({error}): check its owner and permissions.")
    if name.startswith("SQLITE_BUSY"):
        return StoreError(f"Another program holds {path}: is a second engine or a database tool running?")
    return StoreError(f"The session's database {path} failed: {error}.")
