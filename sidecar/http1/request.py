"""Bytes of a client become requests.

`RequestReader` wraps httptools. Its callbacks only record, because one `feed` may deliver several
pipelined requests before the first was answered: whoever feeds it acts afterwards, on `requests`.

What a lax peer would let through is refused (RFC 9112 sections 2.2, 3.2, 5, 6.1, 6.3): llhttp
rejects obs-fold, space before a colon, NUL, repeated or unclear Content-Length and Content-Length
beside Transfer-Encoding; Host, target, versions, other codings and the size limits are checked here.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

import httptools

from sidecar.errors import (
    HEADERS_TOO_LARGE,
    MALFORMED,
    NOT_IMPLEMENTED,
    URI_TOO_LONG,
    VERSION,
    ProtocolError,
    Refusal,
)

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 100
MAX_TARGET_BYTES: Final = 16 * 1024
MAX_LENGTH_DIGITS: Final = 18  # of a Content-Length, leading zeros included
_MAX_PIECES: Final = 64
_NOTHING: Final = bytearray()  # never written to

Fields = list[tuple[bytes, bytes]]

# Fields of which a second one would be read differently by different readers.
_SINGLE: Final = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect")
_NOT_IN_HOST: Final = frozenset(b" \t/?#@\\,<>\"'")
# An absolute target: authority, and path with query (RFC 9112 section 3.2.2).
ABSOLUTE: Final = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
# What llhttp says of a version that is a number, and of HTTP/2 that was begun without asking.
_OTHER_VERSION: Final = ("Invalid HTTP version", "Pause on PRI/Upgrade")


class Request:
    """One request head, and as much of its body as has come.

    `fields` keeps order and repeats, names in lower case; `first` answers look-ups. `chunks` holds
    body bytes that nobody has taken yet; `received` counts all that came.
    """

    __slots__ = (
        "_joined",
        "chunks",
        "complete",
        "fields",
        "first",
        "keep_alive",
        "length",
        "method",
        "received",
        "target",
        "version",
    )

    def __init__(self, method: bytes, target: bytes, version: str, fields: Fields, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.fields = fields
        self.first = dict(reversed(fields))
        self.keep_alive = keep_alive
        self.length: int | None = 0  # of the body; None: chunked, unknown
        self.chunks: list[bytes] = []
        self._joined = _NOTHING  # what came after _MAX_PIECES of them
        self.received = 0
        self.complete = False

    def add(self, data: bytes) -> None:
        """More of the body has come. Many small pieces become one: each would cost as much as 40 bytes."""
        chunks = self.chunks
        self.received += len(data)
        if len(chunks) < _MAX_PIECES:
            chunks.append(data)
            return
        if not self._joined:
            self._joined = bytearray()
        self._joined += data

    def take_body(self) -> bytes:
        """The body bytes that came since the last call."""
        chunks = self.chunks
        if not chunks:
            return b""
        if self._joined:
            chunks.append(bytes(self._joined))
            self._joined = _NOTHING
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        return body


class RequestReader:
    """Turns one connection's bytes into `requests`; raises `ProtocolError` once, and is then dead."""

    __slots__ = (
        "_fed",
        "_feeding",
        "_fields",
        "_in_head",
        "_parser",
        "_refused",
        "_shared",
        "_target",
        "current",
        "requests",
    )

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        self.current: Request | None = None  # whose body is still coming
        self._parser = httptools.HttpRequestParser(self)
        self._refused: ProtocolError | None = None
        self._feeding = 0  # bytes in the feed under way
        self._begin()

    def _begin(self) -> None:
        self._fields: Fields = []
        self._target = b""
        self._in_head = True
        # Bytes fed since this message, or its body, last made progress, and how many of them came
        # in the feed in which it did: part of that may belong to what was before.
        self._fed = self._shared = 0

    @property
    def is_idle(self) -> bool:
        """No byte of a next request has come."""
        return not self._fed

    def feed(self, data: bytes) -> None:
        """Read `data`; raises ProtocolError when the rest of the connection cannot be trusted."""
        self._feeding = len(data)
        if self._fed:
            self._fed += len(data)
        rest: bytes | memoryview = data
        try:
            while rest:
                try:
                    self._parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # It is not taken (RFC 9110 section 7.8): go on reading HTTP/1.1.
                    rest = memoryview(rest)[upgrade.args[0] :]
                    self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserCallbackError as error:
            raise self._refused or error from None
        except httptools.HttpParserError as error:
            refusal = VERSION if str(error) in _OTHER_VERSION else MALFORMED
            raise ProtocolError(refusal, str(error)) from None
        # What the parser gathers of a field, or skips of a chunk's extension, must have an end.
        if self._fed - self._shared > MAX_HEAD_BYTES + MAX_TARGET_BYTES:
            part = "head" if self._in_head else "trailer section"
            raise ProtocolError(HEADERS_TOO_LARGE, f"the {part} exceeds {MAX_HEAD_BYTES} bytes")

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._fed = self._shared = self._feeding

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > MAX_TARGET_BYTES:
            self._refuse(URI_TOO_LONG, f"the target exceeds {MAX_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            self._fields.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        parser = self._parser
        request = Request(
            parser.get_method(),
            self._target,
            parser.get_http_version(),
            self._fields,
            parser.should_keep_alive(),
        )
        self._check(request)
        self.current = request
        self.requests.append(request)
        self._in_head = False

    def on_body(self, data: bytes) -> None:
        request = self.current
        assert request is not None
        request.add(data)
        self._fed = self._shared = self._feeding

    def on_message_complete(self) -> None:
        request = self.current
        assert request is not None
        request.complete = True
        self.current = None
        self._begin()

    def _check(self, request: Request) -> None:
        self._check_size(request)
        fields, first = request.fields, request.first
        if request.version not in ("1.1", "1.0"):
            self._refuse(VERSION, f"HTTP/{request.version}")
        if request.method == b"CONNECT":
            self._refuse(NOT_IMPLEMENTED, "CONNECT")
        if request.target[:1] != b"/" or b"#" in request.target:
            self._check_target(request)
        if len(first) != len(fields):
            for name in _SINGLE:
                if sum(field == name for field, _ in fields) > 1:
                    self._refuse(MALFORMED, f"repeated {name.decode()}")
        host = first.get(b"host")
        if host is None:
            if request.version == "1.1":
                self._refuse(MALFORMED, "no host")
        elif not _NOT_IN_HOST.isdisjoint(host):
            self._refuse(MALFORMED, "invalid host")
        self._check_framing(request)

    def _check_target(self, request: Request) -> None:
        """Absolute with a valid authority, or `*` of OPTIONS; a fragment in none."""
        target = request.target
        absolute = ABSOLUTE.fullmatch(target)
        if absolute is not None:
            valid = _NOT_IN_HOST.isdisjoint(absolute[1])
        else:
            valid = target == b"*" and request.method == b"OPTIONS"
        if not valid or b"#" in target:
            self._refuse(MALFORMED, "invalid target")

    def _check_size(self, request: Request) -> None:
        fields = request.fields
        if len(fields) > MAX_FIELDS:
            self._refuse(HEADERS_TOO_LARGE, f"more than {MAX_FIELDS} fields")
        # The sum costs more than all other checks: only where what came could exceed the limit.
        if self._fed > MAX_HEAD_BYTES and sum(len(n) + len(v) + 4 for n, v in fields) > MAX_HEAD_BYTES:
            self._refuse(HEADERS_TOO_LARGE, f"the fields exceed {MAX_HEAD_BYTES} bytes")

    def _check_framing(self, request: Request) -> None:
        first = request.first
        coding = first.get(b"transfer-encoding")
        if coding is not None:
            if request.version == "1.0":
                self._refuse(MALFORMED, "a transfer coding in HTTP/1.0")
            if coding.lower() != b"chunked":
                self._refuse(NOT_IMPLEMENTED, "a transfer coding but chunked")
            request.length = None
        length = first.get(b"content-length")
        if length is not None:
            if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
                self._refuse(MALFORMED, "invalid content-length")
            request.length = int(length)
        # llhttp skips the body of an upgrade and calls what follows opaque. Only the offer of h2c is
        # ignored (curl --http2 makes it), and only where nothing follows.
        if self._parser.should_upgrade() and (request.length != 0 or b"h2c" not in first[b"upgrade"].lower()):
            self._refuse(NOT_IMPLEMENTED, "an upgrade")

    def _refuse(self, refusal: Refusal, detail: str) -> None:
        """Stop the parser: an exception in a callback is the only way to."""
        self._refused = ProtocolError(refusal, detail)
        raise self._refused
