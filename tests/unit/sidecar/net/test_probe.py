"""Asking the engine whether it is well and what it serves, against engines on real sockets."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.health import Check
from sidecar.clock import Clock
from sidecar.errors import ProtocolError
from sidecar.faults import Health
from sidecar.llm.models import Catalog
from sidecar.net.probe import HttpProber, TcpProber, fetch, watch_health, watch_models
from sidecar.values import Address
from tests.harness.clock import FakeClock, run
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
        assert await TcpProber(address, 1.0).check() is Check.UNREACHABLE

    run(main())


@pytest.mark.parametrize(
    ("status", "expected", "check"),
    [
        (200, (200, 204), Check.SERVING),
        (204, (200, 204), Check.SERVING),
        (204, (200,), Check.NOT_SERVING),
        (200, (429,), Check.NOT_SERVING),
        (429, (429,), Check.SERVING),
    ],
)
def test_which_statuses_are_expected(status: int, expected: tuple[int, ...], check: Check) -> None:
    async def main() -> None:
        async with engine(answer(b"%d Said" % status, b"", b"content-length: 0")) as (address, _):
            assert await HttpProber(address, "/health", 1.0, expected).check() is check

    run(main())


def test_a_connection_is_enough_for_a_tcp_check(tmp_path: Path) -> None:
    async def main() -> None:
        served = asyncio.Semaphore(0)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b"", "nothing is sent"
            writer.close()
            await writer.wait_closed()
            served.release()

        path = str(tmp_path / "engine")
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            assert await TcpProber(address, 1.0).check() is Check.SERVING
            await served.acquire()
        async with await asyncio.start_unix_server(serve, path):
            assert await TcpProber(Address(path=path), 1.0).check() is Check.SERVING
            await served.acquire()

    run(main())


def test_a_tcp_check_does_not_wait_for_ever() -> None:
    """A backlog of none that is taken: further connections neither succeed nor fail."""

    async def main() -> None:
        with socket.socket() as listener, socket.socket() as first:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            first.connect(listener.getsockname())
            address = Address(*listener.getsockname())
            assert await TcpProber(address, 1.0).check() is Check.UNREACHABLE

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
    """A prober that finds what it is told, and ends the watch after that; `hears` comes by itself."""

    def __init__(self, endpoint: Endpoint, *results: Check, hears: dict[float, Check] | None = None) -> None:
        self._results: Iterator[Check] = iter(results)
        self._endpoint = endpoint
        self._asked: list[float] = []
        self._hears = hears or {}
        self.takes_s = 0.0  # each check
        self.verdicts: list[bool] = []  # at each check, of what was found before
        self.closed = False

    @property
    def pauses(self) -> list[float]:
        """Seconds between the checks."""
        return [after - before for before, after in pairwise(self._asked)]

    async def close(self) -> None:
        self.closed = True

    async def follow(self, hear: Callable[[Check], None], clock: Clock) -> None:
        began = asyncio.get_running_loop().time()
        for at, result in self._hears.items():
            await asyncio.sleep(began + at - asyncio.get_running_loop().time())
            hear(result)

    async def check(self) -> Check:
        self._asked.append(asyncio.get_running_loop().time())
        self.verdicts.append(self._endpoint.healthy)
        await asyncio.sleep(self.takes_s)
        for result in self._results:
            return result
        raise asyncio.CancelledError


async def watched(prober: Results, endpoint: Endpoint, health: Health) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await watch_health(prober, endpoint, health, FakeClock())
    assert prober.closed


S, N, U = Check.SERVING, Check.NOT_SERVING, Check.UNREACHABLE


def test_watching_health() -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, U, S, U, S, U, U, N, S, N)
    run(watched(prober, endpoint, Health(interval_s=5.0)))
    assert prober.verdicts == [True, False, True, True, True, True, False, False, True, False]
    soon, usual = pytest.approx(0.2), pytest.approx(5.0)
    assert prober.pauses == [soon, usual, soon, usual, soon, soon, soon, usual, soon]
    assert not endpoint.healthy


def test_every_pause_has_its_key() -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, S, U, U, U, S, S, S)
    health = Health(
        interval_s=8,
        unhealthy_threshold=2,
        healthy_threshold=2,
        unhealthy_interval_s=4,
        unhealthy_edge_interval_s=2,
        healthy_edge_interval_s=1,
    )
    run(watched(prober, endpoint, health))
    assert prober.verdicts == [True, True, True, False, False, False, True, True]
    assert prober.pauses == [pytest.approx(pause) for pause in (8, 2, 4, 4, 1, 8, 8)]


@pytest.mark.parametrize(
    ("health", "pauses"),
    [
        # Envoy's: the edge intervals are those of the verdict they lead from.
        (Health(interval_s=8, healthy_threshold=2), [8, 0.2, 0.2, 8, 8]),
        (Health(interval_s=8, healthy_threshold=2, unhealthy_interval_s=4), [8, 4, 4, 8, 8]),
        (Health(interval_s=8, healthy_threshold=2, unhealthy_edge_interval_s=4), [8, 4, 0.2, 8, 8]),
        (Health(interval_s=0.1, healthy_threshold=2), [0.1] * 5),
        (Health(interval_s=8, healthy_threshold=2, interval_jitter_percent=50), [12, 0.3, 0.3, 12, 12]),
    ],
)
def test_what_a_pause_is_that_is_not_said(health: Health, pauses: list[float]) -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, S, U, U, S, S)
    run(watched(prober, endpoint, health))
    assert prober.pauses == [pytest.approx(pause) for pause in pauses]


def test_the_first_check_may_wait() -> None:
    async def main(initial_jitter_s: float) -> float:
        endpoint = Endpoint("127.0.0.1", 1)
        prober = Results(endpoint)
        await watched(prober, endpoint, Health(initial_jitter_s=initial_jitter_s))
        return prober._asked[0]

    assert run(main(3.0)) == pytest.approx(3.0)
    assert run(main(0.0)) == 0.0


@pytest.mark.parametrize("interval_s", [0.05, 0.2])
def test_a_short_interval_is_never_exceeded(interval_s: float) -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, S, U, S)
    run(watched(prober, endpoint, Health(interval_s=interval_s)))
    assert prober.pauses == [pytest.approx(interval_s)] * 3


def test_a_refused_connection_is_a_reason_to_ask_at_once() -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, S, S)

    async def main() -> None:
        watch = asyncio.ensure_future(watched(prober, endpoint, Health(interval_s=60)))
        await asyncio.sleep(10.05)
        endpoint.refused += 1
        await watch

    run(main())
    assert prober.pauses == [pytest.approx(10.2), pytest.approx(60.0)]


def test_many_refused_connections_are_no_reason_to_ask_all_the_time() -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, *[S] * 10)

    async def main() -> None:
        watch = asyncio.ensure_future(watched(prober, endpoint, Health(interval_s=60)))
        while not watch.done():
            endpoint.refused += 1
            await asyncio.sleep(0.01)

    run(main())
    assert prober.pauses == [pytest.approx(0.2)] * 10


def test_what_is_heard_between_two_checks_counts_at_once() -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, S, S, S, hears={12.0: N})
    run(watched(prober, endpoint, Health(interval_s=10)))
    assert prober.verdicts == [True, True, False, True]
    # The pause in which it is heard becomes one for an engine that is ill: it is checked at once.
    assert prober.pauses == [pytest.approx(10), pytest.approx(2, abs=0.21), pytest.approx(10)]


def test_a_check_that_was_overtaken_by_news_does_not_count() -> None:
    endpoint = Endpoint("127.0.0.1", 1)
    prober = Results(endpoint, S, S, hears={0.5: N})
    prober.takes_s = 1.0
    run(watched(prober, endpoint, Health(interval_s=10)))
    assert prober.verdicts == [True, False, True]
    assert prober.pauses == [pytest.approx(1.2), pytest.approx(11)]


@pytest.mark.parametrize("before", [True, False])
def test_the_verdict_is_kept_until_the_first_result(before: bool) -> None:
    """A reload asks anew, and must neither open nor close the pod for it."""
    endpoint = Endpoint("127.0.0.1", 1)
    endpoint.healthy = before
    prober = Results(endpoint, U if before else S)
    run(watched(prober, endpoint, Health()))
    assert prober.verdicts == [before, not before]


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


class Broken(Catalog):
    """One that cannot take a list."""

    def load(self, listing: bytes) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("said", "catalog"),
    [
        (b"nonsense", Catalog()),
        (answer(b"404 No", b"", b"content-length: 0"), Catalog()),
        (ok(b"{}"), Broken()),
    ],
)
def test_an_engine_without_a_list_is_asked_less_and_less_and_mentioned_once(
    said: bytes, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    asked_at: list[float] = []

    async def main() -> None:
        async with engine(said) as (address, asked):
            watch = asyncio.ensure_future(watch_models(address, catalog))
            while len(asked_at) < 7:
                await asyncio.sleep(0.125)
                if len(asked) > len(asked_at):
                    asked_at.append(asyncio.get_running_loop().time())
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    with caplog.at_level(logging.WARNING, "headgate"):
        run(main())
    pauses = [after - before for before, after in pairwise(asked_at)]
    assert pauses == [pytest.approx(pause, abs=0.3) for pause in (1, 2, 4, 5, 5, 5)]
    assert caplog.text.count("list of models") == 1


def test_a_list_that_is_lost_again_is_mentioned_again(caplog: pytest.LogCaptureFixture) -> None:
    listed = ok(b'{"data": [{"id": "m"}]}')

    async def main() -> None:
        async with engine(b"nonsense", listed, b"nonsense", b"nonsense") as (address, asked):
            watch = asyncio.ensure_future(watch_models(address, Catalog()))
            while len(asked) < 4:
                await asyncio.sleep(0.25)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    with caplog.at_level(logging.WARNING, "headgate"):
        run(main())
    assert caplog.text.count("list of models") == 2
