"""The client listener: accepts until told to stop, then lets what runs come to its end.

It does not accept what it could not serve: a client takes a file descriptor, and its exchange another
one to the engine. While there is none to spare, connections wait in the kernel's backlog, and nobody
is refused. So that they can, the listening sockets are ours; the event loop gets duplicates, which are
closed while nobody accepts. It takes one connection a turn, and we stop a turn or two later.

Who is there makes room for who waits: connections end with their answer (`Lifecycle.crowded`), and
those that have been idle for a while end at once, the longest first, as they would after keep_alive_s.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

from sidecar.net.downstream import Downstream
from sidecar.net.sockets import is_somebody_waiting, listening

if TYPE_CHECKING:
    import socket

    from sidecar.net.context import Context
    from sidecar.values import Address

_BACKLOG: Final = 1024
_POLL_S: Final = 0.05
_NOTICE_S: Final = 0.5
_FLUSH_S: Final = 5.0  # for last bytes on their way to clients that read
_MARGIN: Final = 4  # descriptors to spare, below which we stop accepting
_A_WHILE_S: Final = 1.0
_SAY_EVERY_S: Final = 60.0

log = logging.getLogger("headgate.listener")


class Listener:
    """Accepts client connections at `address`.

    `descriptors` is how many files connections may take, to clients and to engines; None: any number.
    `is_mesh`: this is where peers come in.
    """

    def __init__(
        self, context: Context, address: Address, descriptors: int | None = None, *, is_mesh: bool = False
    ) -> None:
        self._context = context
        self._is_mesh = is_mesh
        self._address = address
        self._descriptors = descriptors
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._full = asyncio.Event()
        self._silent_until = 0.0  # about pauses
        self._hurried = False
        self.port = address.port

    @property
    def room(self) -> int | None:
        """How many clients can be served at once; None: any number."""
        return None if self._descriptors is None else max((self._descriptors - _MARGIN) // 2, 1)

    async def start(self) -> None:
        """Open the listener; raises OSError when the address cannot be had."""
        self._sockets = await listening(self._address, _BACKLOG)
        if not self._address.path:
            self.port = self._sockets[0].getsockname()[1]
        await self._accept()

    async def pace(self) -> None:
        """Stop accepting while descriptors are short, for ever."""
        while True:
            await self._full.wait()
            self._pause()
            while not await self._resumed():
                self._make_room()
                await asyncio.sleep(_POLL_S)

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections stay."""
        self._close_servers()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def hurry(self) -> None:
        """Wait for nothing any more."""
        self._hurried = True

    async def finish(self, within_s: float) -> int:
        """Wait until no exchange is under way, then close all connections.

        Returns how many exchanges were cut because they outlasted `within_s`.
        """
        clock, clients = self._context.clock, self._context.clients
        until = clock.now() + within_s
        # What was on its way to an idle connection when we stopped gets its refusal, not a reset.
        looks_first = int(_NOTICE_S / _POLL_S)
        while not self._hurried and clock.now() < until:
            if looks_first <= 0 and all(client.is_idle for client in clients):
                break
            looks_first -= 1
            await asyncio.sleep(_POLL_S)
        cut = sum(not client.is_idle for client in clients)
        for client in list(clients):
            client.close()
        until = clock.now() + _FLUSH_S
        while clients and clock.now() < until:
            await asyncio.sleep(_POLL_S)
        for client in list(clients):
            client.abort()
        return cut

    async def _accept(self) -> None:
        """Let the event loop accept, unless we are told to stop."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets.copy():
            server = await loop.create_server(self._accepted, sock=sock.dup(), backlog=_BACKLOG)
            self._servers.append(server)
            if not self._sockets:  # told meanwhile
                self._close_servers()
                return

    def _accepted(self) -> Downstream:
        if self._spare() <= _MARGIN + 2:  # this one is not counted yet
            self._full.set()
        return Downstream(self._context, is_mesh=self._is_mesh)

    def _pause(self) -> None:
        context = self._context
        context.lifecycle.crowded = True
        self._close_servers()
        now = context.clock.now()
        if now >= self._silent_until:
            self._silent_until = now + _SAY_EVERY_S
            there = len(context.clients), context.connections.descriptors
            log.warning("new connections wait: %d clients and %d to the engine are all there can be", *there)

    async def _resumed(self) -> bool:
        enough = _MARGIN + (self._descriptors or 0) // 8
        if self._context.clients and self._spare() <= enough:  # one is served however few files may be open
            return False
        self._full.clear()
        try:
            await self._accept()
        except OSError:  # others have taken the descriptors
            self._close_servers()
            return False
        self._context.lifecycle.crowded = False
        return True

    def _make_room(self) -> None:
        if not any(map(is_somebody_waiting, self._sockets)):
            return
        context = self._context
        before = context.clock.now() - _A_WHILE_S
        idle = [client for client in context.clients if client.is_idle and client.idle_since < before]
        idle.sort(key=lambda client: client.idle_since)
        for client in idle[: (self.room or 0) // 8 + 1]:
            client.close()

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _spare(self) -> float:
        """How many descriptors are left, when each client has one to the engine."""
        if self._descriptors is None:
            return math.inf
        clients, engines = len(self._context.clients), self._context.connections.descriptors
        return self._descriptors - clients - self._context.turned_away - max(clients, engines)
