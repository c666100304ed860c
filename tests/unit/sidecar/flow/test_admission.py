"""Who enters, in which order, and who gives way. Who is refused: `test_admission_refused`."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sidecar.flow.admission import DOOMED, ENTERED, QUEUED, Admission, Terms
from sidecar.flow.controller import Heard
from sidecar.flow.ticket import FIRST, GONE, INVITED, REPEAT, WAITING
from sidecar.standing import blocked_by
from tests.unit.sidecar.flow.tickets import (
    HIGH,
    LOW,
    MIDDLE,
    busy,
    gate,
    measured,
    order,
    ticket,
    turn,
    wait,
)


def test_an_empty_engine_takes_anything() -> None:
    admission = gate(0, capacity=10.0)
    assert admission.arrive(ticket(prompt=1e6, fresh=1e6), 0.0) == ENTERED
    assert admission.arrive(ticket(prompt=1.0, fresh=1.0, answer=1.0), 0.0) == QUEUED


def test_strictly_by_class() -> None:
    admission = busy()
    waiting = [wait(admission, ticket(cls)) for cls in (LOW, MIDDLE, HIGH, LOW, MIDDLE, HIGH)]
    low, middle, high, low2, middle2, high2 = waiting
    assert order(admission) == [high, high2, middle, middle2, low, low2]


def test_nobody_passes_a_higher_one_for_being_small() -> None:
    admission = gate(100, capacity=10_000.0)
    admission.arrive(ticket(prompt=8000.0), 0.0)
    large = wait(admission, ticket(HIGH, prompt=2000.0))
    small = wait(admission, ticket(LOW, prompt=1.0))
    assert admission.next_in(0.0) is None
    assert turn(admission) is large
    assert small.state == WAITING


def test_one_that_needs_the_engine_empty_is_passed_in_turn() -> None:
    """For a while, and by whoever's turn is next among those who need little; not by who came first."""
    admission = gate(100, capacity=10_000.0)
    admission.arrive(ticket(prompt=5000.0, fresh=1.0), 0.0)
    large = wait(admission, ticket(prompt=9000.0, fresh=1.0, tier=INVITED))
    repeat = wait(admission, ticket(tier=REPEAT, tenant="b"))
    first = wait(admission, ticket(tier=FIRST, tenant="c"))
    assert [admission.next_in(0.0) for _ in range(3)] == [first, repeat, None]
    assert large.state == WAITING


def test_who_comes_waits_behind_those_who_wait() -> None:
    admission = busy(2)
    first = wait(admission, ticket())
    admission.leave(next(iter(admission.running)))
    second = wait(admission, ticket())
    assert admission.next_in(0.0) is first
    assert admission.next_in(0.0) is None
    assert second.state == WAITING


def test_invited_before_first_attempts_before_repeats() -> None:
    admission = busy()
    repeat = wait(admission, ticket(tier=REPEAT))
    first = wait(admission, ticket())
    invited = wait(admission, ticket(tier=INVITED))
    assert order(admission) == [invited, first, repeat]


