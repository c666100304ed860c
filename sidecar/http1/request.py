"""Bytes of a client become requests.

One `feed` may deliver several pipelined requests before the first was answered: whoever feeds it acts
afterwards, on `requests`. A head is read when all of it is here; until then only as much is looked at
as tells early that it cannot become one.

What a lax peer would let through is refused (RFC 9112 sections 2.2, 3, 5, 6.1, 6.3): a request line
that is not method, space, target, space, version; a missing, repeated or impossible Host; a Content-Length
that is repeated, a list, no plain number, or beside Transfer-Encoding; any coding but `chunked`, alone.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

from sidecar.errors import (
    HEADERS_TOO_LARGE,
    MALFORMED,
    NOT_IMPLEMENTED,
    URI_TOO_LONG,
    VERSION,
    ProtocolError,
    Refusal,
)
from sidecar.http1.chunked import ChunkedReader
from sidecar.http1.fields import (
    NEVER,
    ORDINARY,
    TOKEN,
    Fields,
    has_token,
    pairs,
    request_fields,
    whole_head,
)

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 100
MAX_TARGET_BYTES: Final = 16 * 1024
MAX_METHOD_BYTES: Final = 32
MAX_WAITING: Final = 16  # requests read ahead of their turn
MAX_LENGTH_DIGITS: Final = 18  # of a Content-Length, leading zeros included
_MAX_PIECES: Final = 64

_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
# What may be the beginning of a request line.
_BEGINNING: Final = re.compile(TOKEN + rb"(?: (?:[\x21-\x7e]+(?: [HTP/0-9.]{0,8}\r?)?)?)?|\r")
# A host and perhaps a port (RFC 3986 section 3.2), without what another reader would end it at.
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z\-._~%!$&()*+;=]*)(?::[0-9]*)?")
# An absolute target: authority, and path with query (RFC 9112 section 3.2.2).
ABSOLUTE: Final = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
_IN_TARGET: Final = re.compile(rb"[\x21-\x7e]+")
# TRACE would reflect what proxies add, and a caller's own keys, to whoever reads the answer.
_NOT_SERVED: Final = frozenset({b"CONNECT", b"TRACE"})

_Start = tuple[bytes, bytes, str]  # method, target, version
_REMEMBERED: Final = 1024  # request lines, of
_MAX_REMEMBERED: Final = 256  # bytes at most
_known_starts: dict[bytes, _Start] = {}


class Request:
    """One request head, and as much of its body as has come.

    `noted` has the fields that are looked at here, by name in lower case; `passing` the lines that go
    on to the engine. `chunks` holds body bytes that nobody has taken yet; `received` counts all that came.
    """

    keep_alive: bool = True
    goes_no_further: bool = False  # it is to be answered here
    length: int | None = 0  # of the body; None: chunked, unknown
    joined: bytearray | None = None  # what came after _MAX_PIECES chunks
    received: int = 0
    complete: bool = False

    def __init__(
        self,
        method: bytes,
        target: bytes,
        version: str,
        line: bytes = b"",
        lines: list[bytes] | None = None,
        noted: dict[bytes, bytes] | None = None,
        passing: list[bytes] | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.line = line  # the first one
        self.lines = lines or []  # the others
        self.noted = noted or {}
        self.passing = passing or []
        self.chunks: list[bytes] = []

    def __repr__(self) -> str:
        return f"Request({self.method!r}, {self.path!r})"  # no more: fields hold keys, and bodies prompts

    @property
    def path(self) -> bytes:
        """The target without its query, which may hold a key."""
        return self.target.partition(b"?")[0]

    @property
    def fields(self) -> Fields:
        """All fields as they were sent: for whatever is not noted."""
        return pairs(self.lines)

    def add(self, data: bytes) -> None:
        """More of the body has come. Many small pieces become one: each would cost as much as 40 bytes."""
        chunks = self.chunks
        self.received += len(data)
        if len(chunks) < _MAX_PIECES:
            chunks.append(data)
            return
        if self.joined is None:
            self.joined = bytearray()
        self.joined += data

    def take_body(self) -> bytes:
        """The body bytes that came since the last call."""
        chunks = self.chunks
        if not chunks:
            return b""
        if self.joined is not None:
            chunks.append(bytes(self.joined))
            self.joined = None
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        return body


class RequestReader:
    """Turns one connection's bytes into `requests`; raises `ProtocolError` once, and is then dead."""

    __slots__ = ("_body", "_is_last", "_line_end", "_partial", "_rest", "current", "is_idle", "requests")

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        self.current: Request | None = None  # whose body is still coming
        self.is_idle = True  # no byte of a next request has come
        self._body: ChunkedReader | None = None  # of it, when it is chunked
        self._partial = bytearray()  # of a head
        self._line_end = -1  # where its first line ends, if it does
        self._rest = b""  # what came behind MAX_WAITING requests
        self._is_last = False  # what follows the request read last is not for us (RFC 9112 section 9.6)

    def feed(self, data: bytes) -> None:
        """Read `data`; raises ProtocolError when the rest of the connection cannot be trusted."""
        at = 0
        if self._partial:
            data = self._join(data)
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        while at < len(data):
            request = self.current
            if request is None:
                if self._is_last:
                    self.is_idle = False
                    return
                if len(self.requests) >= MAX_WAITING:
                    self._rest = data[at:]
                    break
                at = self._read_head(data, at)
            elif self._body is not None:
                at = self._body.feed(data, at, request.add)
                if self._body.is_complete:
                    self._body = None
                    self._finish(request)
            else:
                at = self._read_counted(request, data, at)
        partial = self._partial
        self.is_idle = self.current is None and not self._rest and (not partial or partial == b"\r")

    @property
    def has_rest(self) -> bool:
        """More was fed than is read: feed on, with what comes or with nothing, once `requests` are fewer."""
        return bool(self._rest)

    def _read_head(self, data: bytes, at: int) -> int:
        """A head from `at` on, if it is whole; where it ends."""
        while data.startswith(b"\r\n", at):  # before a request line that says nothing
            at += 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if at == len(data):
                return at
            self._partial += memoryview(data)[at:]
            self._line_end = -1
            self._look_ahead(0)
            return len(data)
        after_line = data.find(b"\r\n", at)
        line = data[at:after_line]
        method, target, version = _known_starts.get(line) or _read_start(line)
        size = end - after_line
        if size > MAX_HEAD_BYTES:
            raise ProtocolError(HEADERS_TOO_LARGE, f"the fields exceed {MAX_HEAD_BYTES} bytes")
        lines = data[after_line + 2 : end].split(b"\r\n") if size else []
        if len(lines) > MAX_FIELDS:
            raise ProtocolError(HEADERS_TOO_LARGE, f"more than {MAX_FIELDS} fields")
        noted, passing = FIELDS.read(lines)
        request = Request(method, target, version, line, lines, noted, passing)
        self._frame(request)
        self.requests.append(request)
        self._is_last = not request.keep_alive
        if request.length == 0:
            request.complete = True
        else:
            self.current = request
        return end + 4

    def _read_counted(self, request: Request, data: bytes, at: int) -> int:
        """A body of known length."""
        assert request.length is not None
        left = request.length - request.received
        piece = data[at : at + left]
        request.add(piece)
        if len(piece) == left:
            self._finish(request)
        return at + len(piece)

    def _finish(self, request: Request) -> None:
        request.complete = True
        self.current = None

    def _frame(self, request: Request) -> None:
        """Where the body ends, and whether the connection goes on."""
        noted, version = request.noted, request.version
        if version == "1.1":
            if b"host" not in noted:
                raise ProtocolError(MALFORMED, "no host")
        elif b"transfer-encoding" in noted:
            raise ProtocolError(MALFORMED, "a transfer coding in HTTP/1.0")
        length = noted.get(b"content-length")
        if length is not None:
            request.length = int(length)
        if b"transfer-encoding" in noted:
            if length is not None:
                raise ProtocolError(MALFORMED, "content-length beside transfer-encoding")
            _check_coding(noted[b"transfer-encoding"])
            request.length = None
            self._body = ChunkedReader(MALFORMED, HEADERS_TOO_LARGE, {})
        connection = noted.get(b"connection")
        if connection is not None or version == "1.0":
            _read_connection(request, connection)
        if request.method == b"OPTIONS" and b"max-forwards" in noted:
            _count_down(request, noted[b"max-forwards"])

    def _join(self, data: bytes) -> bytes:
        """The head that began in an earlier read, with what follows it; nothing while it is not whole."""
        partial = self._partial
        before = len(partial)
        partial += data
        while partial.startswith(b"\r\n"):
            del partial[:2]
            before, self._line_end = 0, -1
        whole = whole_head(partial, before)
        if not whole and partial:
            self._look_ahead(before)
        return whole

    def _look_ahead(self, seen: int) -> None:
        """Refuse what can become no head, without waiting for its end; `seen` bytes of it were looked at."""
        partial = self._partial
        if self._line_end < 0:
            self._line_end = partial.find(b"\r\n", max(seen - 1, 0))
            if self._line_end < 0:
                # Within a target only what is new need be looked at, or somebody's single bytes add up.
                in_target = partial.count(b" ") == 1 and _IN_TARGET.fullmatch(partial, seen) is not None
                if not in_target or len(partial) > MAX_TARGET_BYTES:
                    _check_beginning(bytes(partial))
            else:
                _read_start(bytes(partial[: self._line_end]))
        elif len(partial) - self._line_end > MAX_HEAD_BYTES:
            raise ProtocolError(HEADERS_TOO_LARGE, f"the fields exceed {MAX_HEAD_BYTES} bytes")
        if NEVER.search(partial, max(seen - 1, 0)):
            raise ProtocolError(MALFORMED, "a control character, or a bare CR or LF")


