"""What all connections of one sidecar share. Only the event loop's thread touches it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.http1.forwarded import Trust
    from sidecar.lifecycle import Lifecycle
    from sidecar.net.connections import Connections
    from sidecar.net.downstream import Downstream
    from sidecar.net.timers import Timers
    from sidecar.pipeline import Pipeline
    from sidecar.settings import Config, Timeouts


class Context:
    """A reload replaces the second group; exchanges keep the pipeline they started with."""

    __slots__ = (
        "buffered",
        "clients",
        "clock",
        "connections",
        "lifecycle",
        "max_buffered",
        "max_connections",
        "overload_status",
        "pipeline",
        "timeouts",
        "timers",
        "trust",
    )

    connections: Connections
    pipeline: Pipeline
    timeouts: Timeouts
    trust: Trust

    def __init__(self, clock: Clock, timers: Timers, lifecycle: Lifecycle) -> None:
        self.clock = clock
        self.timers = timers
        self.lifecycle = lifecycle
        self.clients: set[Downstream] = set()
        self.buffered = 0  # bytes of request bodies held whole

    def configure(self, config: Config, pipeline: Pipeline, trust: Trust) -> None:
        """Put a configuration in force for what begins now."""
        self.pipeline = pipeline
        self.trust = trust
        self.timeouts = config.timeouts
        self.max_buffered = config.max_buffered_bytes
        self.max_connections = config.max_connections
        self.overload_status = config.admission.overload_status
