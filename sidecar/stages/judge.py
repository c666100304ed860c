"""Whether the engine beside us is worse than those of its peers, and what then.

Pure parts: `balance.outcome`, `balance.outlier`, `balance.gray`, `balance.ejection`. Here every ending of an
attempt is told to them, and once a second this engine's pace is compared with what peers say of theirs.

A suspicion of our own engine is ours to raise, since all of its traffic passes here; one of a peer is a vote
among several. With the mesh's blackboard in reach it grants the ejection, within the mesh's cap. Without it
the local cap decides, one pod after the other, so that each knows of those before it. An engine that may not
be ejected is given less (`_LESS`). An ejected engine is handed around like one that is down. When its time is
over it gets one request at a time, and after three good ones its work back, over `slow_start_s`; after a bad
one it is out for longer, in the place that it has.

A ticket and our engine's ejection are two things, for a view is a second old and Redis may be away. A new
ticket ejects, once. One that ends before the ejection is voted for again, which makes it longer; one that
outlasts it is given back. When it is gone from a settled view before that, the ejection ends.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.balance.blackboard import EXISTS, GRANTED, TOO_FEW, Vote
from sidecar.balance.ejection import Terms, is_panic, most_out
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
from sidecar.exchange import DONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.balance.blackboard import Ejected, View
    from sidecar.balance.endpoint import Endpoint
    from sidecar.balance.fleet import Fleet
    from sidecar.balance.heartbeat import Heartbeat
    from sidecar.balance.outcome import Outcome
    from sidecar.balance.outlier import Host, Suspicion
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange
    from sidecar.faults import Outlier
    from sidecar.telemetry.metrics import Metrics

_WINDOW_S: Final = 1.0
_PACE_MAX_AGE_S: Final = 2.5
_LESS: Final = 0.25  # of its work, for an engine that nobody may eject,
_LESS_FOR_S: Final = 10.0  # so long after the last suspicion
_TURN_S: Final = 2.5  # without Redis: until peers, who ask each other each second, know who is ejected
_TRIAL: Final = "trial"  # why an engine is ejected again
_OTHER: Final = "other"  # in the words of a newer peer
_WHYS: Final = frozenset(why.value for why in Why)
_UNANSWERED_S: Final = 3.0  # a call takes 2 s at most: what nobody has decided by then nobody will
_SLACK_S: Final = 1.0  # by which a ticket may end too early
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
        self._has_ticket = False  # the mesh has ejected our engine, and that was followed
        self._less_until = 0.0
        self._running = 0
        self._ticks = 0
        self._window = self._swept = clock.now()
        self._paces: dict[str, tuple[Pace, float]] = {}  # of peers, and when it was so
        self.configure(settings)

    def configure(self, settings: Outlier) -> None:
        """What is in force from now on; who is ejected is forgotten with what it was judged by."""
        self._settings = settings
        rules = Rules(**{name: getattr(settings, name) for name in Rules._fields})
        terms = Terms(settings.base_ejection_time_s, settings.max_ejection_time_s, settings.slow_start_s)
        slow = Slow(settings.slow_z, settings.slow_ratio, settings.slow_windows)
        self.outliers = Outliers(rules, terms, lambda: self._clock.jitter(1.0, 1.0) - 1.0, self._decide)
        self.outliers.set_members({self._pod, *self._fleet.peers})
        self._slowness = Slowness(self._pod, slow)
        self._asked: dict[str, tuple[Suspicion, float]] = {}  # and when; not answered yet
        self._trial: tuple[Exchange, int] | None = None  # under way, and its number
        self._alone_for = _OTHER  # why it was ejected without being asked for
        self._alone: tuple[Suspicion, float] | None = None  # ours to decide on, and when
        self._less_until = 0.0
        self._was_out = False
        self._follow(self._clock.now())

    # What happens.

    def on_attempt(self, x: Exchange, endpoint: Endpoint) -> None:
        """An attempt at `endpoint` is over, whatever became of it."""
        if self._settings.mode == "off" or not (endpoint.is_peer or endpoint is self._fleet.own):
            return  # nobody wants to know, or it is the engine of another configuration
        name, now = getattr(endpoint, "pod", self._pod), self._clock.now()
        outcome = classify(*_ending(x), is_refusal=bool(x.refused_by))
        if outcome.code >= 500:
            endpoint.sample(penalty_s(endpoint.expected_s(now)), now)
        if self._trial is not None and x is self._trial[0]:
            self._end_trial(None if endpoint.is_peer else self._is_good(x, outcome), now)
        self.outliers.put(name, outcome, now)

    def on_first_token(self, x: Exchange) -> None:
        """Of a stream, from the engine beside us."""
        ticket = x.ticket
        if ticket is not None and ticket.dispatched:
            self._pacer.on_start(x.responded - x.dispatched, ticket.ahead)
            x.seen, x.seen_at = x.tokens, x.responded

    def hear(self, heartbeat: Heartbeat, at: float) -> None:
        """What a peer said of its engine then."""
        if heartbeat.pod in self._paces and at <= self._paces[heartbeat.pod][1]:
            return  # that is known, or something newer
        self._paces[heartbeat.pod] = Pace(*heartbeat.pace), at
        host = self.outliers.hosts.get(heartbeat.pod)
        if host is not None and heartbeat.answers:
            host.hear(heartbeat.answers, heartbeat.successes)

    def take(self, view: View) -> None:
        """What the blackboard answers."""
        now = self._clock.now()
        if (self._pod, GRANTED) in view.votes:
            self._has_ticket = False  # it is a new one
        self.hear_ejected(view.ejected)
        for pod, word in view.votes:
            asked = self._asked.pop(pod, None)
            if word in (GRANTED, EXISTS, TOO_FEW):
                continue
            self.outliers.overflow += 1
            why = asked[0].why.value if asked is not None else self._alone_for
            log.info("%s is not ejected (%s): %s", pod, why, word)
            if pod == self._pod:
                self._less_until = now + _LESS_FOR_S
                if not self._has_ticket:  # it was ejected while Redis was away
                    self._return(now)
        if self._has_ticket and view.settled and self._pod not in self.granted:
            self._has_ticket = False
            self._return(now)  # the mesh has become smaller, and its cap

    def hear_ejected(self, tickets: Iterable[Ejected]) -> None:
        """What the mesh has ejected; it may change between two answers of the blackboard."""
        now = self._clock.now()
        self.granted = {
            ticket.pod: Grant(ticket.reason, now + ticket.remaining_ms / 1000, ticket.voters)
            for ticket in tickets
        }
        own = self.granted.get(self._pod)
        if own is not None and not self._has_ticket and self._settings.mode == "on":
            self._has_ticket = True
            self._asked.pop(self._pod, None)
            if self._own.is_comparable:
                self._own.ejection.eject(now, self.outliers.jitter_s())
                self._metrics.ejected(own.why if own.why in _WHYS else _OTHER)
                by_us = self._pod in own.voters
                log.warning("the engine beside us is ejected%s: %s", "" if by_us else " by peers", own.why)
        self._follow(now)

    # What follows.

    def may_try(self, x: Exchange, now: float) -> bool:
        """Whether the engine, ejected until now, is to be given `x`, and then nothing until that ends."""
        self._look_for_trial(now)
        probe = self._own.ejection.try_one()
        if probe:
            self._trial = x, probe
        return probe > 0

    def votes(self) -> tuple[Vote, ...]:
        """What the blackboard is to be asked: a longer ticket of our engine, and who is to be ejected."""
        hosts, observers = self.outliers.hosts, max(len(self._fleet.peers), 1)
        jitter_s = self._settings.max_ejection_time_jitter_s
        own, now = self.granted.get(self._pod), self._clock.now()
        found = []
        if own is not None and self._has_ticket and self._own.ejection.is_out:
            needed = self._own.ejection.free_at
            if needed > own.until + _SLACK_S:
                found.append(Vote(self._pod, own.why, True, 1, _ms(needed - now)))
        elif not self._has_ticket and self._own.ejection.is_out and self._pod not in self._asked:
            # Ejected without being asked for, while Redis was away: from now on it counts.
            found.append(Vote(self._pod, self._alone_for, True, 1, _ms(self._own.ejection.free_at - now)))
        for name, (suspicion, _) in self._asked.items():
            if name in hosts:
                alone, ms = name == self._pod, _ms(hosts[name].ejection.longest_s + jitter_s)
                found.append(Vote(name, suspicion.why.value, alone, 1 if alone else observers, ms))
        return tuple(found)

    def uneject(self) -> tuple[str, ...]:
        """Whose ejection is to end on the blackboard."""
        return (self._pod,) if self._has_ticket and not self._own.ejection.is_out else ()

    def tick(self, now: float, still_s: float) -> None:
        """Several times a second. `still_s`: a stream without a token for longer has stalled."""
        self._look_for_trial(now)
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
        own = self._own.ejection
        return own.until if own.is_out else 0.0

    @property
    def last_interval(self) -> tuple[int, int]:
        """Answers of our engine, and successes among them."""
        host = self._own
        return host.volume, round(host.volume * host.rate / 100)

    # Inside.

    @property
    def _own(self) -> Host:
        return self.outliers.hosts[self._pod]

    def _close(self, now: float) -> None:
        """A second is over."""
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
        self.granted = {pod: grant for pod, grant in self.granted.items() if grant.until > now}
        self._give_up_asking(now)
        self._take_turn(now)
        if settings.mode != "off":
            suspicion = self._slowness.on_window(self.pace, self._peers_paces(now))
            if suspicion is not None:
                outliers.suspect(suspicion, now)
            if now - self._swept >= settings.interval_s:
                self._swept = now
                outliers.sweep(now)
            self._own.ejection.pass_time(now)
        self._follow(now)

    def _follow(self, now: float) -> None:
        """Have the fleet know what is decided."""
        fleet, own, granted = self._fleet, self._own.ejection, self.granted
        if self._was_out and not own.is_out:
            self._slowness.forget()
            log.warning("the engine beside us is back")
        self._was_out = own.is_out
        well = sum(peer.state == "serving" and pod not in granted for pod, peer in fleet.peers.items())
        percent = self._settings.panic_threshold_percent
        panic = is_panic(well + (not own.is_out), len(fleet.peers) + 1, percent)
        enforced = self._settings.mode == "on" and not panic
        for pod, peer in fleet.peers.items():
            peer.ejected = enforced and pod in granted
        fleet.own.ejected = enforced and own.is_out and bool(fleet.peers)
        fleet.share = own.share(now) if self._settings.mode == "on" and not own.is_out else 1.0
        if now < self._less_until:
            fleet.share = min(fleet.share, _LESS)

    def _return(self, now: float) -> None:
        """There is no place for our engine under the cap."""
        if self._own.ejection.is_out:
            self._own.ejection.end(now)
            self._own.runs.clear()
        self._follow(now)

    def _give_up_asking(self, now: float) -> None:
        for name, (suspicion, since) in list(self._asked.items()):
            if now - since > _UNANSWERED_S:
                del self._asked[name]
                if name == self._pod:
                    self._decide_alone(suspicion, now)

    def _look_for_trial(self, now: float) -> None:
        """One that ended, or went to a peer, without having been at the engine says nothing."""
        if self._trial is not None:
            x = self._trial[0]
            if x.state == DONE or (x.away and not x.tried):
                self._end_trial(None, now)

    def _end_trial(self, good: bool | None, now: float) -> None:
        assert self._trial is not None
        probe, self._trial = self._trial[1], None
        if not self.outliers.on_tried(self._pod, probe, good, now):
            self._metrics.ejected(_TRIAL)
            log.warning("the engine beside us is ejected again: a trial failed")
            self.asks()  # its ticket must last as long
        if self._own.ejection.is_out is not self._was_out:
            self._follow(now)

    def _is_good(self, x: Exchange, outcome: Outcome) -> bool | None:
        return outcome.code < 500 and not self._is_slow(x) if outcome.code else None

    def _peers_paces(self, now: float) -> list[Pace]:
        models, peers = self._fleet.models, self._fleet.peers
        return [
            pace
            for pod, (pace, at) in self._paces.items()
            if now - at <= _PACE_MAX_AGE_S
            and pod in peers
            and peers[pod].state == "serving"
            and peers[pod].models == models
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
            self._asked[name] = suspicion, now
        elif name == self._pod:
            self._decide_alone(suspicion, now)

    def _decide_alone(self, suspicion: Suspicion, now: float) -> None:
        """Of our engine, while the blackboard is out of reach: when our turn comes."""
        self._less_until = now + _LESS_FOR_S
        if self._alone is None:
            members = sorted([self._pod, *self._fleet.peers])
            most = max(most_out(len(members), self._settings.local_max_ejection_percent), 1)
            self._alone = suspicion, now + members.index(self._pod) // most * _TURN_S
        self._take_turn(now)
        self._follow(now)

    def _take_turn(self, now: float) -> None:
        if self._alone is None or now < self._alone[1]:
            return
        (suspicion, _), self._alone = self._alone, None
        if now >= self._less_until:
            return  # it was long ago
        elsewhere = sum(peer.state == "ejected" for peer in self._fleet.peers.values())
        self.outliers.decide_locally(suspicion, now, elsewhere)
        if self._own.ejection.is_out:
            self._alone_for = suspicion.why.value
            self._metrics.ejected(self._alone_for)
            log.warning("the engine beside us is ejected: %s", self._alone_for)
            self._follow(now)


def _ms(seconds: float) -> int:
    return int(1000 * seconds)


def _ending(x: Exchange) -> tuple[Ending, int]:
    if x.failure:
        if x.failure == "status":
            return Ending.WHOLE, x.failed_with
        return _BEFORE.get(x.failure, Ending.CLIENT_GONE), 0  # what we did ourselves says nothing
    if x.reason or not x.responded:
        return _AFTER.get(x.reason or CLIENT_GONE.reason, Ending.CLIENT_GONE), x.status
    return Ending.WHOLE, x.status
