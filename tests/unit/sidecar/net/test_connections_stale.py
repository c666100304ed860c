"""Idle connections that the engine has closed: what goes out once more, unnoticed, and what must not."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from sidecar.net.connections import LoopDialer
from sidecar.net.sockets import peer_has_left
from sidecar.values import Address
from tests.harness.engine import SSE, End, answer, ok
from tests.harness.wire import CHAT, Client, Wire, get, post, post_chunked

UPLOAD = get("/upload", "content-length: 6", method="POST")


def idle(connections: int = 1) -> tuple[Wire, Client]:
    """A client, and connections to the engine that have each answered once."""
    wire = Wire()
    clients = [wire.client() >> get() for _ in range(connections)]
    for engine in list(wire.engines):
        engine >> ok()
    for client in clients:
        client.received()
    return wire, clients[0]


def assert_served(wire: Wire, client: Client, connections: int, method: bytes = b"GET") -> None:
    """By the newest connection, and nobody noticed that it took two."""
    assert len(wire.engines) == connections
    wire.engine >> ok(b"" if method == b"HEAD" else b"late")
    assert client.answer(method).status == 200
    record = wire.record
    assert (record.status, record.reason, record.attempts) == (200, "", 1)
    wire.assert_at_rest()


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_is_safe_goes_out_once_more(method: str, end: End) -> None:
    wire, client = idle()
    client >> get("/x", "a: b", method=method)
    first = wire.engines[0].request(), wire.engines[0].request()
    wire.engine >> end
    again = wire.engines[1].request()
    assert (again.method, again.target, again.fields) == (first[1].method, b"/x", first[1].fields)
    assert_served(wire, client, 2, method.encode())
    assert len(wire.receipts.last(10)) == 2


def test_it_goes_on_a_new_connection_though_there_are_idle_ones() -> None:
    wire, client = idle(3)
    client >> get("/x")
    wire.engines[2] >> End.CLOSE
    assert_served(wire, client, 4)


def test_it_goes_out_once_more_and_not_twice() -> None:
    wire, client = idle()
    client >> get("/x")
    wire.engine >> End.CLOSE
    wire.engine >> End.CLOSE
    assert len(wire.engines) == 2
    refusal = client.answer()
    assert (refusal.status, refusal.reason) == (502, "upstream_reset")
    wire.assert_at_rest()


def test_an_engine_that_cannot_be_reached_any_more_says_so() -> None:
    wire, client = idle()
    client >> get("/x")
    wire.dialer.refused = True
    wire.engine >> End.RESET
    assert client.answer().reason == "connect_failed"
    wire.assert_at_rest()


def test_a_client_that_leaves_meanwhile_is_not_asked_for() -> None:
    wire, client = idle()
    client >> get("/x")
    wire.dialer.held = True
    wire.engine >> End.RESET
    client >> End.RESET
    wire.dialer.go_on()
    wire.engine << b""
    assert wire.record.reason == "client_gone"
    wire.assert_at_rest()


UNSAFE = {
    "held": post(),
    "empty": get("/upload", "content-length: 0", method="POST"),
    "put": get("/x", method="PUT"),
    "delete": get("/x", method="DELETE"),
    "stream": UPLOAD + b"abcdef",
    "chunks": post_chunked("/upload", b"abc"),
    "a body to a safe method": get("/x", "content-length: 3") + b"abc",
    "a body to come": get("/x", "content-length: 3") + b"a",
}


@pytest.mark.parametrize("sent", UNSAFE.values(), ids=UNSAFE.keys())
def test_what_may_have_been_done_is_not_done_again(sent: bytes) -> None:
    wire, client = idle()
    client >> sent
    wire.engine >> End.CLOSE
    assert len(wire.engines) == 1
    assert client.answer(b"POST").reason == "upstream_reset"
    assert wire.record.attempts == 1
    wire.assert_at_rest()


@pytest.mark.parametrize("begun", [b"H", SSE[:-2], answer(b"103 Early", b""), SSE])
def test_an_engine_that_began_to_answer_was_there(begun: bytes) -> None:
    wire, client = idle()
    client >> get("/x")
    wire.engine >> begun >> End.CLOSE
    assert len(wire.engines) == 1
    assert wire.record.reason == "upstream_reset"
    wire.assert_at_rest()


def test_what_began_last_time_is_forgotten() -> None:
    wire, client = idle()
    client >> get("/1")
    wire.engine >> SSE[:9] >> SSE[9:] + b"0\r\n\r\n"
    client.answer()
    client >> get("/2")
    wire.engine >> End.CLOSE
    assert_served(wire, client, 2)


def test_a_connection_that_was_never_idle_is_no_stale_one() -> None:
    wire = Wire()
    client = wire.client() >> get("/x")
    wire.engine >> End.CLOSE
    assert client.answer().reason == "upstream_reset"
    assert len(wire.engines) == 1


# Asked before it is used.


@pytest.mark.parametrize("sent", [get("/x"), post(), UPLOAD + b"abc"])
def test_one_that_has_been_idle_is_asked_whether_the_engine_has_left(sent: bytes) -> None:
    wire, client = idle()
    wire.engine.transport.pause_reading()  # the event loop does not hear of it
    wire.engine >> End.CLOSE
    wire.advance(0.75)
    client >> sent
    assert len(wire.engines) == 2
    assert not wire.engines[0].is_open
    assert wire.engine.request().target in (b"/x", b"/upload", CHAT.encode())


def test_one_that_has_not_is_not_asked() -> None:
    """A poll for each request would cost more than it saves."""
    wire, client = idle()
    asked: list[object] = []
    wire.context.has_left = lambda transport: asked.append(transport) or False  # type: ignore[func-returns-value]
    wire.advance(0.5)
    client >> get("/1")
    assert asked == []
    wire.engine >> ok()
    wire.advance(0.75)
    client >> get("/2")
    assert asked == [wire.engine.transport]
    assert len(wire.engines) == 1


# Not a byte was taken.


@pytest.mark.parametrize("body", [b"{}", b"x" * 100_000])
def test_what_nobody_took_goes_out_again_whatever_it_is(body: bytes) -> None:
    wire, client = idle(3)
    wire.engines[2].transport.dead = wire.engines[1].transport.dead = True
    client >> post(CHAT, body)
    assert [engine.is_open for engine in wire.engines] == [True, False, False]
    assert [len(engine.seen) for engine in wire.engines] == [2, 1, 1]
    wire.engines[0] >> ok(b"done")
    assert client.answer(b"POST").body == b"done"
    assert (wire.record.reason, wire.record.attempts) == ("", 1)
    wire.assert_at_rest()


def test_the_first_piece_of_a_stream_cannot_be_sent_again() -> None:
    wire, client = idle()
    wire.engine.transport.dead = True
    client >> UPLOAD + b"abc"
    assert client.answer(b"POST").reason == "upstream_reset"
    wire.assert_at_rest()


def test_a_new_connection_that_breaks_on_the_first_write_is_not_made_again() -> None:
    wire = Wire()
    wire.dialer.dead = True
    client = wire.client() >> post()
    assert client.answer(b"POST").reason == "upstream_reset"
    assert len(wire.engines) == 1
    wire.assert_at_rest()


# On real sockets, with an engine that leaves between two turns of the event loop.


class RealEngine:
    """Listens; the test takes and gives what it wants, in turns with the sidecar's event loop."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.connection = listener

    async def answer(self, body: bytes, *, accept: bool) -> bytes:
        """Take a request, on a new connection if `accept`, and answer it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            if accept:
                self.connection, _ = await loop.sock_accept(self._listener)
            seen = await loop.sock_recv(self.connection, 65536)
            await loop.sock_sendall(self.connection, ok(body))
        return seen

    def leave(self, *, reset: bool = False) -> None:
        if reset:
            linger = b"\1\0\0\0\0\0\0\0"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


@contextlib.contextmanager
def listening(place: str, folder: Path) -> Iterator[tuple[RealEngine, Address]]:
    with socket.socket(socket.AF_UNIX if place == "unix" else socket.AF_INET) as listener:
        path = str(folder / "engine")
        listener.bind(path if place == "unix" else ("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        yield RealEngine(listener), (
            Address(path=path) if place == "unix" else Address("127.0.0.1", listener.getsockname()[1])
        )


async def came(client: Client, wire: Wire) -> None:
    """Until the client has something to read."""
    async with asyncio.timeout(20):
        while not client.has_news:
            await asyncio.sleep(0)
            wire.settle()


Scenario = Callable[[Wire, RealEngine], Awaitable[None]]


def on_sockets(place: str, folder: Path, scenario: Scenario) -> None:
    """Run `scenario` with a sidecar whose connections to the engine are real."""
    with listening(place, folder) as (engine, address):
        wire = Wire(engine=str(address))
        wire.context.has_left = peer_has_left
        wire.context.connections._dialer = LoopDialer()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scenario(wire, engine))  # type: ignore[arg-type]
        engine.connection.close()


@pytest.mark.parametrize(
    ("place", "reset", "sent", "served"),
    [
        ("tcp", False, get("/x"), True),
        ("tcp", True, get("/x"), True),
        ("unix", False, get("/x"), True),
        ("tcp", True, post(), True),  # its first write fails
        ("unix", False, post(), True),  # likewise
        ("tcp", False, post(), False),  # it was taken, by nobody
        ("tcp", True, UPLOAD + b"abcdef", False),
    ],
)
def test_the_engine_left_and_the_loop_has_not_heard(
    place: str, reset: bool, sent: bytes, served: bool, tmp_path: Path
) -> None:
    async def scenario(wire: Wire, engine: RealEngine) -> None:
        client = wire.client() >> get("/first")
        assert b"/first" in await engine.answer(b"1", accept=True)
        await came(client, wire)
        assert client.answer().body == b"1"
        engine.leave(reset=reset)
        client >> sent
        if served:
            assert (await engine.answer(b"2", accept=True)).split()[:2] == sent.split()[:2]
        await came(client, wire)
        seen = client.answer(sent.split()[0])
        assert (seen.status, seen.reason) == ((200, "") if served else (502, "upstream_reset"))
        wire.context.connections.close()

    on_sockets(place, tmp_path, scenario)


@pytest.mark.parametrize("heard", [False, True])
def test_the_engine_left_long_ago(heard: bool, tmp_path: Path) -> None:
    async def scenario(wire: Wire, engine: RealEngine) -> None:
        client = wire.client()
        for turn in range(2):  # the second one asks whether it has left
            client >> get("/first")
            await engine.answer(b"1", accept=turn == 0)
            await came(client, wire)
            client.answer()
            wire.advance(0.75)
        engine.leave()
        async with asyncio.timeout(20):
            while heard and len(wire.context.connections):
                await asyncio.sleep(0)
        client >> post()
        assert (await engine.answer(b"2", accept=True)).startswith(b"POST")
        await came(client, wire)
        assert client.answer(b"POST").body == b"2"
        wire.context.connections.close()

    on_sockets("tcp", tmp_path, scenario)
