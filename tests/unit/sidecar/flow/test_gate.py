"""Who enters, who waits, and how long a newcomer is told it would take."""

import pytest

from sidecar.flow.gate import ENTERED, FULL, QUEUED, Gate


def full(limit: int = 1, queued: int = 0) -> Gate[str]:
    """A gate with `a`, `b`, ... inside and `1`, `2`, ... waiting."""
    gate: Gate[str] = Gate(limit, max_queue=3)
    for member in "abcdef"[:limit] + "123"[:queued]:
        gate.arrive(member)
    return gate


def drain(gate: Gate[str]) -> str:
    """Everybody who may enter now, in order."""
    return "".join(iter(gate.next_in, None))


def test_enters_while_there_is_room_then_waits_then_is_refused() -> None:
    gate: Gate[str] = Gate(2, 1)
    assert [gate.arrive(member) for member in "abcd"] == [ENTERED, ENTERED, QUEUED, FULL]
    assert (gate.in_flight, gate.queued) == (2, 1)


def test_without_a_queue_nobody_waits() -> None:
    gate: Gate[str] = Gate(1, 0)
    assert [gate.arrive("a"), gate.arrive("b")] == [ENTERED, FULL]


def test_who_was_refused_holds_nothing() -> None:
    gate = full(queued=3)
    gate.arrive("x")
    gate.leave("x", 0.0)
    assert (gate.in_flight, gate.queued) == (1, 3)


def test_slots_go_to_those_who_wait_in_order() -> None:
    gate = full(limit=2, queued=3)
    gate.leave("a", 0.0)
    gate.leave("b", 0.0)
    assert drain(gate) == "12"
    gate.leave("1", 0.0)
    assert drain(gate) == "3"


def test_a_newcomer_does_not_take_the_slot_of_one_who_waits() -> None:
    gate = full(queued=1)
    gate.leave("a", 0.0)
    assert gate.arrive("newcomer") == QUEUED
    assert drain(gate) == "1"


def test_who_gives_up_leaves_no_gap_in_the_queue() -> None:
    gate = full(queued=3)
    gate.leave("2", 0.0)
    assert gate.queued == 2
    assert gate.arrive("4") == QUEUED
    for member in "a13":
        gate.leave(member, 0.0)
        drain(gate)
    assert (gate.in_flight, gate.queued) == (1, 0)
    assert drain(gate) == ""


def test_a_limit_that_grows_lets_more_in_and_one_that_shrinks_waits_for_departures() -> None:
    gate = full(limit=2, queued=3)
    gate.limit = 3
    assert drain(gate) == "1"
    gate.limit = 1
    gate.leave("a", 0.0)
    gate.leave("b", 0.0)
    assert drain(gate) == ""
    gate.leave("1", 0.0)
    assert drain(gate) == "2"


def test_the_wait_is_the_place_in_the_queue_times_the_mean_gap_between_free_slots() -> None:
    gate = full(limit=3, queued=3)
    assert gate.wait_s() == 4.0, "nothing was measured: a second each"
    gate.leave("a", 10.0)
    assert gate.wait_s() == 4.0, "one departure is no gap"
    gate.leave("b", 12.0)
    assert gate.wait_s() == 4 * 2.0
    gate.leave("c", 16.0)
    assert gate.wait_s() == pytest.approx(4 * (2.0 + (4.0 - 2.0) / 16))


def test_gaps_are_not_measured_while_nobody_waits() -> None:
    gate = full(limit=3, queued=1)
    gate.leave("a", 10.0)
    drain(gate)
    gate.leave("b", 500.0)
    gate.arrive("d")
    gate.arrive("4")
    gate.leave("c", 1000.0)
    assert gate.wait_s() == 2.0


def test_giving_up_frees_no_slot_and_is_not_measured() -> None:
    gate = full(limit=2, queued=3)
    gate.leave("a", 10.0)
    gate.leave("1", 11.0)
    gate.leave("b", 13.0)
    assert gate.wait_s() == 3 * 3.0
