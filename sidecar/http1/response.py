"""Bytes of an engine become one answer at a time.

`ResponseReader` follows the framing and hands the body on in the pieces in which it came. Whoever
feeds it takes what was recorded (`head`, `take`, `complete`) after each feed.

The end of a body (RFC 9112 section 6.3): none after HEAD, 1xx, 204 and 304; else chunked, else
Content-Length, else the end of the connection. An answer of which two readers could think differently
is none: both framings, a length that is repeated or no number, a coding but `chunked`, or one in HTTP/1.0.
"""

from __future__ import annotations

import re
from typing import Final

from sidecar.errors import UPSTREAM_PROTOCOL, ProtocolError
from sidecar.http1.chunked import ChunkedReader
from sidecar.http1.fields import NEVER, Fields, answer_fields, has_token, pairs, whole_head
from sidecar.http1.request import check_length

MAX_HEAD_BYTES: Final = 256 * 1024
MAX_INTERIM: Final = 64  # 1xx answers before one

_STATUS_LINE: Final = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_LONGEST_STATUS_LINE: Final = 8 * 1024
_SWITCHING: Final = 101
_BODILESS: Final = frozenset({204, 304})
_REMEMBERED: Final = 256
_chunk_sizes: dict[bytes, int] = {}  # of all engines: tokens are framed alike
_known_status_lines: dict[bytes, tuple[int, str]] = {}


class ResponseHead:
    """Status line and fields.

    `noted` and `passing` are as in `Request`. `length` is None where the end is not counted.
    """

    __slots__ = ("chunked", "keep_alive", "length", "lines", "noted", "passing", "status", "version")

    def __init__(self, status: int, version: str, lines: list[bytes]) -> None:
        self.status = status
        self.version = version
        persistent = version == "1.1"
        self.lines = lines
        self.noted, self.passing = noted, _ = _fields.read(lines)
        length = noted.get(b"content-length")
        self.length = None if length is None else int(length)
        self.chunked = b"transfer-encoding" in noted
        if self.chunked and (length is not None or not persistent):
            raise ProtocolError(UPSTREAM_PROTOCOL, "a transfer coding beside content-length, or in HTTP/1.0")
        connection = noted.get(b"connection")
        if connection is None:
            self.keep_alive = persistent
        elif persistent:
            self.keep_alive = not has_token(connection, b"close")
        else:
            self.keep_alive = has_token(connection, b"keep-alive")

    @property
    def fields(self) -> Fields:
        """All fields as they were sent."""
        return pairs(self.lines)


