"""Talk to a session's engine: attach (starting it if need be), send commands, follow what happens.

    client = await connect(Path("model.trimtab"), telemetry_hz=2)
    reply = await client.request(ListTechniques(request=0))        # EngineError(sentence) if the engine says no
    async for event in client.events():                            # client.state is already up to date
        draw(client.state)

What a reader may rely on:
- `client.state` is an immutable `Snapshot`; every event replaces it by `fold(state, event)`. Drawing needs no more.
- `events()` ends when the connection does: then `await client.reconnect()` and start over from `client.state`.
- The engine never waits for a client and a client never waits for its own readers: whoever reads slowly gets a
  `Snapshot` among the events, which stands for everything that was dropped.
- Nothing here imports more than the standard library, msgspec and the protocol.
"""

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec

from .. import __version__
from ..paths import connectable_sockets, is_alive, listed_sessions, read_record, sessions_in
from ..protocol import (
    FRAME_HEADER,
    HANDSHAKE_SECONDS,
    MAX_FRAME_BYTES,
    OLDEST_PROTOCOL,
    PROTOCOL,
    Command,
    EngineEvent,
    EngineMessage,
    Hello,
    Refused,
    Reply,
    Result,
    Running,
    Snapshot,
    Welcome,
    decode_engine_message,
    encode_frame,
)
from .folding import fold
from .starting import EngineDidNotStart, start_engine

ClientKind = Literal["dashboard", "command-line", "test"]
"""What a client says it is."""

MAX_WAITING_EVENTS = 2000
"""A reader of `events()` that is further behind gets the newest snapshot instead of them."""

START_SECONDS = 30.0
"""How long a starting engine may take to listen; normally 0.3 s, much longer on a cold network disk."""


class EngineError(Exception):
    """The engine said no, or cannot be reached; the text is the user's sentence."""


class EngineNotRunning(EngineError):
    """No engine is alive for this session (and none was to be started)."""


class EngineGone(EngineError):
    """The connection ended before the reply came."""


class KnownSession(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `trimtab ls`."""

    directory: str
    running: bool
    pid: int | None = None
    running_jobs: int | None = None
    """None: the engine is not running or did not answer."""
    model: str | None = None


async def connect(
    session_directory: Path | str,
    *,
    start: bool = True,
    client: ClientKind = "dashboard",
    telemetry_hz: float = 0.0,
) -> "EngineClient":
    """Attach to the session's engine; start one if none is alive and `start` is true.

    Raises EngineNotRunning if none is alive and `start` is false; EngineError if it does not start, does not answer,
    or speaks another version of the protocol.
    """
    attached = EngineClient(Path(session_directory), kind=client, telemetry_hz=telemetry_hz)
    await attached.reconnect(start=start)
    return attached


class EngineClient:
    """One connection to one engine. Made by `connect`."""

    def __init__(self, session_directory: Path, *, kind: ClientKind, telemetry_hz: float) -> None:
        self.session_directory = Path(os.path.abspath(session_directory))
        self.welcome: Welcome
        """Who answers: process id, version, boot id."""
        self.state: Snapshot
        """Everything there is to draw, as of the newest event."""
        self._kind = kind
        self._telemetry_hz = telemetry_hz
        self._requests = 0
        self._replies: dict[int, asyncio.Future[Result]] = {}
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """The engine is there as far as we know."""
        return self._reading is not None and not self._reading.done()

    async def reconnect(self, *, start: bool = True) -> None:
        """Attach anew after the connection ended, starting the engine if it has ended. Raises as `connect` does."""
        await self.aclose()
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            reader, self._writer = await _reach(self.session_directory, start)
            try:
                async with asyncio.timeout(HANDSHAKE_SECONDS * 2):
                    await self._shake_hands(reader, self._writer)
                break
            except TimeoutError:
                self._writer.close()
                raise EngineError(f"The engine of {self.session_directory}{_who(self)} does not answer.") from None
            except (OSError, asyncio.IncompleteReadError):
                # A dying engine's socket takes connections until the very end; the next attempt finds it gone.
                self._writer.close()
                if asyncio.get_running_loop().time() > deadline:
                    raise EngineGone(f"The engine of {self.session_directory} ends whenever we attach.") from None
                await asyncio.sleep(0.05)
            except EngineError:
                self._writer.close()
                raise
        self._reading = asyncio.create_task(self._read(reader))

    async def request(self, command: Command) -> Result:
        """Send a command (its `request` number is filled in here) and wait for the result.

        Raises EngineError with the engine's sentence, EngineGone if the connection ends first.
        """
        if not self.connected or self._writer is None:
            raise EngineGone("The engine has ended; attach again.")
        self._requests += 1
        number = self._requests
        future = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(encode_frame(msgspec.structs.replace(command, request=number)))
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
            return await future
        except ValueError as error:
            raise EngineError(f"The command cannot be sent: {error}.") from None
        finally:
            self._replies.pop(number, None)

    def events(self) -> "EventStream":
        """What happens from now on, in order, until the connection ends. Each call is a reader of its own."""
        return EventStream(self)

    async def aclose(self) -> None:
        """Leave. The engine and its jobs go on."""
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def wait_closed(self) -> None:
        """Return once the connection has ended, as it does when the engine does."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def _shake_hands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = Hello(
            protocol=PROTOCOL,
            oldest_protocol=OLDEST_PROTOCOL,
            version=__version__,
            client=self._kind,
            telemetry_hz=self._telemetry_hz,
        )
        writer.write(encode_frame(hello))
        answer = await _read_message(reader)
        if isinstance(answer, Refused):
            raise EngineError(answer.reason)
        if not isinstance(answer, Welcome):
            raise EngineError("The engine's greeting cannot be understood: it is not a Trimtab engine of this version.")
        self.welcome = answer
        first = await _read_message(reader)
        if not isinstance(first, Snapshot):
            raise EngineError("The engine did not send its state after the greeting.")
        self.state = first

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take in messages until the connection ends, then wake everyone who waits."""
        try:
            while True:
                self._take(await _read_message(reader))
        except (OSError, asyncio.IncompleteReadError, EngineError):
            pass
        finally:
            for future in self._replies.values():
                if not future.done():
                    future.set_exception(EngineGone("The engine ended before it answered."))
            for stream in tuple(self._streams):
                stream._end()
            if self._writer is not None:
                self._writer.close()

    def _take(self, message: EngineMessage) -> None:
        if isinstance(message, Reply):
            future = self._replies.get(message.request)
            if future is None or future.done():
                return
            if message.error is not None or message.result is None:
                future.set_exception(EngineError(message.error or "The engine sent an empty reply."))
            else:
                future.set_result(message.result)
        elif not isinstance(message, Welcome | Refused):
            self.state = message if isinstance(message, Snapshot) else fold(self.state, message)
            for stream in self._streams:
                stream._put(message, self.state)


class EventStream(AsyncIterator["EngineEvent | Snapshot"]):
    """What one reader has still to read. Ends with the connection."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._waiting: list[EngineEvent | Snapshot] = []
        self._news = asyncio.Event()
        self._ended = not client.connected
        client._streams.add(self)

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> "EngineEvent | Snapshot":
        while not self._waiting:
            if self._ended:
                self._client._streams.discard(self)
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.pop(0)

    async def aclose(self) -> None:
        """Stop reading; what is still waiting is dropped."""
        self._end()
        self._waiting.clear()

    def _put(self, message: "EngineEvent | Snapshot", state: Snapshot) -> None:
        if len(self._waiting) >= MAX_WAITING_EVENTS:
            self._waiting = [state]
        else:
            self._waiting.append(message)
        self._news.set()

    def _end(self) -> None:
        self._ended = True
        self._news.set()
        self._client._streams.discard(self)


