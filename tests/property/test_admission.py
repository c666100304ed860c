"""The gate against what it promises, over whatever arrivals, departures and waits hypothesis finds.

What is set aside and queued always adds up. Whoever waits waits once, and leaves by entering, by being told
that it is too late, by being dropped for somebody more important, or by itself. The bounds hold whenever
somebody enters, and the orders whenever somebody is chosen.
"""

from itertools import count, cycle, pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.flow.admission import DOOMED, ENTERED, FULL, QUEUED, Admission, Terms
from sidecar.flow.controller import Controller
from sidecar.flow.fair import ClassQueue
from sidecar.flow.invitations import Invitations
from sidecar.flow.ticket import DECODE, FIRST, GONE, INVITED, REPEAT, RUNNING, WAITING, Ticket
from tests.unit.sidecar.flow.tickets import ticket as ticket_of

CLASSES = 3
AGING_S = 20.0
CEILINGS = (1.0, 0.9, 0.5)

# What comes is drawn from few values, so that equals meet.
asks = st.fixed_dictionaries(
    {
        "cls": st.integers(0, CLASSES - 1),
        "tenant": st.sampled_from("ab"),
        "tier": st.sampled_from((INVITED, FIRST, REPEAT)),
        "promised": st.booleans(),
        "prompt": st.sampled_from((1.0, 100.0, 1000.0, 5000.0)),
        "answer": st.sampled_from((0.0, 10.0, 1000.0)),
        "size": st.sampled_from((0, 100, 250)),
        "patience": st.sampled_from((1e9, 30.0, 2.0, 0.2)),
        "steady": st.booleans(),
    }
)


def gate(*, seats: int = 4, max_queue: int = 100, share: float = 0.0, capacity: float = 1e9) -> Admission:
    terms = [Terms(share=share, ceiling=ceiling, backlog_s=0.35) for ceiling in CEILINGS]
    controller = Controller(capacity, known=True, fraction=1.0)
    admission = Admission(terms, controller, now=0.0, seats=seats, max_queue=max_queue)
    admission.aging_s = AGING_S
    return admission


def request(cls: int = 0, tenant: str = "a", *, prompt: float = 100.0, **more: Any) -> Ticket:
    return ticket_of(cls, tenant, **({"prompt": prompt, "fresh": prompt, "due": 1e9} | more))


