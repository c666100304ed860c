"""The client listener, with real sockets: accepting, and coming to an end."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sidecar.net.listener import Listener
from sidecar.values import Address
from tests.harness.clock import run
from tests.harness.wire import CHAT, Wire, get, post

ANY = Address("127.0.0.1", 0)
T = TypeVar("T")


async def until(condition: Callable[[], bool], step: Callable[[], object] = lambda: None) -> None:
    """Let the loop go on until `condition` holds; fails soon if that never comes."""
    async with asyncio.timeout(60):  # of the loop's time
        while not condition():
            step()
            await asyncio.sleep(0.01)


async def soon(waited: Coroutine[Any, Any, T]) -> T:
    """The result of what must come without anybody's help."""
    task = asyncio.ensure_future(waited)
    await until(task.done)
    return task.result()


class Caller:
    """A client on a real socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> "Caller":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> bytes:
        return await soon(self._reader.readuntil(b"\r\n\r\n"))

    async def rest(self) -> bytes:
        try:
            return await soon(self._reader.read())
        finally:
            self._writer.close()


async def started(wire: Wire, address: Address = ANY) -> Listener:
    listener = Listener(wire.context, address)
    await listener.start()
    return listener


def test_it_serves_until_told_to_stop() -> None:
    async def main() -> None:
        wire = Wire()
        listener = await started(wire)
        caller = await Caller.connect(listener.port)
        await caller.send(get("/sleep"))
        assert (await caller.head()).startswith(b"HTTP/1.1 403")
        listener.stop_accepting()
        listener.stop_accepting()
        with pytest.raises(ConnectionRefusedError):
            await Caller.connect(listener.port)
        assert len(wire.context.clients) == 1
        assert await soon(listener.finish(10)) == 0
        assert await caller.rest() == b"This path is not open to callers.\n"
        assert wire.context.clients == set()

    run(main())


def test_what_runs_may_end() -> None:
    async def main() -> None:
        wire = Wire()
        wire.dialer.held = True
        listener = await started(wire)
        caller = await Caller.connect(listener.port)
        await caller.send(post(CHAT, b"{}"))
        await until(lambda: wire.gate.in_flight == 1)
        listener.stop_accepting()
        wire.lifecycle.draining = True
        finishing = asyncio.ensure_future(listener.finish(10))
        await asyncio.sleep(1)  # of the loop's time: it has looked many times
        assert not finishing.done()
        assert wire.gate.in_flight == 1
        wire.dialer.refused = True
        wire.dialer.go_on()  # its end: a refusal
        await until(finishing.done)
        assert finishing.result() == 0
        assert b"x-headgate-reason: connect_failed" in await caller.rest()

    run(main())


@pytest.mark.parametrize("hurried", [False, True])
def test_what_outlasts_the_drain_is_cut(hurried: bool) -> None:
    async def main() -> None:
        wire = Wire()
        wire.dialer.held = True
        listener = await started(wire)
        caller = await Caller.connect(listener.port)
        await caller.send(post(CHAT, b"{}"))
        await until(lambda: wire.gate.in_flight == 1)
        listener.stop_accepting()
        if hurried:
            listener.hurry()
        finishing = asyncio.ensure_future(listener.finish(1e6 if hurried else 0.1))
        await until(finishing.done, lambda: wire.clock.advance(0.05))
        assert finishing.result() == 1
        assert b"x-headgate-reason: draining" in await caller.rest()
        wire.assert_at_rest()

    run(main())


def test_a_unix_socket_replaces_a_dead_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sidecar"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        listener = await started(Wire(), Address(path=str(path)))
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.close()
        await asyncio.sleep(0.01)
        listener.stop_accepting()
        path.unlink(missing_ok=True)
        path.write_text("mine")
        with pytest.raises(OSError, match="in use"):
            await started(Wire(), Address(path=str(path)))
        assert path.read_text() == "mine"

    run(main())


def test_told_to_stop_while_it_starts(tmp_path: Path) -> None:
    async def main() -> None:
        listener = Listener(Wire().context, Address(path=str(tmp_path / "sidecar")))
        starting = asyncio.ensure_future(listener.start())
        await asyncio.sleep(0)
        assert not starting.done()
        listener.stop_accepting()
        await starting
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(str(tmp_path / "sidecar"))

    run(main())


def test_an_address_that_is_taken_is_an_error() -> None:
    async def main() -> None:
        listener = await started(Wire())
        with pytest.raises(OSError, match="in use"):
            await started(Wire(), Address("127.0.0.1", listener.port))
        listener.stop_accepting()

    run(main())
