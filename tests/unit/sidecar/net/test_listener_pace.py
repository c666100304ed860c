"""The client listener when descriptors are short: connections wait, and everybody gets an answer."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sidecar.net.listener import Listener
from sidecar.values import Address
from tests.harness.wire import Wire, get

DENIED = get("/sleep")  # answered without an engine
DESCRIPTORS, ROOM = 20, 8
OVERSHOT = 3  # connections that the loop takes before it hears of it


def in_loop(main: Coroutine[Any, Any, None]) -> None:
    """The loop of the sidecar: others accept as many at once as there are."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again with each turn of the loop."""
    monkeypatch.setattr("sidecar.net.listener._POLL_S", 0)


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return Address("127.0.0.1", 0) if request.param == "tcp" else Address(path=str(tmp_path / "sidecar"))


class Crowd:
    """A sidecar with a listener that has few descriptors, and its callers."""

    def __init__(self, address: Address, descriptors: int | None) -> None:
        self.wire = Wire()
        self.listener = Listener(self.wire.context, address, descriptors)
        self.most = 0  # clients at once
        self._address = address
        self._callers: list[socket.socket] = []

    @property
    def clients(self) -> int:
        return len(self.wire.context.clients)

    @property
    def working(self) -> int:
        """Clients that are not idle."""
        return sum(not client.is_idle for client in self.wire.context.clients)

    @property
    def is_crowded(self) -> bool:
        return self.wire.lifecycle.crowded

    def caller(self) -> socket.socket:
        """A connection that the kernel has taken, whoever accepts it."""
        path = self._address.path
        caller = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._callers.append(caller)
        caller.connect(path or ("127.0.0.1", self.listener.port))
        caller.setblocking(False)
        return caller

    async def answer(self, caller: socket.socket) -> bytes:
        """All of the next answer."""
        loop, data = asyncio.get_running_loop(), b""
        async with asyncio.timeout(8):
            while b"open to callers.\n" not in data:
                came = await loop.sock_recv(caller, 65536)
                assert came, "closed without an answer"
                data += came
        return data

    async def until(self, condition: Callable[[], bool], *, passing_s: float = 0.0) -> None:
        """Until `condition` holds; `passing_s` of the sidecar's time pass with each look."""
        async with asyncio.timeout(8):
            while not condition():
                self.most = max(self.most, self.clients)
                self.wire.clock.advance(passing_s)
                await asyncio.sleep(0)

    async def a_while(self) -> None:
        """Turns enough for whatever would happen."""
        for _ in range(100):
            await asyncio.sleep(0)

    def close(self) -> None:
        for caller in self._callers:
            caller.close()


@contextlib.asynccontextmanager
async def crowd(address: Address, descriptors: int | None = DESCRIPTORS) -> AsyncIterator[Crowd]:
    it = Crowd(address, descriptors)
    await it.listener.start()
    pacing = asyncio.ensure_future(it.listener.pace())
    try:
        yield it
    finally:
        pacing.cancel()
        it.close()
        it.listener.stop_accepting()
        await it.until(lambda: it.clients == 0)
        assert pacing.cancelled() or not pacing.done()


