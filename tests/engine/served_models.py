"""Serves plain functions through the real doors, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from aiohttp import web

from engine.batching import BatchPolicy, DynamicBatcher
from engine.batching.arrays import Arrays
from engine.serving.grpc_service import GrpcDoor
from engine.serving.held import HeldBytes
from engine.serving.http import HttpDoor
from engine.serving.served import ServedModel
from engine.serving.tensors import ServedTensor

F32 = np.dtype(np.float32)
X, Y = ServedTensor("x", F32, (3,)), ServedTensor("y", F32, (3,))
WORDS = ServedTensor("words", np.dtype(np.int64), (None,))
SCORES = ServedTensor("scores", F32, (2,))

LIMIT = 64 * 1024
"""Bytes of a body."""


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2}


class RunningServer:
    """What a test talks to."""

    def __init__(
        self, model: ServedModel, door: HttpDoor, port: int, grpc_port: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.model, self.door, self.port, self.grpc_port, self.loop = model, door, port, grpc_port, loop
        self.url, self.grpc_url = f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{grpc_port}"

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, what the body holds as JSON, or its text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else text

    def refusal(self, path: str, body: bytes | str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """(status, sentence) of a POST that is refused."""
        status, answer = self.ask("POST", path, body, headers)
        assert status >= 400, answer
        assert set(answer) == {"error"}
        assert "\n" not in answer["error"]
        return status, answer["error"]

    def infer(self, tensor: dict[str, Any], **request: Any) -> tuple[int, Any]:
        """One input to the model called "double"."""
        return self.ask("POST", "/v2/models/double/infer", json.dumps({"inputs": [tensor], **request}))

    def talk(self, data: bytes) -> bytes:
        """Raw bytes in, everything that comes back until the server closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as plain:
            plain.sendall(data)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while piece := plain.recv(65536):
                    received += piece
            return received


@contextlib.contextmanager
def serving(
    run: Callable[[Arrays], Arrays] = double,
    inputs: tuple[ServedTensor, ...] = (X,),
    outputs: tuple[ServedTensor, ...] = (Y,),
    *,
    name: str = "double",
    limit: int = LIMIT,
    fixed_rows: int | None = None,
    **policy: Any,
) -> Iterator[RunningServer]:
    """A server of this function. `policy`: fields of `BatchPolicy`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    batcher = DynamicBatcher(run, BatchPolicy(**{"max_batch_size": 8, "max_wait_ms": 1.0, **policy}))
    model = ServedModel(
        name, inputs, outputs, batcher, platform="test", backend="testing", also=("id1",), fixed_rows=fixed_rows
    )

    async def start() -> tuple[RunningServer, Callable[[], Any]]:
        batcher.start()
        held = HeldBytes(limit)
        door = HttpDoor(model, held)
        runner = web.AppRunner(door.application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        grpc_door = GrpcDoor(model, held)
        grpc_port = await grpc_door.listen("127.0.0.1", 0)

        async def stop() -> None:
            await grpc_door.close(0)
            await runner.cleanup()
            await batcher.close(drain=False, timeout=2.0)

        return RunningServer(model, door, runner.addresses[0][1], grpc_port, loop), stop

    server, stop = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