def _read_start(line: bytes) -> _Start:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError(MALFORMED, "invalid request line")
    method, target, version = match[1], match[2], match[3].decode()
    if version not in ("1.1", "1.0"):
        raise ProtocolError(VERSION, f"HTTP/{version}")
    if method in _NOT_SERVED or len(method) > MAX_METHOD_BYTES:
        raise ProtocolError(NOT_IMPLEMENTED, "this method")
    if len(target) > MAX_TARGET_BYTES:
        raise ProtocolError(URI_TOO_LONG, f"the target exceeds {MAX_TARGET_BYTES} bytes")
    if target[:1] != b"/" or b"#" in target:
        _check_target(method, target)
    start = method, target, version
    if len(line) <= _MAX_REMEMBERED:
        if len(_known_starts) >= _REMEMBERED:
            _known_starts.clear()
        _known_starts[line] = start
    return start


def _check_beginning(line: bytes) -> None:
    """Refuse what will be no request line, whatever comes."""
    if _BEGINNING.fullmatch(line) is None:
        raise ProtocolError(MALFORMED, "invalid request line")
    method, _, rest = line.partition(b" ")
    if len(method) > MAX_METHOD_BYTES:
        raise ProtocolError(NOT_IMPLEMENTED, "this method")
    if len(rest) > MAX_TARGET_BYTES and len(rest.partition(b" ")[0]) > MAX_TARGET_BYTES:
        raise ProtocolError(URI_TOO_LONG, f"the target exceeds {MAX_TARGET_BYTES} bytes")


