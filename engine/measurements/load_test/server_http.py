"""Requests to a server over HTTP/1.1: prepared bytes out, a status back, on connections that are kept.

A load generator has to cost little beside what it measures, so this is no general client: bodies are laid out once,
the answer's body is counted and dropped unless it is an error, and a connection carries one request at a time. A
request costs 17 to 21 µs of processor time, the generator included, where aiohttp's client alone takes 82 (Python
3.11, 64 and 16 callers on one loopback connection each).
"""

import asyncio
import ssl
from typing import Any
from urllib.parse import SplitResult, quote

import msgspec

from ...batching.arrays import Arrays
from ...serving.bodies import LENGTH_HEADER
from ...serving.tensors import DATATYPES, to_bytes, to_json
from .server_channel import MOST_ERROR_BYTES, Answer, Connection, Tensors, Unreachable, tensors_of

MOST_HEADER_BYTES = 64 * 1024
"""Of an answer."""

ASK_SECONDS = 10.0
"""For a question about the server or its model."""


class HttpChannel:
    """One server, one model; with a path of its own in the URL plain JSON is sent there instead of the protocol's."""

    protocol = "HTTP"
    most_connections = 512

    def __init__(self, url: SplitResult, timeout_us: int | None) -> None:
        self._host, self._timeout_us = url.hostname or "", timeout_us
        self.plain = url.path.rstrip("/") not in ("", "/v2")
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._port = url.port or (443 if self._ssl else 80)
        self.address = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self._path = quote(url.path, safe="/%") + (f"?{quote(url.query, safe='=&%+;,:@/?')}" if url.query else "")
        self._asking: HttpConnection | None = None

    # --- what is sent ----------------------------------------------------------------------------------

    def encode(self, model: str, inputs: Arrays) -> bytes:
        """A whole request."""
        if self.plain:
            body = msgspec.json.encode({"inputs": {name: to_json(array) for name, array in inputs.items()}})
            return self._head("POST", self._path, body, "Content-Type: application/json\r\n")
        pieces = [to_bytes(array) for array in inputs.values()]
        parameters: dict[str, Any] = {"binary_data_output": True}
        if self._timeout_us is not None:
            parameters["timeout"] = self._timeout_us
        described = [
            {
                "name": name,
                "datatype": DATATYPES[array.dtype.name],
                "shape": array.shape,
                "parameters": {"binary_data_size": len(piece)},
            }
            for (name, array), piece in zip(inputs.items(), pieces)
        ]
        head = msgspec.json.encode({"inputs": described, "parameters": parameters})
        headers = f"Content-Type: application/octet-stream\r\n{LENGTH_HEADER}: {len(head)}\r\n"
        return self._head("POST", f"/v2/models/{quote(model)}/infer", b"".join([head, *pieces]), headers)

    def _head(self, method: str, path: str, body: bytes, headers: str = "") -> bytes:
        text = f"{method} {path} HTTP/1.1\r\nHost: {self.address}\r\n{headers}"
        return f"{text}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body

    # --- what it says of itself ------------------------------------------------------------------------

    async def connect(self) -> Connection:
        """Raises Unreachable."""
        loop = asyncio.get_running_loop()
        try:
            _, connection = await asyncio.wait_for(
                loop.create_connection(HttpConnection, self._host, self._port, ssl=self._ssl), ASK_SECONDS
            )
        except TimeoutError:
            raise Unreachable(f"no answer within {ASK_SECONDS:.0f} s") from None
        except OSError as error:
            raise Unreachable(error.strerror or str(error)) from None
        return connection

    async def ready(self) -> bool:
        return self.plain or (await self._ask("GET", "/v2/health/ready")).status == 200

    async def models(self) -> list[str] | None:
        """What it serves; None where it does not tell."""
        answer = await self._ask("POST", "/v2/repository/index", b"{}")
        found = _decoded(answer)
        if answer.status != 200 or not isinstance(found, list):
            return None
        return [one["name"] for one in found if isinstance(one, dict) and isinstance(one.get("name"), str)]

    async def metadata(self, model: str) -> tuple[Tensors | None, str]:
        """(inputs, platform) of the model; None instead of inputs with why not."""
        answer = await self._ask("GET", f"/v2/models/{quote(model)}")
        found = _decoded(answer)
        if answer.status != 200 or not isinstance(found, dict):
            return None, answer.sentence
        return tensors_of(found.get("inputs")), str(found.get("platform", ""))

    async def server(self) -> tuple[str, str]:
        """(name, version)."""
        if self.plain:
            return "server", ""
        found = _decoded(await self._ask("GET", "/v2"))
        return (
            (str(found.get("name", "server")), str(found.get("version", ""))) if isinstance(found, dict) else ("", "")
        )

    async def statistics(self, model: str) -> dict[str, Any] | None:
        """The statistics extension's entry of the model; None where the server has none."""
        if self.plain:
            return None
        found = _decoded(await self._ask("GET", f"/v2/models/{quote(model)}/stats"))
        entries = found.get("model_stats") if isinstance(found, dict) else None
        return entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else None

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.close()

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        if self._asking is None or not self._asking.alive:
            connection = await self.connect()
            assert isinstance(connection, HttpConnection)
            self._asking = connection
        try:
            return await asyncio.wait_for(self._asking.call(self._head(method, path, body), keep=True), ASK_SECONDS)
        except TimeoutError:
            raise Unreachable(f"no answer within {ASK_SECONDS:.0f} s") from None


