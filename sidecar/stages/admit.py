"""Who may run, and who waits. Pure parts: `flow.admission` and what it names, `llm.usage`.

Work gets a ticket with its expected cost, and keeps it to its end, across attempts. Where there is no room
it is parked until its turn, or until its first token could no longer come in time. Who is refused is told
when to return, if there will be room before the caller stops waiting, else not to. Everything but work
passes: a list of models must not wait behind a generation.

While the engine beside us is down, and a peer is there, work passes without a ticket: the peer admits it.

The engine is watched from here: a response head is a first token (`net` holds back the heads of streams
until then), and `tick` reads how many tokens each exchange has got.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sidecar.errors import OVERLOADED, PREEMPTED, QUEUE_FULL, QUEUE_TIMEOUT
from sidecar.exchange import FORWARDED, PARKED, WAITING, Exchange, Reply, Verdict
from sidecar.flow.admission import ENTERED, FULL, QUEUED
from sidecar.flow.controller import Heard
from sidecar.flow.invitations import fingerprint
from sidecar.flow.ticket import DECODE, FIRST, GONE, INVITED, REPEAT, Ticket
from sidecar.flow.ticket import RUNNING as ADMITTED
from sidecar.flow.ticket import WAITING as QUEUED_UP
from sidecar.llm.request import with_priority
from sidecar.llm.usage import read_usage
from sidecar.pipeline import Stage

if TYPE_CHECKING:
    from sidecar.balance.fleet import Fleet
    from sidecar.balance.load import EngineLoad
    from sidecar.clock import Alarms, Clock
    from sidecar.errors import Refusal
    from sidecar.flow.admission import Admission
    from sidecar.flow.estimates import Estimates
    from sidecar.settings import Config
    from sidecar.telemetry.metrics import Metrics

log = logging.getLogger("headgate.admit")

_PATIENCE_S: Final = 60.0  # of callers who say nothing: OpenAI's SDK comes back within this or not at all
_SILENT_S: Final = 1.0  # after which an answer without an event that can be told is taken as begun
_FRAME: Final = 2  # events of a stream that hold no token: who speaks, and that it is done
_SCATTER: Final = 0.2
_LONG: Final = 8.0


class Admit(Stage):
    """The gate outlives a reload, so nobody loses a slot or a place to it. `at` is the stage's own index."""

    def __init__(
        self,
        config: Config,
        admission: Admission,
        estimates: Estimates,
        load: EngineLoad,
        fleet: Fleet,
        metrics: Metrics,
        clock: Clock,
        alarms: Alarms,
        at: int,
    ) -> None:
        settings = config.admission
        self._off = settings.mode == "off"
        self._shadow = settings.mode == "shadow"
        self._preempt = settings.preempt
        self._rank = {name: rank for rank, name in enumerate(config.classes)}
        self._waits = [settings.queue_timeout_s or one.wait_s for one in config.classes.values()]
        self._tells_engine = config.engine.priority == "on"
        self._admission = admission
        self._estimates = estimates
        self._load = load
        self._fleet = fleet
        self._spills = config.mesh is not None and config.mesh.spill == "overload"
        self._max_age = config.engine.metrics.max_age_s
        self._kv_tokens = config.engine.kv_tokens
        self._metrics = metrics
        self._clock = clock
        self._alarms = alarms
        self._at = at

    def on_request(self, x: Exchange) -> Verdict:
        if not x.is_work:
            return None
        now = self._clock.now()
        if x.away or self._goes_away(x, now):
            return None
        if self._off:
            self._price(x)
            return None
        admission, ticket = self._admission, x.ticket
        if ticket is not None:  # it was sent back here
            admission.requeue(ticket, now)
            return self._wait(x, ticket, now)
        ticket = x.ticket = self._ticket(x, now)
        outcome = admission.arrive(ticket, now)
        if outcome == ENTERED:
            return None
        if self._shadow:
            self._metrics.shadowed(x.cls, "queue" if outcome == QUEUED else "refuse")
            return None
        if outcome == QUEUED:
            if admission.dropped:
                self._tell_dropped()
            return self._wait(x, ticket, now)
        if self._spills and x.hop == 0 and self._fleet.has_room(now, x.model):
            x.away = True
            return None
        return self._refusal(x, QUEUE_FULL if outcome == FULL else OVERLOADED)

    def on_response(self, x: Exchange) -> None:
        ticket = x.ticket
        if ticket is not None and x.status == 200 and (x.tokens or not x.stream):
            self._first_token(x, ticket)
            self.let_in()

    def on_complete(self, x: Exchange) -> None:
        if x.away and x.tail:  # a peer ran it, and it is settled here all the same
            usage = read_usage(x.tail)
            x.tokens = x.tokens if usage is None else usage.answer
        ticket = x.ticket
        if ticket is None:
            return
        if ticket.state == QUEUED_UP:
            self._stop_waiting(x)
        if ticket.state == ADMITTED:
            try:
                ticket.tokens = self._tokens(x)
            finally:  # whatever an engine says of itself, the place is free
                self._admission.leave(ticket)
        else:
            self._admission.leave(ticket)
        self.let_in()

    def let_go(self, x: Exchange) -> None:
        """It goes on elsewhere."""
        if x.ticket is not None:
            self._admission.leave(x.ticket)
            self.let_in()

    def let_in(self) -> None:
        """Resume those for whom there is room: after somebody left, or a reload made room."""
        admission = self._admission
        if not admission.queued:
            return
        now = self._clock.now()
        if self._off or self._shadow:  # since a reload
            for released in admission.release(now):
                x: Exchange = released.member
                if x.state == WAITING:
                    self._stop_waiting(x)
                    x.pipeline.resume(x)
            return
        while (ticket := admission.next_in(now)) is not None:
            x = ticket.member
            # One that was refused meanwhile is on its way out and gives its ticket back itself.
            if x.state == WAITING:
                self._stop_waiting(x)
                late = self._refusal(x, OVERLOADED) if ticket.state == GONE else None
                x.pipeline.resume(x, late)

    def hand_over(self) -> None:
        """The engine beside us is down, or we are leaving: who waits goes to a peer."""
        if self._off or self._shadow:
            return
        now = self._clock.now()
        for ticket in list(self._admission.waiting()):
            x: Exchange = ticket.member
            if x.state == WAITING and x.hop == 0 and self._fleet.has_somebody(now, x.model):
                self._stop_waiting(x)
                self._admission.leave(ticket)
                x.away = True
                x.pipeline.resume(x)

    def tick(self) -> None:
        """Several times a second: take stock, and let in whom that allows to run."""
        admission, now = self._admission, self._clock.now()
        for ticket in admission.running:
            if ticket.steady:
                x: Exchange = ticket.member
                ticket.tokens = x.tokens
                ticket.unread = x.client.is_congested
                if x.responded and not ticket.first and (x.tokens or now - x.responded > _SILENT_S):
                    self._first_token(x, ticket)
        load = self._load
        if load.is_fresh(now, self._max_age):
            admission.heard = Heard(
                kv_used=load.kv_used,
                kv_tokens=self._kv_tokens or load.kv_tokens,
                preemptions=load.preemptions_total,
            )
        else:
            admission.heard = None
        admission.tick(now)
        if admission.abnormal:
            self._tell_of_abnormal()
        if admission.queued and self._preempt != "off" and not (self._off or self._shadow):
            for ticket in admission.victims(now, started=self._preempt == "started"):
                self._preempt_one(ticket.member)
        self.let_in()

    def _first_token(self, x: Exchange, ticket: Ticket) -> None:
        now = self._clock.now()
        if ticket.queued and ticket.predicted and not ticket.first:
            self._metrics.predicted(x.cls, ticket.predicted, now - ticket.queued)
        self._admission.on_first_token(ticket, now)

    def _tell_of_abnormal(self) -> None:
        for tenant in self._admission.abnormal:
            self._metrics.anomaly(tenant)
            log.warning("tenant %s asks for far more than usual: it is held to its part of the queue", tenant)
        self._admission.abnormal = frozenset()

    def _goes_away(self, x: Exchange, now: float) -> bool:
        """Whether a peer is to take it; or else it may be a trial of an engine that is down."""
        fleet = self._fleet
        if fleet.own_takes(now):
            return False
        if not fleet.leaving and fleet.may_try(x, now):
            x.on_trial = True
            return False
        if x.hop or not fleet.has_somebody(now, x.model):
            return False
        x.away = True
        self._price(x)
        return True

    def _price(self, x: Exchange) -> None:
        """What it should cost and how long it should take, where it gets no ticket."""
        _, fresh, answer = self._estimates.expect(x.tenant, x.model, x.size, x.max_tokens)
        x.cost = fresh + DECODE * answer * x.answers
        self._time(x, fresh, answer)

    def _time(self, x: Exchange, fresh: float, answer: float) -> None:
        """An answer may be far longer than usual, but not than it may be."""
        longest = x.max_tokens if x.max_tokens is not None else _LONG * answer
        meter = self._admission.meter
        x.expected_s = fresh / meter.prompt_rate + longest * meter.itl_s

    def _ticket(self, x: Exchange, now: float) -> Ticket:
        tenant, cls = x.tenant, self._rank[x.cls]
        prompt, fresh, answer = self._estimates.expect(tenant, x.model, x.size, x.max_tokens)
        wait = self._waits[cls]
        due = x.origin + wait
        if x.deadline is not None and x.deadline < due:
            due = x.deadline
        ticket = Ticket(x, cls, tenant, x.weight, prompt, fresh, answer * x.answers, x.origin, due)
        ticket.steady = x.stream
        x.cost = ticket.work
        self._time(x, fresh, answer)
        body = x.body
        if body is not None:
            if self._tells_engine and not self._shadow:
                x.body = body = with_priority(body, cls)
            ticket.size = len(body)
            if x.repeat or len(self._admission.invitations):
                self._recognise(x, ticket, body, now, wait)
        else:
            ticket.stays = True  # it cannot be sent again
            if x.repeat:
                ticket.tier = REPEAT
        return ticket

    def _recognise(self, x: Exchange, ticket: Ticket, body: bytes, now: float, wait: float) -> None:
        """Whether it was here before, and what it was told then."""
        invitations = self._admission.invitations
        told = invitations.returned(fingerprint(x.tenant, body), now)
        if told is not None and invitations.is_due(told, now):
            ticket.tier = INVITED
            ticket.promised = True
            ticket.came = told.came
            ticket.due = now + wait if x.deadline is None else min(now + wait, x.deadline)
        elif told is not None or x.repeat:
            ticket.tier = REPEAT
            if told is not None and x.repeat:  # the same caller, and still the same wait
                ticket.came = told.came
                ticket.due = min(ticket.due, told.came + wait)
        else:
            ticket.tier = FIRST

    def _wait(self, x: Exchange, ticket: Ticket, now: float) -> Verdict:
        self.let_in()  # it may be its turn already, before others that wait
        if ticket.state == ADMITTED:
            return None
        if ticket.state == GONE:
            return self._refusal(x, OVERLOADED)
        x.parked = now
        if x.deadline is None or ticket.due < x.deadline:  # else the deadline ends it
            x.timer = self._alarms.after(max(ticket.due - now, 0.0), self._give_up, x)
        return PARKED

    def _give_up(self, x: Exchange) -> None:
        if x.state == WAITING:
            x.pipeline.resume(x, self._refusal(x, QUEUE_TIMEOUT))

    def _stop_waiting(self, x: Exchange) -> None:
        x.waited += self._clock.now() - x.parked
        if x.timer is not None:
            x.timer.cancel()
            x.timer = None

    def _refusal(self, x: Exchange, refusal: Refusal) -> Reply:
        """With when to return, where there is a time for that."""
        ticket, now = x.ticket, self._clock.now()
        assert ticket is not None
        if x.deadline is None:
            latest = ticket.came + _PATIENCE_S
        else:  # what it is told is up to _SCATTER later, and it needs time to be served in
            left = (x.deadline - self._waits[ticket.cls] - now) / (1 + _SCATTER)
            latest = now + min(left, _PATIENCE_S)
        wait = self._admission.invite(ticket, now, latest)
        if x.body is not None:
            self._admission.invitations.remember(fingerprint(x.tenant, x.body), ticket.came, now, wait)
        return Reply(refusal, retry_after_s=None if wait is None else self._clock.jitter(wait, _SCATTER))

    def _tell_dropped(self) -> None:
        dropped, self._admission.dropped = self._admission.dropped, []
        for ticket in dropped:
            x: Exchange = ticket.member
            if x.state == WAITING:
                self._stop_waiting(x)
                x.pipeline.resume(x, self._refusal(x, QUEUE_FULL))

    def _preempt_one(self, x: Exchange) -> None:
        """Take its place: back to the queue while nobody has seen a token, else its answer ends here."""
        if x.state != FORWARDED:
            return
        if not x.responded and x.body is not None:
            if x.upstream is not None:
                x.upstream.abandon()
            self._metrics.preempted(x.cls, "requeued")
            x.pipeline.retry(x, at=self._at)
        elif self._preempt == "started":
            self._metrics.preempted(x.cls, "ended")
            x.pipeline.refuse(x, self._refusal(x, PREEMPTED))

    def _tokens(self, x: Exchange) -> int:
        """How long the answer was; a whole one teaches."""
        if x.status != 200 or x.reason:
            ticket = x.ticket
            return x.tokens if x.stream or ticket is None else max(x.tokens, ticket.tokens)
        usage = read_usage(x.tail) if x.tail else None
        ticket = x.ticket
        assert ticket is not None
        x.tail = b""
        if usage is None:
            # What is not streamed is known by how long it took, as the rates are that it is measured against.
            seen = max(x.tokens - _FRAME, 0) if x.stream else ticket.tokens
            self._estimates.learn(x.tenant, x.model, seen // max(x.answers, 1), size=x.size)
            return seen
        x.tokens = ticket.tokens = usage.answer
        if not x.stream and x.responded:
            self._admission.meter.on_whole(ticket, x.responded - x.dispatched)
        self._estimates.learn(
            x.tenant,
            x.model,
            usage.answer // max(x.answers, 1),
            size=x.size,
            prompt=usage.prompt,
            cached=usage.cached,
        )
        return usage.answer
