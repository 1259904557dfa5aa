"""Requests to a KServe v2 server over gRPC: prepared messages out, a status back, on one channel.

Messages are laid out once and travel as bytes; the answer's message is not unpacked.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import SplitResult

import grpc
import grpc.aio
import msgspec

from ...batching.arrays import Arrays
from ...serving.grpc_messages import CLASSES, SERVICE
from ...serving.tensors import DATATYPES, to_bytes
from .server_channel import Answer, Connection, Refused, Tensors, Unreachable, tensors_of

ASK_SECONDS = 10.0
"""For a question about the server or its model."""

STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""gRPC's codes → HTTP's; 500 for the others."""


class GrpcChannel:
    """One server, one model."""

    protocol = "gRPC"
    plain = False
    most_connections = 1024
    """Requests under way: streams of one HTTP/2 connection, not connections of their own."""

    def __init__(self, url: SplitResult, timeout_us: int | None) -> None:
        host = url.hostname or ""
        self.address = f"{f'[{host}]' if ':' in host else host}:{url.port or 8001}"
        self._timeout_us = timeout_us
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if url.scheme == "grpcs":
            self._channel = grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.aio.insecure_channel(self.address, options)
        self._infer = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")

    def encode(self, model: str, inputs: Arrays) -> bytes:
        """A whole request."""
        message = CLASSES["ModelInferRequest"](model_name=model)
        if self._timeout_us is not None:
            message.parameters["timeout"].int64_param = self._timeout_us
        for name, array in inputs.items():
            message.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
            message.raw_input_contents.append(to_bytes(array))
        encoded: bytes = message.SerializeToString()
        return encoded

    async def connect(self) -> Connection:
        return _Call(self._infer)

    async def ready(self) -> bool:
        return bool((await self._ask("ServerReady")).ready)

    async def models(self) -> list[str] | None:
        """What it serves; None where it does not tell."""
        try:
            return [one.name for one in (await self._ask("RepositoryIndex")).models]
        except Refused:
            return None

    async def metadata(self, model: str) -> tuple[Tensors | None, str]:
        """(inputs, platform) of the model; None instead of inputs with why not."""
        try:
            found = await self._ask("ModelMetadata", name=model)
        except Refused as refused:
            return None, str(refused)
        inputs = [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in found.inputs]
        return tensors_of(inputs), found.platform

    async def server(self) -> tuple[str, str]:
        """(name, version)."""
        found = await self._ask("ServerMetadata")
        return found.name, found.version

    async def statistics(self, model: str) -> dict[str, Any] | None:
        """The statistics extension's entry of the model, as its JSON is; None where the server has none."""
        try:
            found = (await self._ask("ModelStatistics", name=model)).model_stats
        except Refused:
            return None
        if not found:
            return None

        def duration(one: Any) -> dict[str, int]:
            return {"count": one.count, "ns": one.ns}

        entry = found[0]
        kinds = ("queue", "compute_input", "compute_infer", "compute_output")
        return {
            "execution_count": entry.execution_count,
            "inference_stats": {kind: duration(getattr(entry.inference_stats, kind)) for kind in kinds},
            "batch_stats": [
                {"batch_size": one.batch_size, "compute_infer": duration(one.compute_infer)}
                for one in entry.batch_stats
            ],
        }

    async def close(self) -> None:
        await self._channel.close(None)

    async def _ask(self, method: str, **fields: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=CLASSES[f"{method}Request"].SerializeToString,
            response_deserializer=CLASSES[f"{method}Response"].FromString,
        )
        try:
            return await call(CLASSES[f"{method}Request"](**fields), timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            details = error.details() or error.code().name
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Unreachable(details.partition("\n")[0][:200]) from None
            raise Refused(details[:300]) from None


class _Call:
    """One request at a time on the shared channel."""

    alive = True

    def __init__(self, infer: Any) -> None:
        self._infer = infer

    async def call(self, payload: bytes) -> Answer:
        try:
            await self._infer(payload)
        except grpc.aio.AioRpcError as error:
            details = error.details() or error.code().name
            if error.code() is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
                raise Unreachable(details[:200]) from None
            return Answer(STATUS.get(error.code(), 500), msgspec.json.encode({"error": details[:1000]}))
        except asyncio.CancelledError:
            raise
        return Answer(200)

    def close(self) -> None:
        """Nothing of its own to close."""
