"""What sidecars tell each other of refused callers: who was told what, and who has come back since.

A message is a MessagePack array: the sender's pod, and a list of entries. An entry is the array
[tenant, body length, crc32, first asked, opens, closes]: how many milliseconds ago it first asked, and until
its window opens (nil: it was told not to come back) and closes. All three are nil when it has come back.
Times are spans, since clocks of pods differ; what a message takes on its way is lost in a window's slack.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from sidecar.flow.invitations import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sidecar.flow.invitations import Fingerprint

    Told = tuple[Fingerprint, Refused | None]  # None: it has come back

_MOST: Final = 4096  # entries that wait
_IN_ONE: Final = 256  # entries of a message: a fraction of a millisecond to read
_DAY_MS: Final = 86_400_000

_Name = Annotated[str, Meta(max_length=128)]
_Span = Annotated[int, Meta(ge=-_DAY_MS, le=_DAY_MS)]


class _Entry(Struct, array_like=True, frozen=True, gc=False):
    tenant: _Name
    size: Annotated[int, Meta(ge=0, le=2**40)]
    crc: Annotated[int, Meta(ge=0, lt=2**32)]
    came_ms: _Span | None
    opens_ms: _Span | None
    closes_ms: _Span | None


class _Message(Struct, array_like=True, frozen=True):
    pod: _Name
    entries: Annotated[list[_Entry], Meta(max_length=_IN_ONE)]


_decode: Final = msgspec.msgpack.Decoder(_Message).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class News:
    """What peers have not been told yet; of each caller the last word, of too many the latest."""

    def __init__(self) -> None:
        self.dropped = 0  # entries that no peer will hear
        self._waiting: OrderedDict[Fingerprint, Refused | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, who: Fingerprint, told: Refused | None) -> None:
        """`who` was refused and told this; None: it has come back."""
        waiting = self._waiting
        waiting[who] = told
        waiting.move_to_end(who)
        if len(waiting) > _MOST:
            waiting.popitem(last=False)
            self.dropped += 1

    def take(self) -> list[Told]:
        """The oldest of them, as many as a message holds."""
        waiting = self._waiting
        return [waiting.popitem(last=False) for _ in range(min(len(waiting), _IN_ONE))]


def encode(pod: str, news: Iterable[Told], now: float) -> bytes:
    """The message of `pod`."""
    return _encode(_Message(pod, [_entry(*who, told, now) for who, told in news]))


def decode(message: bytes, now: float) -> tuple[str, Iterator[Told]]:
    """The sender and what it tells, in this clock's time; raises ValueError when that is not what it is."""
    try:
        pod, entries = msgspec.structs.astuple(_decode(message))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return pod, (((each.tenant, each.size, each.crc), _told(each, now)) for each in entries)


def _entry(tenant: str, size: int, crc: int, told: Refused | None, now: float) -> _Entry:
    if told is None:
        return _Entry(tenant, size, crc, None, None, None)
    opens = _span(told.opens - now) if told.opens else None
    return _Entry(tenant, size, crc, _span(now - told.came), opens, _span(told.closes - now))


def _span(seconds: float) -> int:
    return round(min(max(seconds * 1000, -_DAY_MS), _DAY_MS))


def _told(entry: _Entry, now: float) -> Refused | None:
    if entry.came_ms is None or entry.closes_ms is None:
        return None
    opens = 0.0 if entry.opens_ms is None else now + entry.opens_ms / 1000
    return Refused(opens, now + entry.closes_ms / 1000, now - entry.came_ms / 1000)
