"""What is asked of sockets beside reading and writing."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.values import Address

_RDHUP: Final = getattr(select, "POLLRDHUP", 0)  # Linux
_UNREAD: Final = 64 * 1024  # bytes; the kernel takes twice as much for its own needs
_UNSENT: Final = 64 * 1024  # bytes
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def peer_has_left(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer closed its side, though nobody reads: unread bytes hide it from a reader."""
    sock = transport.get_extra_info("socket")
    if sock is None or not _RDHUP:
        return False
    return _is(sock, _RDHUP)


def is_somebody_waiting(listener: socket.socket) -> bool:
    """Whether there is a connection that nobody has accepted yet."""
    return _is(listener, select.POLLIN)


def _is(sock: socket.socket, state: int) -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), state)
    return bool(poll.poll(0))


def pause_at_once(transport: asyncio.WriteTransport) -> None:
    """Let `pause_writing` come with the first byte that the kernel does not take.

    A slow peer then holds what one read brought, and not 64 KiB more before the other side feels it.
    """
    transport.set_write_buffer_limits(high=0)


def read_little(transport: asyncio.BaseTransport) -> None:
    """Bound what the kernel keeps for us to read, and with it a read: a slow client holds one of them.

    It would let 6 MB wait, and uvloop reads up to 256 KB. Engines are near: smaller windows cost nothing.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD)


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Let the end of the connection be a reset, where an ordinary one would look like success."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


async def listening(address: Address, backlog: int) -> list[socket.socket]:
    """Sockets that listen at `address`, one for each place that its name stands for; raises OSError."""
    found: list[socket.socket] = []
    places: list[tuple[int, object]] = [(socket.AF_UNIX, address.path)]
    try:
        if address.path:
            remove_stale_socket(address.path)
        else:
            loop, kind = asyncio.get_running_loop(), socket.SOCK_STREAM
            infos = await loop.getaddrinfo(address.host, address.port, type=kind)
            places = list(dict.fromkeys((info[0], info[4]) for info in infos))
        for family, place in places:
            sock = socket.socket(family)
            found.append(sock)
            _listen(sock, place, backlog)
    except OSError as error:
        for sock in found:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
    return found


def _listen(sock: socket.socket, place: object, backlog: int) -> None:
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every connection: what is in flight is the network's matter, but beyond it the kernel
        # would take 4 MB for each client that does not read.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(place)  # type: ignore[arg-type]  # what its family takes
    sock.listen(backlog)


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
    raise OSError(errno.EADDRINUSE, "somebody listens there")
