"""What a sidecar says of its pod to the others of its mesh, once a second and whenever its state changes.

A MessagePack array. Fields are only ever added, at its end, so that two versions understand each other.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

State = Literal["serving", "down", "ejected", "draining"]

MAX_MODELS: Final = 32
_MAX_NAME: Final = 256  # characters
MAX_BYTES: Final = 36 * 1024  # more than the bounds below allow, each character having four
_Model = Annotated[str, Meta(max_length=_MAX_NAME)]
_Count = Annotated[int, Meta(ge=0, le=10**12)]
_Amount = Annotated[float, Meta(ge=0, le=1e15)]


class Heartbeat(Struct, array_like=True, frozen=True):
    """One pod at one instant."""

    pod: Annotated[str, Meta(min_length=1, max_length=128)]
    address: Annotated[str, Meta(max_length=300)]  # where its peers reach it; empty: nowhere
    state: State
    models: Annotated[tuple[_Model, ...], Meta(max_length=MAX_MODELS)] = ()
    waiting: _Count = 0  # requests
    running: _Count = 0
    utilization: _Amount = 0.0  # work over what the pod can carry; above 1 when some of it waits
    capacity: _Amount = 1.0  # KV tokens of what may run at once
    why: Annotated[str, Meta(max_length=64)] = ""  # it is not serving
    pace: tuple[_Count, _Amount, _Count, _Amount] = (0, 0.0, 0, 0.0)  # `gray.Pace` of its last second
    answers: _Count = 0  # of its engine in the last interval of outlier detection,
    successes: _Count = 0  # and how many of them were none of its failures
    share: _Amount = 1.0  # of its usual work that it asks for


_decode: Final = msgspec.msgpack.Decoder(Heartbeat).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def encode(heartbeat: Heartbeat, names_bytes: int = MAX_BYTES) -> bytes:
    """As it is sent. Models whose names are too long, alone or together, are left out, or nobody would
    hear of the pod at all. `names_bytes`: of all names."""
    kept, left = [], names_bytes
    for name in heartbeat.models:
        size = len(_encode(name))
        if len(name) <= _MAX_NAME and size <= left:
            left -= size
            kept.append(name)
    if len(kept) < len(heartbeat.models):
        heartbeat = msgspec.structs.replace(heartbeat, models=tuple(kept))
    return _encode(heartbeat)


def decode(payload: bytes) -> Heartbeat:
    """Raises ValueError when that is not what it is."""
    if len(payload) > MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes")
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
