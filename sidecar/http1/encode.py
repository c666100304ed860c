"""Status lines, chunks and the mesh's own answers, as bytes."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %s\r\n" % (status, _REASONS.get(status, "").encode()) for status in range(100, 600)
}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


class Date:
    """The Date field of what is written now (RFC 9110 section 6.6.1); `wall` gives epoch seconds."""

    __slots__ = ("_line", "_second", "_wall")

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._second = -1
        self._line = b""

    def line(self) -> bytes:
        """The whole line, made once a second."""
        second = int(self._wall())
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


def status_line(status: int) -> bytes:
    """The line for `status`; engines may use any three digits."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def chunk(data: bytes) -> bytes:
    """`data` as one chunk; nothing for nothing, since an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def answer(status: int, content_type: bytes, body: bytes, fields: bytes, *, close: bool, head: bool) -> bytes:
    """A whole answer of the mesh. `fields` are lines ending in CRLF; `head`: the body is only measured."""
    return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status_line(status),
        fields,
        content_type,
        len(body),
        b"connection: close\r\n" if close else b"",
        b"" if head else body,
    )
