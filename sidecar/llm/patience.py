"""How long a caller will wait, in the words in which callers say so.

`x-request-timeout-ms` and `grpc-timeout` (gRPC over HTTP/2, "Timeout": at most 8 digits and a unit)
bound the whole exchange. OpenAI's SDK sends `x-stainless-read-timeout` in seconds: how long it waits
for the next byte, hence for the first. The shortest counts. What is not a positive number says
nothing; a day is the longest anybody waits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_S: Final = 86_400.0
_NAMES: Final = (b"x-request-timeout-ms", b"grpc-timeout", b"x-stainless-read-timeout")
_MOST: Final = 32  # bytes of a value that is worth remembering
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def patience_s(first: Mapping[bytes, bytes]) -> tuple[float | None, float | None]:
    """Seconds the caller waits for the first byte, and for the last; None: it does not say."""
    get = first.get
    ms, grpc, read_s = get(b"x-request-timeout-ms"), get(b"grpc-timeout"), get(b"x-stainless-read-timeout")
    if (ms and len(ms) > _MOST) or (grpc and len(grpc) > _MOST) or (read_s and len(read_s) > _MOST):
        return _read(ms, grpc, read_s)
    return _remembered(ms, grpc, read_s)


def says_patience(first: Mapping[bytes, bytes]) -> bool:
    """Whether a caller tries to say it, in whatever words."""
    return any(name in first for name in _NAMES)


def elapsed_s(request_start: bytes, wall: float) -> float:
    """Seconds since a trusted proxy's `x-request-start` (`t=` and epoch seconds, ms, us or ns)."""
    started = _number(request_start.removeprefix(b"t="))
    while started > 1e11:  # no epoch second is as large for 3,000 years
        started /= 1000
    return min(max(wall - started, 0.0), LONGEST_S) if started else 0.0


def _read(ms: bytes | None, grpc: bytes | None, read_s: bytes | None) -> tuple[float | None, float | None]:
    whole: float | None = None
    if ms is not None:
        whole = _shorter(whole, _number(ms) / 1000)
    if grpc is not None and grpc[:-1].isdigit() and len(grpc) <= 9:
        whole = _shorter(whole, int(grpc[:-1]) * _UNITS.get(grpc[-1:], 0.0))
    return whole if read_s is None else _shorter(whole, _number(read_s)), whole


_remembered: Final = lru_cache(maxsize=512)(_read)  # a client says the same each time


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
