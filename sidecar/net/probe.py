"""Asks the engine whether it is well, and which models it serves. Off the request path."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.balance.health import Check, HealthState
from sidecar.http1.response import ResponseReader

if TYPE_CHECKING:
    from sidecar.balance.endpoint import Endpoint
    from sidecar.http1.response import ResponseHead
    from sidecar.llm.models import Catalog
    from sidecar.values import Address

_MAX_ANSWER: Final = 4 * 1024 * 1024
_SOON_S: Final = 0.2
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

    async def close(self) -> None:
        """Let go of what it holds."""


class HttpProber:
    """200 to a GET is serving, another status is not."""

    def __init__(self, address: Address, path: str, timeout_s: float) -> None:
        self._address = address
        self._path = path
        self._timeout_s = timeout_s

    async def check(self) -> Check:
        try:
            status, _ = await fetch(self._address, self._path, self._timeout_s)
        except Exception as error:  # a check that fails to be made must not end the checking
            log.debug("%s: %s", self._address, error or "timed out")
            return Check.UNREACHABLE
        return Check.SERVING if status == 200 else Check.NOT_SERVING

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
        if address.path:
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            host = "localhost" if address.path else str(address)
            head = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n".encode()
            writer.write(b"%b%b\r\n" % (head, lines))
            return await _answer(reader, most)
        finally:
            writer.transport.abort()


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


async def watch_health(prober: Prober, endpoint: Endpoint, interval_s: float) -> None:
    """Keep `endpoint.healthy` true to what the checks say, for ever.

    The next check comes after `interval_s`, but soon after one that failed, and when the endpoint
    refused a connection meanwhile.
    """
    state = HealthState(endpoint.healthy)
    try:
        while True:
            result = await prober.check()
            if state.on_check(result):
                endpoint.healthy = state.healthy
                verdict = "healthy" if state.healthy else "out"
                log.info("engine %s is %s (%s)", endpoint.name, verdict, result.value)
            refused = endpoint.refused
            pause = min(interval_s, _SOON_S)
            waited = 0.0
            while waited < (interval_s if result is Check.SERVING else pause) and endpoint.refused == refused:
                await asyncio.sleep(pause)
                waited += pause
    finally:
        await prober.close()


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
