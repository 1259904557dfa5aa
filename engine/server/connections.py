"""One client's connection: who it is, what it says, what it is sent.

The rules that protect the engine: only the user's own processes get in (the kernel says who connects), hello must
come in time, a frame has a largest size, and whatever is malformed closes this connection and nothing else. A client
may have `MAX_AT_ONCE` commands unanswered; more are read when there is room, so it can slow down only itself.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ..protocol import (
    FRAME_HEADER,
    HANDSHAKE_SECONDS,
    MAX_FRAME_BYTES,
    OLDEST_PROTOCOL,
    PROTOCOL,
    ClientMessage,
    Command,
    EngineEvent,
    Hello,
    Refused,
    Reply,
    Snapshot,
    TelemetrySampled,
    Welcome,
    decode_client_message,
    encode_frame,
)
from .outgoing import Outgoing

MAX_AT_ONCE = 32
"""Commands of one client that may be under way together."""

MAX_RATE_HZ = 2.0
"""A client gets no more samples than the engine takes."""

WRITE_BUFFER_BYTES = 64 * 1024
"""Handed to the kernel ahead of a client that reads slowly; the rest waits where it can be thinned."""

log = logging.getLogger("trimtab.connections")


class Closed(Exception):
    """This connection is to be closed; the text is told to the client, if there is one."""


class Connection:
    """A client from its hello to its end. `answer` does a command and never raises."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        snapshot: Callable[[], Snapshot],
        answer: Callable[["Connection", Command], Awaitable[Reply]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._working: set[asyncio.Task[None]] = set()
        self.outgoing = Outgoing(snapshot)
        self.subscribed = False
        self.kind = ""
        self.telemetry_hz = 0.0
        self._next_sample = 0.0

    async def greet(self, welcome: Welcome) -> None:
        """Check who it is and what it speaks, and answer. Raises Closed."""
        uid = peer_uid(self._writer.get_extra_info("socket"))
        if uid != os.getuid():
            log.warning("refused a connection of user %s", uid)
            raise Closed("This session belongs to another user.")
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                hello = decode_client_message(await self._frame())
        except TimeoutError:
            raise Closed(f"No greeting came within {HANDSHAKE_SECONDS:.0f} seconds.") from None
        except msgspec.MsgspecError:
            raise Closed("The greeting cannot be understood.") from None
        if not isinstance(hello, Hello):
            raise Closed("The first message must be a greeting.")
        if hello.protocol < OLDEST_PROTOCOL or hello.oldest_protocol > PROTOCOL:
            raise Closed(
                f"This session's engine (process {welcome.pid}) is Trimtab {welcome.version}, started by "
                f"{welcome.python}; it speaks protocol {OLDEST_PROTOCOL} to {PROTOCOL} and you, Trimtab "
                f"{hello.version}, speak {hello.oldest_protocol} to {hello.protocol}. Let its jobs end, then stop it "
                f"(kill {welcome.pid}; nothing stored is lost) and attach again."
            )
        self.kind = hello.client
        self.set_rate(hello.telemetry_hz)
        self._writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        chosen = min(PROTOCOL, hello.protocol)
        self._writer.write(encode_frame(msgspec.structs.replace(welcome, protocol=chosen)))
        self.subscribed = hello.subscribe
        if hello.subscribe:
            self.outgoing.resync()

    async def serve(self) -> None:
        """Take commands and send what there is, until the client leaves. Raises Closed for what is malformed."""
        sending = asyncio.create_task(self._send())
        try:
            while True:
                await self._room.acquire()
                body = await self._frame()
                command = self._understand(body)
                if command is None:
                    self._room.release()
                    continue
                task = asyncio.create_task(self._do(command))
                self._working.add(task)
                task.add_done_callback(self._working.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            sending.cancel()

    def offer(self, event: EngineEvent, frame: bytes) -> None:
        """Queue an event for this client, if it wants it."""
        if not self.subscribed:
            return
        if isinstance(event, TelemetrySampled) and not self._wants_sample(event.sample.time):
            return
        self.outgoing.put_event(event, frame)

    def set_rate(self, hz: float) -> None:
        """How often it wants samples from now on."""
        self.telemetry_hz = min(MAX_RATE_HZ, max(0.0, hz)) if hz == hz else 0.0
        self._next_sample = 0.0

    async def flush(self) -> None:
        """Wait until everything queued is with the kernel; for the engine's last words."""
        await self.outgoing.emptied.wait()
        await self._writer.drain()

    async def close(self, reason: str = "") -> None:
        """Close it, with a last sentence if the client has not been welcomed."""
        with contextlib.suppress(OSError):
            if reason:
                self._writer.write(encode_frame(Refused(reason=reason)))
            self._writer.close()

    def abort(self) -> None:
        """Close it now, whatever is still unsent."""
        self._writer.transport.abort()

    async def _frame(self) -> bytes:
        (length,) = FRAME_HEADER.unpack(await self._reader.readexactly(FRAME_HEADER.size))
        if length > MAX_FRAME_BYTES:
            raise Closed(f"A message of {length} bytes is over the limit of {MAX_FRAME_BYTES}.")
        return await self._reader.readexactly(length)

    def _understand(self, body: bytes) -> Command | None:
        """The command in a frame; None if it was a well-formed one that this version does not know (answered here)."""
        try:
            message: ClientMessage = decode_client_message(body)
        except msgspec.ValidationError as error:
            # Perhaps a newer client's command. If it can be answered, the connection is worth keeping.
            request = _request_number(body)
            if request is None:
                raise Closed("A message cannot be understood.") from None
            self.outgoing.put_reply(Reply(request=request, error=f"This engine does not understand it: {error}."))
            return None
        except msgspec.MsgspecError:
            raise Closed("A message cannot be understood.") from None
        if not isinstance(message, Command):
            raise Closed("A second greeting is no command.")
        return message

    async def _do(self, command: Command) -> None:
        try:
            self.outgoing.put_reply(await self._answer(self, command))
        finally:
            self._room.release()

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                self._writer.write(await self.outgoing.take())
                # Only this client's own sender waits here.
                await self._writer.drain()

    def _wants_sample(self, time: float) -> bool:
        if not self.telemetry_hz or time < self._next_sample:
            return False
        # A tenth of slack: samples come at nearly even times, and "every second one" must not become every third.
        self._next_sample = time + 0.9 / self.telemetry_hz
        return True


def _request_number(body: bytes) -> int | None:
    with contextlib.suppress(msgspec.MsgspecError):
        plain: Any = msgspec.msgpack.decode(body)
        if isinstance(plain, dict) and isinstance(plain.get("request"), int):
            return plain["request"]
    return None


def peer_uid(connection: socket.socket) -> int:
    """The user whose process is at the other end, as the kernel says."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1]
