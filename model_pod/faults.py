"""What the fake engine can be told to do wrong while it runs, and which of it applies when. Pure.

A fault is set as JSON, told apart by ``kind``. Faults of answers (status, reset, empty, framing) are about
POSTs: health, metrics and the list of models stay sound. `Flap` puts another fault in force in turns: it
begins with ``down_s`` seconds of that fault, then come ``up_s`` seconds without, and so on.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta


class _Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    pass


class Sound(_Fault, frozen=True, tag="none"):
    """Nothing is wrong."""


class Hang(_Fault, frozen=True, tag="hang"):
    """No step runs and no token comes; requests are taken, and get nothing until it ends."""

    health: Literal["ok", "silent"] = "ok"  # silent: health checks get nothing either


class Slow(_Fault, frozen=True, tag="slow"):
    """Every step takes `factor` times as long."""

    factor: Annotated[float, Meta(gt=1, le=1000)] = 3.0


class Status(_Fault, frozen=True, tag="status"):
    """The part `rate` of POSTs gets `status` at once."""

    status: Annotated[int, Meta(ge=500, le=599)] = 500
    rate: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Reset(_Fault, frozen=True, tag="reset"):
    """No answer gets further than `after_bytes`, its head included: there its connection is reset."""

    after_bytes: Annotated[int, Meta(ge=0)] = 0


class Empty(_Fault, frozen=True, tag="empty"):
    """Streams end at once: whole, and without an event."""

    done: bool = False  # but `data: [DONE]`


class Framing(_Fault, frozen=True, tag="framing"):
    """Answers break HTTP's framing, then the connection is closed.

    chunk_size: in the middle stands a size that is no number; content_length: it promises more than comes;
    head: what comes is no HTTP.
    """

    what: Literal["chunk_size", "content_length", "head"]


class Refuse(_Fault, frozen=True, tag="refuse"):
    """Nothing listens on the engine's ports, health's included, and open connections are closed."""


Steady = Sound | Hang | Slow | Status | Reset | Empty | Framing | Refuse
# Neither a busy loop of transitions nor a wait without an end.
Phase = Annotated[float, Meta(ge=0.01, le=86_400)]


class Flap(_Fault, frozen=True, tag="flap"):
    """`fault` for `down_s`, nothing for `up_s`, in turns."""

    up_s: Phase
    down_s: Phase
    fault: Steady


Fault = Steady | Flap
SOUND: Final = Sound()

_decoder = msgspec.json.Decoder(Fault)


class BadFault(ValueError):
    """The message says what is wrong with it."""


def decode(body: bytes) -> Fault:
    """The fault that JSON says. Raises BadFault."""
    try:
        fault: Fault = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFault(str(error)) from None
    return fault


def in_force(fault: Fault, elapsed_s: float) -> tuple[Steady, float | None]:
    """What applies so long after `fault` was set, and for how many seconds more (None: for ever)."""
    if not isinstance(fault, Flap):
        return fault, None
    period = fault.down_s + fault.up_s
    phase = elapsed_s % period
    if phase < fault.down_s:
        return fault.fault, fault.down_s - phase
    return SOUND, period - phase


class Spread:
    """Chooses a part of what comes, as evenly as whole numbers allow: of the first n, floor(n * rate)."""

    def __init__(self) -> None:
        self._count = 0

    def hits(self, rate: float) -> bool:
        """Whether the next one is chosen."""
        before, self._count = self._count, self._count + 1
        return _share(self._count, rate) > _share(before, rate)


def _share(count: int, rate: float) -> int:
    return int(count * rate + 1e-9)  # 100 * 0.29 is a little less than 29
