"""One engine, as the balancer sees it."""

from __future__ import annotations

from sidecar.balance.load import EngineLoad


class Endpoint:
    """An address and what is known about it. `healthy` belongs to the active health check."""

    __slots__ = ("healthy", "host", "in_flight", "load", "name", "path", "port", "refused")

    def __init__(self, host: str = "", port: int = 0, path: str = "") -> None:
        self.host = host
        self.port = port
        self.path = path  # of a unix socket, instead of host and port
        if path:
            self.name = f"unix:{path}"
        else:
            self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.healthy = True
        self.in_flight = 0
        self.load = EngineLoad()  # what it says of itself
        self.refused = 0  # connections; a reason to check its health at once
