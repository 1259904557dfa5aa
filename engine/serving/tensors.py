"""The tensors a served model takes and gives, and the check of everything that comes in from outside.

Shapes are the sender's claim: they are compared with what the model takes and with the bytes that really came before
anything is laid out by them, so a claim costs a sentence and no memory. What is returned is little-endian, aligned,
contiguous and owned: the sender's bytes are never handed to native code.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]

DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8",
    "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "float16": "FP16", "float32": "FP32",
    "float64": "FP64", "bfloat16": "BF16",
}  # fmt: skip
"""numpy's names → the protocol's. There is no BYTES: no runtime here takes text."""

NESTED = re.compile(rb"\s*\[\s*\[")
"""The beginning of a list of lists."""

MOST_JSON_VALUES = 4_000_000
"""In one tensor: as Python's numbers they take 32 bytes each. What is larger can come as bytes."""


class Problem(Exception):
    """A request that is not served; the text is the sender's sentence. `status` is HTTP's."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.counted = False
        """It is among the model's failures already."""


class ServedTensor(NamedTuple):
    """One input or output. `shape` without the rows, which come first; None is an open axis."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    @property
    def datatype(self) -> str:
        return DATATYPES[self.dtype.name]

    @property
    def wire_shape(self) -> list[int]:
        """With the rows, -1 for what is open."""
        return [-1, *(-1 if axis is None else axis for axis in self.shape)]

    def __str__(self) -> str:
        axes = ", ".join(
            "rows" if n == 0 else "any" if axis < 0 else str(axis) for n, axis in enumerate(self.wire_shape)
        )
        return f"{self.datatype} ({axes})"


def checked_shape(
    tensor: ServedTensor, datatype: str | None, shape: Sequence[int], max_rows: int, fixed_rows: int | None = None
) -> tuple[int, ...]:
    """The shape if the model takes it. Raises Problem: 400 where it does not fit, 413 for too many rows."""
    if datatype == "BYTES":
        raise Problem(400, f"Input {tensor.name} came as BYTES; the model takes numbers: {tensor}.")
    if datatype is not None and datatype != tensor.datatype:
        raise Problem(400, f"Input {tensor.name} came as {datatype[:20]}; the model takes {tensor}.")
    asked = tuple(shape)
    fits = len(asked) == len(tensor.shape) + 1 and all(
        isinstance(size, int) and size >= 1 and axis in (None, size) for size, axis in zip(asked[1:], tensor.shape)
    )
    if not fits or not isinstance(asked[0], int) or asked[0] < 1:
        said = str(list(asked[:16]))[:200]
        raise Problem(400, f"Input {tensor.name} came with the shape {said}; the model takes {tensor}.")
    if fixed_rows is not None and asked[0] != fixed_rows:
        raise Problem(400, f"The model takes exactly {fixed_rows} rows a request, not {asked[0]}.")
    if asked[0] > max_rows:
        raise Problem(413, f"The request has {asked[0]} rows; the largest batch here is {max_rows}.")
    return asked


def from_bytes(tensor: ServedTensor, shape: tuple[int, ...], data: memoryview) -> Array:
    """Raw little-endian values in row-major order as an array of a checked shape. Raises Problem."""
    expected = math.prod(shape) * tensor.dtype.itemsize
    if len(data) != expected:
        raise Problem(
            400, f"Input {tensor.name} came with {len(data)} bytes; its shape {list(shape)} needs {expected}."
        )
    if tensor.dtype == np.bool_ and bytes(data).strip(b"\x00\x01"):
        raise Problem(400, f"Input {tensor.name} is BOOL: each byte must be 0 or 1.")
    little = tensor.dtype if tensor.dtype.name == "bfloat16" else tensor.dtype.newbyteorder("<")
    return np.array(np.frombuffer(data, little).reshape(shape), dtype=tensor.dtype)


def from_json(tensor: ServedTensor, shape: tuple[int, ...], data: bytes | msgspec.Raw) -> Array:
    """JSON numbers, flat or nested, as an array of a checked shape. Raises Problem."""
    text = bytes(data)
    found = _count(tensor, text)
    if found != math.prod(shape):
        needed = math.prod(shape)
        raise Problem(400, f"Input {tensor.name} has {found} values; its shape {list(shape)} needs {needed}.")
    values = _decode(tensor, text, len(shape) if NESTED.match(text) else 1)
    try:
        array = _cast(tensor, values)
    except (ValueError, OverflowError):
        raise Problem(400, f"Input {tensor.name} is not a list of shape {list(shape)}.") from None
    if not array.size:  # no comma, and no value either
        raise Problem(400, f"Input {tensor.name} has 0 values; its shape {list(shape)} needs {found}.")
    if array.ndim > 1 and array.shape != shape:
        raise Problem(400, f"Input {tensor.name} is nested as {list(array.shape)}; its shape says {list(shape)}.")
    return array.reshape(shape)


def from_nested_json(tensor: ServedTensor, data: bytes | msgspec.Raw, max_rows: int, fixed_rows: int | None) -> Array:
    """A nested JSON list that says its shape by its nesting. Raises Problem."""
    text = bytes(data)
    found = _count(tensor, text)
    if None not in tensor.shape and found > max_rows * math.prod(axis or 1 for axis in tensor.shape):
        raise Problem(413, f"Input {tensor.name} has {found} values: over {max_rows} rows, the largest batch here.")
    try:
        array = _cast(tensor, _decode(tensor, text, len(tensor.shape) + 1))
    except (ValueError, OverflowError):
        raise Problem(400, f"Input {tensor.name} must be a nested list of {tensor}, every row alike.") from None
    checked_shape(tensor, None, array.shape, max_rows, fixed_rows)
    return array


def to_json(array: Array) -> list[Any]:
    """The values for JSON, nested as the array is; NaN and infinities become null when they are encoded."""
    wide = array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array
    listed: list[Any] = wide.tolist()
    return listed


def to_bytes(array: Array) -> bytes:
    """The values little-endian in row-major order."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).tobytes()


