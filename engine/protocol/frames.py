"""How messages travel: length-prefixed msgpack, with a largest size no peer can make us go beyond."""

import struct

import msgspec
from msgspec import Struct

from .messages import ClientMessage, EngineMessage
from .work import JobSpec, Steer, WorkerMessage

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""A longer frame is refused and its connection closed: no peer makes us allocate more than this."""

FRAME_HEADER = struct.Struct(">I")
"""A frame is this many bytes of big-endian length, then one msgpack message."""

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: Struct) -> bytes:
    """One message as a frame: header and body.

    Raises ValueError if it would be longer than `MAX_FRAME_BYTES`.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"message of {len(body)} bytes is over the frame limit of {MAX_FRAME_BYTES}")
    return FRAME_HEADER.pack(len(body)) + body


decode_client_message = msgspec.msgpack.Decoder(ClientMessage).decode
decode_engine_message = msgspec.msgpack.Decoder(EngineMessage).decode
decode_worker_message = msgspec.msgpack.Decoder(WorkerMessage).decode
decode_job_spec = msgspec.msgpack.Decoder(JobSpec).decode
decode_steer = msgspec.msgpack.Decoder(Steer).decode
