"""The server with the faults of `faults`: whatever a `Switch` says applies, its clients see.

What spoils bytes is done in one place, a `Line` between aiohttp and each connection's transport: aiohttp
itself only writes correct HTTP.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from model_pod.faults import Empty, Framing, Hang, Refuse, Reset, Status
from model_pod.openai import ApiError
from model_pod.server import BACKLOG, SSE_HEADERS, Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from model_pod.engine import Engine
    from model_pod.fault_switch import Switch
    from model_pod.faults import Steady
    from model_pod.health import Health
    from model_pod.server import Answer

NO_HTTP = b"\x00\x01 this is no answer\r\n\r\n"
NO_SIZE = b"zz\r\n"
NEVER_SENT = 1 << 20  # bytes that a content-length promises beyond what comes
DONE = b"data: [DONE]\n\n"
# A reset discards what the peer's kernel has not taken yet: so long it is waited for.
FLUSH_S, FLUSH_CHECKS = 0.005, 1000


class Line:
    """A connection's transport, which may break off or spoil the answer that is written to it."""

    __slots__ = ("_ended", "_is_answer_spoilt", "_pieces", "_sent", "_switch", "_transport")

    def __init__(self, transport: asyncio.Transport, switch: Switch) -> None:
        self._transport = transport
        self._switch = switch
        self._ended = False  # by a fault: what is written is lost
        self.begin(spoilt=False)

    def begin(self, *, spoilt: bool) -> None:
        """The next answer comes; `spoilt`: faults apply to it."""
        self._is_answer_spoilt = spoilt
        self._sent = 0  # bytes
        self._pieces = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def write(self, data: bytes) -> None:
        if self._ended:
            return
        fault, sent = self._switch.current, self._sent
        self._sent += len(data)
        self._pieces += 1
        if not self._is_answer_spoilt:
            self._transport.write(data)
        elif isinstance(fault, Reset) and self._sent >= fault.after_bytes:
            self._ended = True
            self._transport.write(data[: max(0, fault.after_bytes - sent)])
            self._reset(FLUSH_CHECKS)
        elif isinstance(fault, Framing) and fault.what == "head" and not sent:
            self._close(NO_HTTP)
        # The first piece is the head, the second the first chunk.
        elif isinstance(fault, Framing) and fault.what == "chunk_size" and self._pieces > 2:
            self._close(NO_SIZE + data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        if not self._ended:
            self._transport.close()

    def _close(self, last: bytes) -> None:
        self._ended = True
        self._transport.write(last)
        self._transport.close()

    def _reset(self, checks: int) -> None:
        """Reset the connection when what was written is with the peer."""
        if self._transport.is_closing():
            return
        if checks and self._unsent():
            asyncio.get_running_loop().call_later(FLUSH_S, self._reset, checks - 1)
            return
        peer = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _unsent(self) -> int:
        """Bytes that wait here or in the kernel."""
        waiting = self._transport.get_write_buffer_size()
        number = self._transport.get_extra_info("socket").fileno()
        (in_kernel,) = struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, struct.pack("i", 0)))
        return waiting + int(in_kernel)


class FaultyServer(Server):
    """A `Server` that does wrong as its switch says."""

    def __init__(self, engine: Engine, model_name: str, switch: Switch) -> None:
        super().__init__(engine, model_name)
        self._switch = switch

    def app(self) -> web.Application:
        app = super().app()
        app.middlewares.append(self._spoil)
        return app

    @web.middleware
    async def _spoil(
        self, http: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        is_answer = http.method == "POST"
        self._line(http).begin(spoilt=is_answer)
        if not is_answer:
            return await handler(http)
        await http.read()
        fault = self._switch.current
        if isinstance(fault, Status) and self._switch.spread.hits(fault.rate):
            return refusal(fault.status)
        if fault in (Reset(after_bytes=0), Framing(what="head")):
            return web.Response()  # not a byte of it leaves
        response = await handler(http)
        return await self._misframe(http, response) if isinstance(response, web.Response) else response

    def _line(self, http: web.Request) -> Line:
        protocol = http.protocol
        transport: object = protocol.transport
        if not isinstance(transport, Line):
            transport = Line(cast(asyncio.Transport, transport), self._switch)
            protocol.transport = cast(asyncio.Transport, transport)
        return transport

    def _misframes(self, what: str) -> bool:
        fault = self._switch.current
        return isinstance(fault, Framing) and fault.what == what

    async def _misframe(self, http: web.Request, whole: web.Response) -> web.StreamResponse:
        """An answer that is not streamed, as a fault wants it."""
        body = whole.body
        assert isinstance(body, bytes)
        if self._misframes("content_length"):
            whole.headers["content-length"] = str(len(body) + NEVER_SENT)
            whole.force_close()
        if not self._misframes("chunk_size"):
            return whole
        response = web.StreamResponse(headers={"content-type": whole.content_type})
        response.enable_chunked_encoding()
        await response.prepare(http)
        half = len(body) // 2
        await response.write(body[:half])
        await response.write(body[half:])
        return response

    async def _health(self, http: web.Request) -> web.Response:
        await self._switch.healthy.wait()
        return await super()._health(http)

    async def _stream(self, http: web.Request, answer: Answer) -> web.StreamResponse:
        fault = self._switch.current
        if not isinstance(fault, Empty):
            return await super()._stream(http, answer)
        response = await self._open(http)
        if fault.done:
            await response.write(DONE)
        return response

    async def _open(self, http: web.Request) -> web.StreamResponse:
        await self._switch.pace.moving.wait()
        if not self._misframes("content_length"):
            return await super()._open(http)
        response = web.StreamResponse(headers=SSE_HEADERS)
        response.content_length = NEVER_SENT
        response.force_close()
        await response.prepare(http)
        return response


def refusal(status: int) -> web.Response:
    """An error as vLLM words it."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Server Error"
    error = ApiError(f"{phrase} (a fault on demand)", kind=phrase.replace(" ", ""), code=status)
    return web.Response(status=status, body=error.body(), content_type="application/json")


class Ports:
    """What an engine listens on: HTTP, and health if it has a port for it."""

    def __init__(self, runner: web.AppRunner, health: Health | None) -> None:
        self._runner = runner
        self._health = health
        self._held: list[socket.socket] = []  # while nobody listens on them nobody else gets them

    async def follow(self, fault: Steady) -> None:
        """Refuse, accept, answer or be silent as `fault` wants it."""
        if self._health is not None:
            self._health.silence(isinstance(fault, Hang) and fault.health == "silent")
        if isinstance(fault, Refuse) != bool(self._held):
            await (self._accept() if self._held else self._refuse())

    async def _refuse(self) -> None:
        assert self._runner.server is not None
        addresses = self._runner.addresses
        for site in self._runner.sites:
            await site.stop()
        self._held = [bound(*address[:2]) for address in addresses]
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        if self._health is not None:
            await asyncio.to_thread(self._health.close)

    async def _accept(self) -> None:
        if self._health is not None:
            await asyncio.to_thread(self._health.open)
        held, self._held = self._held, []
        for each in held:
            await web.SockSite(self._runner, each, backlog=BACKLOG).start()


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    held = socket.socket(family, kind)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    held.bind(address)
    return held
