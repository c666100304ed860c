"""A pod under load in simulated time: the sidecar's admission, the fake engine's scheduler, and callers.

Admission, estimates and invitations are the real ones, configured as a sidecar is; the engine is the
scheduler of `model_pod` with its own latency model; callers are those of `headgate bench`, which repeat as
the OpenAI SDK does. What a socket, a process or a busy machine would add is left out, so that a run with the
same seed is the same run anywhere, and takes a second or two for each simulated minute.

    rehearsal = Rehearsal(arrivals(mix(27.0), 60.0, seed), 60.0)
    origins = rehearsal.run()            what became of each, for `mesh.bench.score`
"""

from __future__ import annotations

from functools import partial
from heapq import heappop, heappush
from math import exp
from random import Random
from typing import TYPE_CHECKING, Final

from mesh.bench.origin import Attempt, Origin
from mesh.bench.retries import pause
from model_pod.fake_scheduler import Costs, Scheduler, Sequence
from sidecar.config import decode
from sidecar.flow.admission import ENTERED, FULL, QUEUED
from sidecar.flow.controller import Heard
from sidecar.flow.ticket import FIRST, GONE, INVITED, REPEAT, RUNNING, WAITING, Ticket
from sidecar.plane import Plane
from tests.harness.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.bench.workload import Ask
    from model_pod.fake_scheduler import Step

_TICK_S: Final = 0.1
_HEAR_S: Final = 1.0
_BYTES: Final = 4  # of text for a token
_ANSWER: Final = (200.0, 0.8, 2000)  # log-normal: median, sigma, most
_SCATTER: Final = 0.2  # of the times that callers are told
MODEL: Final = "model"
_COSTS: Final = Costs()


class Nowhere:
    """A `Dialer` of a sidecar that never connects."""

    def dial(self, *_: object) -> None:
        raise AssertionError("a rehearsal has no sockets")


class Caller:
    """Somebody with one wish, and where that stands."""

    __slots__ = ("answer", "deadline", "origin", "sequence", "ticket")

    def __init__(self, ask: Ask, answer: int) -> None:
        self.origin = Origin(ask)
        self.answer = answer  # tokens it will get
        self.deadline = 0.0  # what it says with each try: an instant of the sidecar's clock
        self.ticket: Ticket | None = None
        self.sequence: Sequence | None = None


