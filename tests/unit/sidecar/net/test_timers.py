"""The timing wheel: late by two ticks at most, never early, and one bad call stops no other."""

import logging

import pytest

from sidecar.net.timers import TICK_S, Timer, Timers
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


@pytest.mark.parametrize("seconds", [0.0, 0.01, TICK_S, 0.12, 1.0, 3600.0])
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
