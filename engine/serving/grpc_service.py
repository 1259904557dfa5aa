"""The server's gRPC door: KServe v2's `GRPCInferenceService`, with Triton's statistics.

Errors are gRPC's own codes with the same sentences as over HTTP. A message is never longer than the limit; gRPC
itself refuses it then. All that are held are bounded too, together with the bodies of the HTTP door: RESOURCE_EXHAUSTED
beyond. A caller that goes away takes its request out of the queue.

`ModelInfer` is taken as a stream of one message, which is the same on the wire: so gRPC reads the message only when it
is asked for, and what waits to be read stays with its sender (HTTP/2's flow control) instead of in our memory.
"""

import asyncio
import math
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError

from .. import __version__
from .bodies import Asked, priority_of, timeout_of
from .grpc_messages import CLASSES, METHODS, SERVICE
from .held import BODIES, BODY_SECONDS, HeldBytes, NoRoom
from .metrics import configuration, index, metadata, statistics
from .served import VERSION, ServedModel
from .tensors import DATATYPES, Array, Arrays, Problem, ServedTensor, from_bytes, to_bytes

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    500: grpc.StatusCode.INTERNAL,
}
"""HTTP's status → gRPC's."""

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
"""Where typed values of a datatype lie; FP16 and BF16 only come as bytes."""

EXTENSIONS = ("statistics", "model_configuration", "model_repository(index)", "schedule_policy")
"""Of the protocol, beyond its core."""

ENVELOPE = 64 * 1024
"""What a message may be longer than the tensors' bytes in it."""


