"""How long a caller will wait, in the words in which callers say so.

`x-request-timeout-ms` and `grpc-timeout` (gRPC over HTTP/2, "Timeout": at most 8 digits and a unit)
bound the whole exchange; OpenAI's SDK sends `x-stainless-read-timeout` in seconds. The shortest
counts. What is not a positive number says nothing; a day is the longest anybody waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_S: Final = 86_400.0
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def patience_s(first: Mapping[bytes, bytes]) -> float | None:
    """Seconds the caller waits, from its header fields; None: it does not say."""
    shortest: float | None = None
    for name, unit in ((b"x-request-timeout-ms", 1e-3), (b"x-stainless-read-timeout", 1.0)):
        value = first.get(name)
        if value is not None:
            shortest = _shorter(shortest, _number(value) * unit)
    value = first.get(b"grpc-timeout")
    if value is not None and value[:-1].isdigit() and len(value) <= 9:
        shortest = _shorter(shortest, int(value[:-1]) * _UNITS.get(value[-1:], 0.0))
    return shortest


def elapsed_s(request_start: bytes, wall: float) -> float:
    """Seconds since a trusted proxy's `x-request-start` (`t=` and epoch seconds, ms, us or ns)."""
    started = _number(request_start.removeprefix(b"t="))
    while started > 1e11:  # no epoch second is as large for 3,000 years
        started /= 1000
    return min(max(wall - started, 0.0), LONGEST_S) if started else 0.0


def _number(text: bytes) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 < value < 1e20 else 0.0  # neither NaN nor infinity


def _shorter(current: float | None, seconds: float) -> float | None:
    if seconds <= 0:
        return current
    seconds = min(seconds, LONGEST_S)
    return seconds if current is None else min(current, seconds)
