"""Asks the engine whether it is well, and which models it serves. Off the request path."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.balance.health import Check, HealthState, Rules
from sidecar.http1.response import ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sidecar.balance.endpoint import Endpoint
    from sidecar.clock import Clock
    from sidecar.faults import Health
    from sidecar.http1.response import ResponseHead
    from sidecar.llm.models import Catalog
    from sidecar.values import Address

_MAX_ANSWER: Final = 4 * 1024 * 1024
_SOON_S: Final = 0.2  # after a failure; and between two checks because of refused connections
_MODELS_EVERY_S: Final = 30.0  # adapters come and go at run time
_MODELS_RETRY_S: Final = 1.0
_MODELS_PATIENCE_S: Final = 5.0
_MODELS_TIMEOUT_S: Final = 5.0

log = logging.getLogger("headgate.probe")


class Prober(Protocol):
    """One kind of health check."""

    async def check(self) -> Check:
        """Ask once; must come back within the time-out it was made with."""
        ...

    async def follow(self, hear: Callable[[Check], None], clock: Clock) -> None:
        """Call `hear` with what comes without asking, for as long as that can be had. Raises nothing."""

    async def close(self) -> None:
        """Let go of what it holds."""


class HttpProber:
    """One of the `expected` statuses to a GET is serving, another is not."""

    def __init__(
        self, address: Address, path: str, timeout_s: float, expected: Collection[int] = (200,)
    ) -> None:
        self._address = address
        self._path = path
        self._timeout_s = timeout_s
        self._expected = expected

    async def check(self) -> Check:
        try:
            status, _ = await fetch(self._address, self._path, self._timeout_s)
        except Exception as error:  # a check that fails to be made must not end the checking
            log.debug("%s: %s", self._address, error or "timed out")
            return Check.UNREACHABLE
        return Check.SERVING if status in self._expected else Check.NOT_SERVING

    async def follow(self, hear: Callable[[Check], None], clock: Clock) -> None:
        """Nothing comes without asking."""

    async def close(self) -> None:
        """It holds nothing."""


class TcpProber:
    """A connection that is accepted is serving; nothing is sent on it."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s

    async def check(self) -> Check:
        try:
            async with asyncio.timeout(self._timeout_s):
                _, writer = await _connect(self._address)
        except OSError as error:  # TimeoutError among them
            log.debug("%s: %s", self._address, error or "timed out")
            return Check.UNREACHABLE
        writer.close()
        return Check.SERVING

    async def follow(self, hear: Callable[[Check], None], clock: Clock) -> None:
        """Nothing comes without asking."""

    async def close(self) -> None:
        """It holds nothing."""


async def fetch(address: Address, path: str, timeout_s: float) -> tuple[int, bytes]:
    """GET `path`: status and body. Raises OSError, TimeoutError or ProtocolError."""
    head, body = await get(address, path, timeout_s, _MAX_ANSWER)
    return head.status, body


async def get(
    address: Address, path: str, timeout_s: float, most: int, lines: bytes = b""
) -> tuple[ResponseHead, bytes]:
    """GET `path`: head, and body of at most so many bytes. Raises OSError, TimeoutError or ProtocolError.

    `lines`: further header lines, each with its CRLF.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await _connect(address)
        try:
            host = "localhost" if address.path else str(address)
            head = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n".encode()
            writer.write(b"%b%b\r\n" % (head, lines))
            return await _answer(reader, most)
        finally:
            writer.transport.abort()


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.path:
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection(address.host, address.port)


async def _answer(reader: asyncio.StreamReader, most: int) -> tuple[ResponseHead, bytes]:
    response = ResponseReader()
    response.expect(b"GET")
    body = bytearray()
    while not response.complete:
        data = await reader.read(65536)
        if not data:
            if not response.end_of_stream():
                raise ConnectionResetError("the engine closed in the middle of its answer")
            break
        response.feed(data)
        body += response.take()
        if len(body) > most:
            raise ConnectionAbortedError("the engine's answer is too large")
    assert response.head is not None
    return response.head, bytes(body)


class _Verdict:
    """Keeps `endpoint.healthy` true to the results it is given."""

    def __init__(self, endpoint: Endpoint, rules: Rules) -> None:
        self.state = HealthState(rules, endpoint.healthy)
        self.heard = 0
        self._endpoint = endpoint

    def take(self, result: Check) -> None:
        self.heard += 1
        if self.state.on_check(result):
            self._endpoint.healthy = self.state.healthy
            verdict = "healthy" if self.state.healthy else "out"
            log.info("engine %s is %s (%s)", self._endpoint.name, verdict, result.value)


async def watch_health(prober: Prober, endpoint: Endpoint, health: Health, clock: Clock) -> None:
    """Keep `endpoint.healthy` true to what the checks say and what is heard between them, for ever."""
    verdict = _Verdict(endpoint, _rules(health))
    try:
        await asyncio.sleep(clock.jitter(health.initial_jitter_s, 1.0) - health.initial_jitter_s)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(prober.follow(verdict.take, clock))
            while True:
                heard = verdict.heard
                result = await prober.check()
                if verdict.heard == heard:  # else this answer may be older than what was heard
                    verdict.take(result)
                await _pause(verdict.state, endpoint, clock.jitter(1.0, health.interval_jitter_percent / 100))
    finally:
        await prober.close()


async def _pause(state: HealthState, endpoint: Endpoint, stretch: float) -> None:
    """Until the next check is due: also when something was heard, or the endpoint refused a connection."""
    refused = endpoint.refused
    waited = 0.0
    while (left := state.pause_s * stretch - waited) > 0 and endpoint.refused == refused:
        step = min(left, _SOON_S)
        await asyncio.sleep(step)
        waited += step


def _rules(health: Health) -> Rules:
    interval = health.interval_s
    unhealthy = health.unhealthy_interval_s or min(interval, _SOON_S)
    return Rules(
        health.unhealthy_threshold,
        health.healthy_threshold,
        interval,
        unhealthy,
        health.unhealthy_edge_interval_s or unhealthy,
        health.healthy_edge_interval_s or interval,
    )


async def watch_models(address: Address, catalog: Catalog) -> None:
    """Keep `catalog` true to what the engine lists, for ever."""
    complained = False
    pause = _MODELS_RETRY_S / 2
    while True:
        try:
            status, listing = await fetch(address, "/v1/models", _MODELS_TIMEOUT_S)
            if status != 200:
                raise ValueError(f"the engine answers {status}")
            catalog.load(listing)
            complained = False
            pause = _MODELS_EVERY_S
        except Exception as error:  # without names every model is `other`; nothing else depends on it
            if not complained:
                log.warning("the engine's list of models cannot be had: %s", error or "timed out")
            complained = True
            pause = min(pause * 2, _MODELS_PATIENCE_S)
        await asyncio.sleep(pause)
