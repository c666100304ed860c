"""The admin port over real sockets on 127.0.0.1."""

import asyncio
import http.client
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.net import admin as module
from sidecar.net.admin import Admin, AdminReply, on_loop, text
from sidecar.values import Address

LOCAL = Address(host="127.0.0.1", port=0)


def broken(_query: dict[str, str], _body: bytes) -> AdminReply:
    raise ZeroDivisionError("a secret of the program")


def late(_query: dict[str, str], _body: bytes) -> AdminReply:
    raise TimeoutError


ROUTES = {
    ("GET", "/live"): lambda _query, _body: text("alive"),
    ("GET", "/echo"): lambda query, _body: module.json(query),
    ("PUT", "/log-level"): lambda _query, body: text(body.decode()),
    ("POST", "/drain"): lambda _query, _body: text("draining", 202),
    ("GET", "/broken"): broken,
    ("GET", "/late"): late,
}


@pytest.fixture(scope="module")
def admin() -> Iterator[Admin]:
    admin = Admin(LOCAL, ROUTES)
    admin.start()
    yield admin
    admin.stop()


def ask(admin: Admin, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", admin.port, timeout=5)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def exchange(admin: Admin, data: bytes) -> bytes:
    """Everything the server sends for `data` until it closes."""
    with socket.create_connection(("127.0.0.1", admin.port), timeout=5) as peer:
        peer.sendall(data)
        return b"".join(iter(lambda: peer.recv(65536), b""))


def test_routes(admin: Admin) -> None:
    assert ask(admin, "GET", "/live") == (200, b"alive\n")
    assert ask(admin, "PUT", "/log-level", b"debug") == (200, b"debug\n")
    assert ask(admin, "POST", "/drain") == (202, b"draining\n")
    assert json.loads(ask(admin, "GET", "/echo?n=5&x=%20a&empty=")[1]) == {"n": "5", "x": " a", "empty": ""}


def test_head_is_get_without_the_body(admin: Admin) -> None:
    answer = exchange(admin, b"HEAD /live HTTP/1.1\r\nhost: h\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 6\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_unknown_paths_and_methods(admin: Admin) -> None:
    status, body = ask(admin, "GET", "/nowhere")
    assert (status, "/live" in json.loads(body)["paths"]) == (404, True)
    status, body = ask(admin, "GET", "/drain")
    assert (status, json.loads(body)["error"]) == (405, "use POST")
    assert b"\r\nallow: POST\r\n" in exchange(admin, b"GET /drain HTTP/1.1\r\nhost: h\r\n\r\n")
    assert exchange(admin, b"BREW / HTTP/1.1\r\nhost: h\r\n\r\n").startswith(b"HTTP/1.1 501 ")


def test_a_handler_that_fails_tells_the_log_and_not_the_caller(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    status, body = ask(admin, "GET", "/broken?key=sk-secret")
    assert status == 500
    assert b"secret" not in body
    assert "ZeroDivisionError" in caplog.text
    assert "sk-secret" not in caplog.text
    assert ask(admin, "GET", "/late")[0] == 503
    assert ask(admin, "GET", "/live")[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"PUT /log-level HTTP/1.1\r\ncontent-length: 65537\r\n\r\n", b"413"),
        (b"PUT /log-level HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n", b"413"),
        (b"PUT /log-level HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"PUT /log-level HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /live?" + b"&".join(b"a=%d" % i for i in range(100)) + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_bad_requests_are_answered_in_json(admin: Admin, request_: bytes, status: bytes) -> None:
    head, _, body = exchange(admin, request_).partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1"):  # a request without a version gets no head
        assert head.split()[1] == status
        assert "error" in json.loads(body)
    else:
        assert "error" in json.loads(head)


def ask_from(peer: object, method: str, path: str) -> bytes:
    """What a connection that comes from `peer` is answered."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(f"{method} {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode())
        module._Request(ours, peer, SimpleNamespace(routes=ROUTES))  # type: ignore[arg-type]
        ours.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: theirs.recv(65536), b""))


FAR = [("192.0.2.7", 1), ("10.0.0.1", 1), ("2001:db8::1", 1, 0, 0), ("fe80::1%eth0", 1, 0, 1),
       ("::ffff:10.0.0.1", 1, 0, 0)]  # fmt: skip
NEAR = [("127.0.0.1", 1), ("127.9.9.9", 1), ("::1", 1, 0, 0), ("::ffff:127.0.0.1", 1, 0, 0), ""]


@pytest.mark.parametrize("peer", FAR)
def test_who_may_look_from_afar_may_not_change_anything(peer: tuple[object, ...]) -> None:
    for method, path in (("POST", "/drain"), ("PUT", "/log-level")):
        assert ask_from(peer, method, path).startswith(b"HTTP/1.1 403 ")
    assert ask_from(peer, "GET", "/live").startswith(b"HTTP/1.1 200 ")
    assert ask_from(peer, "HEAD", "/live").startswith(b"HTTP/1.1 200 ")
    assert ask_from(peer, "POST", "/live").startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("peer", NEAR)
def test_this_machine_may_change_it(peer: object) -> None:
    """Also over a socket of both families, and over a unix socket, which has no address."""
    assert ask_from(peer, "POST", "/drain").startswith(b"HTTP/1.1 202 ")
    assert ask_from(peer, "PUT", "/log-level").startswith(b"HTTP/1.1 200 ")


def test_connections_are_bounded() -> None:
    admin = Admin(LOCAL, ROUTES)
    admin.start()
    where = ("127.0.0.1", admin.port)
    idle = [socket.create_connection(where, timeout=5) for _ in range(16)]
    try:
        assert exchange(admin, b"").startswith(b"HTTP/1.1 503 ")
    finally:
        for peer in idle:
            peer.close()
        admin.stop()


def test_a_connection_has_a_longest_life() -> None:
    now = [0.0]
    admin = Admin(LOCAL, ROUTES, now=lambda: now[0])
    admin.start()
    try:
        with socket.create_connection(("127.0.0.1", admin.port), timeout=4) as peer:
            peer.sendall(b"GET /live HTTP/1.1\r\n")
            assert ask(admin, "GET", "/live")[0] == 200  # so the first has been accepted
            now[0] = 16.0
            assert peer.recv(100) == b""
    finally:
        admin.stop()


def test_it_is_answered_while_the_event_loop_is_stuck() -> None:
    async def stuck() -> tuple[int, bytes]:
        admin = Admin(LOCAL, ROUTES)
        admin.start()
        try:
            return ask(admin, "GET", "/live")  # blocks this loop until the answer is here
        finally:
            admin.stop()

    assert asyncio.run(stuck()) == (200, b"alive\n")


def test_stop_frees_the_port_and_may_be_called_twice() -> None:
    admin = Admin(LOCAL, ROUTES)
    admin.start()
    port = admin.port
    admin.stop()
    admin.stop()
    assert admin.port == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_taken_address_is_an_os_error(admin: Admin) -> None:
    with pytest.raises(OSError, match="in use"):
        Admin(Address(host="127.0.0.1", port=admin.port), ROUTES).start()


def test_unix_sockets_replace_what_a_dead_process_left(tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    admin = Admin(Address(path=path), ROUTES)
    admin.start()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(path)
        peer.sendall(b"GET /live HTTP/1.1\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    admin.stop()
    assert not os.path.exists(path)


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(OSError, match="in use"):
        Admin(Address(path=str(path)), ROUTES).start()
    assert path.read_text() == "x"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A running loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def test_on_loop(loop: asyncio.AbstractEventLoop) -> None:
    assert on_loop(loop, threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        on_loop(loop, lambda: 1 // 0)


def test_on_loop_gives_up_on_a_stuck_loop_and_takes_the_call_back(loop: asyncio.AbstractEventLoop) -> None:
    release = threading.Event()
    loop.call_soon_threadsafe(release.wait, 5)
    ran: list[int] = []
    with pytest.raises(TimeoutError):
        on_loop(loop, lambda: ran.append(1), timeout_s=0.01)
    release.set()
    assert on_loop(loop, lambda: list(ran)) == []


def test_on_loop_after_the_end() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(TimeoutError, match="ended"):
        on_loop(loop, lambda: None)


def test_logs_are_quiet_for_peers_that_leave(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_connection(("127.0.0.1", admin.port), timeout=5) as peer:
        peer.sendall(b"PUT /log-level HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc")
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(100) == b""
    assert caplog.text == ""