# --- reaching the engine ---------------------------------------------------------------------------


async def _reach(session_directory: Path, start: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An open connection. Starting is safe against races: of two engines one gets the lock, and both clients it."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    pause = 0.02
    while True:
        connection = await _try_sockets(session_directory)
        if connection is not None:
            return connection
        if not start:
            raise EngineNotRunning(f"No engine is running for {session_directory}.")
        try:
            await asyncio.to_thread(start_engine, session_directory, START_SECONDS)
        except EngineDidNotStart as error:
            if not error.locked:
                raise EngineError(str(error)) from None
            # Another engine holds the session and we cannot connect: it is just starting or just ending.
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(f"{error} It does not answer; if it hangs, end it with kill.") from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)


async def _try_sockets(session_directory: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    for path in connectable_sockets(session_directory):
        with contextlib.suppress(OSError):
            return await asyncio.open_unix_connection(os.fspath(path))
    return None


async def _read_message(reader: asyncio.StreamReader) -> EngineMessage:
    """The next frame. Raises IncompleteReadError at the end, EngineError for what is no message of ours."""
    (length,) = FRAME_HEADER.unpack(await reader.readexactly(FRAME_HEADER.size))
    if length > MAX_FRAME_BYTES:
        raise EngineError("The engine sent a message over the size limit.")
    try:
        return decode_engine_message(await reader.readexactly(length))
    except msgspec.MsgspecError as error:
        raise EngineError(f"The engine sent a message that cannot be understood: {error}.") from None


def _who(client: EngineClient) -> str:
    record = read_record(client.session_directory)
    return f" (process {record.pid})" if record is not None and is_alive(record) else ""


# --- the list of sessions --------------------------------------------------------------------------


async def known_sessions(here: Path | None = None) -> list[KnownSession]:
    """Every session on the user's list and those directly in `here` (default: the current directory)."""
    listed = {session.directory: session.model for session in listed_sessions()}
    for path in sessions_in(here or Path.cwd()):
        listed.setdefault(os.path.realpath(path), None)
    return list(await asyncio.gather(*(_look_at(directory, model) for directory, model in listed.items())))


async def _look_at(directory: str, model: str | None) -> KnownSession:
    """One session's row; an engine that does not answer within two seconds is listed without its jobs."""
    record = read_record(Path(directory))
    if record is None or not is_alive(record):
        return KnownSession(directory=directory, running=False, model=model)
    jobs = None
    with contextlib.suppress(EngineError, TimeoutError):
        async with asyncio.timeout(2.0):
            client = await connect(directory, start=False, client="command-line")
            jobs = sum(isinstance(job.state, Running) for job in client.state.jobs)
            model = client.state.model.name if client.state.model is not None else model
            await client.aclose()
    return KnownSession(directory=directory, running=True, pid=record.pid, running_jobs=jobs, model=model)
