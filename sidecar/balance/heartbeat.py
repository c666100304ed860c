"""What a sidecar says of its pod to the others of its mesh, once a second and whenever its state changes.

A MessagePack array. Fields are only ever added, at its end, so that two versions understand each other.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

State = Literal["serving", "down", "draining"]

MAX_MODELS: Final = 32
MAX_BYTES: Final = 4096
_Count = Annotated[int, Meta(ge=0, le=10**12)]
_Amount = Annotated[float, Meta(ge=0, le=1e15)]


class Heartbeat(Struct, array_like=True, frozen=True):
    """One pod at one instant."""

    pod: Annotated[str, Meta(min_length=1, max_length=128)]
    address: Annotated[str, Meta(max_length=300)]  # where its peers reach it; empty: nowhere
    state: State
    models: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=MAX_MODELS)] = ()
    waiting: _Count = 0  # requests
    running: _Count = 0
    utilization: _Amount = 0.0  # work over what the pod can carry; above 1 when some of it waits
    capacity: _Amount = 1.0  # KV tokens of what may run at once
    why: Annotated[str, Meta(max_length=64)] = ""  # it is not serving
    asked: _Amount = 0.0  # work of first attempts that came to it within 10 s
    retried: _Amount = 0.0  # and of what it tried again


_decode: Final = msgspec.msgpack.Decoder(Heartbeat).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def encode(heartbeat: Heartbeat) -> bytes:
    """As it is sent."""
    return _encode(heartbeat)


def decode(payload: bytes) -> Heartbeat:
    """Raises ValueError when that is not what it is."""
    if len(payload) > MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes")
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
