"""Where it runs: the engine beside us, while it is healthy. Pure part: `balance.endpoint`.

At dispatch, not at arrival, so that it sees what is true now. This is the retry point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import NO_ENDPOINT, TIMEOUT
from sidecar.exchange import Exchange, Reply, Verdict
from sidecar.pipeline import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.balance.endpoint import Endpoint
    from sidecar.clock import Clock


class Pick(Stage):
    """Chooses among the engine's endpoints the healthy one with the least in flight."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Clock, retry_after_s: float) -> None:
        self._endpoints = endpoints
        self._clock = clock
        self._retry_after_s = retry_after_s

    def on_request(self, x: Exchange) -> Verdict:
        best: Endpoint | None = None
        for endpoint in self._endpoints:
            if endpoint.healthy and (best is None or endpoint.in_flight < best.in_flight):
                best = endpoint
        now = self._clock.now()
        x.endpoint = None
        if x.deadline is not None and x.deadline <= now:
            return Reply(TIMEOUT)  # nobody waits for it any more
        x.endpoint = best
        if best is None:
            return Reply(NO_ENDPOINT, retry_after_s=self._clock.jitter(self._retry_after_s, 0.2))
        best.in_flight += 1
        x.dispatched = now
        return None

    def on_complete(self, x: Exchange) -> None:
        if x.endpoint is not None:
            x.endpoint.in_flight -= 1
