"""The timing wheel: late by two ticks at most, never early, and one bad call stops no other."""

import logging

import pytest

from sidecar.net.timers import HORIZON, TICK_S, Timer, Timers
from tests.harness.clock import FakeClock


class Wheel:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers = Timers(self.clock.now)
        self.called: list[object] = []

    def after(self, seconds: float, name: str) -> Timer:
        return self.timers.after(seconds, self.called.append, name)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.timers.advance()


@pytest.mark.parametrize("seconds", [0.0, 0.01, TICK_S, 0.12, 1.0, HORIZON * TICK_S, 3600.0])
def test_never_early_and_at_most_two_ticks_late(seconds: float) -> None:
    wheel = Wheel()
    wheel.clock.advance(0.03)
    wheel.after(seconds, "a")
    wheel.advance(max(seconds - 0.001, 0.0))
    assert wheel.called == []
    wheel.advance(2 * TICK_S + 0.002)
    assert wheel.called == ["a"]
    wheel.advance(seconds + 1)
    assert wheel.called == ["a"]


def test_a_negative_time_is_soon() -> None:
    wheel = Wheel()
    wheel.after(-5, "a")
    wheel.advance(2 * TICK_S)
    assert wheel.called == ["a"]


def test_cancelled_is_not_called_and_cancelling_again_is_nothing() -> None:
    wheel = Wheel()
    timer = wheel.after(1, "a")
    wheel.after(1, "b")
    timer.cancel()
    timer.cancel()
    wheel.advance(2)
    assert wheel.called == ["b"]
    timer.cancel()


def test_how_many_are_to_come() -> None:
    wheel = Wheel()
    timers = [wheel.after(seconds, "a") for seconds in (1, 1, 2, 100 * HORIZON * TICK_S)]
    assert wheel.timers.pending == 4
    timers[0].cancel()
    assert wheel.timers.pending == 3
    wheel.advance(1.5)
    assert wheel.timers.pending == 2
    wheel.advance(2 * HORIZON * TICK_S)  # the far one has moved on
    assert wheel.timers.pending == 1
    timers[3].cancel()
    assert wheel.timers.pending == 0


def test_ticks_come_in_order_however_late() -> None:
    for lateness in (TICK_S, 1000.0):
        wheel = Wheel()
        for name, seconds in (("c", 3), ("a", 1), ("b", 2)):
            wheel.after(seconds, name)
        for _ in range(int(5 / lateness) + 1):
            wheel.advance(lateness)
        assert wheel.called == ["a", "b", "c"]


def test_a_call_may_add_and_cancel() -> None:
    wheel = Wheel()
    victims = [wheel.after(1, "victim")]

    def act(_: object) -> None:
        victims[0].cancel()
        wheel.after(0, "next")

    wheel.timers.after(1, act, None)
    wheel.advance(1.5)
    assert wheel.called == []
    wheel.advance(2 * TICK_S)
    assert wheel.called == ["next"]


def test_one_that_raises_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    wheel = Wheel()

    def fail(_: object) -> None:
        raise ZeroDivisionError

    wheel.after(1, "a")
    wheel.timers.after(1, fail, None)
    wheel.after(1, "b")
    with caplog.at_level(logging.ERROR, "headgate"):
        wheel.advance(2)
    assert sorted(map(str, wheel.called)) == ["a", "b"]
    assert "a timer failed" in caplog.text


@pytest.mark.parametrize("step", [TICK_S, 0.7, 100.0])
def test_beyond_the_horizon_they_are_carried_on(step: float) -> None:
    """Turned at whatever pace, none is early, and none later than the turn after it is due."""
    wheel = Wheel()
    horizon = HORIZON * TICK_S
    far = [0.5 * horizon, horizon - TICK_S, horizon, horizon + TICK_S, 2.5 * horizon, 5 * horizon]
    start = wheel.clock.now()
    late: dict[float, float] = {}

    def note(due: float) -> None:
        late[due] = wheel.clock.now() - start - due

    for seconds in far:
        wheel.timers.after(seconds, note, seconds)
    while len(late) < len(far):
        wheel.advance(step)
    assert all(0 <= lateness <= step + 2 * TICK_S for lateness in late.values())


def test_one_far_away_can_be_cancelled_after_it_was_carried_on() -> None:
    wheel = Wheel()
    timer = wheel.after(5 * HORIZON * TICK_S, "a")
    for _ in range(3):
        wheel.advance(HORIZON * TICK_S)
    timer.cancel()
    wheel.advance(5 * HORIZON * TICK_S)
    assert wheel.called == []


def test_what_was_set_and_cancelled_leaves_nothing_that_grows() -> None:
    wheel = Wheel()
    for i in range(100_000):
        wheel.after((i * 7919) % 864_000 / 10, "a").cancel()
        if i % 100 == 0:
            wheel.advance(TICK_S)
    assert len(wheel.timers._buckets) <= HORIZON + 1
    assert not any(wheel.timers._buckets.values())
    wheel.advance(2 * HORIZON * TICK_S)
    assert not wheel.timers._buckets
    assert wheel.called == []
