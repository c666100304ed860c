"""Whether the engine beside us is worse than those of its peers, and what then.

Pure parts: `balance.outcome`, `balance.outlier`, `balance.gray`, `balance.ejection`. Here every ending of an
attempt is told to them, and once a second this engine's pace is compared with what peers say of theirs.

A suspicion of our own engine is ours to raise, since all of its traffic passes here; one of a peer is a vote
among several. With the mesh's blackboard in reach it grants the ejection, within the mesh's cap. Without it
the local cap decides, and beyond that an engine is only given less (`_LESS`). An ejected engine is handed
around like one that is down. When its time is over it gets one request at a time, and after three good ones
its work back, over `slow_start_s`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.balance.blackboard import GRANTED, Vote
from sidecar.balance.ejection import State, Terms, is_panic
from sidecar.balance.gray import Pace, Pacer, Slow, Slowness
from sidecar.balance.outcome import Ending, classify, penalty_s
from sidecar.balance.outlier import Outliers, Rules, Why
from sidecar.errors import (
    CLIENT_GONE,
    CONNECT_FAILED,
    FIRST_TOKEN_TIMEOUT,
    STALLED,
    UPSTREAM_PROTOCOL,
    UPSTREAM_RESET,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.balance.blackboard import Ejected, View
    from sidecar.balance.endpoint import Endpoint
    from sidecar.balance.fleet import Fleet
    from sidecar.balance.heartbeat import Heartbeat
    from sidecar.balance.outlier import Suspicion
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange
    from sidecar.faults import Outlier
    from sidecar.telemetry.metrics import Metrics

_WINDOW_S: Final = 1.0
_PACE_MAX_AGE_S: Final = 2.5
_LESS: Final = 0.25  # of its work, for an engine that nobody may eject,
_LESS_FOR_S: Final = 10.0  # so long after the last suspicion
_EXISTS: Final = "exists"
_BEFORE: Final = {
    CONNECT_FAILED.reason: Ending.CONNECT_FAILED,
    UPSTREAM_RESET.reason: Ending.RESET,
    UPSTREAM_PROTOCOL.reason: Ending.RESET,
    FIRST_TOKEN_TIMEOUT.reason: Ending.TIMED_OUT,
    "empty_stream": Ending.EMPTY,
}
_AFTER: Final = {
    "": Ending.WHOLE,
    UPSTREAM_RESET.reason: Ending.BROKEN,
    UPSTREAM_PROTOCOL.reason: Ending.BROKEN,
    STALLED.reason: Ending.STALLED,
    CLIENT_GONE.reason: Ending.CLIENT_GONE,
}
_OTHERS: Final = (Why.FIVE_XX, Why.GATEWAY, Why.LOCAL)  # what one knows of a peer from one's own requests

log = logging.getLogger("headgate.outlier")


class Grant(NamedTuple):
    """The mesh has ejected a pod until then, for it was voted for by these."""

    why: str
    until: float
    voters: tuple[str, ...]


class Judge:
    """Of the engine of `pod`. `asks` has the blackboard decide soon; False: it is not there to be asked."""

    def __init__(self, settings: Outlier, pod: str, fleet: Fleet, metrics: Metrics, clock: Clock) -> None:
        self.pace = Pace()  # of the last second
        self.asks: Callable[[], bool] = bool
        self.granted: dict[str, Grant] = {}  # pods that the mesh has ejected
        self._pod = pod
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._pacer = Pacer()
        self._asked: dict[str, Suspicion] = {}
        self._uneject = False
        self._less_until = 0.0
        self._running = 0
        self._ticks = 0
        self._probe = 0
        self._window = self._swept = clock.now()
        self._paces: dict[str, tuple[Pace, float]] = {}  # of peers, and when it was heard
        self.configure(settings)

    def configure(self, settings: Outlier) -> None:
        """What is in force from now on; who is ejected is forgotten with what it was judged by."""
        self._settings = settings
        rules = Rules(**{name: getattr(settings, name) for name in Rules._fields})
        terms = Terms(settings.base_ejection_time_s, settings.max_ejection_time_s, settings.slow_start_s)
        slow = Slow(settings.slow_z, settings.slow_ratio, settings.slow_windows)
        self.outliers = Outliers(rules, terms, lambda: self._clock.jitter(1.0, 1.0) - 1.0, self._decide)
        self.outliers.set_members({self._pod})
        self._slowness = Slowness(self._pod, slow)

    # What happens.

    def on_attempt(self, x: Exchange, endpoint: Endpoint) -> None:
        """An attempt at `endpoint` is over, whatever became of it."""
        if self._settings.mode == "off":
            return
        name, now = getattr(endpoint, "pod", self._pod), self._clock.now()
        outcome = classify(*_ending(x), is_refusal=bool(x.refused_by))
        if outcome.code >= 500:
            endpoint.sample(penalty_s(endpoint.expected_s(now)), now)
        if x.on_trial and not endpoint.is_peer and self._probe:
            good = None if not outcome.code else outcome.code < 500 and not self._is_slow(x)
            self.outliers.on_tried(name, self._probe, good, now)
            self._probe = 0
        self.outliers.put(name, outcome, now)

    def on_first_token(self, x: Exchange) -> None:
        """Of a stream, from the engine beside us."""
        ticket = x.ticket
        if ticket is not None and ticket.dispatched:
            self._pacer.on_start(x.responded - x.dispatched, ticket.ahead)
            x.seen, x.seen_at = x.tokens, x.responded

    def hear(self, heartbeat: Heartbeat, now: float) -> None:
        """What a peer says of its engine."""
        self._paces[heartbeat.pod] = Pace(*heartbeat.pace), now
        host = self.outliers.hosts.get(heartbeat.pod)
        if host is not None and heartbeat.answers:
            host.hear(heartbeat.answers, heartbeat.successes)

    def take(self, view: View) -> None:
        """What the blackboard answers."""
        now = self._clock.now()
        before = self.granted
        self.hear_ejected(view.ejected)
        for pod, word in view.votes:
            suspicion = self._asked.pop(pod, None)
            if word in (GRANTED, _EXISTS):
                if suspicion is not None and pod == self._pod:
                    self._eject(suspicion, now)
            elif suspicion is not None:
                self.outliers.overflow += 1
                log.info("%s is not ejected (%s): %s", pod, suspicion.why.value, word)
        own = self.outliers.hosts[self._pod].ejection
        if self._pod in self.granted:
            if not own.is_out and not self._uneject and self._pod not in before:
                own.eject(now)  # others have said so
                log.warning("the engine beside us is ejected by its peers: %s", self.granted[self._pod].why)
        else:
            self._uneject = False
            if own.is_out and self._pod in before:  # the mesh has become smaller, and its cap
                own.end(now)

    def hear_ejected(self, tickets: Iterable[Ejected]) -> None:
        """What the mesh has ejected; it may change between two answers of the blackboard."""
        now = self._clock.now()
        self.granted = {
            ticket.pod: Grant(ticket.reason, now + ticket.remaining_ms / 1000, ticket.voters)
            for ticket in tickets
        }
        for pod, peer in self._fleet.peers.items():
            peer.ejected = pod in self.granted and self._settings.mode == "on"

    # What follows.

    def may_try(self, now: float) -> bool:
        """Whether the engine, ejected until now, is to be given one request: then it is."""
        own = self.outliers.hosts[self._pod].ejection
        if own.state is not State.PROBATION:
            return False
        self._probe = own.try_one() or self._probe
        return self._probe > 0

    def votes(self) -> tuple[Vote, ...]:
        """What the blackboard is to be asked."""
        hosts, members = self.outliers.hosts, len(self._fleet.peers) + 1
        return tuple(
            Vote(
                pod=name,
                reason=suspicion.why.value,
                alone=name == self._pod,
                observers=1 if name == self._pod else max(members - 1, 1),
                ms=int(1000 * (hosts[name].ejection.longest_s + self._settings.max_ejection_time_jitter_s)),
            )
            for name, suspicion in self._asked.items()
            if name in hosts
        )

    def uneject(self) -> tuple[str, ...]:
        """Whose ejection is to end on the blackboard."""
        return (self._pod,) if self._uneject else ()

    def tick(self, now: float, still_s: float) -> None:
        """Several times a second. `still_s`: a stream without a token for longer has stalled."""
        own = self._fleet.own
        awaited = 0
        for x in own.carried:
            if x.responded and x.stream and x.seen_at and not x.client.is_congested:
                new = x.tokens - x.seen
                if new > 0:
                    self._pacer.on_gap(now - x.seen_at, new, now)
                    x.seen, x.seen_at = x.tokens, now
                elif now - x.seen_at > still_s and now - own.moved_at <= _WINDOW_S:  # it alone
                    x.seen_at = 0.0  # counted once
                    self.outliers.put(self._pod, classify(Ending.STALLED), now)
            elif not x.responded and x.is_work:
                awaited += 1
        self._pacer.on_awaited(awaited, now)
        self._running += len(own.carried)
        self._ticks += 1
        if now - self._window >= _WINDOW_S:
            self._close(now)

    @property
    def until(self) -> float:
        """When the ejection of our engine ends; 0.0: it is not ejected."""
        own = self.outliers.hosts[self._pod].ejection
        return own.until if own.is_out else 0.0

    @property
    def last_interval(self) -> tuple[int, int]:
        """Answers of our engine, and successes among them."""
        host = self.outliers.hosts[self._pod]
        return host.volume, round(host.volume * host.rate / 100)

    # Inside.

    def _close(self, now: float) -> None:
        self._window = now
        self.pace = self._pacer.close(self._running / max(self._ticks, 1))
        self._running = self._ticks = 0
        outliers, fleet, settings = self.outliers, self._fleet, self._settings
        outliers.set_members({self._pod, *fleet.peers})
        outliers.set_health(self._pod, fleet.own.healthy and not fleet.own.hung, now)
        for pod, peer in fleet.peers.items():
            outliers.set_health(pod, peer.state == "serving", now)
        for pod in self._paces.keys() - fleet.peers.keys():
            del self._paces[pod]
        own = outliers.hosts[self._pod].ejection
        was_out = own.is_out
        if settings.mode != "off":
            suspicion = self._slowness.on_window(self.pace, self._peers_paces(now))
            if suspicion is not None:
                outliers.suspect(suspicion, now)
            if now - self._swept >= settings.interval_s:
                self._swept = now
                outliers.sweep(now)
            own.pass_time(now)
        if was_out and not own.is_out:
            self._slowness.forget()
            self._uneject = self._pod in self.granted
            log.warning("the engine beside us is back")
        well = sum(peer.state == "serving" and not peer.ejected for peer in fleet.peers.values())
        panic = is_panic(well + (not own.is_out), len(fleet.peers) + 1, settings.panic_threshold_percent)
        fleet.own.ejected = own.is_out and not panic and settings.mode == "on" and bool(fleet.peers)
        fleet.share = min(own.share(now), 1.0) if not own.is_out else 1.0
        if now < self._less_until:
            fleet.share = min(fleet.share, _LESS)

    def _peers_paces(self, now: float) -> list[Pace]:
        models = self._fleet.models
        return [
            pace
            for pod, (pace, heard) in self._paces.items()
            if now - heard <= _PACE_MAX_AGE_S
            and self._fleet.peers[pod].state == "serving"
            and self._fleet.peers[pod].models == models
        ]

    def _is_slow(self, x: Exchange) -> bool:
        """Against its peers, as far as one exchange tells."""
        starts = sorted(pace.start for pace in self._peers_paces(self._clock.now()) if pace.starts)
        if not starts or not x.stream or not x.responded or x.ticket is None:
            return False
        self_start = Pacer()
        self_start.on_start(x.responded - x.dispatched, x.ticket.ahead)
        return self_start.close(1.0).start > 2 * self._settings.slow_ratio * starts[len(starts) // 2]

    def _decide(self, suspicion: Suspicion, now: float) -> None:
        self._metrics.suspected(suspicion.why.value)
        name = suspicion.name
        if name != self._pod and suspicion.why not in _OTHERS:
            return  # its own sidecar sees all of it
        log.info(
            "%s is suspected: %s %.4g, threshold %.4g%s",
            "the engine beside us" if name == self._pod else f"peer {name}",
            suspicion.why.value,
            suspicion.value,
            suspicion.threshold,
            "" if self._settings.mode == "on" and suspicion.enforced else "; not enforced",
        )
        if self._settings.mode != "on" or not suspicion.enforced or not self._fleet.peers:
            return
        if self.asks():
            self._asked[name] = suspicion
        elif name == self._pod:
            self.outliers.decide_locally(suspicion, now)
            if not self.outliers.hosts[name].ejection.is_out:
                self._less_until = now + _LESS_FOR_S

    def _eject(self, suspicion: Suspicion, now: float) -> None:
        if self.outliers.eject(suspicion, now):
            self._metrics.ejected(suspicion.why.value)
            log.warning("the engine beside us is ejected: %s", suspicion.why.value)


def _ending(x: Exchange) -> tuple[Ending, int]:
    if x.failure:
        if x.failure == "status":
            return Ending.WHOLE, x.failed_with
        return _BEFORE.get(x.failure, Ending.CLIENT_GONE), 0  # what we did ourselves says nothing
    if x.reason or not x.responded:
        return _AFTER.get(x.reason or CLIENT_GONE.reason, Ending.CLIENT_GONE), x.status
    return Ending.WHOLE, x.status
