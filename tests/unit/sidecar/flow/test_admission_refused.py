"""Who is refused: on arrival, when its turn comes, or for somebody more important."""

from __future__ import annotations

import pytest

from sidecar.flow.admission import DOOMED, FULL, QUEUED, Terms
from sidecar.flow.ticket import GONE, INVITED, REPEAT, RUNNING, WAITING
from tests.unit.sidecar.flow.tickets import HIGH, LOW, MIDDLE, busy, gate, measured, ticket, turn, wait

# Too late.


def test_nobody_is_refused_because_of_a_guess() -> None:
    admission = busy()
    for _ in range(100):
        wait(admission, ticket(due=0.001))


def test_who_would_come_too_late_is_refused_on_arrival() -> None:
    admission = measured(busy(capacity=164.0))
    for _ in range(10):
        wait(admission, ticket(due=100.0))  # 500 of work each: 5 s
    early, late = ticket(due=3.0), ticket(due=9.0)
    assert admission.arrive(early, 0.0) == DOOMED
    assert admission.arrive(late, 0.0) == QUEUED
    assert early.predicted == late.predicted == pytest.approx(5.5, abs=0.5)
    assert (early.position, late.position) == (10, 10)
    assert admission.queued == 11


def test_higher_classes_are_waited_for_and_lower_ones_are_not() -> None:
    admission = measured(busy(capacity=164.0))
    for _ in range(10):
        wait(admission, ticket(MIDDLE, due=100.0))
    assert admission.arrive(ticket(HIGH, due=3.0), 0.0) == QUEUED
    assert admission.arrive(ticket(LOW, due=3.0), 0.0) == DOOMED


def test_of_other_tenants_no_more_than_a_fair_share_is_waited_for() -> None:
    admission = measured(busy(capacity=164.0))
    for _ in range(10):
        wait(admission, ticket(tenant="noisy", due=100.0))
    assert admission.arrive(ticket(tenant="noisy", due=3.0), 0.0) == DOOMED
    assert admission.arrive(ticket(tenant="quiet", due=3.0), 0.0) == QUEUED


def test_a_guaranteed_share_bounds_the_wait() -> None:
    def outcome(share: float) -> int:
        admission = measured(busy(capacity=164.0, terms=[Terms(share=0.4), Terms(share=share)]))
        for _ in range(10):
            wait(admission, ticket(0, due=100.0))
        return admission.arrive(ticket(1, due=3.0), 0.0)

    assert (outcome(0.01), outcome(0.5)) == (DOOMED, QUEUED)


def test_prompts_that_wait_for_the_engine_count() -> None:
    admission = measured(gate(1), work=1e6, prompt=100.0)
    admission.arrive(ticket(), 0.0)
    assert admission.arrive(ticket(due=1.9), 0.0) == DOOMED
    assert admission.arrive(ticket(due=9.0), 0.0) == QUEUED


def test_who_was_invited_is_not_refused_for_a_prediction() -> None:
    admission = measured(busy(capacity=164.0))
    for _ in range(10):
        wait(admission, ticket(due=100.0))
    assert admission.arrive(ticket(tier=INVITED, due=1.0), 0.0) == QUEUED


def test_who_has_become_too_late_is_refused_when_its_turn_comes() -> None:
    admission = busy()
    late = wait(admission, ticket(due=5.0))
    invited = wait(admission, ticket(tier=INVITED, due=5.0))
    in_time = wait(admission, ticket(due=50.0))
    assert turn(admission, 6.0) is invited
    assert turn(admission, 6.0) is late
    assert (late.state, invited.state, admission.in_flight, admission.queued) == (GONE, GONE, 0, 1)
    assert admission.next_in(6.0) is in_time
    assert in_time.state == RUNNING


def test_time_for_the_own_prompt_is_counted_when_the_turn_comes() -> None:
    def state(now: float) -> int:
        admission = measured(busy(), prompt=100.0)  # a second for a prompt
        one = wait(admission, ticket(due=10.0))
        assert turn(admission, now) is one
        return one.state

    assert (state(9.5), state(8.0)) == (GONE, RUNNING)


# A queue that is full.


def test_a_full_queue_drops_the_least_important_for_more_important_ones() -> None:
    admission = busy(max_queue=4)
    middle = wait(admission, ticket(MIDDLE))
    low_soon = wait(admission, ticket(LOW, due=10.0))
    low_late = wait(admission, ticket(LOW, due=20.0))
    low_repeat = wait(admission, ticket(LOW, due=5.0, tier=REPEAT))
    for dropped in (low_repeat, low_late, low_soon, middle):
        wait(admission, ticket(HIGH))
        assert [admission.dropped.pop()] == [dropped]
        assert (dropped.state, admission.queued, admission.dropped) == (GONE, 4, [])
    assert admission.arrive(ticket(HIGH), 0.0) == FULL
    assert admission.dropped == []


def test_a_full_queue_refuses_who_is_no_more_important() -> None:
    admission = busy(max_queue=2)
    wait(admission, ticket(MIDDLE))
    repeat = wait(admission, ticket(MIDDLE, tier=REPEAT))
    assert admission.arrive(ticket(LOW, tier=INVITED), 0.0) == FULL
    assert admission.arrive(ticket(MIDDLE, tier=REPEAT), 0.0) == FULL
    wait(admission, ticket(MIDDLE))
    assert admission.dropped == [repeat]
    assert admission.arrive(ticket(MIDDLE), 0.0) == FULL
    assert admission.queued == 2


def test_a_queue_is_full_by_bytes_as_well() -> None:
    admission = busy(max_bytes=1000)
    low = [wait(admission, ticket(LOW, size=300, due=10.0 + n)) for n in range(3)]
    assert admission.arrive(ticket(LOW, size=300), 0.0) == FULL
    wait(admission, ticket(LOW, size=100))
    wait(admission, ticket(HIGH, size=500))
    assert admission.dropped[-2:] == [low[2], low[1]]
    assert admission.queued_bytes == 800 + 100 * (len(admission.dropped) == 2)


def test_nobody_is_dropped_for_one_that_can_have_no_place() -> None:
    admission = busy(max_bytes=1000)
    low = wait(admission, ticket(LOW, size=300))
    assert admission.arrive(ticket(HIGH, size=1001), 0.0) == FULL
    assert (admission.dropped, low.state) == ([], WAITING)


def test_no_queue_at_all() -> None:
    assert busy(max_queue=0).arrive(ticket(), 0.0) == FULL