def test_a_tenant_with_one_request_is_not_behind_a_crowd() -> None:
    admission = busy()
    for _ in range(100):
        wait(admission, ticket(tenant="noisy"))
    quiet = wait(admission, ticket(tenant="quiet"))
    assert quiet in [turn(admission), turn(admission)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_a_class_gets_its_guaranteed_share_and_no_more(share: float) -> None:
    terms = (Terms(share=0.4), Terms(share=0.0), Terms(share=share))
    admission = busy(terms=terms)
    work = {HIGH: 0.0, LOW: 0.0}
    for _ in range(10):
        wait(admission, ticket(LOW, answer=400.0))
        wait(admission, ticket(HIGH))
    for _ in range(1000):
        served = turn(admission)
        assert served is not None
        work[served.cls] += served.work
        wait(admission, ticket(served.cls, answer=served.answer))
    assert work[LOW] / sum(work.values()) == pytest.approx(share, abs=0.01)


def test_without_a_share_a_class_may_starve() -> None:
    admission = busy()
    wait(admission, ticket(LOW))
    for _ in range(100):
        wait(admission, ticket(HIGH))
        served = turn(admission)
        assert served is not None
        assert served.cls == HIGH


def test_a_share_is_not_saved_up_while_nobody_of_the_class_waits() -> None:
    admission = busy(terms=(Terms(share=0.4), Terms(share=0.0), Terms(share=0.3)))
    for _ in range(100):
        left = wait(admission, ticket(LOW))
        wait(admission, ticket(HIGH))
        turn(admission)
        admission.leave(left)
    for _ in range(20):
        wait(admission, ticket(LOW))
        wait(admission, ticket(HIGH))
    served = [turn(admission) for _ in range(10)]
    assert [one.cls for one in served if one is not None].count(LOW) <= 4


def test_who_has_waited_long_counts_as_a_class_higher() -> None:
    admission = busy(aging_s=30.0)
    old = wait(admission, ticket(LOW), 0.0)
    middle = [wait(admission, ticket(MIDDLE), 20.0) for _ in range(2)]
    assert turn(admission, 29.0) is middle[0]
    high = wait(admission, ticket(HIGH), 29.0)
    assert order(admission, 31.0) == [high, old, middle[1]]


def test_who_has_waited_twice_as_long_counts_as_two() -> None:
    admission = busy(aging_s=30.0)
    old = wait(admission, ticket(LOW), 0.0)
    high = wait(admission, ticket(HIGH), 50.0)
    assert order(admission, 61.0) == [old, high]


def fill(admission: Admission, cls: int, now: float = 0.0) -> int:
    """How many of a class enter until one has to wait; that one goes again."""
    count = 0
    while admission.arrive(last := ticket(cls), now) == ENTERED:
        count += 1
    admission.leave(last)
    return count


def test_a_lower_class_fills_less_of_the_engine() -> None:
    terms = (Terms(share=0.4), Terms(share=0.0, ceiling=0.5), Terms(share=0.0, ceiling=0.25))
    admission = gate(1000, capacity=164.0 * 100, terms=terms)
    assert fill(admission, LOW) == 25
    assert fill(admission, MIDDLE) == 25
    assert fill(admission, HIGH) == 50


def test_a_part_stays_free_for_the_highest_class() -> None:
    admission = gate(1000, capacity=164.0 * 1000)
    lower = fill(admission, LOW)
    assert 0 < fill(admission, HIGH) == 1000 - lower


def test_more_stays_free_the_more_higher_classes_ask_for() -> None:
    def entering(asked: int) -> int:
        admission = measured(gate(1000, capacity=164.0 * 500), work=100_000.0, prompt=1e12)
        for n in range(1, 41):
            for _ in range(asked):
                one = ticket(HIGH)
                admission.arrive(one, n / 10)
                admission.leave(one)
            admission.tick(n / 10)
        return fill(admission, LOW, 4.0)

    assert entering(0) > entering(6) > entering(12)


def test_seats_are_a_bound_of_their_own() -> None:
    assert fill(gate(7), HIGH) == 7


def test_room_follows_what_is_written() -> None:
    admission = gate(10, capacity=1000.0)
    one = ticket()
    admission.arrive(one, 0.0)
    assert admission.room == pytest.approx(164.0)
    one.tokens = 800
    admission.tick(0.1)
    assert admission.room > 1000.0
    assert admission.arrive(ticket(), 0.1) == QUEUED


def test_prompts_ahead_of_first_tokens_are_bounded() -> None:
    admission = gate(1000, terms=[Terms(share=0.4, backlog_s=0.35), Terms(share=0.0, backlog_s=0.15)])
    admission.meter.prompt_rate = 1000.0
    running = [ticket(0) for _ in range(3)]
    assert admission.arrive(ticket(1), 0.0) == ENTERED
    low = wait(admission, ticket(1))
    admission.leave(low)
    outcomes = [admission.arrive(one, 0.0) for one in running]
    assert outcomes == [ENTERED, ENTERED, QUEUED]
    admission.on_first_token(running[0], 0.1)
    assert admission.next_in(0.1) is running[2]


def test_a_prompt_longer_than_the_bound_still_gets_in() -> None:
    admission = gate(1000)
    admission.meter.prompt_rate = 1000.0
    admission.arrive(ticket(), 0.0)
    assert admission.arrive(ticket(fresh=5000.0, prompt=5000.0), 0.0) == ENTERED
    assert admission.arrive(ticket(), 0.0) == QUEUED


def test_an_answer_that_is_not_streamed_is_taken_to_go_as_the_others_do() -> None:
    admission = gate(10)
    admission.meter.prompt_rate, admission.meter.itl_s = 1000.0, 0.01
    one = ticket(steady=False, prompt=300.0, fresh=300.0)
    admission.arrive(one, 0.0)
    admission.tick(0.1)
    assert (one.first, admission.backlog) == (0.0, 300.0)
    admission.tick(1.0)
    assert (one.first, admission.backlog) == (1.0, 0.0)
    assert one.tokens == pytest.approx(70, abs=2)
    admission.tick(1000.0)
    assert one.tokens <= 400, "no more than a few times what was expected"


# Giving way.


def test_work_without_a_first_token_gives_way_to_a_blocked_higher_class() -> None:
    admission = gate(5)
    running = [ticket(cls) for cls in (MIDDLE, LOW, LOW, LOW)]
    for n, one in enumerate(running):
        admission.arrive(one, n / 10)
    admission.arrive(started := ticket(LOW), 0.4)
    admission.on_first_token(started, 0.5)
    wait(admission, ticket(HIGH), 1.0)
    assert admission.victims(1.05) == [], "it has hardly waited"
    assert admission.victims(1.2) == [running[3], running[2]], "the lowest and latest, two at a time"
    assert admission.victims(1.3) == [], "the room of these is not yet free"
    for one in running[2:]:
        admission.leave(one)
    assert admission.victims(2.0) == [], "nobody is blocked where there is room"


def test_nobody_gives_way_to_its_own_class_or_to_a_lower_one() -> None:
    admission = gate(1)
    admission.arrive(ticket(MIDDLE), 0.0)
    wait(admission, ticket(MIDDLE))
    wait(admission, ticket(LOW))
    assert admission.victims(9.0, started=True) == []


def test_who_has_tokens_gives_way_only_if_that_is_wanted_and_of_the_lowest_class() -> None:
    admission = gate(3)
    running = [ticket(cls) for cls in (MIDDLE, LOW, LOW)]
    for one, tokens in zip(running, (1, 50, 5), strict=True):
        admission.arrive(one, 0.0)
        admission.on_first_token(one, 0.1)
        one.tokens = tokens
    wait(admission, ticket(HIGH), 0.2)
    assert admission.victims(1.0) == []
    assert admission.victims(1.0, started=True) == [running[2]], "who loses least, and nobody else"
    admission.leave(running[2])
    admission.leave(running[1])
    admission.seats = 1
    assert admission.victims(9.0, started=True) == []


def test_nobody_gives_way_twice() -> None:
    """Or a long prompt would be begun again and again, and never be done."""
    admission = gate(1)
    victim = ticket(LOW)
    admission.arrive(victim, 0.0)
    wait(admission, ticket(HIGH), 0.0)
    assert admission.victims(1.0) == [victim]
    admission.leave(victim)
    admission.requeue(victim, 1.0)
    assert admission.next_in(1.0) is not victim
    assert turn(admission, 1.0) is victim
    wait(admission, ticket(HIGH), 2.0)
    assert admission.victims(9.0) == []


def test_what_runs_by_its_guaranteed_share_stays() -> None:
    """Else the share would be spent, and nothing had for it."""
    admission = busy(terms=(Terms(share=0.4), Terms(share=0.0), Terms(share=0.5)))
    low = wait(admission, ticket(LOW))
    for _ in range(3):
        wait(admission, ticket(HIGH), 1.0)
    assert [turn(admission, 2.0) for _ in range(3)][-1] is low
    assert admission.queued == 1
    assert admission.victims(9.0) == []


def test_who_gave_way_is_before_all_of_its_class() -> None:
    admission = gate(1)
    admission.arrive(victim := ticket(LOW, tenant="rich"), 0.0)
    others = [wait(admission, ticket(LOW, tenant="poor", due=due)) for due in (1.0, 2.0)]
    high = wait(admission, ticket(HIGH))
    admission.leave(victim)
    admission.requeue(victim, 0.5)
    assert admission.next_in(0.5) is high
    assert order(admission, 0.5) == [victim, *others]
    assert victim.state == GONE
    assert admission.in_flight == 1


# Leaving, being told, looking.


def test_who_leaves_holds_nothing_whenever_that_is() -> None:
    admission = busy()
    waiting = wait(admission, ticket(size=10))
    running = next(iter(admission.running))
    for one in (waiting, running):
        for _ in range(2):
            admission.leave(one)
    assert (admission.queued, admission.queued_bytes, admission.in_flight) == (0, 0, 0)
    assert (admission.room, admission.backlog, admission.next_in(0.0)) == (0.0, 0.0, None)
    admission.on_first_token(running, 1.0)
    assert admission.backlog == 0.0


def test_an_invitation_is_for_when_there_is_room() -> None:
    admission = measured(busy(capacity=164.0))
    admission.invitations.part = 0.5
    first, second = (admission.invite(ticket(), 10.0, 100.0) for _ in range(2))
    assert first is not None
    assert second is not None
    assert second - first == pytest.approx(1.0, rel=0.01)  # 500 of work at half of 1,000
    patient = ticket(predicted=21.0)
    assert (admission.invite(patient, 10.0, 100.0) or 0.0) >= 20.0, "not before the queue is shorter"
    assert admission.invite(patient, 10.0, 15.0) is None, "there is no use"


def test_a_tenant_that_went_wild_gets_no_more_than_its_part_and_is_not_invited() -> None:
    admission = measured(busy(capacity=164.0), work=1e6)
    admission.invitations.part = 0.5
    for _ in range(10):
        wait(admission, ticket(tenant="wild"))
        wait(admission, ticket(tenant="calm"))
    admission.anomaly.held = frozenset({"wild"})
    assert admission.arrive(ticket(tenant="wild"), 0.0) == DOOMED
    assert admission.arrive(ticket(tenant="calm"), 0.0) == QUEUED
    assert admission.invite(ticket(tenant="wild"), 0.0, 100.0) is None
    assert admission.invite(ticket(tenant="calm"), 0.0, 100.0) is not None


def test_in_its_shadow_everybody_enters_and_is_told_what_would_have_been() -> None:
    admission = measured(busy(shadow=True, capacity=164.0))
    assert admission.arrive(ticket(due=100.0), 0.0) == QUEUED
    assert admission.arrive(ticket(due=0.1), 0.0) == DOOMED
    assert (admission.in_flight, admission.queued) == (3, 0)


def test_who_waits_and_what_for() -> None:
    admission = gate(2, capacity=1000.0)
    assert blocked_by(admission, HIGH, 0.0) is None
    admission.arrive(ticket(prompt=500.0), 0.0)
    high = wait(admission, ticket(prompt=500.0))
    low = wait(admission, ticket(LOW))
    assert list(admission.waiting()) == [high, low]
    assert [blocked_by(admission, cls, 0.0) for cls in (HIGH, LOW)] == ["room", "a higher class"]
    admission.seats = 1
    assert blocked_by(admission, HIGH, 0.0) == "seats"


def test_what_the_engine_says_counts_once() -> None:
    """Its preemptions are a sum since it started; what it had counted before is nobody's fault here."""
    admission = gate(10, capacity=1e9)
    limits: list[float] = []
    for n, preemptions in enumerate((7, 7, 9, 9, 2, 2), 1):
        admission.heard = Heard(preemptions=preemptions)
        admission.tick(n * 0.5)
        limits.append(admission.controller.limit)
    cuts = [after < before for before, after in pairwise(limits)]
    assert cuts == [False, True, False, False, False]
    admission.heard = Heard(kv_tokens=5000)
    admission.tick(3.5)
    assert admission.controller.capacity == 5000