class ResponseReader:
    """Reads the answers of one engine connection; `expect` must be called before each."""

    __slots__ = (
        "_body",
        "_chunks",
        "_interims",
        "_left",
        "_no_body",
        "_partial",
        "complete",
        "excess",
        "head",
        "interim",
    )

    def __init__(self) -> None:
        self.expect(b"")

    def expect(self, method: bytes) -> None:
        """Forget the last answer; the next one answers a `method` request."""
        self.head: ResponseHead | None = None
        self.interim: list[ResponseHead] = []
        self.complete = False
        self.excess = False  # bytes followed the answer: the connection must not be used again
        self._interims = 0
        self._no_body = method == b"HEAD"
        self._body: list[bytes] = []
        self._chunks: ChunkedReader | None = None
        self._left: int | None = 0  # of a counted body; None: until the connection ends
        self._partial = bytearray()  # of a head

    def feed(self, data: bytes) -> None:
        """Read `data`; raises ProtocolError when it is not one HTTP/1.1 answer."""
        at = 0
        if self.head is None:
            if self._partial:
                data = self._join(data)
            at = self._read_heads(data)
        chunks = self._chunks
        if chunks is not None:
            end = chunks.feed(data, at, self._body.append)
            if chunks.is_complete:
                self.complete = True
                self._chunks = None
                self.excess = end < len(data)
        elif at == len(data):
            pass
        elif self.complete:
            self.excess = True
        elif self._left is None:
            self._body.append(data[at:])
        else:
            piece = data[at : at + self._left]
            self._body.append(piece)
            self._left -= len(piece)
            if not self._left:
                self.complete = True
                self.excess = at + len(piece) < len(data)

    def whole_chunks(self, data: bytes) -> int:
        """How many bytes of the body `data` has, if it can be passed on as it is, instead of being fed."""
        return self._chunks.whole(data) if self._chunks is not None else 0

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
        if head is not None and not head.chunked and head.length is None:
            self.complete = True
        return self.complete

    def _read_heads(self, data: bytes) -> int:
        """Interim heads, and the one that counts, as far as they are here; where the last of them ends."""
        at = 0
        while self.head is None and at < len(data):
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                self._partial += memoryview(data)[at:]
                self._look_ahead(0)
                return len(data)
            if end - at > MAX_HEAD_BYTES:
                raise ProtocolError(UPSTREAM_PROTOCOL, "the head is too large")
            line, *lines = data[at:end].split(b"\r\n")
            at = end + 4
            status, version = _known_status_lines.get(line) or _read_status(line)
            head = ResponseHead(status, version, lines)
            if status >= 200:
                self._begin_body(head)
            else:
                self.interim.append(head)
                self._interims += 1
                if self._interims > MAX_INTERIM:
                    raise ProtocolError(UPSTREAM_PROTOCOL, "too many interim answers")
        return at

    def _join(self, data: bytes) -> bytes:
        """The head that began in an earlier read, with what follows it; nothing while it is not whole."""
        partial = self._partial
        seen = len(partial)
        partial += data
        whole = whole_head(partial, seen)
        if not whole:
            self._look_ahead(seen)
        return whole

    def _look_ahead(self, seen: int) -> None:
        """Refuse what can become no head, without waiting for its end; `seen` bytes were looked at."""
        partial = self._partial
        if len(partial) > MAX_HEAD_BYTES:
            raise ProtocolError(UPSTREAM_PROTOCOL, "the head is too large")
        end = partial.find(b"\r\n", 0, _LONGEST_STATUS_LINE)
        if end < 0 and (len(partial) > _LONGEST_STATUS_LINE or not b"HTTP/1.".startswith(partial[:7])):
            raise ProtocolError(UPSTREAM_PROTOCOL, "invalid status line")
        if end >= 0 and end >= seen - 1:
            _read_status(bytes(partial[:end]))
        if NEVER.search(partial, max(seen - 1, 0)):
            raise ProtocolError(UPSTREAM_PROTOCOL, "a control character, or a bare CR or LF")

    def _begin_body(self, head: ResponseHead) -> None:
        self.head = head
        if self._no_body or head.status in _BODILESS or head.length == 0:
            self.complete = True
        elif head.chunked:
            self._chunks = ChunkedReader(UPSTREAM_PROTOCOL, UPSTREAM_PROTOCOL, _chunk_sizes)
        else:
            self._left = head.length


def _read_status(line: bytes) -> tuple[int, str]:
    """The status and the version."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError(UPSTREAM_PROTOCOL, "invalid status line")
    status, version = int(match[2]), match[1].decode()
    if status == _SWITCHING:
        raise ProtocolError(UPSTREAM_PROTOCOL, "an upgrade nobody asked for")
    if len(_known_status_lines) < _REMEMBERED:
        _known_status_lines[line] = status, version
    return status, version


def _check_coding(value: bytes) -> None:
    if value.lower() != b"chunked":
        raise ProtocolError(UPSTREAM_PROTOCOL, "a transfer coding but chunked")


def _check_length(value: bytes) -> None:
    check_length(value, UPSTREAM_PROTOCOL)


_fields: Final = answer_fields(
    UPSTREAM_PROTOCOL, {b"content-length": _check_length, b"transfer-encoding": _check_coding}
)
