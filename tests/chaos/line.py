"""A client's connection, and a reader of answers which takes nothing but HTTP/1.1 as it should be.

It is written for speed and for sidecars: names in lower case, one space behind the colon, no trailers.
"""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Final, cast

from sidecar.net.sockets import reset_on_close

_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9a-z-]+): ([^\r\n\0]*)")
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*")
_SIZE: Final = re.compile(rb"[0-9a-f]{1,8}")
# Fields that mean something only once.
_SINGLE: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"transfer-encoding",
        b"server-timing",
        b"x-headgate-reason",
        b"x-request-id",
    }
)


class Unreadable(Exception):
    """What came is no answer."""


class Ended(Exception):
    """The connection ended before what was asked for had come; `rest` is the part that had."""

    def __init__(self, rest: bytes) -> None:
        super().__init__(f"the connection ended after {rest[-40:]!r}")
        self.rest = rest


def reset(transport: asyncio.BaseTransport) -> None:
    """End the connection with a reset, if it has not ended."""
    if not transport.is_closing():
        reset_on_close(transport)
        cast(asyncio.Transport, transport).abort()


class Line(asyncio.Protocol):
    """One connection to the sidecar: what comes waits here until it is asked for."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.ended = False
        self.was_reset = False
        self._came = bytearray()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._came += data
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.was_reset = exc is not None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def has_news(self) -> bool:
        """Something came that nobody has asked for, or the connection ended."""
        return self.ended or bool(self._came)

    def send(self, data: bytes) -> None:
        """If anybody is there."""
        if not self.ended:
            self.transport.write(data)

    async def more(self) -> None:
        """Wait for news; raises Ended when there can be none."""
        if self.ended:
            rest = bytes(self._came)
            self._came.clear()
            raise Ended(rest)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def news(self) -> None:
        """Wait until something has come, or the connection has ended."""
        if not self.has_news:
            await self.more()

    async def until(self, mark: bytes) -> bytes:
        """What comes before `mark`, which is taken too."""
        looked = 0
        while (at := self._came.find(mark, looked)) < 0:
            looked = max(len(self._came) - len(mark) + 1, 0)
            await self.more()
        return self._take(at, len(mark))

    async def exactly(self, size: int) -> bytes:
        while len(self._came) < size:
            await self.more()
        return self._take(size)

    async def rest(self) -> bytes:
        """All that comes until the connection ends."""
        while True:
            try:
                await self.more()
            except Ended as end:
                return end.rest

    def _take(self, size: int, mark: int = 0) -> bytes:
        taken = bytes(self._came[:size])
        del self._came[: size + mark]
        return taken


@dataclass(slots=True)
class Answer:
    """`complete`: it says so itself, or the connection ended in good order where that is its end."""

    status: int
    fields: dict[bytes, bytes]
    interim: list[int] = field(default_factory=list)
    body: bytes = b""
    complete: bool = True

    @property
    def reason(self) -> str:
        """Why the sidecar answered; empty when the engine did."""
        return self.fields.get(b"x-headgate-reason", b"").decode()

    @property
    def closes(self) -> bool:
        return self.fields.get(b"connection") == b"close"


def _head(data: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = data.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise Unreadable(f"the status line is {first!r}")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None:
            raise Unreadable(f"a field is {line!r}")
        name, value = found.groups()
        if name in fields and name in _SINGLE:
            raise Unreadable(f"{name.decode()} is repeated")
        fields[name] = value
    return int(status[1]), fields


async def answer_to(method: bytes, line: Line) -> Answer:
    """The next answer, to a `method` request. Raises Ended when there is none."""
    interim: list[int] = []
    while True:
        status, fields = _head(await line.until(b"\r\n\r\n"))
        if status >= 200:
            break
        interim.append(status)
    answer = Answer(status, fields, interim)
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None and (coding != b"chunked" or length is not None):
        raise Unreadable(f"transfer-encoding is {coding!r}, content-length {length!r}")
    if method == b"HEAD" or status in (204, 304):
        return answer
    try:
        if coding is not None:
            await _chunks(line, answer)
        elif length is not None:
            answer.body = await line.exactly(int(length))
        else:
            answer.body = await line.rest()
            answer.complete = not line.was_reset
    except Ended as end:
        answer.body += end.rest
        answer.complete = False
    return answer


async def _chunks(line: Line, answer: Answer) -> None:
    size = -1
    while size:
        try:
            digits = await line.until(b"\r\n")
        except Ended:
            raise Ended(b"") from None
        if not _SIZE.fullmatch(digits):
            raise Unreadable(f"the size of a chunk is {digits!r}")
        size = int(digits, 16)
        try:
            data = await line.exactly(size + 2)
        except Ended as end:
            raise Ended(end.rest[:size]) from None
        if data[-2:] != b"\r\n":
            raise Unreadable(f"a chunk ends in {data[-2:]!r}")
        answer.body += data[:-2]