class Rehearsal:
    """`asks` come to a pod; `weights` are of tenants, 1.0 where not given.

    `is_heard`: the sidecar knows the engine's metrics, as of its last look.
    """

    def __init__(
        self,
        asks: list[Ask],
        ends_s: float,
        *,
        seed: int = 0,
        config: str = "",
        costs: Costs = _COSTS,
        is_heard: bool = True,
        max_running: int = 256,
        weights: dict[str, float] | None = None,
    ) -> None:
        self._clock = FakeClock()
        self._began = self._clock.now()
        self._ends = ends_s
        self._random = Random(f"{seed}/callers")
        self._weights = weights or {}
        decoded = decode(f"engine: {{address: 127.0.0.1:1}}\n{config}", {})
        plane = Plane(decoded, "rehearsal", self._clock, Nowhere())
        self.admission = plane.admission
        self.estimates = plane.estimates
        self._rank = {name: rank for rank, name in enumerate(decoded.classes)}
        self._preempts = decoded.admission.preempt
        self.engine = Scheduler(costs, max_running)
        self._is_heard = is_heard
        self._stepping = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        answers = Random(f"{seed}/answers")
        self._callers = [Caller(ask, ask.traffic.answer or _answer(answers)) for ask in asks]

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self._clock.now() - self._began

    def run(self) -> list[Origin]:
        """Play to the end."""
        for caller in self._callers:
            ask = caller.origin.ask
            self._at(ask.at, partial(self._ask, caller))
            self._at(ask.at + ask.traffic.patience_s, partial(self._leave, caller))
        self._at(_TICK_S, self._tick)
        if self._is_heard:
            self._at(0.0, self._hear)
        while self._events and self._events[0][0] <= self._ends:
            at, _, event = heappop(self._events)
            self._clock.advance(at - self.now)
            event()
            self._start_step()
        for caller in self._callers:
            if caller.origin.outcome == "open":
                caller.origin.ended = self._ends
        return [caller.origin for caller in self._callers]

    def at(self, seconds: float, call: Callable[[], None]) -> None:
        """Look at, or change, something in the middle of the run."""
        self._at(seconds, call)

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._serial += 1
        heappush(self._events, (when, self._serial, event))

    # Callers.

    def _ask(self, caller: Caller) -> None:
        """One try; what becomes of it is as in `sidecar.stages.admit`."""
        caller.origin.attempts.append(Attempt(self.now))
        ticket = caller.ticket = self._ticket(caller)
        outcome = self.admission.arrive(ticket, self._clock.now())
        for dropped in self.admission.dropped:
            self._refuse(dropped, "queue_full")
        self.admission.dropped.clear()
        if outcome == ENTERED:
            self._dispatch(caller)
        elif outcome == QUEUED:
            self._at(ticket.due - self._began, partial(self._give_up, ticket))
            self._let_in()
        else:
            self._refuse(ticket, "queue_full" if outcome == FULL else "overloaded")

    def _ticket(self, caller: Caller) -> Ticket:
        now, ask, traffic = self._clock.now(), caller.origin.ask, caller.origin.ask.traffic
        prompt, fresh, answer = self.estimates.expect(
            traffic.tenant, MODEL, _BYTES * ask.prompt_tokens, traffic.answer
        )
        cls = self._rank[traffic.cls]
        wait = self.admission.terms[cls].wait_s
        caller.deadline = now + traffic.patience_s
        due = min(now + wait, caller.deadline)
        weight = self._weights.get(traffic.tenant, 1.0)
        ticket = Ticket(caller, cls, traffic.tenant, weight, prompt, fresh, answer, now, due)
        ticket.steady = traffic.stream
        invitations = self.admission.invitations
        told = invitations.returned((traffic.tenant, ask.number, 0), now)
        if told is not None and invitations.is_due(told, now):
            ticket.tier, ticket.promised, ticket.came = INVITED, True, told.came
        else:
            ticket.tier = REPEAT if len(caller.origin.attempts) > 1 else FIRST
        return ticket

    def _refuse(self, ticket: Ticket, reason: str) -> None:
        """It is told when to return, or not to, and does as its library makes it."""
        now, caller = self._clock.now(), ticket.member
        origin, traffic = caller.origin, caller.origin.ask.traffic
        leaves = origin.ask.at + traffic.patience_s
        left = (caller.deadline - self.admission.terms[ticket.cls].wait_s - now) / (1 + _SCATTER)
        wait = self.admission.invite(ticket, now, now + left)
        who = traffic.tenant, origin.ask.number, 0
        self.admission.invitations.remember(who, ticket.came, now, wait)
        attempt = origin.attempts[-1]
        attempt.status, attempt.reason, attempt.ended = 503, reason, self.now
        attempt.should_retry = None if wait is not None else False
        attempt.retry_after_s = None if wait is None else wait * (1 + _SCATTER * self._random.random())
        repeats = len(origin.attempts) - 1
        back = pause(
            repeats,
            503,
            retry_after_s=attempt.retry_after_s,
            should_retry=attempt.should_retry,
            obeys=traffic.obeys,
            random=self._random,
        )
        if back is None or repeats >= traffic.retries or self.now + back >= leaves:
            origin.outcome, origin.ended = "refused", self.now
        else:
            self._at(self.now + back, partial(self._ask, caller))

    def _give_up(self, ticket: Ticket) -> None:
        """It has waited as long as its class may."""
        if ticket.state == WAITING:
            self.admission.leave(ticket)
            self._refuse(ticket, "queue_timeout")
            self._let_in()

    def _leave(self, caller: Caller) -> None:
        """Its caller has lost patience, unless it is being answered."""
        origin, ticket = caller.origin, caller.ticket
        if origin.outcome != "open" or origin.tokens_at or ticket is None:
            return
        self._stop(caller)
        self.admission.leave(ticket)
        origin.outcome, origin.ended = "timeout", self.now
        self._let_in()

    # The sidecar.

    def _let_in(self) -> None:
        while (ticket := self.admission.next_in(self._clock.now())) is not None:
            if ticket.state == GONE:
                self._refuse(ticket, "overloaded")
            else:
                self._dispatch(ticket.member)

    def _tick(self) -> None:
        admission, now = self.admission, self._clock.now()
        for ticket in admission.running:
            if ticket.steady:
                ticket.tokens = len(ticket.member.origin.tokens_at)
        admission.tick(now)
        if admission.queued and self._preempts != "off":
            for ticket in admission.victims(now):
                self._stop(ticket.member)
                admission.leave(ticket)
                self._let_in()
                admission.requeue(ticket, now)
        self._let_in()
        self._at(self.now + _TICK_S, self._tick)

    def _hear(self) -> None:
        engine = self.engine
        self.admission.heard = Heard(
            kv_used=engine.kv_used / engine.costs.kv_tokens,
            kv_tokens=engine.costs.kv_tokens,
            preemptions=engine.preemptions,
        )
        self._at(self.now + _HEAR_S, self._hear)

    # The engine.

    def _dispatch(self, caller: Caller) -> None:
        caller.sequence = Sequence(caller.origin.ask.prompt_tokens, caller.answer, owner=caller)
        self.engine.add(caller.sequence)

    def _stop(self, caller: Caller) -> None:
        if caller.sequence is not None:
            self.engine.cancel(caller.sequence)
            caller.sequence = None

    def _start_step(self) -> None:
        if not self._stepping and (step := self.engine.step()) is not None:
            self._stepping = True
            self._at(self.now + step.seconds, partial(self._end_step, step))

    def _end_step(self, step: Step) -> None:
        self._stepping = False
        for sequence in step.emitted:
            caller = sequence.owner
            if caller.sequence is sequence:
                self._token(caller, sequence.done)

    def _token(self, caller: Caller, last: bool) -> None:
        origin, ticket, now = caller.origin, caller.ticket, self._clock.now()
        assert ticket is not None
        assert ticket.state == RUNNING
        origin.tokens_at.append(self.now)
        if len(origin.tokens_at) == 1:
            origin.attempts[-1].first_token, origin.attempts[-1].status = self.now, 200
        if last or (ticket.steady and not ticket.first):
            self.admission.on_first_token(ticket, now)
        if last:
            traffic = origin.ask.traffic
            size = _BYTES * origin.ask.prompt_tokens
            self.estimates.learn(
                traffic.tenant, MODEL, caller.answer, size=size, prompt=origin.ask.prompt_tokens
            )
            ticket.tokens = caller.answer
            self.admission.leave(ticket)
            origin.outcome, origin.ended = "served", self.now
            origin.attempts[-1].ended = self.now
        self._let_in()


def _answer(random: Random) -> int:
    median, sigma, most = _ANSWER
    return max(1, min(most, round(median * exp(random.gauss(0.0, sigma)))))
