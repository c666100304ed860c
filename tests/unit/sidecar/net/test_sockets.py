"""What real sockets answer: who has left, whose file this is, and how a connection ends."""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import uvloop

from sidecar.net.sockets import (
    is_somebody_waiting,
    peer_has_left,
    read_little,
    remove_stale_socket,
    reset_on_close,
)
from sidecar.net.sockets import listening as listen_at
from sidecar.values import Address

PATIENCE_MS = 10_000


class Holder(asyncio.Transport):
    """A transport over a socket, as far as it is asked for that."""

    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__({} if sock is None else {"socket": sock})


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    return ours, theirs


def unix() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX)


def wait_for(sock: socket.socket, events: int) -> None:
    """Until the kernel has delivered it."""
    poll = select.poll()
    poll.register(sock, events)
    assert poll.poll(PATIENCE_MS)


Pair = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.mark.parametrize("pair", [tcp, unix])
@pytest.mark.parametrize("sent", [b"", b"unread" * 1000])
@pytest.mark.parametrize("half", [True, False])
def test_who_has_left_is_known_though_bytes_are_unread(pair: Pair, sent: bytes, half: bool) -> None:
    ours, theirs = pair()
    with ours, theirs:
        transport = Holder(ours)
        assert not peer_has_left(transport)
        theirs.sendall(sent)
        if sent:
            wait_for(ours, select.POLLIN)
        assert not peer_has_left(transport)
        if half:
            theirs.shutdown(socket.SHUT_WR)
        else:
            theirs.close()
        wait_for(ours, select.POLLRDHUP)
        assert peer_has_left(transport)
        assert ours.recv(100) == sent[:100]  # looking took nothing


def test_a_reset_is_leaving_too() -> None:
    ours, theirs = tcp()
    with ours:
        reset_on_close(Holder(theirs))
        theirs.close()
        wait_for(ours, select.POLLRDHUP)
        assert peer_has_left(Holder(ours))


def test_where_there_is_no_socket_nothing_is_known() -> None:
    assert not peer_has_left(Holder(None))
    reset_on_close(Holder(None))


class Deaf(asyncio.Protocol):
    """Reads nothing."""

    def __init__(self, made: asyncio.Future[asyncio.Transport]) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        reader = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        reader.pause_reading()
        self._made.set_result(reader)


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_an_event_loops_transport_will_do(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[asyncio.Transport] = loop.create_future()
        server = await loop.create_server(lambda: Deaf(made), "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as theirs:
            transport = await made
            theirs.sendall(b"unread")
            assert not peer_has_left(transport)
            theirs.shutdown(socket.SHUT_WR)
            wait_for(transport.get_extra_info("socket"), select.POLLRDHUP)
            assert peer_has_left(transport)
        transport.abort()
        server.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


# The end of a connection.


def test_a_reset_is_told_from_an_end() -> None:
    ours, theirs = tcp()
    with theirs:
        reset_on_close(Holder(ours))
        ours.close()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_a_unix_socket_has_no_reset_to_give() -> None:
    ours, theirs = unix()
    with theirs:
        reset_on_close(Holder(ours))
        ours.close()
        assert theirs.recv(1) == b""


# What the kernel keeps.


def test_what_nobody_reads_is_bounded_in_the_kernel() -> None:
    ours, theirs = tcp()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)  # what it may grow to, and more
        read_little(Holder(ours))
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while theirs.send(bytes(2**16)):
                pass
        (waiting,) = struct.unpack("i", fcntl.ioctl(ours, termios.FIONREAD, bytes(4)))
        assert 0 < waiting <= 2 * 64 * 1024


def test_a_unix_socket_keeps_what_its_writer_may_write() -> None:
    ours, theirs = unix()
    with ours, theirs:
        before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        read_little(Holder(ours))
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
    read_little(Holder(None))


# Files of sockets.


def listening(path: Path, backlog: int = 1) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(backlog)
    return server


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listening(path).close()
    assert path.exists()
    remove_stale_socket(str(path))
    assert not path.exists()
    remove_stale_socket(str(path))  # nothing there is well, too


def test_a_socket_somebody_listens_on_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(path) as server:
        with pytest.raises(OSError, match="somebody listens there"):
            remove_stale_socket(str(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        server.accept()[0].close()


def test_one_that_is_too_busy_to_accept_listens_too(tmp_path: Path) -> None:
    """Its backlog is full: connecting would wait for it, perhaps for ever."""
    path = tmp_path / "socket"
    with listening(path, 0), socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(str(path))
        removing = ThreadPoolExecutor(1).submit(remove_stale_socket, str(path))
        assert "somebody listens there" in str(removing.exception(PATIENCE_MS / 1000))
        assert path.exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    remove_stale_socket(str(path))
    remove_stale_socket(str(tmp_path))
    assert path.read_text() == "x"
    assert os.listdir(tmp_path) == ["precious"]


# Listening.


def listening_at(address: Address) -> list[socket.socket]:
    return asyncio.run(listen_at(address, 5))


def test_a_port_is_listened_on() -> None:
    host = "127.0.0.1"
    (sock,) = listening_at(Address(host, 0))
    with sock:
        assert not sock.getblocking()
        where = sock.getsockname()
        assert not is_somebody_waiting(sock)
        with socket.create_connection(where):
            wait_for(sock, select.POLLIN)
            assert is_somebody_waiting(sock)
            accepted, _ = sock.accept()
            with accepted:
                kept = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
                assert kept == 64 * 1024, "what is not sent stays with the one who writes"
            assert not is_somebody_waiting(sock)
        with pytest.raises(OSError, match=f"cannot listen on .*:{where[1]}: Address already in use"):
            listening_at(Address(host, where[1]))
    (again,) = listening_at(Address(*where))  # at once, though connections of before linger
    again.close()


def test_a_name_may_stand_for_several_places() -> None:
    sockets = listening_at(Address("localhost", 0))
    assert {sock.family for sock in sockets} <= {socket.AF_INET, socket.AF_INET6}
    assert len({sock.getsockname() for sock in sockets}) == len(sockets) >= 1
    for sock in sockets:
        sock.close()


def test_of_several_places_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    real = socket.socket

    def remembered(*args: int) -> socket.socket:
        made.append(real(*args))
        return made[-1]

    async def resolved(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, 1, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.1", "192.0.2.1")]

    monkeypatch.setattr("sidecar.net.sockets.socket.socket", remembered)
    monkeypatch.setattr("asyncio.BaseEventLoop.getaddrinfo", resolved)
    with pytest.raises(OSError, match="cannot listen on a:1: Cannot assign"):
        listening_at(Address("a", 1))
    ours = [sock for sock in made if sock.type == socket.SOCK_STREAM and sock.family == socket.AF_INET]
    assert [sock.fileno() for sock in ours] == [-1, -1]


def test_a_name_that_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("asyncio.BaseEventLoop.getaddrinfo", unknown)
    with pytest.raises(OSError, match="cannot listen on nobody:1: Name or service not known"):
        listening_at(Address("nobody", 1))


def test_a_path_is_listened_on(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    (sock,) = listening_at(Address(path=path))
    with sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert is_somebody_waiting(sock)
        with pytest.raises(OSError, match=f"cannot listen on unix:{path}: somebody listens there"):
            listening_at(Address(path=path))
    (again,) = listening_at(Address(path=path))  # in the place of one that nobody listens on any more
    again.close()
