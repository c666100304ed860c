"""Who may run, and who waits: the gate of one pod. Pure: it is told the time.

A ticket enters while three bounds hold, each lower for lower classes so that higher ones find room at once:

    room      KV tokens set aside + its own       <= limit x ceiling       (the limit: `controller`)
    backlog   prompt tokens before a first token  <= prompt rate x seconds
    seats     requests that run                   <= seats

An empty engine takes anything. Who does not fit waits, and the next one is, in this order:

    1. who was invited for now, of whatever class: its place was kept, and little is promised (`invitations`)
    2. a class below its guaranteed share of what was dispatched while it waited (deficit counter)
    3. whoever has waited `aging_s` for each class above its own, as if it were of that class
    4. strictly by class; inside a class `fair`

Predicted time to the first token of a newcomer of class c:

    (work waiting above c + work of c fairly ahead of it) / (work rate x what higher classes leave to c)
        + (prompt backlog + its own prompt) / prompt rate

and no more than what the guaranteed share alone would give. Who would come too late is refused now; who has
become too late is refused when it is its turn. No newcomer is refused before the work rate has been measured.
A queue that is full drops its least important for a more important newcomer.

Where a higher class is blocked although lower work has no first token yet, that work is a victim: it goes
back to its place in the queue, two at a time, and the next ones when the room of the last is free. Nobody
gives way twice, or a long prompt would never be done; and what entered by the guaranteed share stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.flow.anomaly import Anomaly
from sidecar.flow.fair import ClassQueue
from sidecar.flow.invitations import Invitations
from sidecar.flow.meter import Meter
from sidecar.flow.ticket import DECODE, GONE, INVITED, RUNNING, WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sidecar.flow.controller import Controller, Heard, Window
    from sidecar.flow.ticket import Ticket

_WINDOW_S: Final = 0.5
_CERTAINTY: Final = 0.85  # of the time left may be taken by what is predicted
_LEAST_LEFT: Final = 0.25  # of it must be for waiting, however long the own prompt takes
_KEPT: Final = 0.6  # of a higher class's share stays free for its bursts
_LEAST_KEPT: Final = 0.08
_UNSEEN: Final = 0.3
_BIG_PROMPT: Final = 0.5  # of the backlog bound: longer prompts count as this, or would wait too long
_BIG_ROOM: Final = 0.5  # of the limit likewise
_PASSED: Final = 0.25  # of the limit: others may pass whoever needs more, for the first half of its patience
_DEBT: Final = 2.0  # times its head's work owed to a class: others wait for it. Twice that is the most
_SLOW: Final = 0.02
_DEMAND_S: Final = 2.0  # time constant of what classes ask for now
_CUSTOM_S: Final = 20.0  # and of what they usually ask for
_LONG_S: Final = 5.0  # who has more time than this will outlast a peak
_UNKNOWN_S: Final = 1.0  # after which a caller may try again while no rate is known,
_UNKNOWN_FOR_S: Final = 5.0  # and for how long: the engine may be stuck
_VICTIMS: Final = 2
_BLOCKED_S: Final = 0.1  # before somebody has to give way

ENTERED, QUEUED, DOOMED, FULL = range(4)


class Terms(NamedTuple):
    """What a class gets. Highest class first wherever several are listed."""

    share: float  # of what is dispatched, guaranteed while it waits
    ceiling: float = 1.0  # of the limit that it may fill
    wait_s: float = 3.0  # the longest wait for a first token
    backlog_s: float = 0.35  # of prompts ahead of first tokens
    itl_ms: float = 60.0  # objective


class Admission:
    """`seats` and `max_queue` may be set at any time."""

    def __init__(
        self, terms: Sequence[Terms], controller: Controller, *, now: float, seats: int, max_queue: int
    ) -> None:
        self.terms = tuple(terms)
        self.controller = controller
        self.meter = Meter(now)
        self.seats = seats
        self.max_queue = max_queue
        self.max_bytes = 1 << 40  # of what waits
        self.aging_s = 30.0
        self.queues = tuple(ClassQueue() for _ in terms)
        self.running: dict[Ticket, None] = {}
        self.room = 0.0  # KV tokens set aside
        self.backlog = 0.0  # prompt tokens whose first token has not come
        self.queued = 0
        self.queued_bytes = 0
        self.dropped: list[Ticket] = []  # from a full queue, for newcomers: whoever asks tells them
        self.invitations = Invitations(len(self.terms), 0.0)
        self.anomaly = Anomaly()
        self.shadow = False  # judge everybody, and let all in
        self._would_wait = False  # in this window somebody, if this were no shadow
        self.abnormal: frozenset[str] = frozenset()  # tenants that have just become so
        self.heard: Heard | None = None  # from the engine, while that is fresh
        self._preemptions: int | None = None  # that it had counted before
        self._next_victims = 0.0
        self._clear = 0.0  # when the engine will have computed them
        self._credit = [0.0] * len(self.terms)
        self._asked = [0.0] * len(self.terms)  # work of each class in this window
        self._demand = [0.0] * len(self.terms)  # a second, now
        self._custom = [0.0] * len(self.terms)  # and usually
        self._work_part = 1.0  # work for a KV token, on average
        self._fresh_part = 0.5  # prompt tokens for work
        self.ceilings = [1.0] * len(self.terms)
        self._serial = 0
        self._window = now
        self._keep_free()

    @property
    def in_flight(self) -> int:
        return len(self.running)

    # One ticket.

    def arrive(self, ticket: Ticket, now: float) -> int:
        """ENTERED, QUEUED, DOOMED (it would come too late) or FULL; after the last two nothing is held."""
        self._serial = ticket.serial = self._serial + 1
        work = ticket.work
        self._work_part += (work / ticket.room - self._work_part) * _SLOW
        self._fresh_part += (ticket.fresh / work - self._fresh_part) * _SLOW
        self.anomaly.on_arrived(ticket.tenant, work)
        if not self.queued and self.fits(ticket, ticket.cls, now):
            self._asked[ticket.cls] += work
            self._enter(ticket, now)
            return ENTERED
        outcome = self._judge(ticket, now)
        if self.shadow:
            self._asked[ticket.cls] += work
            self._would_wait = True
            self._enter(ticket, now)
        elif outcome == QUEUED:
            self._asked[ticket.cls] += ticket.work
            self._queue(ticket, now)
        if outcome in (DOOMED, FULL):
            self.anomaly.on_refused(ticket.tenant, ticket.work)
        return outcome

    def _judge(self, ticket: Ticket, now: float) -> int:
        ticket.predicted = wait = self.predict(ticket, now)
        ticket.position = sum(map(len, self.queues[: ticket.cls + 1]))
        if ticket.tier != INVITED and (self._too_late(ticket, wait, now) or self._is_excess(ticket)):
            return DOOMED
        if self.queued >= self.max_queue or self.queued_bytes + ticket.size > self.max_bytes:
            return QUEUED if self._make_place(ticket) else FULL
        return QUEUED

    def requeue(self, ticket: Ticket, now: float) -> None:
        """A ticket that has run waits again, before others: it lost its turn through no fault of its own."""
        ticket.tier = INVITED
        ticket.promised = False
        ticket.stays = True
        ticket.due = max(ticket.due, now + self.terms[ticket.cls].wait_s)
        ticket.first = 0.0
        ticket.tokens = ticket.seen = ticket.marked = 0
        ticket.room = ticket.needs()
        self._queue(ticket, now)

    def invite(self, ticket: Ticket, now: float, latest: float) -> float | None:
        """Seconds after which a refused caller should come back, by `latest`; None: there is no use."""
        if ticket.tenant in self.anomaly.held:
            return None
        patience = min(self.terms[ticket.cls].wait_s, ticket.due - ticket.came)
        earliest = now + max(ticket.predicted - patience, 0.0)
        rate = self.work_rate_of(ticket.cls)
        if not rate and self.invitations.part:
            return _UNKNOWN_S if now + _UNKNOWN_S <= min(latest, ticket.came + _UNKNOWN_FOR_S) else None
        return self.invitations.book(ticket.cls, ticket.work, rate, now, earliest, latest)

    def victims(self, now: float, *, started: bool = False) -> list[Ticket]:
        """Who should give way to a blocked higher class now. `started`: of the lowest also who has tokens."""
        if now < self._next_victims:
            return []
        for cls, queue in enumerate(self.queues[:-1]):
            head = queue.head()
            if head is None or now - head.queued < _BLOCKED_S or self.fits(head, cls, now):
                continue
            lower = [ticket for ticket in self.running if ticket.cls > cls and not ticket.stays]
            found, most = [ticket for ticket in lower if not ticket.first], _VICTIMS
            if not found and started:  # work is lost: one at a time
                found, most = [ticket for ticket in lower if ticket.cls == len(self.terms) - 1], 1
            if found:
                found.sort(key=lambda ticket: (-ticket.cls, ticket.tokens, -ticket.serial))
                self._next_victims = now + _WINDOW_S
                return found[:most]
        return []

    def next_in(self, now: float) -> Ticket | None:
        """The next that may enter, if there is one and room for it: call until None.

        One that can no longer be in time comes too, with the state GONE: it holds nothing.
        """
        if not self.queued:
            return None
        for ticket, rank, must_fit in self._candidates(now):
            if self.fits(ticket, rank, now):
                self._unqueue(ticket)
                if ticket.tier != INVITED and self._is_late(ticket, now):
                    ticket.state = GONE
                    self.anomaly.on_refused(ticket.tenant, ticket.work)
                else:
                    ticket.stays |= rank < ticket.cls
                    self._enter(ticket, now)
                return ticket
            if must_fit:
                return None
        return None

    def release(self, now: float) -> Iterator[Ticket]:
        """Let all in who wait, whether or not there is room: the gate is no more."""
        for ticket in [*self.waiting()]:
            self._unqueue(ticket)
            self._enter(ticket, now)
            yield ticket

    def on_first_token(self, ticket: Ticket, now: float) -> None:
        """Its prompt is computed."""
        if ticket.state == RUNNING and not ticket.first:
            self._computed(ticket, now)
            self.meter.on_first_token(ticket, now)

    def leave(self, ticket: Ticket) -> None:
        """It runs or waits no longer, whatever the reason. Safe for one that is gone."""
        if ticket.state == WAITING:
            self._unqueue(ticket)
        elif ticket.state == RUNNING:
            self._count(ticket)
            running = self.running
            del running[ticket]
            taken = DECODE * ticket.tokens
            if ticket.first:
                taken += ticket.fresh
            else:
                self.backlog -= ticket.fresh
                self._clear -= ticket.fresh / self.meter.prompt_rate
            if running:
                self.room -= ticket.room
            else:
                self.room = self.backlog = 0.0  # nor shall rounding be left
            self.queues[ticket.cls].settle(ticket, taken)
        ticket.state = GONE

    # All of them.

    def tick(self, now: float) -> None:
        """Several times a second, with `tokens` of what runs up to date."""
        room = 0.0
        for ticket in self.running:
            if not ticket.steady:
                self._guess(ticket, now)
            self._count(ticket)
            ticket.room = ticket.needs()
            room += ticket.room
        self.room = room
        self.meter.on_tick(len(self.running), self.queued > 0 or self._would_wait)
        if now - self._window >= _WINDOW_S:
            self._close(now)

    def predict(self, ticket: Ticket, now: float) -> float:
        """Seconds from now to its first token. 0.0 while the engine's rates are unknown."""
        meter, cls = self.meter, ticket.cls
        rate = meter.work_rate
        if rate is None:
            return 0.0
        own = self.queues[cls].ahead_of(ticket)
        higher = sum(queue.work for queue in self.queues[:cls])
        ahead = higher + own
        prompts = self.backlog_s(now) + (ahead * self._fresh_part + ticket.fresh) / meter.prompt_rate
        free = (self.controller.limit * self.ceilings[cls] - self.room) * self._work_part
        seats = self.seats - len(self.running)
        if seats <= 0:
            free = min(free, seats * ticket.work)
        if free < 0 and not self.shadow:  # else what runs beyond the limit is what would wait
            free = 0.0
        share = self.terms[cls].share
        above = sum(self._demand[:cls])
        if ticket.due - now > _LONG_S:
            above = min(above, sum(self._custom[:cls]))
        left = max(1.0 - above / rate, share, 0.01)
        wait = max(ahead + ticket.work - free, 0.0) / (rate * left)
        if share:
            wait = min(wait, (own + ticket.work) / (rate * share))
        return max(wait + ticket.fresh / meter.prompt_rate, prompts)

    def backlog_s(self, now: float) -> float:
        """Seconds until the engine has computed the prompts it was given.

        By what it was given at the rate it has, from one first token to the next; but not less than a part
        of what is known to be open, for an engine may be slower than it was.
        """
        left = self._clear - now
        unseen = self.backlog * _UNSEEN / self.meter.prompt_rate
        return left if left > unseen else unseen

    def prompts_s(self, now: float) -> float:
        """The same for who judges whether the engine stands still: longer, while its rate is not measured."""
        meter = self.meter
        return self.backlog_s(now) * meter.prompt_rate / meter.least_prompt_rate

    def work_rate_of(self, cls: int) -> float:
        """Work a second that is there for a class, when it and all above it ask."""
        rate = self.meter.work_rate or 0.0
        return rate * max(1.0 - sum(self._demand[:cls]) / rate, self.terms[cls].share) if rate else 0.0

    def waiting(self) -> Iterator[Ticket]:
        """Everybody who waits, by class and arrival."""
        for queue in self.queues:
            yield from queue

    # Inside.

    def _is_excess(self, ticket: Ticket) -> bool:
        """Its tenant is abnormal and has its part of the queue."""
        if ticket.tenant not in self.anomaly.held:
            return False
        queue = self.queues[ticket.cls]
        return queue.share_of(ticket.tenant) * max(queue.tenants, 2) >= 1.0

    def _make_place(self, ticket: Ticket) -> bool:
        """Drop who is less important than `ticket`, until it has a place; nobody, if it would have none."""
        found: list[Ticket] = []
        queued, held = self.queued, self.queued_bytes + ticket.size
        for cls in range(len(self.queues) - 1, ticket.cls - 1, -1):
            for other in self.queues[cls].spared(ticket.tier if cls == ticket.cls else -1):
                found.append(other)
                queued -= 1
                held -= other.size
                if queued < self.max_queue and held <= self.max_bytes:
                    for spared in found:
                        self._unqueue(spared)
                        spared.state = GONE
                    self.dropped += found
                    return True
        return False

    def _too_late(self, ticket: Ticket, wait: float, now: float) -> bool:
        left = ticket.due - now
        own = ticket.fresh / self.meter.prompt_rate
        return wait - own > max(_CERTAINTY * left - own, _LEAST_LEFT * left)

    def _is_late(self, ticket: Ticket, now: float) -> bool:
        own = ticket.fresh / self.meter.prompt_rate
        return now + self.backlog_s(now) + own * (1 - _LEAST_LEFT) > ticket.due

    def fits(self, ticket: Ticket, rank: int, now: float) -> bool:
        """Whether the bounds of the class `rank` leave room for `ticket`."""
        running = len(self.running)
        if not running:
            return True
        ceiling = self.ceilings[rank]
        if running >= self.seats * ceiling:
            return False
        terms = self.terms[rank]
        backlog = self.backlog_s(now)
        if backlog:
            own = ticket.fresh / self.meter.prompt_rate
            if backlog + min(own, _BIG_PROMPT * terms.backlog_s) > terms.backlog_s:
                return False
        most = self.controller.limit * ceiling
        return self.room + min(ticket.room, most * _BIG_ROOM) <= most

    def _candidates(self, now: float) -> Iterator[tuple[Ticket, int, bool]]:
        """Ticket, as which class it may fill the engine, whether nobody below it may go before it."""
        queues = self.queues
        aged: dict[int, list[Ticket]] = {}
        for cls in range(1, len(queues)):
            oldest, head = queues[cls].oldest, queues[cls].head()
            if oldest is None or head is None:
                continue
            credit = self._credit[cls] = min(self._credit[cls], 2 * _DEBT * head.work)
            if credit >= head.work or head.promised:
                yield head, 0, credit >= _DEBT * head.work
            steps = int((now - oldest.queued) / self.aging_s)
            if steps:
                aged.setdefault(max(cls - steps, 0), []).append(oldest)
        for cls, queue in enumerate(queues):
            for ticket in aged.get(cls, ()):
                yield ticket, cls, True
            yield from self._by_turn(queue, cls, now)

    def _by_turn(self, queue: ClassQueue, cls: int, now: float) -> Iterator[tuple[Ticket, int, bool]]:
        head = queue.head()
        if head is None:
            return
        if not self._may_be_passed(head, now):
            yield head, cls, True
            return
        yield head, cls, False
        small = queue.small(_PASSED * self.controller.limit)
        if small is not None:
            yield small, cls, True

    def _may_be_passed(self, ticket: Ticket, now: float) -> bool:
        """It needs so much room that all others would wait for it while the engine empties."""
        if ticket.room <= _PASSED * self.controller.limit:
            return False
        return now - ticket.queued < (ticket.due - ticket.queued) / 2

    def _queue(self, ticket: Ticket, now: float) -> None:
        ticket.state = WAITING
        ticket.queued = now
        self.queues[ticket.cls].add(ticket)
        self.queued += 1
        self.queued_bytes += ticket.size

    def _unqueue(self, ticket: Ticket) -> None:
        queue = self.queues[ticket.cls]
        queue.remove(ticket)
        self.queued -= 1
        self.queued_bytes -= ticket.size
        if not len(queue):
            self._credit[ticket.cls] = 0.0

    def _enter(self, ticket: Ticket, now: float) -> None:
        ticket.state = RUNNING
        ticket.dispatched = now
        self.running[ticket] = None
        self.room += ticket.room
        fresh, rate, clear = ticket.fresh, self.meter.prompt_rate, self._clear
        self.backlog += fresh
        self._clear = clear = (clear if clear > now else now) + fresh / rate
        ticket.clear_s = clear - now
        ticket.ahead = (clear - now) * rate
        work, cls = ticket.work, ticket.cls
        self.queues[cls].serve(ticket)
        if self.queued:
            for other, queue in enumerate(self.queues):
                if len(queue) and other != cls:
                    self._credit[other] += self.terms[other].share * work
            self._credit[cls] = max(self._credit[cls] - work * (1 - self.terms[cls].share), 0.0)

    def _computed(self, ticket: Ticket, now: float) -> None:
        ticket.first = now
        self.backlog -= ticket.fresh
        self._clear = min(self._clear, now + self.backlog / self.meter.prompt_rate)

    def _count(self, ticket: Ticket) -> None:
        new = ticket.tokens - ticket.seen
        if new:
            ticket.seen = ticket.tokens
            self.meter.on_tokens(new)

    def _guess(self, ticket: Ticket, now: float) -> None:
        """Nothing is seen of an answer that is not streamed: it goes as the others do."""
        prompt = ticket.dispatched + ticket.ahead / self.meter.prompt_rate + self.meter.itl_s
        if now >= prompt:
            if not ticket.first:
                self._computed(ticket, now)
            ticket.tokens = min(int((now - prompt) / self.meter.itl_s), int(4 * ticket.answer))

    def _close(self, now: float) -> None:
        seconds = now - self._window
        self._window = now
        objective = min((self.terms[ticket.cls].itl_ms for ticket in self.running), default=1e9)
        window = self._with_what_was_heard(self.meter.close(now, self.running, objective, self.room))
        if self.controller.on_window(window):
            self.meter.believe_from(now)
        for demand, constant in ((self._demand, _DEMAND_S), (self._custom, _CUSTOM_S)):
            weight = min(seconds / constant, 1.0)
            for cls, asked in enumerate(self._asked):
                demand[cls] += (asked / seconds - demand[cls]) * weight
        self._asked = [0.0] * len(self.terms)
        self._keep_free()
        self._would_wait = False
        self.abnormal |= self.anomaly.close(seconds)
        self.invitations.forget(now)

    def _with_what_was_heard(self, window: Window) -> Window:
        """The engine's own word, where there is one; else what was seen here must do."""
        heard, before = self.heard, self._preemptions
        if heard is None:
            self._preemptions = None
            return window
        if heard.kv_tokens:
            self.controller.learn_capacity(heard.kv_tokens)
        self._preemptions = heard.preemptions
        new = 0
        if heard.preemptions is not None and before is not None:
            new = max(heard.preemptions - before, 0)  # fewer: it has started anew
        return window._replace(kv_used=heard.kv_used, preempted=new)

    def _keep_free(self) -> None:
        """Lower classes leave room for what higher ones asked for lately, so that these enter at once."""
        rate, ceiling = self.meter.work_rate, 1.0
        for cls, terms in enumerate(self.terms):
            self.ceilings[cls] = min(terms.ceiling, ceiling)
            wanted = _KEPT * min(terms.share, self._demand[cls] / rate) if rate else 0.0
            if wanted or not cls:  # the highest may always come
                ceiling -= max(wanted, _LEAST_KEPT)
