"""This pod as a member of its mesh: where peers come in, what makes them believe us, whom we know.

Members meet at a blackboard in Redis, or ask those that are listed. Nothing here is on a request's way:
`Plane.fleet` is a local copy of what is known, and is read by whoever picks. While Redis is away the last
view is kept, and members ask each other how they are.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.balance.blackboard import LEFT, PAYLOAD_BYTES, Post, Terms, channel, keys
from sidecar.balance.caller import read_keys
from sidecar.balance.heartbeat import decode, encode
from sidecar.errors import ConfigError
from sidecar.net.blackboard import Blackboard, source
from sidecar.net.listener import Listener
from sidecar.net.peers import Peers
from sidecar.net.watch import FileWatch
from sidecar.stages.hop import HEARTBEAT
from sidecar.values import Address

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sidecar.balance.blackboard import Notice, View
    from sidecar.balance.heartbeat import Heartbeat
    from sidecar.net.blackboard import Line, Script
    from sidecar.plane import Plane
    from sidecar.settings import Config, Mesh

_KEY_BYTES: Final = 32
_NAMES_BYTES: Final = PAYLOAD_BYTES * 3 // 4  # of models; the rest is for all else
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
        self._peers = Peers(
            plane.fleet, plane.hop, HEARTBEAT, plane.clock, mesh.peers, self._is_alone, self._know
        )
        self._viewed = 0  # as of when, by the server's clock
        self.blackboard = self._make_blackboard(config) if config.redis is not None else None
        plane.changed = self._changed
        plane.judge.asks = self._asks

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
        if self.blackboard is not None:
            begun.append(tasks.create_task(self.blackboard.run()))
        return begun

    async def leave(self) -> None:
        """Tell the others that this pod is no more."""
        if self.blackboard is not None:
            await self.blackboard.leave()

    def configure(self, config: Config, *, moved: bool) -> None:
        """Put a configuration in force; `moved`: Redis is another one."""
        if self.blackboard is not None:
            self.blackboard.terms = _terms(config, self._mesh)
            if moved:
                self.blackboard.move(*_openers(config, self._mesh))

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
        return self.blackboard is not None and not self.blackboard.connected

    # The blackboard.

    def _make_blackboard(self, config: Config) -> Blackboard:
        plane, mesh = self._plane, self._mesh
        script, line = _openers(config, mesh)
        secret = ""
        if mesh.secret_file is None:
            secret = secrets.token_hex(_KEY_BYTES)
            log.warning("mesh.secret_file is absent: peers share a key that is kept in Redis")
        blackboard = Blackboard(
            script,
            line,
            mesh.name,
            mesh.pod,
            terms=_terms(config, mesh),
            ask=self._post,
            take=self._take,
            hear=self._hear,
            clock=plane.clock,
            complaints=plane.context.complaints,
            secret=secret,
        )
        plane.metrics.gauge("headgate_mesh_connected", lambda: blackboard.connected)
        plane.metrics.gauge("headgate_mesh_peers", lambda: len(plane.fleet.peers))
        return blackboard

    def _changed(self) -> None:
        if self.blackboard is not None:
            self.blackboard.hurry()

    def _asks(self) -> bool:
        if self.blackboard is None or not self.blackboard.connected:
            return False
        self.blackboard.hurry()
        return True

    def _post(self) -> Post:
        plane = self._plane
        heartbeat = plane.heartbeat()
        origins, retries = plane.retries.take()
        return Post(
            payload=encode(heartbeat, _NAMES_BYTES),
            state=heartbeat.state,
            capacity=heartbeat.capacity,
            demand=heartbeat.capacity * heartbeat.utilization,
            votes=plane.judge.votes(),
            uneject=plane.judge.uneject(),
            origins=origins,
            retries=retries,
        )

    def _take(self, view: View) -> None:
        plane = self._plane
        self._viewed = view.at_ms
        if self._secret is None and view.secret:
            plane.hop.keys = (view.secret.encode(),)
        for member in view.members:
            self._meet(member.pod, member.payload, member.age_ms / 1000)
        if view.settled:
            plane.fleet.keep({member.pod for member in view.members})
        plane.retries.hear(view.origins, view.retries)
        plane.judge.take(view)

    def _hear(self, notice: Notice) -> None:
        member = notice.member
        if member is not None and member.state == LEFT:
            self._plane.fleet.forget(member.pod)
        elif member is not None:
            self._meet(member.pod, member.payload, 0.0)
        if notice.ejected is not None and notice.at_ms >= self._viewed:
            self._plane.judge.hear_ejected(notice.ejected)

    def _meet(self, pod: str, payload: bytes, age_s: float) -> None:
        plane = self._plane
        if pod == plane.hop.pod:
            return
        try:
            heartbeat = decode(payload)
            if heartbeat.pod != pod:
                raise ValueError("it is another pod's")
        except ValueError:
            plane.context.complaints.warn(f"peer {pod}", "its heartbeat cannot be read")
            return
        self._know(heartbeat, age_s)

    def _know(self, heartbeat: Heartbeat, age_s: float = 0.0) -> None:
        plane = self._plane
        if not plane.hop.keys:
            return  # it would not believe us
        now = plane.clock.now()
        plane.fleet.models = frozenset(plane.catalog.labels())
        if plane.fleet.hear(heartbeat, now, age_s) is not None:
            plane.judge.hear(heartbeat, now - age_s)


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


def _terms(config: Config, mesh: Mesh) -> Terms:
    outlier = config.outlier
    jitter_s, probation_s = outlier.max_ejection_time_jitter_s, outlier.base_ejection_time_s
    return Terms(
        max_replicas=mesh.max_replicas,
        max_percent=outlier.max_ejection_percent,
        longest_ms=int(1000 * (outlier.max_ejection_time_s + jitter_s + probation_s)),
    )


def _openers(config: Config, mesh: Mesh) -> tuple[Callable[[], Script], Callable[[], Line]]:
    """What connects to the mesh's Redis; raises ConfigError where that can never be."""
    from sidecar.net import redis

    settings, text = config.redis, source()
    assert settings is not None
    redis.Channel(settings, channel(mesh.name))
    return (
        lambda: redis.Script(settings, text, keys(mesh.name)),
        lambda: redis.Channel(settings, channel(mesh.name)),
    )
