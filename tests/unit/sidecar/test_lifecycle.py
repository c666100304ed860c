"""A sidecar that has just begun, and one whose event loop is late."""

import pytest

from sidecar.lifecycle import Lifecycle

TICK_S = 0.125


class Loop:
    """An event loop that turns when it is told to."""

    def __init__(self, limit_s: float = 0.5) -> None:
        self.lifecycle = Lifecycle()
        self.lifecycle.limit_s = limit_s
        self.now = 1000.0

    def turn(self, late_s: float = 0.0) -> bool:
        """Whether it is of no use after a turn that came `late_s` too late."""
        due = self.now + TICK_S
        self.now = due + late_s
        self.lifecycle.tick(self.now, due, TICK_S)
        return self.lifecycle.lagging


def test_it_serves_nobody_yet() -> None:
    lifecycle = Lifecycle()
    assert not lifecycle.serving
    assert not lifecycle.draining
    assert not lifecycle.lagging
    assert (lifecycle.lag_s, lifecycle.beat) == (0.0, 0.0)


def test_a_turn_is_remembered_with_its_lag() -> None:
    loop = Loop()
    for late_s in (0.25, 0.0, -0.0625):  # early: a timer may be rounded down
        loop.turn(late_s)
        assert loop.lifecycle.lag_s == max(late_s, 0.0)
        assert loop.lifecycle.beat == loop.now


@pytest.mark.parametrize(
    ("lates", "lagging"),
    [
        ([0.5] * 100, False),  # not later than it may be
        ([0.75], False),
        ([0.75, 0.75], True),
        ([1.0], True),
        ([0.75, 0.0, 0.75], True),
        ([0.75] + [0.0] * 4 + [0.75], True),
        ([0.75] + [0.0] * 5 + [0.75], False),
        ([0.75] + [0.25] * 5 + [0.75], False),  # a punctual tick is one within the limit
    ],
)
def test_it_is_lagging_after_a_second_in_sum(lates: list[float], lagging: bool) -> None:
    loop = Loop()
    assert [loop.turn(late_s) for late_s in lates][-1] == lagging


def test_every_punctual_tick_takes_its_length_off() -> None:
    loop = Loop()
    loop.turn(1.25)
    assert [loop.turn() for _ in range(4)] == [True, True, False, False]


def test_it_does_not_sulk_for_longer_than_it_takes_to_forget_five_seconds() -> None:
    loop = Loop()
    for _ in range(3):
        loop.turn(100.0)
    turns = 0
    while loop.turn():
        turns += 1
    assert turns == (5.0 - 1.0) / TICK_S


def test_silence_is_borne_for_a_second_more_than_a_tick_may_be_late() -> None:
    assert Loop(0.25).lifecycle.tolerance_s == 1.25
