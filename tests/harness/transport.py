"""An asyncio transport with no socket behind it, as strict as uvloop's.

The test is the peer: what it does (`happens`) is told to the protocol unless that has paused
reading; what the protocol writes is there to `take`. Nothing happens by itself: all news waits in
`soon`, as it would for the next turn of an event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

from tests.harness.engine import End

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Soon = deque[Callable[[], None]]


class FakeSocket:
    """Remembers the options set on it."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.options: list[tuple[int, int, object]] = []

    def setsockopt(self, level: int, name: int, value: object) -> None:
        self.options.append((level, name, value))


class FakeTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, protocol: asyncio.Protocol, soon: Soon, **extra_info: object) -> None:
        super().__init__(extra_info)
        self._protocol = protocol
        self._soon = soon
        self._written = bytearray()
        self._unread: deque[bytes | End] = deque()  # what the peer did that was not told yet
        self.reading = True
        self.closing = False
        self.aborted = False
        self.eof_written = False
        self.lost = False  # the protocol was told that the connection is gone
        self.congested = False
        self.slow = False  # the next write fills the buffers
        self.dead = False  # the next write finds that the peer has gone, before anybody was told
        self.room = math.inf  # bytes that may lie unread before they are full
        protocol.connection_made(self)

    # The protocol's side.

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._check_writable()
        if self.dead and not self.closing:
            self.closing = True
            self._lose(BrokenPipeError())
        elif not self.aborted:
            self._written += data
            if (self.slow or len(self._written) > self.room) and not self.congested:
                self.congest()

    def get_write_buffer_size(self) -> int:
        return len(self._written)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high, low) == (0, None)  # here the test says when the buffers are full

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._check_writable()
        self.eof_written = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self._soon.append(self._tell)

    def close(self) -> None:
        """What is written still goes out; a congested peer has to take it first."""
        if not self.closing:
            self.closing = True
            if not self.congested:
                self._lose(None)

    def abort(self) -> None:
        if not self.aborted and not self.lost:
            self.aborted = self.closing = True
            self._lose(None)

    def _check_writable(self) -> None:
        if self.lost:
            raise RuntimeError("the handler is closed")
        if self.eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")

    # The peer's side.

    @property
    def peer_has_left(self) -> bool:
        """What a poll of the socket would tell, whether or not anybody reads."""
        return any(isinstance(event, End) for event in self._unread)

    def happens(self, event: bytes | End) -> None:
        """The peer sent bytes, or ended the connection."""
        self._unread.append(event)
        self._soon.append(self._tell)

    def take(self) -> bytes:
        """What was written since the last look."""
        data = bytes(self._written)
        self._written.clear()
        return data

    def congest(self) -> None:
        """The peer has stopped reading, and the buffers are full."""
        self.congested = True
        self._protocol.pause_writing()

    def decongest(self) -> None:
        """The peer has read everything."""
        self.congested = self.slow = False
        if self.closing:
            self._lose(None)
        else:
            self._protocol.resume_writing()

    # What an event loop does.

    def _tell(self) -> None:
        while self._unread and self.reading and not self.closing:
            event = self._unread.popleft()
            if isinstance(event, bytes):
                self._protocol.data_received(event)
            elif event is End.RESET:
                self.closing = True
                self._lose(ConnectionResetError())
            elif not self._protocol.eof_received():
                self.close()

    def _lose(self, error: Exception | None) -> None:
        def tell() -> None:
            if not self.lost:
                self.lost = True
                self._protocol.connection_lost(error)

        self._soon.append(tell)