def all_of(tensors: Mapping[str, ServedTensor], given: Sequence[str]) -> None:
    """Every input is there once and none is unknown. Raises Problem."""
    known = ", ".join(tensors)
    for name in given:
        if name not in tensors:
            raise Problem(400, f"The model has no input {name[:80]!r}. Its inputs: {known}.")
    if len(set(given)) != len(given):
        raise Problem(400, "An input came twice.")
    missing = [name for name in tensors if name not in given]
    if missing:
        raise Problem(400, f"The input {missing[0]} is missing. The model's inputs: {known}.")


def _count(tensor: ServedTensor, text: bytes) -> int:
    """How many values a list written in JSON has: counting commas costs nothing, each number 32 bytes as an object."""
    found = text.count(b",") + 1
    if found > MOST_JSON_VALUES:
        raise Problem(413, f"Input {tensor.name} has {found} values in JSON: send it as binary data.")
    return found


@functools.lru_cache(maxsize=64)
def _decoder(kind: type, depth: int) -> msgspec.json.Decoder[Any]:
    wanted: Any = kind
    for _ in range(depth):
        wanted = list[wanted]
    return msgspec.json.Decoder(wanted)


def _decode(tensor: ServedTensor, text: bytes, depth: int) -> Any:
    kind = {"b": bool, "i": int, "u": int}.get(tensor.dtype.kind, float)
    try:
        return _decoder(kind, depth).decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        what = str(error).partition(" - at ")[0][:100]
        raise Problem(400, f"Input {tensor.name} must be {tensor} as numbers in lists: {what}.") from None


def _cast(tensor: ServedTensor, values: Any) -> Array:
    """Numbers in the tensor's own type. Raises ValueError for ragged lists, OverflowError for what does not fit."""
    dtype = tensor.dtype
    if dtype.kind in "iu":
        # Via 64 bits: older numpy wraps an integer that does not fit without a word.
        wide = np.array(values, np.uint64 if dtype.kind == "u" and dtype.itemsize == 8 else np.int64)
        limits = np.iinfo(dtype)
        if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
            raise Problem(400, f"Input {tensor.name} holds a number that does not fit {tensor.datatype}.")
        return wide.astype(dtype)
    with np.errstate(over="ignore"):
        return np.array(values, dtype)
