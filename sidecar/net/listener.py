"""The client listener: accepts until told to stop, then lets what runs come to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidecar.net.downstream import Downstream
from sidecar.net.sockets import remove_stale_socket

if TYPE_CHECKING:
    from sidecar.net.context import Context
    from sidecar.settings import Address

_BACKLOG: Final = 1024
_POLL_S: Final = 0.05
_NOTICE_S: Final = 0.5
_FLUSH_S: Final = 5.0  # for last bytes on their way to clients that read


class Listener:
    """Accepts client connections at `address`."""

    def __init__(self, context: Context, address: Address) -> None:
        self._context = context
        self._address = address
        self._server: asyncio.Server | None = None
        self._hurried = False
        self.port = address.port

    async def start(self) -> None:
        """Open the listener; raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        address = self._address
        if address.path:
            remove_stale_socket(address.path)
            self._server = await loop.create_unix_server(self._accept, address.path, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(
                self._accept, address.host, address.port, backlog=_BACKLOG
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def stop_accepting(self) -> None:
        """Close the listening socket; connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

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

    def _accept(self) -> Downstream:
        return Downstream(self._context)
