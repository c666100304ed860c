"""One hop between the sidecars of a mesh: what the first tells the second about whose request it is.

Pure part: `balance.caller`. The first keeps who asks, quotas and the settlement; the second decides when it
runs. Both ends are here, because they are two halves of one agreement. A request that has come over makes no
further hop, and one that comes back to the pod it left, or has come further, is a loop.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from sidecar.balance.caller import HOP, Caller, Forged, belongs_to, lines, read
from sidecar.errors import FORBIDDEN, LOOP
from sidecar.exchange import Exchange, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.balance.caller import Keys
    from sidecar.clock import Clock

HEARTBEAT: Final = "/.headgate/heartbeat"  # what a member says of itself, to a member


class Hop:
    """`pod` is this pod. While `keys` is empty nobody is believed, and nothing is handed on."""

    def __init__(self, pod: str, clock: Clock, heartbeat: Callable[[], bytes]) -> None:
        self.pod = pod
        self.keys: Keys = ()
        self.heartbeat = heartbeat
        self._clock = clock

    def introduce(self, x: Exchange, target: bytes) -> bytes:
        """The header lines that go with `x` to a peer, which is asked for `target`."""
        now, request = self._clock.now(), x.request
        caller = Caller(
            pod=self.pod,
            tenant=x.tenant,
            cls=x.cls,
            weight=x.weight,
            address=x.client_ip,
            repeat=x.repeat,
            elapsed_ms=_ms(now - x.origin),
            first_byte_ms=None if x.deadline is None else _ms(x.deadline - now),
            last_byte_ms=None if x.last_byte_by is None else _ms(x.last_byte_by - now),
        )
        length = len(x.body) if x.body is not None else request.length
        return lines(caller, self.keys, belongs_to(request.method, target, x.request_id, length))

    def receive(self, x: Exchange) -> Reply | None:
        """Take over what the peer that sent `x` says of it; or refuse it."""
        request, now = x.request, self._clock.now()
        noted = request.noted
        about = belongs_to(request.method, request.target, x.request_id, request.length)
        try:
            caller = read(noted, self.keys, about)
        except Forged as error:
            return Reply(FORBIDDEN, message=f"Only members of this mesh may come in here ({error}).")
        if caller.pod == self.pod or noted.get(HOP) != b"1":
            return Reply(LOOP)
        x.hop = 1
        x.tenant, x.cls, x.weight = caller.tenant, caller.cls, caller.weight
        x.client_ip, x.by_proxy = caller.address, True
        x.repeat = caller.repeat
        x.origin = now - caller.elapsed_ms / 1000
        if caller.first_byte_ms is not None:
            x.deadline = now + caller.first_byte_ms / 1000
        if caller.last_byte_ms is not None:
            x.last_byte_by = now + caller.last_byte_ms / 1000
        return None


def _ms(seconds: float) -> int:
    return ceil(max(seconds, 0.0) * 1000)
