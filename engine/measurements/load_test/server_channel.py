"""What every way to a server has in common: answers, failures, and the check of its inputs against ours."""

from typing import Any, NamedTuple, Protocol

import msgspec

from ...batching.arrays import Arrays
from ...safety import clean_text
from ...serving.tensors import DATATYPES

MOST_ERROR_BYTES = 4096
"""Of an error's body that are kept."""


class Unreachable(Exception):
    """The server gave no answer; the text says why, as the end of a sentence."""


class Refused(Exception):
    """The server answered a question with an error; the text is its reason."""


class Answer(NamedTuple):
    """What came back. `status` is HTTP's (gRPC's codes are turned into it)."""

    status: int
    body: bytes = b""

    @property
    def sentence(self) -> str:
        """What an error says."""
        try:
            found = msgspec.json.decode(self.body)
        except (msgspec.MsgspecError, RecursionError):
            found = None
        text = found.get("error", found.get("detail")) if isinstance(found, dict) else None
        said = text if isinstance(text, str) else self.body.decode("utf-8", "replace")
        return clean_text(said.strip().partition("\n")[0], 300) or f"status {self.status}"


class Tensor(NamedTuple):
    """An input as the server describes it; -1 is an open axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


Tensors = tuple[Tensor, ...]


class Connection(Protocol):
    """Carries one request at a time."""

    @property
    def alive(self) -> bool: ...

    async def call(self, payload: bytes) -> Answer:
        """Raises Unreachable."""
        ...

    def close(self) -> None: ...


class Channel(Protocol):
    """A way to one server. All of it runs in one event loop; questions raise Unreachable, and
    `ready` and `server` Refused."""

    protocol: str
    plain: bool
    """It carries nothing but inferences: it cannot be asked about models."""
    address: str
    most_connections: int

    def encode(self, model: str, inputs: Arrays) -> bytes: ...

    async def connect(self) -> Connection: ...

    async def ready(self) -> bool: ...

    async def models(self) -> list[str] | None: ...

    async def metadata(self, model: str) -> tuple[Tensors | None, str]: ...

    async def server(self) -> tuple[str, str]: ...

    async def statistics(self, model: str) -> dict[str, Any] | None: ...

    async def close(self) -> None: ...


def tensors_of(described: Any) -> Tensors:
    """The protocol's metadata of inputs (JSON or messages turned into it); what makes no sense is left out."""
    tensors = []
    for one in described if isinstance(described, list) else []:
        try:
            shape = tuple(int(axis) for axis in one["shape"])
            tensors.append(Tensor(str(one["name"]), str(one["datatype"]), shape))
        except (TypeError, KeyError, ValueError):
            continue
    return tuple(tensors)


def mismatch(takes: Tensors, inputs: Arrays) -> str | None:
    """Why a request with these inputs does not fit what the server's model takes; None: it does."""
    theirs = {tensor.name: tensor for tensor in takes}
    fits = set(theirs) == set(inputs) and all(
        DATATYPES.get(array.dtype.name) == theirs[name].datatype
        and len(array.shape) == len(theirs[name].shape)
        and all(axis in (-1, size) for axis, size in zip(theirs[name].shape, array.shape))
        for name, array in inputs.items()
    )
    if fits:
        return None
    ours = ", ".join(
        f"{name} {DATATYPES.get(array.dtype.name, array.dtype.name)} {list(array.shape)}"
        for name, array in inputs.items()
    )
    return f"it takes {', '.join(map(str, takes)) or 'nothing'}; this model's requests are {ours}"
