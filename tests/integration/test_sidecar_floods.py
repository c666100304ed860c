"""A thousand clients that do not read, and a thousand that write byte by byte: what they cost, and whom."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.processes import HOST
from tests.harness.sidecars import Sidecar, sidecar, sidecar_settings

pytestmark = pytest.mark.integration

CROWD: Final = 1000
MIB: Final = 2**20
PATIENCE_S: Final = 120
BODY: Final = b'{"prompt": "slowly"}'
SLOWLY: Final = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
SMALL: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsmall"


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """Both ends of all connections are here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 4 * CROWD
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * CROWD, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Engine:
    """GET /large never ends; everything else is a small answer."""

    def __init__(self) -> None:
        self.streams = 0  # that are being sent,
        self.held_up = 0  # and of these, that the sidecar does not take any more of
        self.port = 0
        self._there: set[asyncio.StreamWriter] = set()

    @property
    def is_held_up(self) -> bool:
        return self.streams == self.held_up

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        with socket.create_server((HOST, 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)  # the rest is the sidecar's
            self.port = listener.getsockname()[1]
            async with await asyncio.start_server(self._answer, sock=listener, backlog=2 * CROWD):
                yield
                await until(lambda: not self._there)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._there.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"content-length: " in head:
                    await reader.readexactly(len(BODY))
                if head.startswith(b"GET /large"):
                    await self._stream(writer)
                writer.write(SMALL)
        writer.close()
        self._there.discard(writer)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.transport.set_write_buffer_limits(high=0)
        self.streams += 1
        try:
            while True:
                writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
                self.held_up += 1
                await writer.drain()
                self.held_up -= 1
                await asyncio.sleep(0)
        except ConnectionError:
            self.held_up -= 1
            raise
        finally:
            self.streams -= 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


class Clients:
    """Connections to the sidecar, with little room for what is not read."""

    def __init__(self, gate: Sidecar) -> None:
        self._gate = gate
        self._open: list[socket.socket] = []

    async def connect(self, data: bytes = b"") -> socket.socket:
        """One more, that has sent `data`."""
        sock = socket.socket()
        self._open.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (HOST, self._gate.port))
        await loop.sock_sendall(sock, data)
        return sock

    async def are_served(self) -> bool:
        """One of them asks again and again, and is answered."""
        sock, loop = await self.connect(), asyncio.get_running_loop()
        for _ in range(50):
            await loop.sock_sendall(sock, b"GET /small HTTP/1.1\r\nhost: a\r\n\r\n")
            assert await small_answer(sock)
        return True

    async def flood(self, engine: Engine) -> None:
        """A crowd asks for much and reads nothing, until nothing moves any more."""
        for _ in range(CROWD):
            await self.connect(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        gate = self._gate
        while engine.streams + await gauge(gate, "headgate_requests_total", reason="overloaded") < CROWD:
            gate.process.fail_if_ended()
        await until(lambda: engine.is_held_up)
        while await self._somebody_has_a_moment_left():
            gate.process.fail_if_ended()

    async def _somebody_has_a_moment_left(self) -> bool:
        """Each connection has one timer; who is to read at last has another."""
        connections = await gauge(self._gate, "headgate_connections")
        return await gauge(self._gate, "headgate_timers") > connections

    async def drip(self) -> int:
        """A crowd writes byte by byte; how many got their answer."""
        writers = [await self.connect() for _ in range(CROWD)]
        for i in range(len(SLOWLY)):
            for writer in writers:
                writer.send(SLOWLY[i : i + 1])
            await asyncio.sleep(0)
        return sum([await small_answer(writer) for writer in writers])

    def leave(self) -> None:
        for sock in self._open:
            sock.close()


async def small_answer(sock: socket.socket) -> bool:
    """Whether the answer is there and whole."""
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(PATIENCE_S):
        while not data.endswith(b"small"):
            data += (piece := await loop.sock_recv(sock, 65536))
            assert piece, data
    return data.startswith(b"HTTP/1.1 200 OK\r\n")


async def gauge(gate: Sidecar, name: str, **labels: str) -> float:
    return await asyncio.to_thread(lambda: gate.metric(name, **labels))


def resident(gate: Sidecar, which: str) -> int:
    """Bytes of memory: VmRSS of the moment, or VmHWM at most so far."""
    status = Path(f"/proc/{gate.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(which))


# How much of `max_buffered_bytes` there is, whether all have room in it, and what it may cost at most.
CASES: Final = {"room for all": (256 * MIB, True, 100 * MIB), "for a few": (8 * MIB, False, 60 * MIB)}


@pytest.mark.parametrize(("limit", "all_have_room", "most"), CASES.values(), ids=CASES.keys())
def test_what_a_crowd_costs_is_bounded_and_nobody_else_notices(
    limit: int, all_have_room: bool, most: int, tmp_path: Path
) -> None:
    async def main(engine: Engine, gate: Sidecar, clients: Clients) -> None:
        assert await clients.are_served()
        before = resident(gate, "VmRSS")
        await clients.flood(engine)
        cut = await gauge(gate, "headgate_requests_total", status="200", reason="overloaded")
        assert cut == CROWD - engine.streams
        assert (cut == 0) is all_have_room
        assert 0 < await gauge(gate, "headgate_buffered_bytes") <= limit / 2
        assert await clients.are_served()
        assert await clients.drip() == CROWD
        clients.leave()
        await asyncio.to_thread(gate.wait_until_idle)
        assert resident(gate, "VmHWM") - before < most

    async def scenario() -> None:
        engine = Engine()
        async with engine.serving():
            settings = sidecar_settings(engine.port, max_buffered_bytes=limit, max_body_bytes=MIB)
            with sidecar(tmp_path, settings | {"timeouts": {"connect_s": 60}}) as gate:
                clients = Clients(gate)
                try:
                    await main(engine, gate, clients)
                finally:
                    clients.leave()

    asyncio.run(scenario())
