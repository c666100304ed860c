"""A chunked body, decoded (RFC 9112 section 7.1).

    chunk = size in hex [";" extension] CRLF, data CRLF
    last  = a size of 0, then trailer fields, then an empty line

Extensions and trailers are checked, counted against their limits, and dropped. What a lax reader would
take is refused: signs, "0x", "_", space around a size, a bare LF, data longer than its size.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sidecar.errors import ProtocolError
from sidecar.http1.fields import LINE, NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.errors import Refusal

MAX_SIZE_LINE: Final = 4 * 1024  # bytes, extension included
MAX_EXTENSIONS: Final = 16 * 1024  # bytes of them in one body
MAX_TRAILERS: Final = 64 * 1024  # bytes,
MAX_TRAILER_FIELDS: Final = 100

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?")
_SIZE_BEGUN: Final = re.compile(rb"[0-9A-Fa-f]{1,16}(?:\r|;.*)?", re.DOTALL)
_REMEMBERED: Final = 4096

_INVALID: Final = {True: "invalid chunk size", False: "invalid trailer field"}

_IN_SIZE, _IN_DATA, _AFTER_DATA, _IN_TRAILERS, _DONE = range(5)


class ChunkedReader:
    """Reads one body; `malformed` and `too_large` say how its errors are answered.

    `sizes` remembers what plain size lines meant: for whom it is, callers decide, because it can be filled.
    """

    __slots__ = (
        "_extensions",
        "_left",
        "_malformed",
        "_partial",
        "_sizes",
        "_state",
        "_too_large",
        "_trailers",
        "is_complete",
        "whole",
    )

    def __init__(self, malformed: Refusal, too_large: Refusal, sizes: dict[bytes, int]) -> None:
        self._sizes = sizes
        self._malformed = malformed
        self._too_large = too_large
        self._state = _IN_SIZE
        self._left = 0  # of the chunk's data
        self._partial = b""  # of a line that is not whole yet, or of the CRLF after data
        self._extensions = 0  # bytes
        self._trailers: list[int] = []  # bytes of each
        self.is_complete = False  # the last chunk and its trailers have come
        self.whole = False  # the last feed was chunks without extensions, from first byte to last

    def feed(self, data: bytes, at: int, take: Callable[[bytes], object]) -> int:
        """Read `data` from `at`, give `take` the pieces of the body; where the body's bytes end.

        Raises ProtocolError.
        """
        size = len(data)
        if self._state == _IN_SIZE and not self._partial:
            sizes = self._sizes
            while at < size:
                line_end = data.find(b"\r\n", at)
                length = sizes.get(data[at:line_end])
                begin = line_end + 2
                end = begin + (length or 0)
                if not length or line_end < 0 or data[end : end + 2] != b"\r\n":
                    break  # not one of the ordinary: of a known size, and all of it here
                take(data[begin:end])
                at = end + 2
            self.whole = at == size and not self._extensions
        else:
            self.whole = False
        return at if at == size else self._feed_step_by_step(data, at, take)

    def _feed_step_by_step(self, data: bytes, at: int, take: Callable[[bytes], object]) -> int:
        size = len(data)
        while at < size and self._state != _DONE:
            if self._state == _IN_DATA:
                piece = data[at : at + self._left]
                take(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _AFTER_DATA
            elif self._state == _AFTER_DATA:
                at = self._end_data(data, at)
            else:
                at = self._read_line(data, at)
        return at

    def _read_line(self, data: bytes, at: int) -> int:
        """A chunk's size or a trailer; it may begin in an earlier read, or end in a later one."""
        in_size = self._state == _IN_SIZE
        most = (MAX_SIZE_LINE if in_size else MAX_TRAILERS) + 2
        before = len(self._partial)
        line = self._partial + data[at : at + most]
        end = line.find(b"\r\n", max(before - 1, 0))
        if end < 0:
            if len(line) >= most:
                too_large = self._malformed if in_size else self._too_large
                raise ProtocolError(too_large, "a chunk's line is too long")
            # What can become no line is refused without waiting for its end.
            if NEVER.search(line, max(before - 1, 0)) or (in_size and not _SIZE_BEGUN.fullmatch(line[:18])):
                raise ProtocolError(self._malformed, _INVALID[in_size])
            self._partial = line
            return len(data)
        self._partial = b""
        if in_size:
            self._left = self._size(line[:end])
            self._state = _IN_DATA if self._left else _IN_TRAILERS
        else:
            self._trailer(line[:end])
        return at + end + 2 - before

    def _size(self, line: bytes) -> int:
        match = _SIZE.fullmatch(line)
        if match is None or len(line) > MAX_SIZE_LINE:
            raise ProtocolError(self._malformed, _INVALID[True])
        size = int(match[1], 16)
        if match[2]:
            self._extensions += len(match[2])
            if self._extensions > MAX_EXTENSIONS:
                raise ProtocolError(self._malformed, f"chunk extensions exceed {MAX_EXTENSIONS} bytes")
        elif line[:1] != b"0":
            if len(self._sizes) >= _REMEMBERED:
                self._sizes.clear()
            self._sizes[line] = size
        return size

    def _trailer(self, line: bytes) -> None:
        if not line:
            self._state = _DONE
            self.is_complete = True
            return
        if LINE.fullmatch(line) is None:
            raise ProtocolError(self._malformed, _INVALID[False])
        self._trailers.append(len(line) + 2)
        if len(self._trailers) > MAX_TRAILER_FIELDS or sum(self._trailers) > MAX_TRAILERS:
            raise ProtocolError(self._too_large, "too many or too large trailer fields")

    def _end_data(self, data: bytes, at: int) -> int:
        """CRLF ends a chunk's data; it may come in two reads."""
        end = data[at : at + 2 - len(self._partial)]
        self._partial += end
        if not b"\r\n".startswith(self._partial):
            raise ProtocolError(self._malformed, "a chunk is longer than its size")
        if self._partial == b"\r\n":
            self._partial = b""
            self._state = _IN_SIZE
        return at + len(end)