class Machine(RuleBasedStateMachine):
    @initialize(
        seats=st.integers(1, 4),
        max_queue=st.sampled_from((0, 3, 6, 10)),
        max_bytes=st.sampled_from((300, 10_000)),
        share=st.sampled_from((0.0, 0.0, 0.3)),
        capacity=st.sampled_from((3000.0, 1e6)),
    )
    def build(self, seats: int, max_queue: int, max_bytes: int, share: float, capacity: float) -> None:
        self.now = 100.0
        self.gate = gate(seats=seats, max_queue=max_queue, share=share, capacity=capacity)
        self.gate.max_bytes = max_bytes
        self.share = share
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.gone, self.gave_way = list[Ticket](), list[Ticket]()
        self.settled = True  # `next_in` has said that nobody else may enter

    # What happens to a gate.

    @rule(several=st.lists(asks, min_size=1, max_size=3))
    def arrive(self, several: list[dict[str, Any]]) -> None:
        for fields in several:
            patience = fields.pop("patience")
            fields["promised"] &= fields["tier"] == INVITED
            self._arrive(request(came=self.now, due=self.now + patience, **fields))

    def _arrive(self, ticket: Ticket) -> None:
        before, bytes_before = list(self.waiting), self.gate.queued_bytes
        outcome = self.gate.arrive(ticket, self.now)
        dropped, self.gate.dropped = self.gate.dropped, []
        self._check_dropped(ticket, outcome, before, bytes_before, dropped)
        assert outcome == ENTERED or self.running or before, "an empty engine takes anything"
        if outcome == ENTERED:
            assert not before, "somebody was waiting"
            self._entered(ticket, self.gate.ceilings[ticket.cls])
        elif outcome == QUEUED:
            self.waiting.append(ticket)
            assert len(self.waiting) <= self.gate.max_queue
            assert sum(one.size for one in self.waiting) <= self.gate.max_bytes
            self.settled = False  # it may go before those that do not fit
        else:
            assert ticket.state not in (WAITING, RUNNING)
            if outcome == DOOMED:
                assert ticket.tier != INVITED, "it was promised a place"
                is_held = ticket.tenant in self.gate.anomaly.held
                assert is_held or self.gate.meter.work_rate is not None, "nothing is known"
            self.gone.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def serve(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.gate.leave(ticket)
        self.gone.append(ticket)
        self.let_in()

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """By its own will, or because it is served."""
        ticket = data.draw(st.sampled_from(self.running + self.waiting))
        (self.running if ticket in self.running else self.waiting).remove(ticket)
        self.gate.leave(ticket)
        self.gate.leave(ticket)  # safe to say twice
        self.gone.append(ticket)
        self.settled = False

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def send_back(self, data: st.DataObject) -> None:
        self._send_back(data.draw(st.sampled_from(self.running)))

    def _send_back(self, ticket: Ticket) -> None:
        self.running.remove(ticket)
        self.gate.leave(ticket)
        self.gate.requeue(ticket, self.now)
        self.waiting.append(ticket)
        self.gate.max_queue = max(self.gate.max_queue, len(self.waiting))
        self.gate.max_bytes = max(self.gate.max_bytes, sum(one.size for one in self.waiting))
        assert ticket.tier == INVITED
        assert ticket.stays, "once is enough"
        self.settled = False

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        self.gate.on_first_token(data.draw(st.sampled_from(self.running)), self.now)
        self.settled = False

    @rule(
        seconds=st.sampled_from((0.0, 0.2, 0.5, 2.0, 15.0)), tokens=st.integers(0, 100), started=st.booleans()
    )
    def pass_time(self, seconds: float, tokens: int, started: bool) -> None:
        self.now += seconds
        for ticket in self.running:
            if ticket.first and ticket.steady:
                ticket.tokens += tokens
        self.gate.tick(self.now)
        self.settled = False
        for ticket in self.gate.victims(self.now, started=started):
            assert ticket in self.running
            assert any(one.cls < ticket.cls for one in self.waiting), "nobody is above it"
            if ticket.first:
                assert started
                assert ticket.cls == CLASSES - 1
            else:
                assert ticket not in self.gave_way, "once is enough"
                self.gave_way.append(ticket)
                self._send_back(ticket)

    @rule(seats=st.integers(1, 4), max_queue=st.sampled_from((0, 3, 6, 10)))
    def reload(self, seats: int, max_queue: int) -> None:
        self.gate.seats, self.gate.max_queue = seats, max_queue
        self.settled = False

    @rule()
    def let_in(self) -> None:
        while True:
            before = list(self.waiting)
            ceilings = list(self.gate.ceilings)
            promised = [one for one in before if one.promised]
            ticket = self.gate.next_in(self.now)
            if ticket is None:
                break
            assert ticket in before
            self.waiting.remove(ticket)
            if ticket not in promised:
                self._check_order(ticket)
            if ticket.state == GONE:
                assert ticket.tier != INVITED
                rest = self.gate.backlog_s(self.now) + ticket.fresh / self.gate.meter.prompt_rate
                assert self.now + rest > ticket.due
                self.gone.append(ticket)
            else:
                may_fill = self.share or self._has_aged(ticket, 1) or ticket in promised
                self._entered(ticket, ceilings[0 if may_fill else ticket.cls])
        self.settled = True

    # What it promises.

    @invariant()
    def it_adds_up(self) -> None:
        gate = self.gate
        assert list(gate.running) == self.running or set(gate.running) == set(self.running)
        assert gate.in_flight == len(self.running)
        assert gate.queued == len(self.waiting) == sum(len(queue) for queue in gate.queues)
        assert set(gate.waiting()) == set(self.waiting)
        assert gate.queued_bytes == sum(ticket.size for ticket in self.waiting)
        assert gate.room == pytest.approx(sum(ticket.room for ticket in self.running), abs=1e-3)
        open_prompts = sum(ticket.fresh for ticket in self.running if not ticket.first)
        assert gate.backlog == pytest.approx(open_prompts, abs=1e-3)
        for cls, queue in enumerate(gate.queues):
            work = sum(ticket.work for ticket in self.waiting if ticket.cls == cls)
            assert queue.work == pytest.approx(work, abs=1e-3)

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        for place, state in ((self.running, RUNNING), (self.waiting, WAITING)):
            assert [ticket.state for ticket in place] == [state] * len(place)
        assert not {RUNNING, WAITING} & {ticket.state for ticket in self.gone}

    @invariant()
    def an_empty_engine_is_not_kept_waiting(self) -> None:
        if self.settled and self.waiting:
            assert self.running

    def teardown(self) -> None:
        """When everything ends, whoever waits enters or is told: nobody is forgotten, nothing is left."""
        if not hasattr(self, "gate"):
            return
        for _ in range(len(self.waiting) + 1):
            for ticket in self.running.copy():
                self.running.remove(ticket)
                self.gate.leave(ticket)
            self.let_in()
        assert not self.waiting
        for ticket in self.running:
            self.gate.leave(ticket)
        assert (self.gate.queued, self.gate.queued_bytes, self.gate.in_flight) == (0, 0, 0)
        assert self.gate.room == self.gate.backlog == 0.0
        assert [queue.head() for queue in self.gate.queues] == [None] * CLASSES

    def _entered(self, ticket: Ticket, ceiling: float) -> None:
        """The bounds hold; an engine that was empty takes anything."""
        gate, others = self.gate, list(self.running)
        self.running.append(ticket)
        if others:
            assert len(self.running) <= gate.seats
            most = gate.controller.limit * ceiling
            beyond = max(ticket.room - most / 2, 0.0)  # large ones need not find all of their room
            assert gate.room - beyond <= most + 1e-3
            own = ticket.fresh / gate.meter.prompt_rate
            assert gate.backlog_s(self.now) - own < gate.terms[0].backlog_s

    def _has_aged(self, ticket: Ticket, classes: int) -> bool:
        return self.now - ticket.queued >= classes * AGING_S

    def _check_order(self, ticket: Ticket) -> None:
        """Classes, then tiers, then in a tenant whoever is due first; but for guaranteed shares and aging."""
        large = self.gate.controller.limit / 4  # may be passed for a while
        if not self.share:
            passed = {one.cls for one in self.waiting if one.room > large}
            for one in self.waiting:
                if one.cls not in passed:
                    assert one.cls >= ticket.cls or self._has_aged(ticket, ticket.cls - one.cls)
        if not self._has_aged(ticket, 1):
            for one in self.waiting:
                if one.cls == ticket.cls and one.room <= large:
                    assert one.tier >= ticket.tier
                    if (one.tenant, one.tier) == (ticket.tenant, ticket.tier):
                        assert (one.due, one.serial) > (ticket.due, ticket.serial)

    def _check_dropped(
        self, ticket: Ticket, outcome: int, before: list[Ticket], held: int, dropped: list[Ticket]
    ) -> None:
        """Only who is less important, of them the least important first, and nobody in vain."""
        less = [one for one in before if (one.cls, one.tier) > (ticket.cls, ticket.tier)]
        if outcome == FULL:
            assert not dropped, "in vain"
            fits = len(before) - len(less) < self.gate.max_queue
            assert not fits or held - sum(one.size for one in less) + ticket.size > self.gate.max_bytes
        for i, one in enumerate(dropped):
            assert outcome == QUEUED
            assert one.state == GONE
            assert one in less
            self.waiting.remove(one)
            self.gone.append(one)
            kept = before.copy()
            for other in dropped[: i + 1]:
                kept.remove(other)
            assert all((other.cls, other.tier) <= (one.cls, one.tier) for other in kept)
            now_held = sum(other.size for other in (*kept, one, ticket))
            assert len(kept) + 1 >= self.gate.max_queue or now_held > self.gate.max_bytes, "one too many"


TestAdmission = Machine.TestCase


# Orders, and shares between classes and between tenants.


@given(
    tickets=st.lists(
        st.builds(
            request,
            tenant=st.sampled_from("ab"),
            tier=st.sampled_from((INVITED, FIRST, REPEAT)),
            due=st.sampled_from((1.0, 2.0, 3.0)),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_a_queue_is_served_by_tier_and_each_tenant_by_what_is_due(tickets: list[Ticket]) -> None:
    """And it is emptied from the other end: of the last tier whoever of its tenant is due last."""
    queue = ClassQueue()
    for serial, ticket in enumerate(tickets):
        ticket.serial = serial
        queue.add(ticket)
    assert list(queue) == tickets

    def rank(ticket: Ticket) -> tuple[int, float, int]:
        return ticket.tier, ticket.due, ticket.serial

    waiting = tickets.copy()
    for turn in range(len(tickets)):
        head, last = queue.head(), next(queue.spared(-1))
        assert head is not None
        assert (head.tier, last.tier) == (min(t.tier for t in waiting), max(t.tier for t in waiting))
        assert rank(head) == min(rank(t) for t in waiting if (t.tenant, t.tier) == (head.tenant, head.tier))
        assert rank(last) == max(rank(t) for t in waiting if (t.tenant, t.tier) == (last.tenant, last.tier))
        leaves = head if turn % 2 else last
        queue.remove(leaves)
        waiting.remove(leaves)
    assert queue.head() is queue.oldest is None
    assert not list(queue.spared(-1))


@given(
    shares=st.lists(st.floats(0, 0.3), min_size=3, max_size=3),
    work=st.lists(st.tuples(st.integers(0, 2), st.floats(10, 500)), min_size=1, max_size=20),
)
def test_a_class_that_always_waits_gets_its_share(shares: list[float], work: list[tuple[int, float]]) -> None:
    """To within the largest request, of what is dispatched."""
    admission = gate(seats=1, max_queue=10_000)
    admission.terms = tuple(Terms(share=share) for share in shares)
    sizes = [cycle([100.0, *(size for cls, size in work if cls == one)]) for one in range(CLASSES)]
    largest = max(request(answer=size).work for _, size in [*work, (0, 100.0)])
    admission.arrive(request(), 0.0)
    for cls in [*range(CLASSES)] * 40:
        admission.arrive(request(cls, answer=next(sizes[cls])), 0.0)
    served = [0.0] * CLASSES
    for _ in range(40):
        admission.leave(next(iter(admission.running)))
        ticket = admission.next_in(0.0)
        assert ticket is not None
        served[ticket.cls] += ticket.work
        for cls in range(1, CLASSES):
            assert served[cls] >= shares[cls] * sum(served) - 2 * largest


@given(
    weights=st.lists(st.sampled_from((0.5, 1.0, 2.0, 5.0)), min_size=2, max_size=4),
    answers=st.lists(st.floats(0, 500), min_size=1, max_size=30),
    real=st.booleans(),
)
def test_tenants_that_always_wait_are_served_alike(
    weights: list[float], answers: list[float], real: bool
) -> None:
    """By their weight, to within two largest requests; by what requests took, where that is known."""
    queue = ClassQueue()
    serials = count(1)
    names = [f"tenant{i}" for i in range(len(weights))]
    lengths = {name: cycle([answer * i for answer in answers]) for i, name in enumerate(names)}

    def add(name: str) -> None:
        weight = weights[names.index(name)]
        ticket = request(0, name, weight=weight, answer=next(lengths[name]) if not real else 250.0)
        ticket.serial = next(serials)
        queue.add(ticket)

    for name in names * 2:
        add(name)
    served = dict.fromkeys(names, 0.0)
    bound = 0.0
    for _ in range(60):
        ticket = queue.head()
        assert ticket is not None
        queue.remove(ticket)
        queue.serve(ticket)
        took = ticket.fresh + DECODE * next(lengths[ticket.tenant]) if real else ticket.work
        if real:
            queue.settle(ticket, took)
        served[ticket.tenant] += took / ticket.weight
        bound = max(bound, max(took, ticket.work) / ticket.weight)
        add(ticket.tenant)
        assert max(served.values()) - min(served.values()) <= 2 * bound + 1e-6


@given(before=st.integers(1, 50), backlog=st.integers(3, 20))
def test_who_comes_back_has_saved_nothing_up(before: int, backlog: int) -> None:
    """However long it was away, it takes turns with those who stayed."""
    queue = ClassQueue()
    serials = count(1)

    def serve_next() -> str:
        ticket = queue.head()
        assert ticket is not None
        queue.remove(ticket)
        queue.serve(ticket)
        return str(ticket.tenant)

    def add(name: str, many: int) -> None:
        for _ in range(many):
            ticket = request(0, name)
            ticket.serial = next(serials)
            queue.add(ticket)

    add("away", 1)
    serve_next()
    add("stays", before + backlog)
    for _ in range(before):
        serve_next()
    add("away", backlog)
    turns = [serve_next() for _ in range(backlog)]
    assert abs(turns.count("away") - turns.count("stays")) <= 2


def test_who_was_invited_goes_before_higher_classes_once() -> None:
    admission, back = gate(seats=1), request(2, tier=INVITED, promised=True)
    for one in (request(), request(0), back):
        admission.arrive(one, 0.0)
    admission.leave(next(iter(admission.running)))
    assert admission.next_in(0.0) is back
    admission.leave(back)
    admission.requeue(back, 0.0)
    assert admission.next_in(0.0) is not back


def test_who_was_invited_is_taken_however_long_it_may_wait() -> None:
    admission = gate(seats=1)
    admission.meter.work_rate = 1.0
    outcomes = [admission.arrive(request(due=5.0, tier=tier), 0.0) for tier in (FIRST, FIRST, INVITED)]
    assert outcomes == [ENTERED, DOOMED, QUEUED]


# Invitations.


@given(
    part=st.floats(0.01, 1),
    rate=st.floats(10, 1e5),
    asks=st.lists(st.tuples(st.floats(0, 3), st.floats(1, 5000), st.floats(0, 60)), max_size=30),
)
def test_no_more_is_promised_than_is_kept_for_it(
    part: float, rate: float, asks: list[tuple[float, float, float]]
) -> None:
    """Between any two promised instants there is time for the work of the first, at the rate that is kept."""
    invitations = Invitations(1, part)
    now, promised = 0.0, []
    for gap, work, patience in asks:
        now += gap
        earliest = now + patience / 3
        wait = invitations.book(0, work, rate, now, earliest, now + patience)
        if wait is None:
            continue
        at = now + wait
        assert earliest - 1e-6 <= at <= now + patience + 1e-6
        assert wait > 0
        promised.append((at, work))
    for (first, work), (second, _) in pairwise(promised):
        assert second - first >= work / (rate * part) - 1e-6


@given(
    wait=st.one_of(st.none(), st.floats(0.3, 60)), early=st.floats(-70, 200), came=st.floats(0, 50)
)
def test_who_comes_when_it_was_told_is_known_once(wait: float | None, early: float, came: float) -> None:
    invitations = Invitations(1, 0.1)
    who = ("tenant", 10, 20)
    invitations.remember(who, came, 100.0, wait)
    back = 100.0 + (wait or 0.0) - early
    assume(back >= 100.0)
    assert invitations.returned(("another", 10, 20), back) is None
    told = invitations.returned(who, back)
    assert invitations.returned(who, back) is None
    if told is None:
        assert early < -60, "it is forgotten only after a while"
        return
    assert told.came == came
    if wait is None or early > 0.3 or back > 100.0 + wait * 1.2 + 1.6:
        assert not invitations.is_due(told, back)
    if wait is not None and -wait * 0.2 <= early <= 0.2:  # callers are scattered by so much
        assert invitations.is_due(told, back)


def test_what_is_remembered_is_bounded_and_the_oldest_goes() -> None:
    invitations = Invitations(1, 0.1)
    for i in range(20_000):
        invitations.remember(("tenant", 1, i), 0.0, 0.0, 1.0)
    assert len(invitations) == 16_384
    assert invitations.returned(("tenant", 1, 0), 1.0) is None
    assert invitations.returned(("tenant", 1, 19_999), 1.0) is not None
