"""Serving a variant to other programs: what a server is asked to be, and where it turned out to be."""

from typing import Annotated, Literal

from msgspec import Meta

from .records import Record


class ServeSettings(Record):
    """What `trimtab serve` is asked for."""

    host: Annotated[str, Meta(description="address to listen on; only this machine can reach 127.0.0.1")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="for HTTP; 0 picks a free one")] = 8000
    grpc_port: (
        Annotated[int, Meta(ge=0, le=65_535, description="for gRPC; 0 picks a free one; none: the one after port")]
        | None
    ) = None
    max_batch_size: Annotated[int, Meta(ge=1, le=65_536, description="rows of the largest batch")] = 32
    max_wait_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="the oldest request waits no longer for company")
    ] = 10.0
    wait: Annotated[
        Literal["when-it-pays", "always"], Meta(description="wait for company only when it pays, or always")
    ] = "when-it-pays"
    preferred_batch_sizes: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65_536)], ...], Meta(description="sizes sent as soon as they are reached")
    ] = ()
    priority_levels: Annotated[
        int, Meta(ge=1, le=100, description="of requests; 1 is served first, the middle one is the default")
    ] = 1
    instances: Annotated[
        int, Meta(ge=1, le=64, description="copies of the model side by side, sharing out the cores")
    ] = 1
    max_queue_size: Annotated[int, Meta(ge=1, le=10_000_000, description="one more waiting request is turned away")] = (
        4096
    )
    timeout_ms: Annotated[float, Meta(gt=0, description="how long a request may wait in the queue")] | None = None
    max_request_bytes: Annotated[int, Meta(ge=1024, le=2**31 - 1, description="a longer body is refused, not read")] = (
        64 * 1024 * 1024
    )