class GrpcDoor:
    """The service of one model. Start with `listen`."""

    def __init__(self, model: ServedModel, held: HeldBytes) -> None:
        self._model, self._held = model, held
        self._reading = asyncio.Semaphore(BODIES)
        """Messages that are read at one time: each may be as long as the limit before it can be counted."""
        size = min(held.limit + ENVELOPE, (1 << 31) - 1)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # else two servers may share a port without knowing
            ]
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(self, f"_{name}"),
                request_deserializer=CLASSES[f"{name}Request"].FromString,
                response_serializer=CLASSES[f"{name}Response"].SerializeToString,
            )
            for name in METHODS
            if name != "ModelInfer"
        }
        handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
            self._ModelInfer, response_serializer=CLASSES["ModelInferResponse"].SerializeToString
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def listen(self, host: str, port: int) -> int:
        """The port it listens on. Raises OSError when it is taken."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(str(error)) from None
        if not bound:
            raise OSError(f"cannot listen on {address}")
        await self._server.start()
        return bound

    async def close(self, seconds: float) -> None:
        """Take no more calls and give those under way so long."""
        await self._server.stop(seconds)

    # --- methods (named as the service names them) -----------------------------------------------------

    async def _ServerLive(self, request: Any, context: Any) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def _ServerReady(self, request: Any, context: Any) -> Any:
        return CLASSES["ServerReadyResponse"](ready=self._model.ready)

    async def _ModelReady(self, request: Any, context: Any) -> Any:
        await self._demand(request.name, request.version, context)
        return CLASSES["ModelReadyResponse"](ready=self._model.ready)

    async def _ServerMetadata(self, request: Any, context: Any) -> Any:
        return CLASSES["ServerMetadataResponse"](name="trimtab", version=__version__, extensions=EXTENSIONS)

    async def _ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._demand(request.name, request.version, context)
        return CLASSES["ModelMetadataResponse"](**metadata(self._model))

    async def _ModelConfig(self, request: Any, context: Any) -> Any:
        await self._demand(request.name, request.version, context)
        return CLASSES["ModelConfigResponse"](config=configuration(self._model))

    async def _ModelStatistics(self, request: Any, context: Any) -> Any:
        if request.name:
            await self._demand(request.name, request.version, context)
        return CLASSES["ModelStatisticsResponse"](model_stats=[statistics(self._model)])

    async def _RepositoryIndex(self, request: Any, context: Any) -> Any:
        return CLASSES["RepositoryIndexResponse"](models=index(self._model))

    async def _ModelInfer(self, messages: object, context: Any) -> Any:
        model = self._model
        try:
            data = await self._message(context)
            with self._held.room(len(data)):
                asked = _asked(model, data)
                del data  # the arrays are copies
                outputs = await model.infer(asked.inputs, asked.timeout_us, asked.priority)
                with model.writing():
                    return _write(model, asked.id, {name: outputs[name] for name, _ in asked.outputs})
        except Problem as problem:
            model.turned_away(problem)
            await context.abort(_code(problem), str(problem))

    async def _message(self, context: Any) -> bytes:
        """The one message of a call. Raises Problem."""
        try:
            async with self._reading, asyncio.timeout(BODY_SECONDS):
                data: bytes = await context.read()
        except TimeoutError:
            raise Problem(408, f"The request did not come within {BODY_SECONDS:g} s.") from None
        if data is grpc.aio.EOF:
            raise Problem(400, "No request came.")
        return data

    async def _demand(self, name: str, version: str, context: Any) -> None:
        try:
            self._model.demand(name, version)
        except Problem as problem:
            await context.abort(_code(problem), str(problem))


def _code(problem: Problem) -> grpc.StatusCode:
    return grpc.StatusCode.RESOURCE_EXHAUSTED if isinstance(problem, NoRoom) else CODES[problem.status]


def _asked(model: ServedModel, data: bytes) -> Asked:
    """The request in a message. Raises Problem."""
    try:
        request = CLASSES["ModelInferRequest"].FromString(data)
    except DecodeError:
        raise Problem(400, "The request cannot be read: it is no ModelInferRequest.") from None
    model.demand(request.model_name, request.model_version)
    inputs = _read(model, request)
    names = model.chosen([output.name for output in request.outputs])
    timeout = timeout_of(_value(request.parameters.get("timeout")))
    priority = priority_of(_value(request.parameters.get("priority")))
    return Asked(inputs, request.id, [(name, True) for name in names], timeout, priority)


def _read(model: ServedModel, request: Any) -> Arrays:
    """The arrays of a request. Raises Problem."""
    if _value(request.parameters.get("sequence_id")):
        raise Problem(400, "The model keeps nothing between requests: there are no sequences here.")
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise Problem(400, f"{len(raw)} pieces of raw contents came for {len(request.inputs)} inputs.")
    inputs: Arrays = {}
    for number, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise Problem(400, f"The input {tensor.name[:80]} came twice.")
        spec, shape = model.checked(tensor.name, tensor.datatype, list(tensor.shape))
        if raw:
            inputs[tensor.name] = from_bytes(spec, shape, memoryview(raw[number]))
        else:
            inputs[tensor.name] = _typed(spec, shape, tensor.contents)
    return inputs


def _typed(spec: ServedTensor, shape: tuple[int, ...], contents: Any) -> Array:
    """Values that came one by one in their typed field. Raises Problem."""
    field = CONTENTS.get(spec.datatype)
    if field is None:
        raise Problem(400, f"Input {spec.name} is {spec.datatype}: send it in raw_input_contents.")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        needed = math.prod(shape)
        raise Problem(400, f"Input {spec.name} has {len(values)} values; its shape {list(shape)} needs {needed}.")
    wide = np.array(values)
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        if wide.min() < limits.min or wide.max() > limits.max:
            raise Problem(400, f"Input {spec.name} holds a number that does not fit {spec.datatype}.")
    return wide.astype(spec.dtype).reshape(shape)


def _write(model: ServedModel, id: str, outputs: Arrays) -> Any:
    answer = CLASSES["ModelInferResponse"](model_name=model.name, model_version=VERSION, id=id)
    for name, array in outputs.items():
        answer.outputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        answer.raw_output_contents.append(to_bytes(array))
    return answer


def _value(parameter: Any) -> Any:
    """What an `InferParameter` holds; None for none."""
    which = parameter.WhichOneof("parameter_choice") if parameter is not None else None
    return getattr(parameter, which) if which else None
