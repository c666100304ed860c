"""In which direction each signal moves the limit, which of them counts first, and where it ends."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.flow.controller import Controller, Window

if TYPE_CHECKING:
    from collections.abc import Callable


def window(**changes: Any) -> Window:
    """All is well, and everybody who wants to runs."""
    fields: dict[str, Any] = {
        "work": 10_000.0, "running": 50.0, "itl_ms": 20.0, "objective_ms": 60.0, "bound": False,
    }  # fmt: skip
    return Window(**(fields | changes))


def moved(**changes: Any) -> float:
    """By how much one such window moves a limit of 1,000."""
    controller = Controller(1000.0, known=True, fraction=1.0)
    controller.on_window(window(**changes))
    return controller.limit - 1000.0


def test_nothing_happens_while_nobody_waits() -> None:
    assert moved() == 0.0


def test_it_grows_while_somebody_waits() -> None:
    assert moved(bound=True) > 0.0


@pytest.mark.parametrize("bad", [{"itl_ms": 80.0}, {"preempted": 1}, {"kv_used": 0.97}], ids=str)
def test_each_sign_of_too_much_lowers_it_whether_or_not_somebody_waits(bad: dict[str, float]) -> None:
    assert moved(**bad) < 0.0
    assert moved(bound=True, **bad) == moved(**bad)


@pytest.mark.parametrize(
    "fine",
    [{"itl_ms": 50.0}, {"itl_ms": None}, {"kv_used": 0.9}, {"delay_ms": 90.0}, {"delay_ms": -20.0}],
    ids=str,
)
def test_what_is_within_bounds_does_not(fine: dict[str, float | None]) -> None:
    assert moved(**fine) == 0.0


@pytest.mark.parametrize(("signal", "worse"), [("itl_ms", (60.0, 70.0)), ("delay_ms", (60.0, 90.0))])
def test_the_worse_it_is_the_more_and_never_more_than_a_third(
    signal: str, worse: tuple[float, float]
) -> None:
    little, much, beyond = (moved(bound=True, **{signal: value}) for value in (*worse, 1e6))
    assert 0.0 > little > much > beyond > -334.0


def test_late_first_tokens_count_while_somebody_waits() -> None:
    """One long prompt in an engine that has room is not a queue."""
    assert moved(delay_ms=100.0) == 0.0
    assert moved(bound=True, delay_ms=100.0) < 0.0
    assert moved(bound=True, delay_ms=40.0) > 0.0


def test_one_congestion_is_answered_once() -> None:
    """What was dispatched before a cut comes late after it as well."""
    controller = Controller(1000.0, known=True, fraction=1.0)
    cuts = [controller.on_window(window(bound=True, itl_ms=90.0)) for _ in range(3)]
    assert cuts == [True, False, True]


def test_a_cut_leaves_most_of_what_runs() -> None:
    """Else nobody would get in until a third of it has gone."""
    assert -150.0 < moved(itl_ms=200.0, room=1000.0) < 0.0
    assert moved(itl_ms=200.0, room=5000.0) <= 0.0, "nor is it ever more than before"


def test_the_strictest_objective_is_the_measure() -> None:
    assert moved(itl_ms=50.0, objective_ms=60.0) == 0.0
    assert moved(itl_ms=50.0, objective_ms=40.0) < 0.0


def test_inter_token_latency_counts_before_the_others() -> None:
    signals: dict[str, float] = {"itl_ms": 90.0, "preempted": 1, "delay_ms": 90.0}
    for why in ("inter-token latency", "preemption", "engine queue"):
        controller = Controller(1000.0, known=True, fraction=1.0)
        controller.on_window(window(bound=True, **signals))
        assert controller.why == why
        del signals[next(iter(signals))]


def after(work: Callable[[float], float]) -> Controller:
    """200 windows with numbers that run from 20 to 80, and work by their number, but for noise."""
    random = Random(1)
    controller = Controller(1000.0, known=True, fraction=0.6)
    for _ in range(200):
        running = random.uniform(20.0, 80.0)
        noisy = work(running) * random.uniform(0.9, 1.1)
        controller.on_window(window(bound=True, running=running, work=noisy))
    return controller


def test_more_work_done_by_more_raises_it_and_less_lowers_it() -> None:
    assert after(lambda running: 100 * running).limit == 1200.0
    assert after(lambda running: 1e6 / running).limit < 200.0


def test_where_more_does_not_help_it_stays() -> None:
    flat = after(lambda running: 5000.0)
    before = flat.limit
    flat.on_window(window(bound=True, running=50.0, work=5000.0))
    assert 600.0 < before == flat.limit < 1200.0


def test_it_stays_between_a_tenth_and_a_little_over_the_cache() -> None:
    controller = Controller(1000.0, known=True)
    for _ in range(200):
        controller.on_window(window(bound=True))
    assert 1000.0 < controller.limit <= 1200.0
    for _ in range(200):
        controller.on_window(window(preempted=1))
    assert controller.limit == 100.0


def test_of_an_unknown_cache_it_grows_beyond_the_guess() -> None:
    controller = Controller(1000.0, known=False)
    for _ in range(300):
        controller.on_window(window(bound=True))
    assert controller.limit > 5000.0


def test_when_the_size_is_told_the_limit_keeps_its_part() -> None:
    controller = Controller(1000.0, known=False, fraction=0.5)
    controller.learn_capacity(10_000)
    assert (controller.limit, controller.fraction) == (5000.0, 0.5)
    controller.learn_capacity(10_000)
    assert controller.limit == 5000.0
    guessed = Controller(1000.0, known=False, fraction=50.0)
    guessed.learn_capacity(2000)
    assert guessed.limit <= 2400.0, "what is known bounds it"


@pytest.mark.parametrize(("given", "taken"), [(-1.0, 0.1), (0.0, 0.1), (0.5, 0.5), (1e9, 1.2)])
def test_a_remembered_part_is_bounded(given: float, taken: float) -> None:
    assert Controller(1000.0, known=True, fraction=given).fraction == pytest.approx(taken)


def test_it_does_not_grow_while_something_else_binds() -> None:
    assert moved(bound=True, room=600.0) == 0.0
    assert moved(bound=True, room=800.0) > 0.0


def test_what_is_remembered_is_a_limit_in_tokens_where_the_cache_is_known() -> None:
    known = Controller(1000.0, known=True)
    known.remember(500.0, 0.8)
    assert known.limit == 400.0


def test_where_it_is_not_what_is_remembered_is_the_better_guess() -> None:
    guessing = Controller(1000.0, known=False)
    guessing.remember(500.0, 0.8)
    assert (guessing.capacity, guessing.limit) == (500.0, 400.0)
    guessing.learn_capacity(500)
    assert guessing.limit == 400.0