def test_everybody_is_served_in_the_end_and_nobody_refused(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with crowd(address) as it:
            assert it.listener.room == ROOM

            async def ask(caller: socket.socket) -> None:
                caller.send(DENIED)
                assert (await it.answer(caller)).startswith(b"HTTP/1.1 403")
                caller.close()

            callers = [it.caller() for _ in range(60)]
            await it.until(lambda: it.is_crowded)
            await it.a_while()
            assert ROOM <= it.clients <= ROOM + OVERSHOT
            asking = [asyncio.ensure_future(ask(caller)) for caller in callers]
            await it.until(lambda: all(task.done() for task in asking))
            await asyncio.gather(*asking)
            await it.until(lambda: not it.is_crowded)
            assert it.most <= ROOM + OVERSHOT

    in_loop(main())
    assert "new connections wait" in caplog.text


def test_how_often_it_is_said_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with crowd(Address("127.0.0.1", 0)) as it:
            for said, pause_s in ((1, 0), (1, 59), (2, 2), (2, 0)):
                it.wire.clock.advance(pause_s)
                callers = [it.caller() for _ in range(ROOM)]
                await it.until(lambda: it.is_crowded)
                for caller in callers:
                    caller.close()
                await it.until(lambda: not it.is_crowded and not it.clients)
                assert len(caplog.records) == said

    in_loop(main())


def test_an_answer_ends_the_connection_while_others_wait(address: Address) -> None:
    async def main() -> None:
        async with crowd(address) as it:
            callers = [it.caller() for _ in range(ROOM + 10)]
            await it.until(lambda: it.is_crowded)
            callers[0].send(DENIED)
            assert b"connection: close" in await it.answer(callers[0])
            await it.until(lambda: it.clients < ROOM)

    in_loop(main())


def test_who_waits_is_served_with_what_it_had_sent(address: Address) -> None:
    """Nothing is lost of a connection that nobody had accepted."""

    async def main() -> None:
        async with crowd(address) as it:
            first = [it.caller() for _ in range(ROOM)]
            await it.until(lambda: it.is_crowded)
            late = it.caller()
            late.send(DENIED[:20])
            before = it.clients
            await it.a_while()
            assert it.clients == before
            for caller in first:
                caller.close()
            late.send(DENIED[20:])
            assert (await it.answer(late)).startswith(b"HTTP/1.1 403")
            assert not it.is_crowded

    in_loop(main())


def test_the_idle_make_room_for_those_who_wait(address: Address) -> None:
    async def main() -> None:
        async with crowd(address) as it:
            it.wire.dialer.held = True
            it.caller().send(get("/x"))
            idle = [it.caller() for _ in range(ROOM - 1)]
            await it.until(lambda: it.is_crowded and len(it.wire.dialer.waiting) == 1)
            await it.a_while()
            it.wire.clock.advance(5)
            await it.a_while()
            there = it.clients
            assert there >= ROOM - 1, "nobody waits"
            busy = idle[0]
            busy.send(DENIED[:-2])  # its head has begun
            await it.until(lambda: it.working == 2)
            late = it.caller()
            late.send(DENIED)
            await it.until(lambda: it.clients < there, passing_s=0.05)
            assert (await it.answer(late)).startswith(b"HTTP/1.1 403")
            busy.send(DENIED[-2:])
            assert (await it.answer(busy)).startswith(b"HTTP/1.1 403")
            assert it.working == 1, "somebody is worked for"

    in_loop(main())


def test_who_was_busy_a_moment_ago_need_not_make_room(address: Address) -> None:
    async def main() -> None:
        async with crowd(address) as it:
            for _ in range(ROOM):
                it.caller()
            await it.until(lambda: it.is_crowded)
            it.caller()
            there = it.clients
            for _ in range(5):
                it.wire.clock.advance(0.15)
                await it.a_while()
            assert it.clients == there

    in_loop(main())


def test_told_to_stop_while_nobody_accepts_it_does_not_begin_again(address: Address) -> None:
    async def main() -> None:
        async with crowd(address) as it:
            callers = [it.caller() for _ in range(ROOM)]
            await it.until(lambda: it.is_crowded)
            it.listener.stop_accepting()
            for caller in callers:
                caller.close()
            await it.until(lambda: not it.is_crowded)
            with pytest.raises(ConnectionRefusedError):
                it.caller()

    in_loop(main())


def test_where_others_took_the_descriptors_it_tries_again(address: Address) -> None:
    class Short:
        """A listening socket of which there can be no duplicate, twice."""

        def __init__(self, sock: socket.socket) -> None:
            self.fileno, self.close, self._sock, self._times = sock.fileno, sock.close, sock, 2

        def dup(self) -> socket.socket:
            self._times -= 1
            if self._times >= 0:
                raise OSError(24, "Too many open files")
            return self._sock.dup()

    async def main() -> None:
        async with crowd(address) as it:
            callers = [it.caller() for _ in range(ROOM)]
            await it.until(lambda: it.is_crowded)
            short = Short(it.listener._sockets[0])
            it.listener._sockets[0] = short  # type: ignore[call-overload]
            for caller in callers:
                caller.close()
            await it.until(lambda: not it.is_crowded)
            late = it.caller()
            late.send(DENIED)
            assert (await it.answer(late)).startswith(b"HTTP/1.1 403")
            assert short._times == -1

    in_loop(main())


@pytest.mark.parametrize("descriptors", [-60, 0, 3])
def test_one_is_served_however_few_files_may_be_open(address: Address, descriptors: int) -> None:
    async def main() -> None:
        async with crowd(address, descriptors) as it:
            assert it.listener.room == 1
            callers = [it.caller() for _ in range(3 + OVERSHOT)]
            for caller in callers:
                caller.send(DENIED)
            for caller in callers:
                await it.answer(caller)
                caller.close()

    in_loop(main())


def test_without_a_limit_nobody_waits(address: Address) -> None:
    async def main() -> None:
        async with crowd(address, None) as it:
            for _ in range(100):
                it.caller()
            await it.until(lambda: it.clients == 100)
            assert not it.is_crowded
            assert it.listener.room is None

    in_loop(main())


def test_connections_to_the_engine_take_room_too() -> None:
    async def main() -> None:
        async with crowd(Address("127.0.0.1", 0)) as it:
            it.wire.dialer.held = True
            for _ in range(DESCRIPTORS - 3):
                it.wire.client() >> get("/x")
            assert it.wire.context.connections.descriptors == DESCRIPTORS - 3
            for client in list(it.wire.context.clients):
                client.abort()
            it.wire.settle()
            assert it.clients == 0
            it.caller()
            it.caller()
            await it.until(lambda: it.is_crowded)
            it.wire.dialer.refused = True
            it.wire.dialer.go_on()
            assert it.wire.context.connections.descriptors == 0
            await it.until(lambda: not it.is_crowded)

    in_loop(main())