def _check_target(method: bytes, target: bytes) -> None:
    """Absolute with a valid authority, or `*` of OPTIONS; a fragment in none."""
    absolute = ABSOLUTE.fullmatch(target)
    if absolute is not None:
        host = _HOST.fullmatch(absolute[1])
        valid = host is not None and host[1] != b""
    else:
        valid = target == b"*" and method == b"OPTIONS"
    if not valid or b"#" in target:
        raise ProtocolError(MALFORMED, "invalid target")


def _read_connection(request: Request, connection: bytes | None) -> None:
    if request.version == "1.0":
        request.keep_alive = has_token(connection, b"keep-alive")
        return
    if connection not in ORDINARY and has_token(connection, b"upgrade") and b"upgrade" in request.noted:
        _refuse_upgrade(request.noted[b"upgrade"])
    request.keep_alive = not has_token(connection, b"close")


def _refuse_upgrade(upgrade: bytes) -> None:
    """What follows would not be HTTP. Only the offer of h2c, which curl --http2 makes, is ignored
    (RFC 9110 section 7.8)."""
    if not has_token(upgrade, b"h2c"):
        raise ProtocolError(NOT_IMPLEMENTED, "an upgrade")


def _count_down(request: Request, forwards: bytes) -> None:
    """One forward less is allowed (RFC 9110 section 7.6.2); with none left it must not leave here."""
    if not forwards.isdigit() or len(forwards) > MAX_LENGTH_DIGITS:
        raise ProtocolError(MALFORMED, "invalid max-forwards")
    request.goes_no_further = int(forwards) == 0
    others = [line for line in request.passing if not line.startswith(b"max-forwards:")]
    if len(others) < len(request.passing):  # else Connection named it
        request.passing = [*others, b"max-forwards: %d\r\n" % (int(forwards) - 1)]


def _check_host(value: bytes) -> None:
    if _HOST.fullmatch(value) is None:
        raise ProtocolError(MALFORMED, "invalid host")


def check_length(value: bytes, refusal: Refusal = MALFORMED) -> None:
    """Raise ProtocolError with `refusal` unless `value` is a Content-Length (RFC 9112 section 6.3)."""
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise ProtocolError(refusal, "invalid content-length")


def _check_coding(value: bytes) -> None:
    codings = [coding.strip(b" \t") for coding in value.lower().split(b",")]
    if b"chunked" in codings[:-1]:
        raise ProtocolError(MALFORMED, "chunked is not the last coding, or comes twice")
    if codings != [b"chunked"]:
        raise ProtocolError(NOT_IMPLEMENTED, "a transfer coding but chunked")


FIELDS: Final = request_fields(MALFORMED, {b"content-length": check_length, b"host": _check_host})
