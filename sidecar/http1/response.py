"""Bytes of an engine become one response at a time.

`ResponseReader` follows the framing and hands the body on in the pieces in which it came. Whoever
feeds it takes what was recorded (`head`, `take`, `complete`) after each feed.

The end of a body (RFC 9112 section 6.3): none after HEAD, 1xx, 204 and 304; else chunked, else
Content-Length, else the end of the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httptools

from sidecar.errors import UPSTREAM_PROTOCOL, ProtocolError
from sidecar.http1.request import MAX_LENGTH_DIGITS

if TYPE_CHECKING:
    from sidecar.http1.request import Fields

MAX_HEAD_BYTES: Final = 256 * 1024


class ResponseHead:
    """Status line and fields, names in lower case. `length` is None where the end is not counted."""

    __slots__ = ("chunked", "fields", "first", "keep_alive", "length", "status")

    def __init__(self, status: int, fields: Fields, keep_alive: bool) -> None:
        self.status = status
        self.fields = fields
        self.first = dict(reversed(fields))
        self.keep_alive = keep_alive
        self.chunked = b"transfer-encoding" in self.first
        length = self.first.get(b"content-length")
        valid = length is not None and length.isdigit() and len(length) <= MAX_LENGTH_DIGITS
        self.length = int(length) if length is not None and valid else None


class ResponseReader:
    """Reads the answers of one engine connection; `expect` must be called before each."""

    __slots__ = (
        "_body",
        "_fed",
        "_fields",
        "_no_body",
        "_parser",
        "_spoilt",
        "complete",
        "excess",
        "head",
        "interim",
    )

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._spoilt = False
        self.expect(b"")

    def expect(self, method: bytes) -> None:
        """Forget the last answer; the next one answers a `method` request."""
        if self._spoilt:
            self._parser = httptools.HttpResponseParser(self)
            self._spoilt = False
        self.head: ResponseHead | None = None
        self.interim: list[ResponseHead] = []
        self.complete = False
        self.excess = False  # bytes followed the answer: the connection must not be used again
        self._no_body = method == b"HEAD"
        self._body: list[bytes] = []
        self._fields: Fields = []
        self._fed = 0

    def feed(self, data: bytes) -> None:
        """Read `data`; raises ProtocolError when it is not one HTTP/1.1 answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise ProtocolError(UPSTREAM_PROTOCOL, "an upgrade nobody asked for") from None
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            if not self.complete:
                raise ProtocolError(UPSTREAM_PROTOCOL, str(error)) from None
            self.excess = True
        if self.head is None:
            self._fed += len(data)
            if self._fed > MAX_HEAD_BYTES:
                raise ProtocolError(UPSTREAM_PROTOCOL, "the head is too large")

    def take(self) -> bytes:
        """The body bytes that came since the last call."""
        body = self._body
        if not body:
            return b""
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return data

    def end_of_stream(self) -> bool:
        """The engine closed: True when that is how its answer ends."""
        head = self.head
        if head is not None and not self.complete and not head.chunked and head.length is None:
            self.complete = True
        return self.complete

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.complete:
            self.excess = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:
            name = name.lower()
            # llhttp does not know `chunked` by its name when a tab follows: then nor must we.
            self._fields.append((name, value if name == b"transfer-encoding" else value.rstrip()))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        parser = self._parser
        head = ResponseHead(parser.get_status_code(), self._fields, parser.should_keep_alive())
        self._fields = []
        if parser.get_http_version() not in ("1.1", "1.0"):
            raise ProtocolError(UPSTREAM_PROTOCOL, f"HTTP/{parser.get_http_version()}")
        self._check(head)
        if head.status < 200:
            if head.status < 100:
                raise ProtocolError(UPSTREAM_PROTOCOL, "a status below 100")
            self.interim.append(head)
            return
        self.head = head
        if self._no_body:
            # llhttp cannot be told that an answer to HEAD ends here: its state is of no more use.
            self.complete = True
            self._spoilt = True

    def on_body(self, data: bytes) -> None:
        if self.complete:
            self.excess = True  # a body in the answer to HEAD, for one
        else:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self.head is not None:
            self.complete = True

    def _check(self, head: ResponseHead) -> None:
        first = head.first
        coding = first.get(b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            raise ProtocolError(UPSTREAM_PROTOCOL, "a transfer coding but chunked")
        if len(first) != len(head.fields):
            for name in (b"content-length", b"transfer-encoding", b"content-type"):
                if sum(field == name for field, _ in head.fields) > 1:
                    raise ProtocolError(UPSTREAM_PROTOCOL, f"repeated {name.decode()}")
        if b"content-length" in first and head.length is None:
            raise ProtocolError(UPSTREAM_PROTOCOL, "invalid content-length")
