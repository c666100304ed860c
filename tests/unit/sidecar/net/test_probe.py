"""Asking the engine whether it is well and what it serves, against engines on real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.health import Check
from sidecar.errors import ProtocolError
from sidecar.llm.models import Catalog
from sidecar.net.probe import HttpProber, fetch, watch_health, watch_models
from sidecar.settings import Address
from tests.harness.clock import run
from tests.harness.engine import answer, chunked, ok

CHUNKED = b"transfer-encoding: chunked"


@contextlib.asynccontextmanager
async def engine(*answers: bytes) -> AsyncIterator[tuple[Address, list[bytes]]]:
    """Answers one request on each connection; the last answer again and again, and b"" with silence."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            said = answers[min(len(asked), len(answers)) - 1]
            if said:
                writer.write(said)
                await writer.drain()
            else:
                await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1]), asked
    await asyncio.sleep(0.01)  # let connections end


@pytest.mark.parametrize(
    ("said", "check"),
    [
        (ok(b"fine"), Check.SERVING),
        (answer(b"200 OK", b"until the end"), Check.SERVING),
        (answer(b"503 No", b"", b"content-length: 0"), Check.NOT_SERVING),
        (answer(b"302 No", b"", b"content-length: 0", b"location: /x"), Check.NOT_SERVING),
        (b"nonsense", Check.UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\n", Check.UNREACHABLE),
        (ok(b"fine")[:-1], Check.UNREACHABLE),
        (b"", Check.UNREACHABLE),
    ],
)
def test_an_http_check(said: bytes, check: Check) -> None:
    async def main() -> None:
        async with engine(said) as (address, asked):
            assert await HttpProber(address, "/health", 1.0).check() is check
        host = str(address).encode()
        assert asked == [b"GET /health HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % host]

    run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        async with engine(ok()) as (address, _):
            pass
        assert await HttpProber(address, "/health", 1.0).check() is Check.UNREACHABLE

    run(main())


def test_fetching() -> None:
    async def main() -> None:
        async with engine(answer(b"200 OK", chunked(b"a", b"b" * 100_000), CHUNKED)) as (address, _):
            assert await fetch(address, "/", 1.0) == (200, b"a" + b"b" * 100_000)
        async with engine(answer(b"200 OK", b"x" * 5_000_000)) as (address, _):
            with pytest.raises(ConnectionAbortedError):
                await fetch(address, "/", 1.0)
        async with engine(answer(b"200 OK", b"", CHUNKED, CHUNKED)) as (address, _):
            with pytest.raises(ProtocolError):
                await fetch(address, "/", 1.0)
        async with engine(b"") as (address, _):
            with pytest.raises(TimeoutError):
                await fetch(address, "/", 1.0)

    run(main())


class Results:
    """A prober that finds what it is told, and ends the watch after that."""

    def __init__(self, *results: Check) -> None:
        self._results: Iterator[Check] = iter(results)

    async def check(self) -> Check:
        for result in self._results:
            return result
        raise asyncio.CancelledError


def test_watching_health() -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    told: list[bool] = []
    s, n, u = Check.SERVING, Check.NOT_SERVING, Check.UNREACHABLE

    async def main() -> float:
        with contextlib.suppress(asyncio.CancelledError):
            watch = watch_health(
                Results(u, s, u, s, u, u, n, s, n), endpoint, 5.0, lambda: told.append(endpoint.healthy)
            )
            await watch
        return asyncio.get_running_loop().time()

    took = run(main())
    assert told == [False, True, False, True, False]
    assert took == pytest.approx(5 * 5.0 + 4 * 0.2, abs=0.1)  # asked more often while it is not well
    assert not endpoint.healthy


def test_watching_models() -> None:
    nothing = answer(b"404 No", b"", b"content-length: 0")
    first = ok(b'{"data": [{"id": "m"}]}')
    second = ok(b'{"data": [{"id": "m"}, {"id": "adapter", "parent": "m"}]}')

    async def main() -> None:
        catalog = Catalog()
        async with engine(b"nonsense", nothing, ok(b"[]"), first, b"nonsense", second) as (address, asked):
            watch = asyncio.ensure_future(watch_models(address, catalog))
            seen: dict[int, str] = {}
            while catalog.label("adapter") == "other":
                await asyncio.sleep(0.25)
                seen[len(asked)] = catalog.label("m")
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        assert [seen[i] for i in (1, 2, 3, 4, 5)] == ["other", "other", "other", "m", "m"]
        assert catalog.label("adapter") == "m:adapter"

    run(main())
