"""What all connections of one sidecar share. Only the event loop's thread touches it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from sidecar.flow.places import Places
from sidecar.http1.encode import Date
from sidecar.net.complaints import Complaints
from sidecar.net.sockets import peer_has_left

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sidecar.balance.orca import LoadReport
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange
    from sidecar.flow.budget import Budget
    from sidecar.http1.forwarded import Trust
    from sidecar.lifecycle import Lifecycle
    from sidecar.net.connections import Connections
    from sidecar.net.downstream import Downstream
    from sidecar.net.timers import Timers
    from sidecar.pipeline import Pipeline
    from sidecar.settings import Config, Timeouts


class Context:
    """A reload replaces what `configure` sets; exchanges keep the pipeline and time-outs they began with."""

    __slots__ = (
        "bodies",
        "clients",
        "clock",
        "complaints",
        "connections",
        "date",
        "has_elsewhere",
        "has_left",
        "introduce",
        "lifecycle",
        "max_connections",
        "members",
        "overload_status",
        "patience_s",
        "pipeline",
        "places",
        "report",
        "timeouts",
        "timers",
        "trust",
        "turned_away",
    )

    connections: Connections
    pipeline: Pipeline
    timeouts: Timeouts
    trust: Trust

    def __init__(
        self, clock: Clock, timers: Timers, lifecycle: Lifecycle, bodies: Budget, report: LoadReport
    ) -> None:
        self.clock = clock
        self.complaints = Complaints(clock.now)
        self.date = Date(clock.wall)
        self.timers = timers
        self.lifecycle = lifecycle
        self.bodies = bodies  # bytes of them that are held in memory
        self.report = report  # how full this pod is, for the heads of answers
        self.clients: set[Downstream] = set()
        self.members = 0  # of the clients: connections of peers, who carry many callers each
        self.places = Places()  # connections of each address
        self.patience_s = inf  # after so long without a first token another pod is asked
        self.turned_away = 0  # connections beyond max_connections that are being told so
        self.introduce: Callable[[Exchange, bytes], bytes] = _nobody
        self.has_elsewhere: Callable[[], bool] = lambda: True
        self.has_left: Callable[[asyncio.BaseTransport], bool] = peer_has_left

    def configure(self, config: Config, pipeline: Pipeline, trust: Trust) -> None:
        """Put a configuration in force for what begins now."""
        self.pipeline = pipeline
        self.trust = trust
        self.timeouts = config.timeouts
        self.max_connections = config.max_connections
        self.places.limit = config.max_connections_per_client
        self.overload_status = config.admission.overload_status
        self.report.turn(config.telemetry.orca == "on")

    def enter(self, client: Downstream) -> str | None:
        """Take `client` in, or say why it is one too many."""
        # Apart: neither may keep the other out.
        if client.is_mesh:
            if self.members >= self.max_connections:
                return "try another pod"
            self.members += 1
            self.clients.add(client)
            return None
        if len(self.clients) - self.members >= self.max_connections:
            return "try another pod"
        # A proxy's address carries many callers, and a unix socket has none.
        if client.peer and not self.trust.covers(client.peer):
            client.has_place = self.places.take(client.peer)
            if not client.has_place:
                return f"at most {self.places.limit} for each address"
        self.clients.add(client)
        return None

    def leave(self, client: Downstream) -> None:
        """It is gone, whether or not it was taken in."""
        if client.is_mesh and client in self.clients:
            self.members -= 1
        self.clients.discard(client)
        if client.has_place:
            self.places.give_back(client.peer)


def _nobody(x: Exchange, target: bytes) -> bytes:
    """There is no mesh."""
    return b""
