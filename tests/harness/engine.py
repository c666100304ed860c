"""A scripted engine: reads what a sidecar sends with h11, and answers what the test says.

    engine << b"GET / HTTP/1.1..."        these very bytes came from the sidecar
    engine.request()                      the next request, as h11 reads it
    engine >> b"HTTP/1.1 200 OK..."       bytes to the sidecar
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Self

import h11

if TYPE_CHECKING:
    from sidecar.balance.endpoint import Endpoint
    from tests.harness.transport import FakeTransport
    from tests.harness.wire import Wire

Fields = list[tuple[bytes, bytes]]


class End(Enum):
    """How an engine ends a connection."""

    CLOSE = "in good order"
    RESET = "broken"


Script = Callable[["Seen"], Sequence[bytes | End]]


@dataclass
class Seen:
    """A request as the engine got it. `complete` is False while its body is still coming."""

    method: bytes
    target: bytes
    fields: Fields
    body: bytes = b""
    complete: bool = False

    def __getitem__(self, name: bytes) -> bytes:
        """The value of a field that is there exactly once."""
        (value,) = (value for field, value in self.fields if field == name)
        return value

    def __contains__(self, name: bytes) -> bool:
        return any(name == field for field, _ in self.fields)


@dataclass
class Engine:
    """One connection, from the engine's end."""

    wire: Wire
    transport: FakeTransport
    endpoint: Endpoint
    seen: list[Seen] = field(default_factory=list)
    _parser: h11.Connection | None = None
    _unlooked: bytes = b""
    _shown: int = 0
    _answered: int = 0

    def __rshift__(self, data: bytes | End) -> Self:
        """Send `data` to the sidecar, or end the connection."""
        self.transport.happens(data)
        self.wire.settle()
        return self

    def __lshift__(self, expected: bytes) -> Self:
        """The sidecar sent exactly `expected` since the last look."""
        assert self.sent() == expected
        return self

    def sent(self) -> bytes:
        """The bytes the sidecar sent since the last look."""
        self.read()
        data, self._unlooked = self._unlooked, b""
        return data

    def request(self) -> Seen:
        """The next request that was not looked at yet, whole or not."""
        self.read()
        assert self._shown < len(self.seen), "no further request has come"
        self._shown += 1
        return self.seen[self._shown - 1]

    def play(self, script: Script) -> bool:
        """Answer the next whole request as `script` says; False when there is none."""
        self.read()
        if self._answered == len(self.seen) or not self.seen[-1].complete:
            return False
        self._answered += 1
        for step in script(self.seen[-1]):
            self.transport.happens(step)
        return True

    def read(self) -> None:
        """Let h11 read what came; raises RemoteProtocolError when that is not a request."""
        data = self.transport.take()
        if not data:
            return
        self._unlooked += data
        if self._parser is None or (self.seen and self.seen[-1].complete):
            self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self._parser.receive_data(data)
        while True:
            event = self._parser.next_event()
            if isinstance(event, h11.Request):
                self.seen.append(Seen(event.method, event.target, list(event.headers)))
            elif isinstance(event, h11.Data):
                self.seen[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert not event.headers, "trailers are not passed on"
                self.seen[-1].complete = True
            else:
                assert event is h11.NEED_DATA, "a request was sent before the one ahead was answered"
                return

    @property
    def is_open(self) -> bool:
        """The sidecar has not closed it."""
        return not self.transport.closing

    @property
    def aborted(self) -> bool:
        """The sidecar closed it at once."""
        return self.transport.aborted


def ok(body: bytes = b"", *fields: bytes) -> bytes:
    """A plain answer with its length."""
    return answer(b"200 OK", body, b"content-length: %d" % len(body), *fields)


def answer(status: bytes, body: bytes, *fields: bytes) -> bytes:
    """An answer of any framing: nothing is added to `fields`."""
    return b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, b"".join(field + b"\r\n" for field in fields), body)


def chunked(*pieces: bytes, last: bool = True) -> bytes:
    """A chunked body; without `last` it goes on."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return body + b"0\r\n\r\n" if last else body


SSE = answer(b"200 OK", b"", b"content-type: text/event-stream; charset=utf-8", b"transfer-encoding: chunked")