class HttpConnection(asyncio.Protocol):
    """One connection. `call` may be awaited once at a time."""

    def __init__(self) -> None:
        self.alive = False
        self._transport: asyncio.Transport
        self._waiting: asyncio.Future[Answer] | None = None
        self._keep = False
        self._buffer = bytearray()
        self._body: _Body | None = None

    async def call(self, payload: bytes, keep: bool = False) -> Answer:
        """Send a request and wait for its answer; `keep` its body. Raises Unreachable."""
        if not self.alive:
            raise Unreachable("the connection was closed")
        self._keep = keep
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(payload)
        try:
            return await self._waiting
        except asyncio.CancelledError:
            self.close()  # the answer to come is nobody's
            raise

    def close(self) -> None:
        self.alive = False
        self._transport.close()

    # --- called by the loop ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.alive = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        if self._body is not None and self._body.until_closed:
            self._answer(self._body)
        self._fail("the server closed the connection" if error is None else str(error))

    def data_received(self, data: bytes) -> None:
        try:
            body = self._body
            if body is None:
                self._buffer += data
                while body is None:
                    end = self._buffer.find(b"\r\n\r\n")
                    if end < 0:
                        if len(self._buffer) > MOST_HEADER_BYTES:
                            raise ValueError("the header of its answer does not end")
                        return
                    body = _Body.of_header(bytes(self._buffer[:end]), self._keep)
                    data = bytes(self._buffer[end + 4 :])
                    self._buffer = bytearray() if body is not None else bytearray(data)
                self._body = body
            if body.take(data):
                self._answer(body)
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            self._fail(f"the server's answer is no HTTP: {error}")
            self.close()

    def _answer(self, body: "_Body") -> None:
        self._body = None
        if body.closes:
            self.close()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(body.status, bytes(body.kept)))

    def _fail(self, sentence: str) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(Unreachable(sentence))


class _Body:
    """The body of one answer as it comes in."""

    def __init__(self, status: int, left: int | None, chunked: bool, closes: bool, keep: bool) -> None:
        self.status, self.closes = status, closes
        self.kept = bytearray()
        self.until_closed = left is None and not chunked
        self._left = left
        self._chunked = chunked
        self._most = None if keep else 0 if status == 200 else MOST_ERROR_BYTES
        self._line = bytearray()
        self._in_chunk = 0
        self._trailer = False

    @classmethod
    def of_header(cls, header: bytes, keep: bool) -> "_Body | None":
        """None for an interim answer (1xx). Raises ValueError."""
        first, _, rest = header.decode("latin-1").partition("\r\n")
        version, code, *_ = first.split(" ", 2)
        if not version.startswith("HTTP/1.") or not code.isdigit():
            raise ValueError(first[:60])
        status = int(code)
        if 100 <= status < 200:
            return None
        fields = {}
        for line in rest.split("\r\n"):
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip().lower()
        chunked = "chunked" in fields.get("transfer-encoding", "")
        length = fields.get("content-length")
        left = 0 if status in (204, 304) else int(length) if length is not None and not chunked else None
        closes = fields.get("connection") == "close" or (version == "HTTP/1.0" and "keep-alive" not in fields)
        return cls(status, left, chunked, closes or (left is None and not chunked), keep)

    def take(self, data: bytes) -> bool:
        """Take in more of it; True once it is whole. Raises ValueError."""
        if self._chunked:
            return self._take_chunks(data)
        self._hold(data)
        if self._left is None:
            return False
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("more came than it said")
        return self._left == 0

    def _take_chunks(self, data: bytes) -> bool:
        at = 0
        while at < len(data):
            if self._in_chunk:
                piece = data[at : at + self._in_chunk]
                self._in_chunk -= len(piece)
                at += len(piece)
                self._hold(piece)
                continue
            end = data.find(b"\n", at)
            self._line += data[at : end + 1 if end >= 0 else len(data)]
            if end < 0:
                if len(self._line) > MOST_HEADER_BYTES:
                    raise ValueError("a chunk's size does not end")
                return False
            at = end + 1
            line, self._line = bytes(self._line).strip(), bytearray()
            if self._trailer:
                if not line:
                    return True
            elif line:  # else the line break behind a chunk
                self._in_chunk = int(line.partition(b";")[0], 16)
                self._trailer = self._in_chunk == 0
        return False

    def _hold(self, data: bytes) -> None:
        if self._most is None or len(self.kept) < self._most:
            self.kept += data if self._most is None else data[: self._most - len(self.kept)]


def _decoded(answer: Answer) -> Any:
    try:
        return msgspec.json.decode(answer.body)
    except (msgspec.MsgspecError, RecursionError):
        return None
