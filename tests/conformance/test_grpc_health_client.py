"""An engine's health over grpc.health.v1, from servers that keep to the protocol and others that do not."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.health import Backoff, Check
from sidecar.clock import SystemClock
from sidecar.faults import Health
from sidecar.net.probe import watch_health
from sidecar.net.probe_grpc import GrpcProber
from sidecar.values import Address
from tests.harness.health_servers import (
    HOST,
    closes,
    health_server,
    keeps_silent,
    said,
    speaks_http1,
    speaks_nonsense,
    tcp_server,
)

SERVING, NOT_SERVING, SERVICE_UNKNOWN = said(1), said(2), said(3)
S, N, U = Check.SERVING, Check.NOT_SERVING, Check.UNREACHABLE
TIMEOUT_S: Final = 0.5
WITHIN_S: Final = 20.0


def prober(port: int, service: str = "", *, watch: bool = False, timeout_s: float = 5.0) -> GrpcProber:
    """One that is not patient with streams that end."""
    return GrpcProber(Address(HOST, port), timeout_s, service, watch=watch, backoff=Backoff(0.01, 0.02))


def checked(port: int, service: str = "", *, timeout_s: float = 5.0) -> Check:
    async def main() -> Check:
        one = prober(port, service, timeout_s=timeout_s)
        try:
            return await one.check()
        finally:
            await one.close()

    return asyncio.run(main())


def fails(code: grpc.StatusCode) -> Callable[..., Any]:
    def call(_: str, context: grpc.ServicerContext) -> None:
        context.abort(code, "as told")

    return call


# Check.


@pytest.mark.parametrize(
    ("status", "found"),
    [("SERVING", S), ("NOT_SERVING", N), ("UNKNOWN", N), ("SERVICE_UNKNOWN", N), (None, N)],
)
def test_a_named_service_of_grpcios_own_server(status: str | None, found: Check) -> None:
    servicer = health.HealthServicer()  # "" is SERVING, whatever the others are
    if status is not None:
        servicer.set("engine", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        assert checked(port, "engine") is found
        assert checked(port) is S
    finally:
        server.stop(grace=None).wait()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (SERVING, S),
        (said(17), N),
        (b"", N),  # UNKNOWN, the default
        (b"\xff\xff\xff", N),  # no message at all
        (SERVING + b"\x12\x01a", S),  # a field of a later version
    ],
)
def test_an_answer(answer: bytes, found: Check) -> None:
    with health_server(lambda *_: answer) as port:
        assert checked(port) is found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, N),
        (grpc.StatusCode.NOT_FOUND, N),
        (grpc.StatusCode.UNAUTHENTICATED, N),
        (grpc.StatusCode.INTERNAL, N),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, N),
        (grpc.StatusCode.UNAVAILABLE, U),
        (grpc.StatusCode.DEADLINE_EXCEEDED, U),
    ],
)
def test_a_call_that_fails(code: grpc.StatusCode, found: Check) -> None:
    with health_server(fails(code)) as port:
        assert checked(port) is found


def test_a_server_without_the_protocol() -> None:
    with health_server() as port:
        assert checked(port) is N


@pytest.mark.parametrize("serve", [closes, keeps_silent, speaks_http1, speaks_nonsense])
def test_what_is_no_grpc_is_not_reached(serve: Callable[[Any], None]) -> None:
    with tcp_server(serve) as port:
        assert checked(port, timeout_s=TIMEOUT_S) is U


def test_a_server_that_never_answers_is_not_reached() -> None:
    over = threading.Event()

    def check(*_: object) -> bytes:
        over.wait(WITHIN_S)
        return SERVING

    with health_server(check) as port:
        assert checked(port, timeout_s=TIMEOUT_S) is U
        over.set()


# Watch.

ENDS: Final = [code for code in grpc.StatusCode if code is not grpc.StatusCode.UNIMPLEMENTED]


class Streams:
    """The calls of Watch: each plays its part, the last one for ever: messages, seconds of silence, ends."""

    def __init__(self, *parts: tuple[bytes | float | grpc.StatusCode, ...]) -> None:
        self._parts = parts
        self.names: list[str] = []

    def __call__(self, name: str, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.names.append(name)
        over = threading.Event()
        context.add_callback(over.set)
        for what in self._parts[min(len(self.names), len(self._parts)) - 1]:
            if isinstance(what, bytes):
                yield what
            elif isinstance(what, float):
                over.wait(what)
            elif what is grpc.StatusCode.OK:
                return
            else:
                context.abort(what, "as told")
        over.wait(WITHIN_S)


def heard(streams: Streams, count: int, service: str = "", *, timeout_s: float = 5.0) -> list[Check]:
    """So much of what comes from these."""
    found: list[Check] = []

    async def main() -> None:
        one = prober(port, service, watch=True, timeout_s=timeout_s)
        following = asyncio.ensure_future(one.follow(found.append, SystemClock()))
        async with asyncio.timeout(WITHIN_S):
            while len(found) < count and not following.done():
                await asyncio.sleep(0.005)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await one.close()

    with health_server(watch=streams) as port:
        asyncio.run(main())
    return found[:count]


def test_each_message_of_a_stream_counts() -> None:
    streams = Streams((NOT_SERVING, SERVING, said(17), b"", SERVICE_UNKNOWN, SERVING))
    assert heard(streams, 6, "engine") == [N, S, N, N, N, S]
    assert streams.names == ["engine"], "one stream, also over SERVICE_UNKNOWN"


@pytest.mark.parametrize("end", ENDS, ids=str)
def test_a_stream_that_ends_is_a_failed_connection_and_called_again(end: grpc.StatusCode) -> None:
    assert heard(Streams((SERVING, end), (end,), (NOT_SERVING,)), 4) == [S, U, U, N]


def test_a_message_that_is_none_ends_the_stream() -> None:
    assert heard(Streams((SERVING, b"\xff\xff\xff"), (NOT_SERVING,)), 3) == [S, U, N]


def test_a_stream_without_a_first_message_is_given_up_and_silence_after_it_is_not() -> None:
    streams = Streams((), (SERVING, 0.5, NOT_SERVING))
    assert heard(streams, 3, timeout_s=0.1) == [U, S, N]
    assert len(streams.names) == 2


def test_unimplemented_ends_the_watching() -> None:
    streams = Streams((SERVING, grpc.StatusCode.UNAVAILABLE), (grpc.StatusCode.UNIMPLEMENTED,))
    assert heard(streams, 99) == [S, U]
    assert len(streams.names) == 2


def test_pauses_grow_until_a_message_comes() -> None:
    unavailable = grpc.StatusCode.UNAVAILABLE
    streams = Streams((unavailable,), (unavailable,), (SERVING, unavailable), (unavailable,), (SERVING,))
    pauses: list[float] = []

    class Noted(SystemClock):
        @staticmethod
        def jitter(value: float, share: float) -> float:
            pauses.append(value)
            assert share == 0.2
            return 0.0

    async def main(port: int) -> None:
        one = GrpcProber(Address(HOST, port), 5.0, watch=True)
        following = asyncio.ensure_future(one.follow(lambda _: None, Noted()))
        async with asyncio.timeout(WITHIN_S):
            while len(streams.names) < 5:
                await asyncio.sleep(0.005)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await one.close()

    with health_server(watch=streams) as port:
        asyncio.run(main(port))
    assert pauses == [1.0, 1.6, 1.0, 1.6]


# Both together, until `healthy` of the endpoint.


class Watched:
    """An endpoint whose health is watched at a server's `port`."""

    def __init__(self, port: int, **health: Any) -> None:
        self.endpoint = Endpoint(HOST, 1)
        self.endpoint.healthy = False
        self._health = Health(kind="grpc", **health)
        self._prober = prober(port, watch=True)

    async def until(self, healthy: bool) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.endpoint.healthy is not healthy:
                await asyncio.sleep(0.005)

    async def run(self, scenario: Awaitable[None]) -> None:
        watching = asyncio.ensure_future(
            watch_health(self._prober, self.endpoint, self._health, SystemClock())
        )
        try:
            await scenario
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def test_a_server_without_watch_is_asked_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = itertools.count(1)
    calls: list[int] = []

    def check(*_: object) -> bytes:
        calls.append(next(asked))
        return SERVING if len(calls) % 10 < 5 else NOT_SERVING

    async def main(port: int) -> None:
        watched = Watched(port, interval_s=0.01)

        async def scenario() -> None:
            for healthy in (True, False, True):
                await watched.until(healthy)

        await watched.run(scenario())

    with caplog.at_level(logging.INFO, "headgate"), health_server(check) as port:
        asyncio.run(main(port))
    assert caplog.text.count("has no Watch") == 1


