"""What is asked of sockets beside reading and writing."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

_RDHUP: Final = getattr(select, "POLLRDHUP", 0)  # Linux
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def peer_has_left(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer closed its side, though nobody reads: unread bytes hide it from a reader."""
    sock = transport.get_extra_info("socket")
    if sock is None or not _RDHUP:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), _RDHUP)
    return bool(poll.poll(0))


def write_at_once(transport: asyncio.WriteTransport) -> None:
    """Let each write go straight to the kernel, and `pause_writing` come as soon as it takes no more.

    With a high-water mark uvloop keeps what is written until the end of the loop's turn. For us every
    write is one event's whole output, so that waiting joins nothing; and a slow peer holds one read at most.
    """
    transport.set_write_buffer_limits(high=0)


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Let the end of the connection be a reset, where an ordinary one would look like success."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def remove_stale_socket(path: str) -> None:
    """Remove the socket file of a process that was killed; raises OSError when somebody listens there."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # its backlog is full
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, f"unix:{path}: somebody listens there")
