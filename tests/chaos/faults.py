"""What an engine may do wrong, on demand: the agreement between the clients and the engine of a storm.

A request names the fault in its query, with the size of the answer: `?cut_body=300`. The body that the
engine means for it follows from its own id and its own body, so that no other request's answer fits.

An outcome is `WHOLE` (the engine's answer, all of it), `CUT` (it has begun and broken off), or the
reason for which the sidecar refused.
"""

from dataclasses import dataclass
from typing import Final
from zlib import crc32

WHOLE: Final = "whole"
CUT: Final = "cut"
# What may befall every request, whatever it asked for, and how much of all answers that may be: the engine
# also drops connections that are idle or new, sends noise on them, stops listening for a moment; and on a
# busy machine it may be late.
STRAY: Final = {
    "connect_failed": 0.05,
    "first_token_timeout": 0.004,
    "upstream_protocol": 0.004,
    "upstream_reset": 0.02,
}
MEGABYTE: Final = 2**20
HINTS: Final = 40  # interim answers before one that is asked for them


@dataclass(frozen=True)
class Fault:
    """`weight`: how often it is asked for. `outcomes`: how it must end, where no stray fault hits it."""

    name: str
    weight: float
    outcomes: frozenset[str]


def _fault(name: str, weight: float, *outcomes: str) -> Fault:
    return Fault(name, weight, frozenset(outcomes))


_TABLE: Final = (
    # Engines that are well, each in its way.
    _fault("ok", 50, WHOLE),
    _fault("chunked", 12, WHOLE),
    _fault("sse", 6, WHOLE),
    _fault("until_close", 2, WHOLE),
    _fault("busy", 1, WHOLE),  # its own 503
    _fault("no_content", 1, WHOLE),  # 204 or 304
    _fault("drip", 1.5, WHOLE),
    _fault("big", 0.25, WHOLE),
    _fault("close", 1, WHOLE),  # connection: close
    # Odd, but the answer is whole.
    _fault("interim", 1, WHOLE),  # HINTS before it
    _fault("large_head", 0.25, WHOLE),
    _fault("early", 1, WHOLE),  # the answer comes before the request has
    _fault("goodbye", 2, WHOLE),  # closes the idle connection a little later
    _fault("excess", 1.5, WHOLE),  # another answer behind it
    _fault("noise", 1, WHOLE),  # on the idle connection, a little later
    _fault("long", 1.5, WHOLE),  # more than its content-length
    # No answer.
    _fault("hangup", 1.5, "upstream_reset"),
    _fault("reset", 1.5, "upstream_reset"),
    _fault("half_head", 1, "upstream_reset"),
    _fault("mute", 0.15, "first_token_timeout"),
    _fault("half_head_mute", 0.15, "first_token_timeout"),
    _fault("deaf", 0.15, "first_token_timeout"),  # it does not even read the request
    _fault("malformed", 2.5, "upstream_protocol"),
    _fault("huge_head", 0.1, "upstream_protocol"),
    # Half an answer.
    _fault("cut_head", 1, CUT),
    _fault("cut_body", 1, CUT),
    _fault("cut_chunk", 1, CUT),
    _fault("cut_sse", 1, CUT),
    _fault("cut_until_close", 1, CUT),
    _fault("short", 1, CUT),  # less than its content-length
    _fault("bad_chunk", 1, CUT, "upstream_protocol"),
    _fault("stall", 0.2, CUT),
)
FAULTS: Final = {fault.name: fault for fault in _TABLE}


def meant(request_id: bytes, sent: bytes, size: int) -> bytes:
    """The body that answers the request which is called so and sent this body."""
    unit = b"data: %b %08x\n\n" % (request_id, crc32(sent))
    return (unit * (size // len(unit) + 1))[:size]
