"""The pods of a mesh, as one of them sees them: where work can go that the engine beside us cannot take.

Of two peers drawn at random the one with the lower cost is asked: power of two choices (Mitzenmacher 2001)

    cost = peak EWMA of its time to a first byte x (its requests + what we sent since it last said so + 1)
           / (its capacity x the share of its usual work that it asks for)

Peers are heard of in heartbeats, from the membership or from themselves. What is heard is kept until
something newer is, or `forget` says that the pod is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sidecar.balance.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sidecar.balance.heartbeat import Heartbeat

_LEAST_CAPACITY: Final = 1e-6


class Peer(Endpoint):
    """The sidecar of another pod."""

    __slots__ = (
        "capacity", "heard", "models", "pod", "share", "sent", "state", "utilization", "waits", "why"
    )  # fmt: skip

    is_peer: bool = True

    def __init__(self, pod: str, host: str, port: int) -> None:
        super().__init__(host, port)
        self.pod = pod
        self.state = "serving"
        self.why = ""  # it is not
        self.models: frozenset[str] = frozenset()
        self.waits = 0  # requests that are there, waiting or running
        self.utilization = 0.0
        self.capacity = 1.0
        self.share = 1.0  # of its usual work that it asks for
        self.heard = 0.0  # when it last said so
        self.sent = 0  # requests of ours since

    def takes(self, model: str, now: float) -> bool:
        """Whether a request for `model` has a chance there. `other`: no model that we know."""
        return (
            self.state == "serving"
            and self.usable
            and now >= self.blocked_until
            and now >= self.not_before
            and (model in self.models or model == "other" or not self.models)
        )

    def cost(self, now: float) -> float:
        """See the file head."""
        capacity = max(self.capacity * self.share, _LEAST_CAPACITY)
        return self.expected_s(now) * (self.waits + self.sent + 1) / capacity


class Fleet:
    """`own` is the engine beside us; `chance` draws from 0 to 1.

    `may_try` says whether an engine that is down is to be given this request now.
    """

    def __init__(
        self,
        own: Endpoint,
        chance: Callable[[], float],
        may_try: Callable[[Any, float], bool] = lambda x, now: False,
    ) -> None:
        self.own = own
        self.peers: dict[str, Peer] = {}
        self.may_try = may_try
        self.models: frozenset[str] = frozenset()  # that the engine beside us serves
        self.share = 1.0  # of its work, while the engine beside us is to have less
        self.leaving = False  # nothing new is for the engine beside us
        self._chance = chance

    def own_takes(self, now: float) -> bool:
        """Whether the engine beside us is the right place for what comes now: to be asked once of each."""
        if not self.own_can(now):
            return False
        return self.share >= 1.0 or self._chance() < self.share or not self.has_room(now)

    def own_can(self, now: float) -> bool:
        """Whether the engine beside us takes anything, whatever its share is."""
        return self.own.usable and now >= self.own.blocked_until and not self.leaving

    def hear(self, heartbeat: Heartbeat, now: float, age_s: float = 0.0) -> Peer | None:
        """What a peer says of itself, `age_s` ago; None: it cannot be reached."""
        peer = self.peers.get(heartbeat.pod)
        if peer is not None and now - age_s < peer.heard:
            return peer  # older than what is known
        host, _, port = heartbeat.address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            self.forget(heartbeat.pod)
            return None
        host = host.strip("[]")
        if peer is None or (peer.host, peer.port) != (host, int(port)):
            peer = self.peers[heartbeat.pod] = Peer(heartbeat.pod, host, int(port))
        peer.heard = now - age_s
        peer.state = heartbeat.state
        peer.why = heartbeat.why
        peer.models = frozenset(heartbeat.models)
        peer.waits = heartbeat.waiting + heartbeat.running
        peer.utilization = heartbeat.utilization
        peer.capacity = heartbeat.capacity
        peer.share = heartbeat.share
        peer.sent = 0
        if heartbeat.state == "serving" and heartbeat.utilization < 1:
            peer.not_before = 0.0  # whatever it refused for is over
        return peer

    def forget(self, pod: str) -> None:
        """It is gone."""
        self.peers.pop(pod, None)

    def keep(self, pods: Collection[str]) -> None:
        """All others are gone."""
        for pod in self.peers.keys() - pods:
            del self.peers[pod]

    def peer(self, model: str, tried: Collection[Endpoint], now: float) -> Peer | None:
        """Where a request for `model` should go that was at `tried` in vain; None: there is nobody."""
        found = [peer for peer in self.peers.values() if peer not in tried and peer.takes(model, now)]
        if len(found) < 2:
            return found[0] if found else None
        first = min(int(self._chance() * len(found)), len(found) - 1)
        second = min(int(self._chance() * (len(found) - 1)), len(found) - 2)
        one, other = found[first], found[second + (second >= first)]
        return one if one.cost(now) <= other.cost(now) else other

    def has_room(self, now: float, model: str = "other") -> bool:
        """A peer could take more than it has."""
        return any(peer.utilization < 1 for peer in self._takers(model, now))

    def has_somebody(self, now: float, model: str = "other") -> bool:
        """A peer could take it, if only into its queue."""
        return any(True for _ in self._takers(model, now))

    def _takers(self, model: str, now: float) -> Iterator[Peer]:
        return (peer for peer in self.peers.values() if peer.takes(model, now))
