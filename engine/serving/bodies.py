"""HTTP bodies of the protocol: JSON, alone or with the tensors' bytes behind it (the binary tensor data extension).

A body is `<JSON><bytes of input 1><bytes of input 2>…`; the header Inference-Header-Content-Length says how long the
JSON is, `binary_data_size` in each input how many bytes are its. Both are checked against what really came.
"""

from typing import Any

import msgspec
from msgspec import Struct

from .served import VERSION, ServedModel
from .tensors import DATATYPES, Array, Arrays, Problem, from_bytes, from_json, from_nested_json, to_bytes, to_json

LENGTH_HEADER = "Inference-Header-Content-Length"


class InputTensor(Struct):
    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] = {}


class RequestedOutput(Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(Struct):
    """The JSON of POST …/infer. What it does not name is ignored, as the protocol asks."""

    inputs: list[InputTensor]
    id: str = ""
    outputs: list[RequestedOutput] = []
    parameters: dict[str, Any] = {}


class PredictRequest(Struct):
    """The JSON of POST /predict."""

    inputs: dict[str, msgspec.Raw]


class Asked(Struct):
    """A request as it was understood."""

    inputs: Arrays
    id: str
    outputs: list[tuple[str, bool]]
    """Names, and whether as bytes."""
    timeout_us: int | None = None
    priority: int = 0
    """1 is served first; 0: the model's default."""


_infer = msgspec.json.Decoder(InferRequest)
_predict = msgspec.json.Decoder(PredictRequest)
encode = msgspec.json.Encoder().encode


def read_infer(model: ServedModel, body: bytes, header_length: str | None) -> Asked:
    """The request in a body. Raises Problem."""
    split = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
            raise Problem(400, f"{LENGTH_HEADER} must be a number of bytes, not {header_length[:40]!r}.")
        split = int(header_length)
        if split > len(body):
            raise Problem(400, f"{LENGTH_HEADER} says {split} bytes; the body has {len(body)}.")
    view = memoryview(body)
    request: InferRequest = _decoded(_infer, view[:split])
    _refuse_state(request.parameters)
    binary = view[split:]
    inputs: Arrays = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise Problem(400, f"The input {tensor.name[:80]} came twice.")
        spec, shape = model.checked(tensor.name, tensor.datatype, tensor.shape)
        if "shared_memory_region" in tensor.parameters:
            raise Problem(400, "Shared memory is not offered here: send the tensor's bytes.")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            if not bytes(tensor.data):
                raise Problem(400, f"Input {tensor.name} has neither data nor binary_data_size.")
            inputs[tensor.name] = from_json(spec, shape, tensor.data)
            continue
        if type(size) is not int or not 0 <= size <= len(binary):
            raise Problem(
                400, f"Input {tensor.name} claims {str(size)[:40]} bytes; {len(binary)} are left in the body."
            )
        inputs[tensor.name] = from_bytes(spec, shape, binary[:size])
        binary = binary[size:]
    if len(binary):
        raise Problem(400, f"{len(binary)} bytes at the end of the body belong to no input.")
    given = request.parameters
    timeout, priority = timeout_of(given.get("timeout")), priority_of(given.get("priority"))
    return Asked(inputs, request.id, _outputs(model, request), timeout, priority)


def write_infer(model: ServedModel, asked: Asked, outputs: Arrays) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON when bytes follow it."""
    described: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for name, as_bytes in asked.outputs:
        array = outputs[name]
        one: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if as_bytes:
            pieces.append(to_bytes(array))
            one["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            one["data"] = to_json(array.reshape(-1))
        described.append(one)
    answer = {"model_name": model.name, "model_version": VERSION, "outputs": described}
    if asked.id:
        answer["id"] = asked.id
    head = encode(answer)
    return (b"".join([head, *pieces]), len(head)) if pieces else (head, None)


def read_predict(model: ServedModel, body: bytes) -> Arrays:
    """The inputs of {"inputs": {name: nested list}}. Raises Problem."""
    request: PredictRequest = _decoded(_predict, body)
    inputs: Arrays = {}
    for name, data in request.inputs.items():
        if name not in model.inputs:
            known = ", ".join(model.inputs)
            raise Problem(400, f"The model has no input {name[:80]!r}. Its inputs: {known}.")
        inputs[name] = from_nested_json(model.inputs[name], data, model.max_rows, model.fixed_rows)
    return inputs


def write_predict(model: ServedModel, outputs: Arrays) -> bytes:
    """{"model": …, "outputs": {name: nested list}}."""
    return encode({"model": model.name, "outputs": {name: to_json(outputs[name]) for name in model.outputs}})


def timeout_of(microseconds: object) -> int | None:
    """How long the sender says its request may wait in the queue. Raises Problem."""
    if microseconds is None or microseconds == 0:
        return None
    if type(microseconds) is not int or not 0 < microseconds < 1 << 53:
        raise Problem(400, f"The timeout is a number of microseconds, not {str(microseconds)[:40]}.")
    return microseconds


def priority_of(level: object) -> int:
    """How urgent the sender says its request is; 0: it says nothing. Raises Problem."""
    if level is None:
        return 0
    if type(level) is not int or not 0 <= level < 1 << 64:
        raise Problem(400, f"The priority is a whole number, 1 the most urgent, not {str(level)[:40]}.")
    return level


def _outputs(model: ServedModel, request: InferRequest) -> list[tuple[str, bool]]:
    everything = request.parameters.get("binary_data_output") is True
    by_name = {output.name: output.parameters for output in request.outputs}
    for name, parameters in by_name.items():
        if parameters.get("classification"):
            raise Problem(400, f"Classes are not offered here: ask for the output {name[:80]} as it is.")
        if "shared_memory_region" in parameters:
            raise Problem(400, "Shared memory is not offered here.")
    return [(name, bool(by_name.get(name, {}).get("binary_data", everything))) for name in model.chosen(list(by_name))]


def _refuse_state(parameters: dict[str, Any]) -> None:
    if parameters.get("sequence_id"):
        raise Problem(400, "The model keeps nothing between requests: there are no sequences here.")


def _decoded(decoder: msgspec.json.Decoder[Any], text: bytes | memoryview) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Problem(400, f"The body cannot be read: {str(error)[:200]}.") from None


__all__ = ["LENGTH_HEADER", "Array", "Asked", "encode", "read_infer", "read_predict", "write_infer", "write_predict"]