def test_a_change_is_heard_long_before_it_would_be_asked_for() -> None:
    changes = {"NOT_SERVING": threading.Event(), "over": threading.Event()}

    def watch(*_: object) -> Iterator[bytes]:
        yield SERVING
        changes["NOT_SERVING"].wait(WITHIN_S)
        yield NOT_SERVING
        changes["over"].wait(WITHIN_S)

    def check(*_: object) -> bytes:
        return NOT_SERVING if changes["NOT_SERVING"].is_set() else SERVING

    async def main(port: int) -> None:
        watched = Watched(port, interval_s=3600)

        async def scenario() -> None:
            await watched.until(True)
            changes["NOT_SERVING"].set()
            await watched.until(False)

        await watched.run(scenario())
        changes["over"].set()

    with health_server(check, watch) as port:
        asyncio.run(main(port))


def test_an_engine_that_is_gone_is_noticed_by_the_end_of_its_stream_and_its_return_by_the_checks() -> None:
    streams = Streams((SERVING,))

    async def main() -> None:
        with health_server(lambda *_: SERVING, streams) as port:
            watched = Watched(port, interval_s=3600)
            leaving = asyncio.Event()

            async def scenario() -> None:
                await watched.until(True)
                leaving.set()
                await watched.until(False)
                with health_server(lambda *_: SERVING, port=port):
                    await watched.until(True)

            running = asyncio.ensure_future(watched.run(scenario()))
            await leaving.wait()
        await running

    asyncio.run(main())


def test_silence_on_a_stream_is_no_sign_of_life() -> None:
    hangs, over = threading.Event(), threading.Event()

    def check(*_: object) -> bytes:
        if hangs.is_set():
            over.wait(WITHIN_S)
        return SERVING

    async def main(port: int) -> None:
        watched = Watched(port, interval_s=0.05)
        watched._prober._timeout_s = 0.2

        async def scenario() -> None:
            await watched.until(True)
            hangs.set()
            await watched.until(False)

        await watched.run(scenario())
        over.set()

    with health_server(check, Streams((SERVING,))) as port:
        asyncio.run(main(port))
