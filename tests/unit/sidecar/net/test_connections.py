"""Which connection carries an exchange, and what when there is none."""

import asyncio
import socket
from pathlib import Path

import pytest

from sidecar.balance.endpoint import Endpoint
from sidecar.errors import UPSTREAM_RESET
from sidecar.net.connections import LoopDialer
from sidecar.net.upstream import Upstream
from tests.harness.clock import run
from tests.harness.engine import End, ok
from tests.harness.wire import Client, Wire, get, post


def served(wire: Wire, n: int) -> list[Client]:
    """Clients whose answers came on `n` connections, which are idle since, the last one the youngest."""
    clients = [wire.client() >> get() for _ in range(n)]
    for engine in list(wire.engines):
        engine >> ok()
    return clients


def test_the_youngest_idle_connection_is_used_first() -> None:
    wire = Wire()
    clients = served(wire, 3)
    assert len(wire.engines) == len(wire.context.connections) == 3
    clients[0] >> get("/again")
    assert wire.engines[2].seen[-1].target == b"/again"
    clients[1] >> get("/too")
    assert wire.engines[1].seen[-1].target == b"/too"
    assert len(wire.engines) == 3


def test_an_idle_connection_that_is_too_old_is_closed_instead() -> None:
    wire = Wire("timeouts: {engine_idle_s: 4}")
    clients = served(wire, 2)
    wire.advance(3.75)
    clients[0] >> get()
    assert len(wire.engines) == 2
    wire.engine >> ok()
    wire.advance(3.75)
    clients[0] >> get()  # the younger one still serves
    assert len(wire.engines) == 2
    clients[1] >> get()
    assert len(wire.engines) == 3
    assert not wire.engines[0].is_open


def test_what_has_idled_too_long_is_swept() -> None:
    wire = Wire("timeouts: {engine_idle_s: 4}")
    clients = served(wire, 2)
    wire.advance(3)
    clients[0] >> get()
    wire.engine >> ok()
    wire.advance(1.5)
    wire.context.connections.sweep()
    wire.settle()
    assert [engine.is_open for engine in wire.engines] == [False, True]
    wire.advance(4)
    wire.context.connections.sweep()
    wire.settle()
    assert len(wire.context.connections) == 0


def test_a_connection_cannot_be_made() -> None:
    wire = Wire()
    wire.dialer.refused = True
    client = wire.client() >> post()
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (502, "connect_failed")
    assert client.is_open
    wire.assert_at_rest()


def test_an_engine_that_hangs_up_at_once() -> None:
    wire = Wire()
    wire.dialer.hangs_up = True
    client = wire.client() >> post()
    assert client.answer(b"POST").reason == "connect_failed"
    assert len(wire.context.connections) == 0
    wire.assert_at_rest()


def test_an_exchange_that_is_refused_while_connecting() -> None:
    wire = Wire()
    wire.dialer.held = True
    client = wire.client() >> get("/upload", "content-length: 9", method="POST") + b"a"
    client >> b"b"
    client.downstream.close()
    wire.settle()
    assert client.answer(b"POST").reason == "draining"
    wire.dialer.go_on()
    wire.engine << b""
    wire.assert_at_rest()


def test_a_connection_that_nobody_waits_for_any_more_is_kept() -> None:
    wire = Wire()
    wire.dialer.held = True
    wire.client() >> post() >> End.RESET
    wire.dialer.refused = True
    wire.dialer.go_on()
    assert wire.engines == []
    wire.assert_at_rest()


@pytest.mark.interpreted
def test_a_bug_while_sending_costs_one_request() -> None:
    wire = Wire()
    wire.dialer.held = True
    client = wire.client() >> post()
    client.downstream.peer = None  # type: ignore[assignment] - what a bug would do
    with pytest.raises(AssertionError, match="sending to"):
        wire.dialer.go_on()
    wire.settle()
    assert client.answer(b"POST").reason == "internal"
    wire.assert_at_rest()


def test_open_and_growing_connections_are_counted() -> None:
    wire = Wire()
    connections = wire.context.connections
    served(wire, 2)
    assert (len(connections), connections.descriptors) == (2, 2)
    wire.dialer.held = True
    for _ in range(3):
        wire.client() >> get()
    assert (len(connections), connections.descriptors) == (2, 3), "two of them idle before"
    wire.dialer.refused = True
    wire.dialer.go_on()
    assert (len(connections), connections.descriptors) == (2, 2)
    wire.engines[0] >> End.CLOSE  # it is tried again, on another
    assert (len(connections), connections.descriptors) == (1, 2)
    wire.dialer.go_on()
    assert (len(connections), connections.descriptors) == (1, 1)


def test_everything_is_closed_at_the_end() -> None:
    wire = Wire()
    served(wire, 2)
    client = wire.client() >> get()
    wire.context.connections.close()
    wire.settle()
    assert len(wire.context.connections) == 0
    assert all(engine.aborted for engine in wire.engines)
    assert client.received() == b"" or client.answer().reason == UPSTREAM_RESET.reason


# The real dialer, on loopback.


async def dialled(endpoint: Endpoint, timeout_s: float = 1.0) -> bool:
    wire = Wire()
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Upstream | None] = loop.create_future()
    LoopDialer().dial(endpoint, timeout_s, lambda: Upstream(wire.context, endpoint), outcome.set_result)
    async with asyncio.timeout(60):
        upstream = await outcome
    if upstream is None:
        return False
    assert upstream.is_usable
    upstream.close()
    await asyncio.sleep(0)
    return True


def test_dialling_a_port() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert await dialled(Endpoint("127.0.0.1", port))
        assert not await dialled(Endpoint("127.0.0.1", port))

    run(main())


def test_dialling_a_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "engine")

    async def main() -> None:
        assert not await dialled(Endpoint(path=path))
        async with await asyncio.start_unix_server(lambda r, w: w.close(), path):
            assert await dialled(Endpoint(path=path))

    run(main())


def test_whatever_goes_wrong_in_dialling_is_told() -> None:
    """A name that cannot be encoded is no OSError; and who dials waits for the outcome."""
    endpoint = Endpoint("x" * 64 + ".example", 1)
    assert not run(dialled(endpoint))
    assert endpoint.refused == 1


def test_dialling_takes_no_longer_than_it_may() -> None:
    """Nobody accepts, and the backlog is full."""
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for ahead in (first, second):
            ahead.setblocking(False)
            ahead.connect_ex(deaf.getsockname())
        assert not run(dialled(Endpoint("127.0.0.1", deaf.getsockname()[1]), timeout_s=5))
