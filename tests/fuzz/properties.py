"""What has to hold for any bytes at all.

1. They are read, or refused with a ProtocolError; nothing else leaves a reader.
2. How they are cut into pieces changes nothing.
3. What is read, h11 and llhttp read too, in the same way: first line, fields, body, and where it ends.
   `EXCUSED` lists where they do not, and why that is harmless.
4. A reader keeps no more than the limits allow, however long somebody goes on.

`tests/fuzz` searches for bytes for which it does not; so does the conformance suite, for less long.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from sidecar.errors import ProtocolError
from sidecar.http1.request import RequestReader
from sidecar.http1.response import ResponseReader
from tests.fuzz.oracles import (
    Reading,
    h11_answer,
    h11_requests,
    llhttp_answer,
    llhttp_knows,
    llhttp_requests,
    our_answer,
    our_requests,
    same,
)

MOST_HELD: Final = {"requests": 384 * 1024, "answers": 1024 * 1024}  # bytes; heads are held twice
_SEGMENT: Final = 64 * 1024  # about what one read from a socket brings
_BY_BYTES: Final = 1024  # longer ones are cut in a few places alone
_ONE_IN: Final = 64  # is repeated without end: that takes long


class Excused(NamedTuple):
    """Where `oracle` refuses or reads otherwise what we accept."""

    target: str
    oracle: str
    why: str
    pattern: re.Pattern[bytes]
    example: bytes


_TRAILERS: Final = re.compile(
    rb"\n0+(;[^\n]*)?\r\n([^\r\n]+\r\n)*(transfer-encoding|content-length|connection):", re.IGNORECASE
)
_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_EXTENSIONS: Final = re.compile(rb'\n[0-9A-Fa-f]+(?!(;%b(=(%b|"[^"\\\r\n]*"))?)*\r\n);' % (_TOKEN, _TOKEN))
_CHUNKED: Final = {
    "requests": b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
    "answers": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
}


def _excused() -> Iterator[Excused]:
    for target, head in _CHUNKED.items():
        for oracle in ("h11", "llhttp"):
            yield Excused(
                target, oracle, "trailers about framing (RFC 9110 section 6.5.1): all are dropped unread",
                _TRAILERS, head + b"0\r\ncontent-length: x\r\n\r\n",
            )  # fmt: skip
        yield Excused(
            target, "llhttp", "extensions of chunks that do not follow the grammar: all are dropped unread",
            _EXTENSIONS, head + b"1; a\r\na\r\n0\r\n\r\n",
        )  # fmt: skip


EXCUSED: Final = tuple(_excused())


class Broken(AssertionError):
    """A property does not hold."""


def check_requests(data: bytes, make: Callable[[], RequestReader] = RequestReader) -> None:
    """Properties 1 to 3, and sometimes 4, for what a client sends."""
    whole = our_requests([data], make)
    for pieces in cuttings(data):
        _expect_equal(whole, our_requests(pieces, make), f"cut into {pieces}")
    if whole.messages:  # else there is nothing to agree on
        _expect_agreement(whole, h11_requests(data), "requests", "h11", data)
        llhttp = llhttp_requests(data)
        # It stops at a method that is a token but not on its list.
        beyond = whole.messages[len(llhttp.messages) :]
        if not beyond or llhttp_knows(beyond[0].start[0]):
            _expect_agreement(whole, llhttp, "requests", "llhttp", data)
    if zlib.crc32(data) % _ONE_IN == 0:
        check_requests_without_end(*_halves(data), make)


def check_answers(data: bytes, make: Callable[[], ResponseReader] = ResponseReader) -> None:
    """Properties 1 to 3, and sometimes 4, for what an engine sends, to GET and to HEAD."""
    for method in (b"GET", b"HEAD"):
        whole = our_answer([data], method, make)
        for pieces in cuttings(data):
            _expect_equal(whole, our_answer(pieces, method, make), f"{method!r}, cut into {pieces}")
        if whole.messages:
            _expect_agreement(whole, h11_answer(data, method), "answers", "h11", data)
        if whole.messages and method == b"GET":
            _expect_agreement(whole, llhttp_answer(data), "answers", "llhttp", data)
    if zlib.crc32(data) % _ONE_IN == 0:
        check_answer_without_end(*_halves(data), make)


PROPERTIES: Final[Mapping[str, Callable[[bytes], None]]] = {
    "requests": check_requests,
    "answers": check_answers,
}


# Property 2.


def cuttings(data: bytes) -> Iterator[list[bytes]]:
    """Ways to cut `data`: the same ones each time."""
    if 1 < len(data) <= _BY_BYTES:
        yield [data[i : i + 1] for i in range(len(data))]
    chance = random.Random(zlib.crc32(data))
    for count in (1, 3):
        places = sorted(chance.randrange(len(data) + 1) for _ in range(count))
        yield [data[a:b] for a, b in pairwise([0, *places, len(data)]) if a < b]  # no read is empty


def _expect_equal(whole: Reading, cut: Reading, how: str) -> None:
    """Of several mistakes, which one is named may depend on which of them was seen first."""
    if whole.refused and cut.refused:
        cut = cut._replace(refused=whole.refused)
    if whole != cut:
        raise Broken(f"{how}: {cut}, at once: {whole}")


# Property 3.


def _expect_agreement(ours: Reading, theirs: Reading, target: str, oracle: str, data: bytes) -> None:
    if not agree(ours, theirs) and not excused(target, oracle, data):
        raise Broken(f"{oracle} reads {theirs}, we read {ours}")


def agree(ours: Reading, theirs: Reading) -> bool:
    """Whether all that we read was read in the same way."""
    mine, others = ours.messages, theirs.messages
    whole = len(mine) <= len(others) or not theirs.to_the_end
    return whole and all(same(a, b) for a, b in zip(mine, others, strict=False))


def excused(target: str, oracle: str, data: bytes) -> bool:
    return any(
        point.pattern.search(data) for point in EXCUSED if (point.target, point.oracle) == (target, oracle)
    )


# Property 4.


def check_requests_without_end(
    first: bytes, again: bytes, make: Callable[[], RequestReader] = RequestReader
) -> None:
    """`first`, then `again` for ever; the requests are taken as they come."""
    reader = make()
    for piece in _without_end(first, again, MOST_HELD["requests"]):
        try:
            reader.feed(piece)
        except ProtocolError:
            break
        requests = reader.requests
        while requests:
            requests[0].take_body()
            if not requests[0].complete:
                break
            requests.popleft()
        _expect_bounded(reader, "requests")


def check_answer_without_end(
    first: bytes, again: bytes, make: Callable[[], ResponseReader] = ResponseReader
) -> None:
    """`first`, then `again` for ever; the body and the interim answers are taken as they come."""
    reader = make()
    reader.expect(b"GET")
    for piece in _without_end(first, again, MOST_HELD["answers"]):
        try:
            reader.feed(piece)
        except ProtocolError:
            break
        reader.take()
        reader.interim.clear()
        _expect_bounded(reader, "answers")
        if reader.complete:
            break


def _halves(data: bytes) -> tuple[bytes, bytes]:
    at = random.Random(zlib.crc32(data)).randrange(len(data) + 1)
    return data[:at], data[at:]


def _without_end(first: bytes, again: bytes, limit: int) -> Iterator[bytes]:
    """A little more than `limit` bytes: who keeps them all is found out."""
    if first:
        yield first
    if again:
        segment = again * (_SEGMENT // len(again) + 1)
        for _ in range(limit // len(segment) + 1):
            yield segment


def _expect_bounded(reader: object, target: str) -> None:
    if (size := held(reader)) > MOST_HELD[target]:
        raise Broken(f"the reader of {target} holds {size} bytes")


def held(thing: object) -> int:
    """The bytes that `thing` keeps alive, and one for each object: attributes of our own classes included."""
    return _held(thing, set())


def _held(thing: object, seen: set[int]) -> int:
    if isinstance(thing, bytes | bytearray | memoryview | str):
        return 1 + len(thing)
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, Mapping):
        return 1 + sum(_held(key, seen) + _held(value, seen) for key, value in thing.items())
    if isinstance(thing, Collection):
        return 1 + sum(_held(item, seen) for item in thing)
    kinds = type(thing).__mro__
    if not any(kind.__module__.startswith("sidecar") for kind in kinds):
        return 1
    slots = [slot for kind in kinds for slot in getattr(kind, "__slots__", ())]
    return 1 + sum(_held(getattr(thing, slot, None), seen) for slot in (*slots, "__dict__"))
