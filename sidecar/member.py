"""This pod as a member of its mesh: where peers come in, what makes them believe us, whom we know.

Members meet in Redis, or ask those that are listed. Nothing here is on a request's way: `Plane.fleet` is a
local copy of what is known, and is read by whoever picks.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.balance.caller import read_keys
from sidecar.errors import ConfigError
from sidecar.net.listener import Listener
from sidecar.net.peers import Peers
from sidecar.net.watch import FileWatch
from sidecar.stages.hop import HEARTBEAT
from sidecar.values import Address

if TYPE_CHECKING:
    import asyncio

    from sidecar.plane import Plane
    from sidecar.settings import Config, Mesh

_WILDCARDS: Final = ("0.0.0.0", "::")

log = logging.getLogger("headgate.member")


class Member:
    """`room`: how many files connections may take. Raises ConfigError where the keys cannot be read."""

    def __init__(self, plane: Plane, config: Config, mesh: Mesh, room: int | None) -> None:
        self._plane = plane
        self._mesh = mesh
        self._host = _host(config, mesh)
        # Peers reach us where callers do, unless we are told to listen elsewhere.
        address = mesh.listen or (Address(host=config.listen.host or self._host) if self._host else None)
        self._listener = Listener(plane.context, address, room, is_mesh=True) if address else None
        self._secret = FileWatch(Path(mesh.secret_file)) if mesh.secret_file else None
        if mesh.secret_file:
            plane.hop.keys = _keys(Path(mesh.secret_file))
        self._peers = Peers(plane.fleet, plane.hop, HEARTBEAT, plane.clock, mesh.peers, self._is_alone)

    async def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Open the listener and begin to meet others; raises OSError when the address cannot be had."""
        begun = [tasks.create_task(self._peers.run())]
        if self._listener is not None:
            await self._listener.start()
            begun.append(tasks.create_task(self._listener.pace()))
        if self._listener is not None and self._host:
            self._plane.peer_address = str(Address(host=self._host, port=self._listener.port))
        else:
            log.warning("mesh.advertise is absent and listen names no host: peers cannot reach this pod")
        return begun

    def stop_accepting(self) -> None:
        """Close the listener; what came in stays."""
        if self._listener is not None:
            self._listener.stop_accepting()

    def look_for_changes(self) -> None:
        """Take new keys from the secret file; whatever else it holds, the old ones stay."""
        if self._secret is None:
            return
        content = self._secret.changed()
        if content is not None:
            try:
                self._plane.hop.keys = read_keys(content)
                log.info("the mesh's keys have changed")
            except ValueError as error:
                log.error("mesh.secret_file %s; the old keys stay in force", error)

    def _is_alone(self) -> bool:
        """Nobody but the peers themselves can say how they are."""
        return False


def _host(config: Config, mesh: Mesh) -> str:
    """Where this pod is reached; empty: that is not known."""
    for address in (mesh.advertise, mesh.listen, config.listen):
        if address is not None and address.host and address.host not in _WILDCARDS:
            return address.host
    return ""


def _keys(path: Path) -> tuple[bytes, ...]:
    try:
        return read_keys(path.read_bytes())
    except OSError as error:
        raise ConfigError("mesh.secret_file", f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError("mesh.secret_file", str(error)) from None
