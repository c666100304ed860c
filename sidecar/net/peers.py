"""Asks peers how they are, each at the listener where it takes work from us: off the request path.

A peer that is listed in `mesh.peers` is known in no other way. One that was met in Redis is asked while
Redis is away. Who does not answer twice in a row is left until it does; nobody is asked in step with others.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sidecar.balance.caller import Caller, belongs_to, lines
from sidecar.balance.heartbeat import MAX_BYTES, decode
from sidecar.net.probe import get
from sidecar.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.balance.fleet import Fleet
    from sidecar.clock import Clock
    from sidecar.stages.hop import Hop

EVERY_S: Final = 1.0
_TIMEOUT_S: Final = 1.0
_MISSED: Final = 2
_AT_ONCE: Final = 16
_JITTER: Final = 0.2

log = logging.getLogger("headgate.peers")


class Peers:
    """Asks those in `listed`, and, while `is_alone`, those that the fleet knows."""

    def __init__(
        self,
        fleet: Fleet,
        hop: Hop,
        path: str,
        clock: Clock,
        listed: Sequence[Address],
        is_alone: Callable[[], bool],
    ) -> None:
        self._fleet = fleet
        self._hop = hop
        self._path = path
        self._clock = clock
        self._listed = listed
        self._is_alone = is_alone
        self._missed: dict[Address, int] = {}
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._clock.jitter(EVERY_S, _JITTER))
            whom = set(self._listed)
            if self._is_alone():
                whom |= {Address(host=peer.host, port=peer.port) for peer in self._fleet.peers.values()}
            self._missed = {address: self._missed.get(address, 0) for address in whom}
            if self._hop.keys and whom:
                await asyncio.gather(*map(self._ask, whom))

    async def _ask(self, address: Address) -> None:
        async with self._free:
            try:
                head, body = await get(address, self._path, _TIMEOUT_S, MAX_BYTES, self._introduction())
                if head.status != 200:
                    raise ValueError(f"it answers {head.status}")
                heartbeat = decode(body)
            except Exception as error:  # whatever it is, it is no answer
                self._no_answer(address, error)
                return
        self._missed[address] = 0
        if heartbeat.pod != self._hop.pod:  # else it is us: one list may serve all pods
            self._fleet.hear(replace(heartbeat, address=str(address)), self._clock.now())

    def _no_answer(self, address: Address, error: Exception) -> None:
        self._missed[address] = missed = self._missed.get(address, 0) + 1
        if missed == _MISSED:
            log.warning("peer %s does not answer: %s", address, error or "timed out")
        if missed >= _MISSED:
            for peer in self._fleet.peers.values():
                if (peer.host, peer.port) == (address.host, address.port):
                    peer.state, peer.why = "down", "does not answer"

    def _introduction(self) -> bytes:
        token = self._clock.token()
        caller = Caller(self._hop.pod, "mesh", "", 1.0, "", 0, 0, None, None)
        words = lines(caller, self._hop.keys, belongs_to(b"GET", self._path.encode(), token, 0))
        return b"x-request-id: %b\r\n%b" % (token, words)
